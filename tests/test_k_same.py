"""The k-Same family: clusters against plain loops, the bound of 1/k with real recognisers, and the set in runs and folders."""

from __future__ import annotations

import math
import pickle
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from deidbench import kinds
from deidbench.anonymizers import k_same_sets as sets
from deidbench.anonymizers.k_same import KSame
from deidbench.convert import anonymize_tree
from deidbench.errors import InputError
from deidbench.faces import FaceFinder, align, moved, subject_face
from deidbench.metrics.reid.identification import hits, standings
from deidbench.pipeline import fallback_box
from deidbench.records import read_run
from deidbench.runner import Options, _Run, run_suite
from deidbench.suite import load_suite
from deidbench.types import Box, Face, Image, Item, Sample, Status

FAMILY = ("k-same-eigen", "k-same-furthest", "k-same-pixel", "k-same-select")


# ------------------------------------------------------------------------------------------- clusters, by plain loops


def _faces(n: int, seed: int, shape: tuple[int, ...] = (3, 4, 3)) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def _distance(a: Image, b: Image) -> int:
    return sum((int(x) - int(y)) ** 2 for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))


def _newton(crops: Image, k: int) -> list[list[int]]:
    """Algorithm k-Same, word by word."""
    left, clusters = list(range(len(crops))), []
    while left:
        size = len(left) if len(left) < 2 * k else k
        probe = left[0]
        chosen = sorted(left, key=lambda j: (j != probe, _distance(crops[probe], crops[j]), left.index(j)))[:size]
        clusters.append(sorted(chosen))
        left = [j for j in left if j not in chosen]
    return clusters


