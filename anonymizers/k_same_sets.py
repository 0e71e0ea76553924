"""How the k-Same family puts a set of faces into clusters: pure functions on the faces' scalar products.

Pixels are whole numbers, so scalar products and distances of faces are exact in float64 (below 2**53), whatever the order
of summation: neither threads nor machines change a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deidbench.types import Image

Matrix = npt.NDArray[np.float64]
#: Faces that are turned into float64 at a time.
BLOCK = 256


class Clusters(NamedTuple):
    """members: of each cluster, indices of faces; every face is in exactly one.  shown: whose average each cluster shows."""

    members: list[list[int]]
    shown: list[int]


def products(crops: Image) -> Matrix:
    """Scalar products of uint8 faces (n, ...) as vectors of pixels: float64 (n, n), exact."""
    flat = crops.reshape(len(crops), -1)
    out = np.empty((len(flat), len(flat)))
    for i in range(0, len(flat), BLOCK):
        rows = flat[i : i + BLOCK].astype(np.float64)
        for j in range(0, i + 1, BLOCK):
            block = rows @ flat[j : j + BLOCK].astype(np.float64).T
            out[i : i + BLOCK, j : j + BLOCK] = block
            out[j : j + BLOCK, i : i + BLOCK] = block.T
    return out


def squared_distances(products: Matrix, face: int, others: Sequence[int]) -> Matrix:
    """|x_face - x_other|^2 = <x, x> + <y, y> - 2 <x, y> of each other face, float64 (len(others),)."""
    at = np.asarray(others, np.intp)
    return np.asarray(products[face, face] + products[at, at] - 2 * products[face, at])


def _by_distance(products: Matrix, face: int, others: Sequence[int]) -> list[int]:
    """``others`` with the nearest to ``face`` first, in their own order where distances tie."""
    order = np.argsort(squared_distances(products, face, others), kind="stable")
    return [others[i] for i in order]


def nearest(products: Matrix, faces: Sequence[int], k: int) -> Clusters:
    """k-Same: the first face that is left and the k - 1 nearest to it, again and again; fewer than 2k stay together.

    Each cluster has k to 2k - 1 faces and shows its own average.  Faces are taken in the order given.
    (Newton, Sweeney, Malin 2005, algorithm k-Same.)  Raises ValueError for fewer than k faces.
    """
    if len(faces) < k:
        raise ValueError(f"{len(faces)} faces make no cluster of {k}")
    left, members = list(faces), []
    while left:
        if len(left) < 2 * k:
            members.append(left)
            break
        first, *rest = left
        cluster = [first, *_by_distance(products, first, rest)[: k - 1]]
        members.append(cluster)
        taken = set(cluster)
        left = [f for f in left if f not in taken]
    return Clusters(members, list(range(len(members))))


def furthest(products: Matrix, faces: Sequence[int], k: int) -> Clusters:
    """k-Same-furthest: clusters in pairs that are far apart, each showing the other's average.

    The first face that is left and the k - 1 nearest to it are one cluster, the k furthest from it the other; where fewer
    than 4k are left, the nearer half and the further half of them.  Each cluster has k to 2k faces.
    Raises ValueError for fewer than 2k faces.
    """
    if len(faces) < 2 * k:
        raise ValueError(f"{len(faces)} faces make no two clusters of {k}")
    left, clusters = list(faces), Clusters([], [])
    while left:
        first, *rest = left
        order = [first, *_by_distance(products, first, rest)]
        near = k if len(left) >= 4 * k else len(left) // 2
        far = k if len(left) >= 4 * k else len(left) - near
        pair = [order[:near], order[len(order) - far :]]
        at = len(clusters.members)
        clusters.members.extend(pair)
        clusters.shown.extend((at + 1, at))
        taken = {f for cluster in pair for f in cluster}
        left = [f for f in left if f not in taken]
    return clusters


def averages(crops: Image, members: Sequence[Sequence[int]]) -> Image:
    """The mean face of each cluster, halves rounded up: uint8 (len(members), ...)."""
    out = np.empty((len(members), *crops.shape[1:]), np.uint8)
    for i, cluster in enumerate(members):
        total = crops[list(cluster)].sum(axis=0, dtype=np.int64)
        out[i] = (2 * total + len(cluster)) // (2 * len(cluster))  # floor(mean + 1/2) in whole numbers
    return out


class Eigenspace:
    """The principal components (eigenfaces) of n faces, through their n x n scalar products.

    components: below 1 the least share of the variance that the components kept must hold together, from 1 on their number.
    A component of no variance is never kept.  (Turk and Pentland 1991 for the small eigenproblem.)

    scores: float64 (n, q), the faces' coordinates on the q components kept.  weights: (n, n), ``weights[i]`` are the shares
    of the centred faces in face i rebuilt from its coordinates.
    """

    def __init__(self, products: Matrix, components: float) -> None:
        n = len(products)
        means = products.mean(axis=0)
        centred = products - means[:, None] - means[None, :] + means.mean()
        values, vectors = np.linalg.eigh(centred)
        values, vectors = values[::-1], vectors[:, ::-1]
        real = int((values > max(values[0], 0.0) * n * np.finfo(np.float64).eps * 10).sum())
        if components < 1 and real:
            held = np.cumsum(values[:real]) / values[:real].sum()
            keep = int(np.searchsorted(held, components * (1 - 1e-12)) + 1)
        else:
            keep = int(components)
        self.kept = min(keep, real)
        kept = vectors[:, : self.kept]
        self.scores: Matrix = kept * np.sqrt(values[: self.kept])
        self.weights: Matrix = kept @ kept.T

    @property
    def products(self) -> Matrix:
        """Scalar products of the coordinates, for :func:`squared_distances`: float64 (n, n)."""
        return np.asarray(self.scores @ self.scores.T)

    def averages(self, crops: Image, members: Sequence[Sequence[int]]) -> Image:
        """Each cluster's mean coordinates as a face: uint8 (len(members), ...), rounded and clipped to 0..255."""
        n = len(crops)
        flat = crops.reshape(n, -1)
        mean = flat.mean(axis=0, dtype=np.float64)
        shares = np.array([self.weights[list(cluster)].mean(axis=0) for cluster in members])
        out = (1 - shares.sum(axis=1))[:, None] * mean
        for i in range(0, n, BLOCK):
            out += shares[:, i : i + BLOCK] @ flat[i : i + BLOCK].astype(np.float64)
        # 1e-6: where all components are kept this is the mean of whole numbers, whose halves must round as they do there
        rounded = np.clip(np.floor(out + 0.5 + 1e-6), 0, 255).astype(np.uint8)
        return np.asarray(rounded.reshape(len(members), *crops.shape[1:]))


def nearest_centre(crop: Image, centres: Image) -> int:
    """Index of the centre (uint8 (c, ...)) nearest to ``crop``, the first where they tie; distances are exact."""
    flat, x = centres.reshape(len(centres), -1), crop.reshape(-1).astype(np.int64)
    squared = np.concatenate(
        [((flat[i : i + BLOCK].astype(np.int64) - x) ** 2).sum(axis=1) for i in range(0, len(flat), BLOCK)]
    )
    return int(squared.argmin())


def most_typical(crops: Image) -> int:
    """Index of the face nearest to the mean of all, the first where they tie; distances are exact."""
    flat = crops.reshape(len(crops), -1).astype(np.int64)
    return int(((len(flat) * flat - flat.sum(axis=0)) ** 2).sum(axis=1).argmin())
