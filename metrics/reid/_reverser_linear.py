"""Undoing by regression: every clear pixel as a weighted sum of all anonymised ones (ridge regression, closed form).

Worked out in the space of the pictures, of which there are fewer than pixels (Saunders, Gammerman & Vovk, Ridge Regression
Learning Algorithm in Dual Variables, ICML 1998): with centred anonymised values X (n x p), clear ones Y (n x p) and
K = X X' = U diag(s) U', a new picture x gives x X' U diag(1 / (s + c)) U' Y.  Nothing p x p ever exists, and the held-out
error of every c follows from n x n matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: The most pairs that are learnt from (n^3 work and n^2 memory), spread evenly over those given.
MOST = 4000
#: The penalty c as shares of the mean of s; the one with the least held-out error counts.
PENALTIES = tuple(10.0**e for e in np.arange(-6.0, 2.5, 0.5))
#: Values of a picture worked on at once.
_TILE = 4096


@dataclass(frozen=True, eq=False)
class Linear:
    """A regression learnt.  anonymised, clear: uint8 (n, s, s, 3) the pairs.  inverse: float64 (n, n), U diag(1 / (s + c)) U'.

    mean_anonymised, mean_clear: float64 (s * s * 3,).  penalty: share of the mean of s.  error: mean squared held-out error.
    """

    anonymised: npt.NDArray[np.uint8]
    clear: npt.NDArray[np.uint8]
    inverse: npt.NDArray[np.float64]
    mean_anonymised: npt.NDArray[np.float64]
    mean_clear: npt.NDArray[np.float64]
    penalty: float
    error: float

    def restore(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Anonymised crops uint8 (n, s, s, 3) -> clear ones as far as they can be told, same shape and type."""
        weights = _products(crops, self.mean_anonymised, self.anonymised, self.mean_anonymised) @ self.inverse
        values = self.clear.reshape(len(self.clear), -1)
        out = np.empty((len(crops), values.shape[1]), np.uint8)
        for start in range(0, values.shape[1], _TILE):
            at = slice(start, start + _TILE)
            made = weights @ (values[:, at] - self.mean_clear[at]) + self.mean_clear[at]
            out[:, at] = np.rint(made).clip(0, 255).astype(np.uint8)
        return out.reshape(crops.shape)


def learn_linear(
    anonymised: npt.NDArray[np.uint8],
    clear: npt.NDArray[np.uint8],
    held_anonymised: npt.NDArray[np.uint8],
    held_clear: npt.NDArray[np.uint8],
) -> Linear | None:
    """The regression between pairs, all uint8 (n, s, s, 3); None where the anonymised pictures are all the same."""
    n = len(clear)
    if n > MOST:
        chosen = np.linspace(0, n - 1, MOST).round().astype(np.intp)
        anonymised, clear = anonymised[chosen], clear[chosen]
        n = MOST
    mx, my = (crops.reshape(n, -1).mean(axis=0, dtype=np.float64) for crops in (anonymised, clear))
    s, u = np.linalg.eigh(_products(anonymised, mx, anonymised, mx))
    s = np.maximum(s, 0)
    if s[-1] < 0.5:  # whole numbers: pictures that differ at all have a sum of squares above it
        return None
    # with W = Xh X' U diag(1 / (s + c)) U' the error is |Yh - W Y|^2 = |Yh|^2 - 2 tr(W Y Yh') + tr(W Y Y' W')
    to = _products(held_anonymised, mx, anonymised, mx) @ u
    yy = u.T @ _products(clear, my, clear, my) @ u
    yh = u.T @ _products(clear, my, held_clear, my)
    own = sum(float(((c.reshape(-1) - my) ** 2).sum()) for c in held_clear)
    errors = []
    for penalty in PENALTIES:
        w = to / (s + penalty * s.mean())
        errors.append((own - 2 * float((w * yh.T).sum()) + float(((w @ yy) * w).sum())) / held_clear.size)
    best = int(np.argmin(errors))
    inverse = (u / (s + PENALTIES[best] * s.mean())) @ u.T
    return Linear(anonymised, clear, inverse, mx, my, PENALTIES[best], errors[best])


def _products(
    a: npt.NDArray[np.uint8],
    mean_a: npt.NDArray[np.float64],
    b: npt.NDArray[np.uint8],
    mean_b: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """float64 (len(a), len(b)): inner products of the flattened, centred pictures.

    In double precision, so that a restored value is the same whatever else is restored with it.
    """
    x, y = a.reshape(len(a), -1), b.reshape(len(b), -1)
    out = np.zeros((len(a), len(b)))
    for start in range(0, x.shape[1], _TILE):
        at = slice(start, start + _TILE)
        out += (x[:, at] - mean_a[at]) @ (y[:, at] - mean_b[at]).T
    return out