def _pairs(crops: Image, k: int) -> list[tuple[list[int], list[int]]]:
    left, pairs = list(range(len(crops))), []
    while left:
        probe = left[0]
        order = sorted(left, key=lambda j: (j != probe, _distance(crops[probe], crops[j]), left.index(j)))
        near, far = (order[:k], order[-k:]) if len(left) >= 4 * k else (order[: len(left) // 2], order[len(left) // 2 :])
        pairs.append((sorted(near), sorted(far)))
        left = [j for j in left if j not in near and j not in far]
    return pairs


def _mean(crops: Image, cluster: Sequence[int]) -> Image:
    """Mean of each pixel, halves rounded up."""
    out = np.empty(crops.shape[1:], np.uint8)
    for at in np.ndindex(*out.shape):
        out[at] = math.floor(sum(int(crops[i][at]) for i in cluster) / len(cluster) + 0.5)
    return out


@pytest.mark.parametrize(("n", "k"), [(2, 2), (3, 2), (7, 2), (10, 5), (11, 3), (23, 4), (9, 9)])
def test_nearest_clusters_and_their_averages_are_those_of_plain_loops(n: int, k: int) -> None:
    crops = _faces(n, seed=n * 100 + k)
    found = sets.nearest(sets.products(crops), range(n), k)
    assert [sorted(c) for c in found.members] == _newton(crops, k)
    assert found.shown == list(range(len(found.members)))
    assert sorted(i for c in found.members for i in c) == list(range(n))
    assert all(k <= len(c) < 2 * k for c in found.members)
    for average, cluster in zip(sets.averages(crops, found.members), found.members, strict=True):
        np.testing.assert_array_equal(average, _mean(crops, cluster))


@pytest.mark.parametrize(("n", "k"), [(4, 2), (5, 2), (8, 2), (9, 2), (20, 3), (23, 5)])
def test_furthest_clusters_exchange_their_averages(n: int, k: int) -> None:
    crops = _faces(n, seed=n * 7 + k)
    found = sets.furthest(sets.products(crops), range(n), k)
    pairs = _pairs(crops, k)
    assert [sorted(c) for c in found.members] == [c for pair in pairs for c in pair]
    for i, shown in enumerate(found.shown):
        assert shown == (i + 1 if i % 2 == 0 else i - 1)
        assert not set(found.members[i]) & set(found.members[shown]), "nothing of a face is in what is shown for it"
    assert sorted(i for c in found.members for i in c) == list(range(n))
    assert all(k <= len(c) <= 2 * k for c in found.members)


def test_too_few_faces_make_no_cluster() -> None:
    products = sets.products(_faces(5, 0))
    with pytest.raises(ValueError, match="5 faces"):
        sets.nearest(products, range(5), 6)
    with pytest.raises(ValueError, match="two clusters"):
        sets.furthest(products, range(5), 3)


def test_faces_that_tie_keep_their_order() -> None:
    crops = np.repeat(_faces(2, 3), 4, axis=0)[[0, 4, 1, 5, 2, 6, 3, 7]]  # two faces, four times each, in turn
    assert sets.nearest(sets.products(crops), range(8), 2).members == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_scalar_products_are_exact() -> None:
    assert sets.products(np.full((1, 512, 512, 3), 255, np.uint8))[0, 0] == 255 * 255 * 512 * 512 * 3
    many = _faces(sets.BLOCK + 5, 2)  # more than one block
    flat = many.reshape(len(many), -1).astype(np.int64)
    np.testing.assert_array_equal(sets.products(many), flat @ flat.T)


def test_the_most_typical_face_and_the_nearest_centre() -> None:
    crops = _faces(9, 4)
    mean = crops.mean(axis=0)
    by_loop = [float(((c - mean) ** 2).sum()) for c in crops]
    assert sets.most_typical(crops) == int(np.argmin(by_loop))
    assert sets.most_typical(crops[:1]) == 0
    probe = _faces(1, 5)[0]
    assert sets.nearest_centre(probe, crops) == min(range(9), key=lambda i: _distance(probe, crops[i]))


# ------------------------------------------------------------------------------------------------------- eigenfaces


@pytest.mark.parametrize("components", [1, 3, 7, 0.5, 0.9])
def test_eigenfaces_are_those_of_scikit_learn(components: float) -> None:
    crops = _faces(12, 8, (6, 5, 3))
    flat = crops.reshape(12, -1).astype(np.float64)
    theirs = PCA(n_components=components, svd_solver="full").fit(flat)
    space = sets.Eigenspace(sets.products(crops), components)
    assert space.kept == theirs.n_components_
    scores = theirs.transform(flat)
    np.testing.assert_allclose(np.abs(space.scores), np.abs(scores), atol=1e-6)
    members = [[0, 3, 5], [1, 2, 4, 6, 7, 8, 9, 10, 11]]
    made = space.averages(crops, members)
    for average, cluster in zip(made, members, strict=True):
        expected = theirs.inverse_transform(scores[cluster].mean(axis=0, keepdims=True))[0]
        np.testing.assert_allclose(average.ravel(), np.clip(expected, 0, 255), atol=0.5 + 1e-4)
    distances = ((scores[2] - scores) ** 2).sum(axis=1)
    np.testing.assert_allclose(sets.squared_distances(space.products, 2, range(12)), distances, atol=1e-5)


def test_with_all_eigenfaces_it_is_the_pixel_average() -> None:
    crops = _faces(10, 9)
    products = sets.products(crops)
    space = sets.Eigenspace(products, 9)
    assert space.kept == 9
    by_eigen, by_pixel = sets.nearest(space.products, range(10), 3), sets.nearest(products, range(10), 3)
    assert by_eigen == by_pixel
    np.testing.assert_array_equal(space.averages(crops, by_eigen.members), sets.averages(crops, by_pixel.members))
    assert sets.Eigenspace(products, 500).kept == 9, "ten faces have nine components of any variance"


def test_equal_faces_have_no_eigenface() -> None:
    crops = np.repeat(_faces(1, 10), 6, axis=0)
    for components in (0.95, 3):
        space = sets.Eigenspace(sets.products(crops), components)
        assert space.kept == 0
        np.testing.assert_array_equal(space.averages(crops, [[0, 1, 2], [3, 4, 5]]), crops[:2])


# ------------------------------------------------------------------------------------------------------ on real faces

Gallery = Mapping[str, Item]


@pytest.fixture(scope="module")
def one_each(orl_folder: Path, finder: FaceFinder) -> Gallery:
    """The person-specific set: the first image of each of the 40 persons."""
    return _items(orl_folder, finder, range(1, 41), (1,))


@pytest.fixture(scope="module")
def several(orl_folder: Path, finder: FaceFinder) -> Gallery:
    """Ten persons with four images each."""
    return _items(orl_folder, finder, range(1, 11), (1, 4, 6, 9))


def _items(folder: Path, finder: FaceFinder, persons: Sequence[int], images: Sequence[int]) -> dict[str, Item]:
    from deidbench.images import read_image

    found = {}
    for p in persons:
        for i in images:
            image = read_image(folder / f"s{p}" / f"{i}.pgm")
            found[f"s{p}/{i}"] = Item(f"s{p}/{i}", image, tuple(finder.find(image)), 0, f"s{p}")
    return found


def _samples(gallery: Gallery, **labels: Callable[[str], Any]) -> list[Sample]:
    return [Sample(i, Path(i), i.partition("/")[0], "", **{k: f(i) for k, f in labels.items()}) for i in gallery]


def _team(image: str) -> dict[str, str]:
    """A label to select by: five persons in one team, the others in another."""
    return {"team": "red" if image.partition("/")[0] in ("s1", "s8", "s10", "s32", "s35") else "blue"}


def _fitted(name: str, gallery: Gallery, samples: Sequence[Sample] | None = None, **params: Any) -> KSame:
    made = kinds.anonymizers.create(name, **params)
    assert isinstance(made, KSame)
    made.load()
    if samples is None:
        samples = _samples(gallery, groups=_team)
    made.fit(samples, lambda s: gallery[s.id])
    return made


def _params(name: str, **params: Any) -> dict[str, Any]:
    return {**({"utility": "team"} if name == "k-same-select" else {}), **params}


def _shown(made: KSame, gallery: Gallery) -> dict[str, bytes]:
    """What each image's output is."""
    results = made.anonymize(list(gallery.values()))
    assert all(r.status is Status.OK for r in results)
    return {r.id: r.image.tobytes() for r in results}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", FAMILY)
def test_at_least_k_persons_share_each_whole_crop(name: str, one_each: Gallery) -> None:
    for k in (2, 3, 5, 8, 20 if name == "k-same-furthest" else 5):
        made = _fitted(name, one_each, **_params(name, k=k, output="crop", size=64))
        results = made.anonymize(list(one_each.values()))
        assert {r.image.shape for r in results} == {(64, 64, 3)}  # type: ignore[union-attr]
        shared = Counter(r.image.tobytes() for r in results)  # type: ignore[union-attr]
        assert min(shared.values()) >= k
        assert sum(shared.values()) == 40
        # ... and nothing else that is released tells them apart: neither boxes nor words
        assert len({r.faces for r in results}) == 1
        assert {r.reason for r in results} == {""}


def test_k_equals_n_makes_everybody_the_same(one_each: Gallery) -> None:
    made = _fitted("k-same-pixel", one_each, k=40, output="crop", size=32)
    crops = np.stack([made._crop(i.image, i.faces[0]) for i in one_each.values()])  # type: ignore[index]
    [only] = set(_shown(made, one_each).values())
    np.testing.assert_array_equal(np.frombuffer(only, np.uint8), np.floor(crops.mean(axis=0) + 0.5).ravel())


def test_a_crop_is_the_mean_of_its_clusters_aligned_faces(one_each: Gallery) -> None:
    """By another way: the frame is padded by numpy, faces are aligned, and clusters are found by plain loops."""
    made = _fitted("k-same-pixel", one_each, k=7, output="crop", size=128)
    order = sorted(one_each)  # persons by name: s1, s10, s11, ...
    crops = []
    for i in order:
        item = one_each[i]
        padded = np.pad(item.image, ((100, 100), (100, 100), (0, 0)), mode="edge")
        face = moved(item.faces[0], np.array([[1.0, 0, 100], [0, 1.0, 100]]))  # type: ignore[index]
        crops.append(align(padded, face, made.crop).astype(np.int16))
    mine = [made._crop(one_each[i].image, one_each[i].faces[0]) for i in order]  # type: ignore[index]
    # OpenCV places samples on a grid of 1/32 pixel, which the padding moves
    apart = np.abs(np.stack(mine) - np.stack(crops))
    assert apart.max() <= 8 and apart.mean() < 0.3
    clusters = _newton(np.stack(mine), 7)
    results = {r.id: r.image for r in made.anonymize(list(one_each.values()))}
    for cluster in clusters:
        expected = np.stack([mine[j] for j in cluster]).mean(axis=0)
        for j in cluster:
            np.testing.assert_array_equal(results[order[j]], np.floor(expected + 0.5))


def test_the_order_of_the_samples_changes_nothing_and_the_set_does(several: Gallery) -> None:
    samples = _samples(several, groups=_team)
    made = _fitted("k-same-pixel", several, samples, k=3)
    turned = _fitted("k-same-pixel", several, samples[::-1], k=3)
    assert made.fingerprint == turned.fingerprint
    assert _shown(made, several) == _shown(turned, several)
    fewer = _fitted("k-same-pixel", several, samples[:-1], k=3)
    unfitted = kinds.anonymizers.create("k-same-pixel", k=3)
    assert (
        len({made.fingerprint, fewer.fingerprint, unfitted.fingerprint, _fitted("k-same-pixel", several, k=4).fingerprint}) == 4
    )
    travelled = pickle.loads(pickle.dumps(made))
    travelled.load()
    assert travelled.fingerprint == made.fingerprint
    assert _shown(travelled, several) == _shown(made, several)


def test_all_images_of_a_clusters_persons_are_one_face(several: Gallery) -> None:
    """Person-specific by default: one image stands for a person, all of his images come out as the cluster's face."""
    made = _fitted("k-same-pixel", several, k=3, output="crop", size=48)
    shown = _shown(made, several)
    faces: dict[bytes, set[str]] = defaultdict(set)
    for i, face in shown.items():
        faces[face].add(i.partition("/")[0])
    assert all(len(persons) >= 3 for persons in faces.values())
    assert sum(len(persons) for persons in faces.values()) == 10, "no person is in two clusters"
    each = _shown(_fitted("k-same-pixel", several, k=3, output="crop", size=48, images="each"), several)
    alone = [
        face for face, n in Counter(each.values()).items() if len({i.partition("/")[0] for i in each if each[i] == face}) == 1
    ]
    assert alone, "averages of one person's images hide nobody"


def test_pasted_back_the_square_is_replaced_and_all_else_keeps_every_bit(one_each: Gallery) -> None:
    crop = _fitted("k-same-pixel", one_each, k=5, output="crop", size=128, margin=0.8)
    made = _fitted("k-same-pixel", one_each, k=5, size=128, margin=0.8)
    for item in list(one_each.values())[:8]:
        [whole], [alone] = made.anonymize([item]), crop.anonymize([item])
        assert whole.image is not None and alone.image is not None
        h, w = item.image.shape[:2]
        cut = made._cut(item.faces[0])  # type: ignore[index]
        x, y = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
        u, v = (a * x + b * y + c for a, b, c in cut.unit)
        inside = (u > 0) & (u < 1) & (v > 0) & (v < 1)
        assert 0.1 < inside.mean() < 0.9
        np.testing.assert_array_equal(whole.image[~inside], item.image[~inside])
        # seen through the alignment again, it is the cluster's face (resampled twice)
        again = align(whole.image, item.faces[0], made.crop)  # type: ignore[index]
        middle = slice(8, -8), slice(8, -8)
        assert np.abs(again[middle].astype(float) - alone.image[middle]).mean() < 3
        assert whole.faces[0].box == cut.box


# ------------------------------------------------------------------------------- the bound, with recognisers that work


@pytest.fixture(scope="module")
def recognizers() -> dict[str, Any]:
    found = {n: kinds.recognizers.create(n) for n in ("dlib", "sface")}
    for r in found.values():
        r.load()
    return found


class _Attack:
    """The ignorant attacker: finds the face in what was released, else cuts out the published box; nearest clear original."""

    def __init__(self, finder: FaceFinder, recognizers: Mapping[str, Any], gallery: Gallery) -> None:
        self.finder, self.recognizers = finder, recognizers
        self.persons = np.unique([i.subject_id for i in gallery.values()], return_inverse=True)[1]
        self.known: dict[tuple[str, bytes], Any] = {}
        self.clear = {n: np.stack([self._embed(n, i.image, i.faces[0]) for i in gallery.values()]) for n in recognizers}  # type: ignore[index]

    def _embed(self, name: str, image: Image, face: Face) -> Any:
        k = (name, image.tobytes())
        if k not in self.known:
            r = self.recognizers[name]
            self.known[k] = r.embed(align(image, face, r.crop)[None])[0]
        return self.known[k]

    def rank1(self, name: str, images: Sequence[Image], boxes: Sequence[Box | None]) -> np.ndarray:
        """Expected hit (0 to 1) of each probe, in the gallery's order."""
        probes = []
        for image, box in zip(images, boxes, strict=True):
            k = (name, image.tobytes())
            if k not in self.known:
                face = subject_face(self.finder.find(image)) or Face(
                    box or fallback_box(None, image.shape[:2], None, (0, 0, 1, 1))
                )
                self._embed(name, image, face)
            probes.append(self.known[k])
        scores = (np.stack(probes) @ self.clear[name].T).astype(np.float32)
        found = standings(scores, self.persons, self.persons, np.full(len(probes), -1))
        return hits(found.above, found.tied, found.tied_mates, 1)[:, 0]


@pytest.fixture(scope="module")
def attack(finder: FaceFinder, recognizers: dict[str, Any], one_each: Gallery) -> _Attack:
    return _Attack(finder, recognizers, one_each)


def test_the_attacker_works(attack: _Attack, one_each: Gallery) -> None:
    for name in attack.recognizers:
        clear = attack.rank1(name, [i.image for i in one_each.values()], [None] * 40)
        assert clear.mean() == 1.0


@pytest.mark.parametrize("k", [2, pytest.param(3, marks=pytest.mark.slow), 5, 8])
@pytest.mark.parametrize("name", FAMILY)
def test_the_ignorant_attacker_names_one_in_k_at_the_most(name: str, k: int, attack: _Attack, one_each: Gallery) -> None:
    """Person-specific set, whole crop replaced, the very originals in his gallery: rank-1 <= 1/k, exactly."""
    if name == "k-same-select" and k == 8:
        k = 5  # a team has five
    results = _fitted(name, one_each, **_params(name, k=k, output="crop")).anonymize(list(one_each.values()))
    for recognizer in attack.recognizers:
        named = attack.rank1(recognizer, [r.image for r in results], [r.faces[0].box for r in results])  # type: ignore[misc]
        assert named.mean() <= 1 / k
        if name in ("k-same-pixel", "k-same-select") and k < 8:
            assert named.mean() > 1 / 40, "better than guessing: the bound is put to the test"
        if name == "k-same-furthest":
            assert named.mean() <= 5 / 40, "nothing of a face is in its output: chance, 1/40 (99.9 % of the time up to 5/40)"


def test_the_bound_fails_where_several_images_a_person_are_taken_for_persons(
    finder: FaceFinder, recognizers: dict[str, Any], several: Gallery
) -> None:
    attack = _Attack(finder, recognizers, several)
    persons = [i.subject_id for i in several.values()]
    for recognizer in recognizers:
        rates = {}
        for images in ("each", "one"):
            results = _fitted("k-same-pixel", several, k=4, output="crop", images=images).anonymize(list(several.values()))
            named = attack.rank1(recognizer, [r.image for r in results], [r.faces[0].box for r in results])  # type: ignore[misc]
            rates[images] = np.mean([np.mean([h for h, p in zip(named, persons, strict=True) if p == q]) for q in set(persons)])
        assert rates["each"] > 1.5 / 4, "averages of a person's own images are that person"
        assert rates["one"] <= 1 / 4


# ------------------------------------------------------------------------------------------------------------- select


def _clusters(made: KSame, gallery: Gallery) -> dict[str, int]:
    """Image -> its cluster."""
    from deidbench.anonymizers.k_same import _pixels_sha256

    assert made.fitted_ is not None
    return {i: made.fitted_.members[_pixels_sha256(item.image)][0][1] for i, item in gallery.items()}


def test_select_keeps_the_label(one_each: Gallery) -> None:
    made = _fitted("k-same-select", one_each, k=5, utility="team")
    of = _clusters(made, one_each)
    for cluster in set(of.values()):
        assert len({_team(i)["team"] for i in of if of[i] == cluster}) == 1
    mixed = _clusters(_fitted("k-same-pixel", one_each, k=5), one_each)
    assert any(len({_team(i)["team"] for i in mixed if mixed[i] == c}) == 2 for c in set(mixed.values()))


def _labelled(gallery: Gallery, label: Callable[[str], str | None]) -> list[Sample]:
    return _samples(gallery, emotion=label)


def test_small_groups_are_pooled_and_a_small_pool_joins_the_largest_group(one_each: Gallery) -> None:
    def label(i: str) -> str | None:
        p = int(i.partition("/")[0][1:])
        return (
            "neutral"
            if p <= 20
            else "anger"
            if p <= 30
            else "fear"
            if p <= 32
            else "disgust"
            if p <= 34
            else "surprise"
            if p <= 38
            else None
        )

    def groups(k: int) -> set[frozenset[str | None]]:
        of = _clusters(_fitted("k-same-select", one_each, _labelled(one_each, label), k=k), one_each)
        sizes = Counter(of.values())
        assert min(sizes.values()) >= k
        return {frozenset(label(i) for i in of if of[i] == c) for c in sizes}

    # fear 2, disgust 2, unlabelled 2: a pool of 6; surprise 4
    assert groups(4) == {
        frozenset({"neutral"}),
        frozenset({"anger"}),
        frozenset({"surprise"}),
        frozenset({"fear", "disgust", None}),
    }
    # surprise is too small too: a pool of 10, two clusters of 5
    for mixed in groups(5) - {frozenset({"neutral"}), frozenset({"anger"})}:
        assert mixed <= {"fear", "disgust", "surprise", None}
    # at 11 all but neutral are pooled (20 persons); at 21 nothing is large enough, and all are one pool
    assert all("neutral" not in g or len(g) == 1 for g in groups(11))
    assert len(groups(21)) == 1
    # a pool of fewer than k joins the largest group
    few = {i: one_each[i] for i in one_each if int(i.partition("/")[0][1:]) <= 31}
    of = _clusters(_fitted("k-same-select", few, _labelled(few, label), k=3), few)
    with_fear = [i for i in of if of[i] == of["s31/1"]]
    assert {label(i) for i in with_fear} == {"neutral", "fear"}


def test_a_person_with_two_labels_is_in_both_groups_and_person_specific_in_each(several: Gallery) -> None:
    def label(i: str) -> str:
        return "happiness" if i.endswith(("/6", "/9")) else "neutral"

    made = _fitted("k-same-select", several, _labelled(several, label), k=3, output="crop", size=48)
    of = _clusters(made, several)
    for cluster in set(of.values()):
        assert len({label(i) for i in of if of[i] == cluster}) == 1
        assert len({i.partition("/")[0] for i in of if of[i] == cluster}) >= 3
    for p in range(1, 11):
        assert of[f"s{p}/1"] == of[f"s{p}/4"] != of[f"s{p}/6"] == of[f"s{p}/9"]
    # where nobody else smiles, the smiling image joins the others, and its person stays one person there
    alone = _fitted("k-same-select", several, _labelled(several, lambda i: "happiness" if i == "s3/6" else "neutral"), k=3)
    assert {c for i, c in _clusters(alone, several).items() if i.startswith("s3/")} == {_clusters(alone, several)["s3/1"]}


def test_select_without_labels_says_so(several: Gallery) -> None:
    with pytest.raises(InputError, match="no image of the set has the label 'emotion'") as caught:
        _fitted("k-same-select", several, k=3)
    assert "k-same-pixel" in caught.value.remedy
    attributes = _samples(several, attributes=lambda i: {"Smiling": int(i.endswith("/1"))})
    of = _clusters(_fitted("k-same-select", several, attributes, k=3, utility="Smiling"), several)
    assert of["s1/1"] != of["s1/4"] == of["s1/6"]


# -------------------------------------------------------------------------------------------------- what goes wrong


def test_parameters_out_of_range_are_refused(tmp_path: Path) -> None:
    for params, words in [
        ({"k": 1}, "as it is"),
        ({"k": 0}, "whole number"),
        ({"k": 2.5}, "whole number"),
        ({"k": True}, "whole number"),
        ({"size": 8}, "size"),
        ({"images": "all"}, "images"),
        ({"output": "face"}, "output"),
        ({"margin": 0}, "margin"),
        ({"gallery": str(tmp_path / "nowhere")}, "sub-folder per person"),
        ({"gallery": 3}, "folder"),
    ]:
        with pytest.raises(InputError) as caught:
            kinds.anonymizers.create("k-same-pixel", **params).validate()
        assert words in str(caught.value)
    for components in (0, -1, 2.5, "many"):
        with pytest.raises(InputError, match="components"):
            kinds.anonymizers.create("k-same-eigen", components=components).validate()
    kinds.anonymizers.create("k-same-eigen", components=3).validate()


@pytest.mark.parametrize("name", FAMILY)
def test_too_few_persons_are_refused_with_a_way_out(name: str, several: Gallery) -> None:
    most = 5 if name == "k-same-furthest" else 10
    samples = _samples(several, groups=_team)
    _fitted(name, several, samples, **_params(name, k=most))
    with pytest.raises(InputError, match="10 with a usable face") as caught:
        _fitted(name, several, samples, **_params(name, k=most + 1))
    assert f"a k of {most} or less" in caught.value.remedy
    one = [s for s in samples if s.subject_id == "s1"]
    with pytest.raises(InputError, match="the set has 1") as caught:
        _fitted(name, several, one, **_params(name, k=2))
    assert "--param gallery=FOLDER" in caught.value.remedy


def test_faces_without_landmarks_are_no_part_of_the_set(several: Gallery) -> None:
    blind = {i: Item(i, item.image, (Face(item.faces[0].box),)) if i.startswith("s2/") else item for i, item in several.items()}  # type: ignore[index]
    with pytest.raises(InputError, match=r"9 with a usable face \(4 images"):
        _fitted("k-same-pixel", blind, k=10)
    made = _fitted("k-same-pixel", blind, k=3)
    [result] = made.anonymize([blind["s2/1"]])
    assert result.status is Status.NO_LANDMARKS
    assert result.image is None


def test_before_it_was_fitted_it_refuses(one_each: Gallery) -> None:
    made = kinds.anonymizers.create("k-same-pixel")
    made.load()
    with pytest.raises(InputError, match="was given none") as caught:
        made.anonymize(list(one_each.values())[:1])
    assert "fit(samples)" in caught.value.remedy


def test_a_bystander_shows_the_nearest_cluster_and_says_so(one_each: Gallery) -> None:
    """A frame with its subject and a second face: each is replaced, only the first is covered by the bound."""
    left, right = one_each["s1/1"], one_each["s4/1"]
    frame = np.concatenate([left.image, right.image], axis=1)
    stranger = moved(right.faces[0], np.array([[1.0, 0, 92], [0, 1.0, 0]]))  # type: ignore[index]
    both = Item("s1/1", frame, (left.faces[0], stranger))  # type: ignore[index]
    gallery = {**one_each, "s1/1": both}
    sample = [Sample(i, Path(i), i.partition("/")[0], "", box=left.faces[0].box if i == "s1/1" else None) for i in gallery]  # type: ignore[index]
    made = _fitted("k-same-pixel", gallery, sample, k=5, margin=0.7)
    [result] = made.anonymize([both])
    assert result.status is Status.OK
    assert [bool(f.reason) for f in result.faces] == [False, True]
    assert "without the bound" in result.faces[1].reason
    for face in both.faces or ():
        x0, y0, x1, y1 = (round(v) for v in face.box)
        part = slice(max(y0, 0), y1), slice(max(x0, 0), x1)
        assert (result.image[part] != frame[part]).any(axis=2).mean() > 0.6  # type: ignore[index]


def test_two_subjects_of_one_picture_are_two_persons(one_each: Gallery) -> None:
    """The same file listed twice, with the box of another person each: both belong to the set."""
    left, right = one_each["s1/1"], one_each["s4/1"]
    frame = np.concatenate([left.image, right.image], axis=1)
    faces = (left.faces[0], moved(right.faces[0], np.array([[1.0, 0, 92], [0, 1.0, 0]])))  # type: ignore[index]
    both = Item("pair", frame, faces)
    gallery = {**{i: v for i, v in one_each.items() if i not in ("s1/1", "s4/1")}, "s1/pair": both, "s4/pair": both}
    samples = [
        Sample(i, Path(i), i.partition("/")[0], "", box={"s1/pair": faces[0].box, "s4/pair": faces[1].box}.get(i))
        for i in gallery
    ]
    made = _fitted("k-same-pixel", gallery, samples, k=5)
    [result] = made.anonymize([both])
    assert [f.reason for f in result.faces] == ["", ""]


def test_grey_frames_stay_grey_in_a_coloured_set(one_each: Gallery) -> None:
    tint = np.array([1.0, 0.8, 0.6])
    coloured = {
        i: item if n % 2 else Item(i, np.rint(item.image * tint).astype(np.uint8), item.faces)
        for n, (i, item) in enumerate(one_each.items())
    }
    made, crop = (_fitted("k-same-pixel", coloured, k=5, output=o) for o in ("frame", "crop"))
    items = list(coloured.values())
    for item, result in zip(items, made.anonymize(items), strict=True):
        assert result.image is not None
        grey = bool((item.image == item.image[..., :1]).all())
        assert bool((result.image == result.image[..., :1]).all()) == grey
    # the crop alone is the same for all whose face it is, grey or not: else fewer than k would share it
    assert min(Counter(_shown(crop, coloured).values()).values()) >= 5


def test_what_is_proved_says_under_which_conditions(tmp_path: Path) -> None:
    def said(**params: Any) -> str:
        return kinds.anonymizers.create("k-same-pixel", **params).guarantee

    assert "<= 1/7 on a person-specific set" in said(k=7, output="crop")
    assert "surrounds" in said() and "surrounds" not in said(output="crop")
    assert "only where the set holds one image a person" in said(images="each")
    assert said(gallery=str(tmp_path)) == ""
    assert kinds.anonymizers.create("blur").guarantee == ""


# --------------------------------------------------------------------------------------------------------------- runs

SUITE = """\
[suite]
name = "small"
extends = "deidbench-v2"
inherit_methods = false

[dataset]
name = "folder"
params = {{ root = "{root}"{shares} }}

[protocol]
replicates = 200
curve_replicates = 100
seeds = 1
level = "{level}"

[[recognizers]]
name = "dlib"

[[metrics]]
name = "reid"
params = {{ attackers = ["ignorant", "lda"] }}

[throughput]
images = 2
repeats = 2

[report]
samples = 0

[[methods]]
name = "k-same-pixel"
params = {{ k = {k}, output = "{output}" }}

[[methods]]
name = "pixelate"
"""


def _suite(folder: Path, root: Path, k: int = 2, shares: str = "", level: str = "frame", output: str = "frame") -> Path:
    path = folder / "small.toml"
    path.write_text(SUITE.format(root=root, k=k, shares=shares, level=level, output=output))
    return path


def _people(root: Path, orl_folder: Path, persons: Sequence[int], images: Sequence[int] = (1, 4)) -> Path:
    """Persons in sub-folders."""
    for p in persons:
        (root / f"s{p}").mkdir(parents=True, exist_ok=True)
        for i in images:
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", root / f"s{p}" / f"{i}.pgm")
    return root


def _options(cache: Path, **more: Any) -> Options:
    return Options(**{"workers": 1, "cache": cache, "quiet": True, **more})


def _figures(folder: Path) -> Any:
    rows = read_run(folder).rows
    return rows[~rows.timing].reset_index(drop=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    """A run on five persons with two images each, in one process."""
    folder = tmp_path_factory.mktemp("k-same")
    suite = _suite(folder, _people(folder / "people", orl_folder, range(1, 6)))
    run_suite(load_suite(suite), folder / "run", _options(folder / "cache"))
    return folder


def test_a_run_fits_its_methods_to_what_it_evaluates(run: Path) -> None:
    done = read_run(run / "run")
    mine = done.images[done.images.method == "k-same-pixel"]
    assert list(mine.status) == ["ok"] * 10
    methods = {m["label"]: m for m in done.record["methods"]}
    assert methods["k-same-pixel"]["params"]["k"] == 2
    assert "<= 1/2" in methods["k-same-pixel"]["guarantee"]
    assert methods["pixelate"]["guarantee"] == ""
    assert done.record["timings"]["galleries"] > 0


def test_the_report_prints_what_is_proved(run: Path) -> None:
    from deidbench.report import write_report

    write_report(run / "run", formats=("html",), figures=False)
    page = (run / "run" / "report.html").read_text()
    assert "What is proved of a method" in page
    assert "1/2 on a person-specific set" in page


@pytest.mark.slow
def test_workers_and_batches_change_nothing(run: Path, tmp_path: Path) -> None:
    run_suite(load_suite(run / "small.toml"), tmp_path / "run", _options(tmp_path / "cache", workers=2, batch=3))
    assert _figures(tmp_path / "run").equals(_figures(run / "run"))
    ours, theirs = (read_run(f).images.set_index(["method", "id"]).output_sha256 for f in (tmp_path / "run", run / "run"))
    assert ours.equals(theirs.reindex(ours.index))


def test_a_second_run_computes_nothing_and_another_set_this_method_only(run: Path, orl_folder: Path, tmp_path: Path) -> None:
    options = _options(run / "cache")
    assert run_suite(load_suite(run / "small.toml"), tmp_path / "again", options).computed == {}
    root = _people(tmp_path / "people", orl_folder, range(1, 7))
    more = run_suite(load_suite(_suite(tmp_path, root)), tmp_path / "six", options).computed
    # two new images for pixelate, all twelve for k-Same: its averages are others
    assert more["anonymize"] == 2 + 12


def test_attackers_persons_are_a_set_of_their_own(orl_folder: Path, finder: FaceFinder, tmp_path: Path) -> None:
    from deidbench.cache import Store
    from deidbench.images import decode_png

    root = _people(tmp_path / "people", orl_folder, range(1, 11))
    suite = _suite(tmp_path, root, shares=", shares = { evaluate = 0.6, attacker_train = 0.4 }", output="crop")
    made = _Run(load_suite(suite), tmp_path / "run", _options(tmp_path / "cache"))
    made.run()
    evaluated, learnt = ({s.subject_id for s in side} for side in (made.samples, made.background))
    assert (len(evaluated), len(learnt)) == (6, 4) and not evaluated & learnt
    assert made.fingerprints.methods[0] != made.fingerprints.background[0]
    assert made.fingerprints.methods[1] == made.fingerprints.background[1], "only who is fitted differs"
    with Store(tmp_path / "cache") as store:
        for side in (made.samples, made.background):
            gallery = {s.id: _item(s, finder) for s in side}
            alone = _fitted("k-same-pixel", gallery, side, k=2, output="crop")
            shown = _shown(alone, gallery)
            for s in side:
                picture = decode_png(store.get(made.method_keys[0][s.id].picture) or b"")
                assert picture.tobytes() == shown[s.id], "averaged with its own side's persons and nobody else"
    suite.write_text(suite.read_text().replace("k = 2", "k = 5"))
    with pytest.raises(
        InputError, match="persons that attackers learn from: k-same-pixel: k = 5 needs at least 5 persons, the set has 4"
    ):
        run_suite(load_suite(suite), tmp_path / "run5", _options(tmp_path / "cache"))


def _item(sample: Sample, finder: FaceFinder) -> Item:
    from deidbench.images import read_image

    image = read_image(sample.path)
    return Item(sample.id, image, tuple(finder.find(image)), 0, sample.subject_id)


def test_a_k_that_is_too_large_ends_the_run_before_anything_is_anonymised(run: Path, tmp_path: Path) -> None:
    suite = _suite(tmp_path, run / "people", k=6)
    with pytest.raises(InputError, match="k = 6 needs at least 6 persons, the set has 5"):
        run_suite(load_suite(suite), tmp_path / "run", _options(run / "cache"))


def test_the_crop_level_protocol_hands_over_crops(run: Path, tmp_path: Path) -> None:
    suite = _suite(tmp_path, run / "people", k=5, level="crop", output="crop")
    run_suite(load_suite(suite), tmp_path / "run", _options(run / "cache"))
    images = read_run(tmp_path / "run").images
    mine = images[images.method == "k-same-pixel"]
    assert list(mine.status) == ["ok"] * 10
    assert mine.output_sha256.nunique() == 1, "k = n: one face for all"


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.fixture
def people(orl_folder: Path, tmp_path: Path) -> Path:
    """Six persons in sub-folders, two images each."""
    return _people(tmp_path / "in", orl_folder, range(1, 7), (1, 2))


@dataclass
class _Done:
    exit_code: int
    output: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., _Done]:
    """``deidbench anonymize`` with some arguments: exit code, and what it said."""

    def call(*arguments: object) -> _Done:
        from deidbench import cli

        with pytest.raises(SystemExit) as done:
            cli.main(["anonymize", "--quiet", *map(str, arguments)])
        said = capsys.readouterr()
        return _Done(int(done.value.code or 0), said.out + said.err)

    return call


def test_a_folder_is_the_set_and_a_sub_folder_a_person(command: Callable[..., _Done], people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(people, out, "--method", "k-same-pixel", "--param", "k=3", "--param", "output=crop")
    assert done.exit_code == 0, done.output
    files = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.pgm")} or {
        p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.png")
    }
    assert len(files) == 12
    persons: dict[bytes, set[str]] = defaultdict(set)
    for name, data in files.items():
        persons[data].add(name.partition("/")[0])
    assert sorted(len(p) for p in persons.values()) == [3, 3]
    again = command(people, out, "--method", "k-same-pixel", "--param", "k=3", "--param", "output=crop")
    assert again.exit_code == 0
    assert "0 written, 12 were there already" in again.output


def test_each_image_of_a_flat_folder_is_a_person(orl_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for p in range(1, 6):
        shutil.copy(orl_folder / f"s{p}" / "1.pgm", tmp_path / "in" / f"{p}.pgm")
    made = kinds.anonymizers.create("k-same-pixel", k=5, output="crop")
    summary = anonymize_tree(tmp_path / "in", tmp_path / "out", made, finder=FaceFinder())
    assert summary.counts == {"ok": 5}
    assert len({p.read_bytes() for p in (tmp_path / "out").iterdir() if p.suffix != ".csv"}) == 1


def test_an_image_that_joins_the_set_changes_its_averages(
    command: Callable[..., _Done], people: Path, orl_folder: Path, tmp_path: Path
) -> None:
    """A half-done folder is finished with the same clusters, and never mixed with others'."""
    out = tmp_path / "out"
    assert command(people, out, "--method", "k-same-pixel", "--param", "k=3").exit_code == 0
    first = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".csv"}
    lost = sorted(first)[3]
    lost.unlink()
    assert command(people, out, "--method", "k-same-pixel", "--param", "k=3").exit_code == 0
    assert {p: p.read_bytes() for p in first} == first
    (people / "s7").mkdir()
    shutil.copy(orl_folder / "s7" / "1.pgm", people / "s7" / "1.pgm")
    done = command(people, out, "--method", "k-same-pixel", "--param", "k=3")
    assert done.exit_code == 2
    assert "already holds images made with" in done.output


def test_a_single_image_needs_a_gallery(command: Callable[..., _Done], people: Path, orl_folder: Path, tmp_path: Path) -> None:
    one = orl_folder / "s9" / "1.pgm"
    done = command(one, tmp_path / "one.png", "--method", "k-same-pixel", "--param", "k=3")
    assert done.exit_code == 2
    assert "needs at least 3 persons, the set has 1" in done.output
    assert "--param gallery=FOLDER" in done.output
    assert not (tmp_path / "one.png").exists()
    done = command(
        one,
        tmp_path / "one.png",
        "--method",
        "k-same-pixel",
        "--param",
        "k=3",
        "--param",
        f"gallery={people}",
        "--param",
        "output=crop",
    )
    assert done.exit_code == 0, done.output
    from deidbench.images import read_image

    made = kinds.anonymizers.create("k-same-pixel", k=3, gallery=str(people), output="crop")
    made.load()
    assert made.fitted_ is not None
    centres = {c.tobytes() for c in made.fitted_.centres}
    assert read_image(tmp_path / "one.png").tobytes() in centres


def test_unreadable_images_are_named_and_no_part_of_the_set(
    command: Callable[..., _Done], people: Path, tmp_path: Path
) -> None:
    (people / "s1" / "broken.png").write_bytes(b"no picture")
    done = command(people, tmp_path / "out", "--method", "k-same-pixel", "--param", "k=3")
    assert done.exit_code == 4
    assert "1 unreadable" in done.output and "12 ok" in done.output


def test_faces_are_looked_for_once(people: Path, tmp_path: Path) -> None:
    class Counting(FaceFinder):
        asked = 0

        def find(self, image: Image, *, thorough: bool = True) -> list[Face]:
            Counting.asked += 1
            return super().find(image, thorough=thorough)

    finder = Counting()
    finder.find(np.zeros((64, 64, 3), np.uint8))  # the first search of a process calls itself
    Counting.asked = 0
    anonymize_tree(people, tmp_path / "out", kinds.anonymizers.create("k-same-pixel", k=3), finder=finder)
    assert Counting.asked == 12
