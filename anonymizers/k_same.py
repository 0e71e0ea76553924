"""The k-Same family: a face is replaced by the average of k persons' faces, the same for all of them.

Faces are cut out by their landmarks (a similarity that takes eyes, nose and corners of the mouth to fixed places), so that
averages are sharp, and whoever is averaged is found out beforehand: :meth:`KSame.fit` gets the set that is de-identified.

What is proved (Newton, Sweeney, Malin 2005): on a *person-specific* set, one image a person, with the whole crop replaced,
at least k images share each output.  An attacker who only knows the output names one person for it and so is right for one
of them at the most: rank-1 <= 1/k, whatever his recogniser and though his gallery holds the very originals.

* Several images a person.  k nearest *images* would mostly be the same person's, and nothing is hidden.  So by default
  (``images = "one"``) clusters are made of persons: the image nearest to the mean of a person's images stands for him, the
  set is person-specific, and all images of the cluster's persons come out as one face.  Averaged over *persons* the bound
  holds; where persons have different numbers of images, one with many may be named more often than once in k images.
  ``images = "each"`` takes every image for a person of its own, as the algorithm does on such a set: the bound is void.
* ``output = "frame"`` puts the square back where it was.  What surrounds it stays, and is not covered by the bound.
* An image that was not fitted (a bystander in the frame, a face for the gallery of another folder) shows the face of the
  nearest cluster.  None of its own pixels are in it, but the bound speaks of the fitted set only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil
from pathlib import Path

import numpy as np

from deidbench.anonymizers import k_same_sets as sets
from deidbench.anonymizers.base import Anonymizer, Reader, person_of
from deidbench.anonymizers.ganonymization.extraction import Cut, edge_share, paste
from deidbench.anonymizers.regions import (
    FaceProblem,
    check_choice,
    check_face,
    check_landmarks,
    check_number,
    image_fault,
    luma,
    release,
)
from deidbench.errors import InputError
from deidbench.faces import AVERAGE_FACE, align, alignment, moved, similarity, subject_face
from deidbench.kinds import anonymizers
from deidbench.types import Anonymized, Box, CropSpec, Face, FaceResult, Image, Item, Sample, Status

#: Eye centres, tip of the nose and corners of the mouth in the crop at a margin of 1: where recognisers cut, so that the
#: crop reaches from the brow to the chin (rounded and made symmetric).
TEMPLATE = {"eye_l": (0.34, 0.46), "eye_r": (0.66, 0.46), "nose": (0.5, 0.64), "mouth_l": (0.37, 0.82), "mouth_r": (0.63, 0.82)}
#: A face is the fitted one where its box and the fitted one share this much (intersection over union).
SAME_BOX = 0.5


@dataclass(frozen=True, eq=False)
class Fitted:
    """What :meth:`KSame.fit` made of a set.

    centres: the face that stands for each cluster, uint8 (c, size, size, 3).  shown: the centre that each cluster shows.
    members: hash of an image's pixels -> (box of a face, its cluster).  sha256: of all this.
    """

    centres: Image
    shown: tuple[int, ...]
    members: Mapping[str, tuple[tuple[Box, int], ...]]
    sha256: str


@dataclass(eq=False)
class _Entry:
    """One face of the person-specific set: who, the utility label, the crop, and the images that it stands for."""

    person: str
    label: str
    crop: Image
    images: list[tuple[str, Box]] = field(default_factory=list)


class KSame(Anonymizer):
    """What the methods of the family share; see the module."""

    licence = "Apache-2.0 (part of deidbench)"
    strength = "k"
    needs_gallery = True
    #: Fewest persons that :meth:`fit` takes, in units of k.
    least = 1
    #: What the bound holds for on the average, where a person has several images.
    _averaged = "persons"

    k: int
    images: str
    output: str
    size: int
    margin: float
    gallery: str
    fitted_: Fitted | None = None

    def validate(self) -> None:
        """Raises InputError for a parameter out of its range."""
        whole = {"k": (self.k, 2, 100_000), "size": (self.size, 16, 512)}
        for name, (value, low, high) in whole.items():
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                why = "; k = 1 would show each face as it is" if name == "k" and value == 1 else ""
                raise InputError(
                    f"{self.name}: {name} = {value!r} is not allowed", f"{name} is a whole number from {low} to {high:,}{why}"
                )
        check_choice(self.name, "images", self.images, ("one", "each"))
        check_choice(self.name, "output", self.output, ("frame", "crop"))
        check_number(self.name, "margin", self.margin, 0.5, 3)
        if not isinstance(self.gallery, str):
            raise InputError(f"{self.name}: gallery = {self.gallery!r} is no path", 'give a folder, or "" for the set itself')
        if self.gallery and not Path(self.gallery).expanduser().is_dir():
            raise InputError(
                f"{self.name}: gallery {self.gallery} is not a folder", "give a folder of images, one sub-folder per person"
            )

    def load(self) -> None:
        self.validate()
        if self.gallery and self.fitted_ is None:
            self.fit(())

    @property
    def crop(self) -> CropSpec:
        """How faces are cut out."""
        points = {p: (0.5 + (x - 0.5) / self.margin, 0.5 + (y - 0.5) / self.margin) for p, (x, y) in TEMPLATE.items()}
        return CropSpec(tuple(points), tuple(points.values()), self.size)

    @property
    def guarantee(self) -> str:
        if self.gallery:
            return ""
        said = f"rank-1 of an attacker with the clear images <= 1/{self.k} on a person-specific set (Newton et al. 2005)"
        if self.images == "each":
            said += ", that is, only where the set holds one image a person"
        else:
            said += f"; with several images a person, on the average over {self._averaged}"
        return said + ("; for the square that is replaced, not for what surrounds it" if self.output == "frame" else "")

    # -- the set -----------------------------------------------------------------------------------------------
    def fitted_sha256(self) -> str:
        return "" if self.fitted_ is None else self.fitted_.sha256

    def fit(self, samples: Iterable[Sample], read: Reader | None = None) -> None:
        """Makes the clusters of the persons in ``samples``; see the module.  With ``gallery`` the folder's images are taken instead.

        Samples are taken in the order of person and id, whatever order they come in.  Each contributes the face that its box
        names, else the largest; one without landmarks cannot be aligned and is left out (its image will be withheld).
        Raises InputError where fewer than k persons (k-same-furthest: 2k) are left.
        """
        self.validate()
        if self.gallery:
            if self.fitted_ is not None:
                return
            samples, read = _folder(Path(self.gallery).expanduser()), None
        ordered = sorted(samples, key=lambda s: (s.subject_id, s.id))
        read = read or _reader()
        entries: list[_Entry] = []
        known: set[tuple[str, Box]] = set()
        lost = 0
        for person, group in groupby(ordered, key=lambda s: s.subject_id):
            mine: list[_Entry] = []
            for sample in group:
                seen = self._seen(sample, read)
                if seen is None or (seen[0], seen[1]) in known:  # the same face twice is one face
                    lost += seen is None
                    continue
                known.add((seen[0], seen[1]))
                who = person if self.images == "one" else sample.id
                mine.append(_Entry(who, self._label(sample), seen[2], [(seen[0], seen[1])]))
            entries += mine if self.images == "each" else _one_each(mine)
        persons = len({e.person for e in entries})
        if persons < self.least * self.k:
            raise InputError(
                f"{self.name}: k = {self.k} needs at least {self.least * self.k} persons, the set has {persons} with a usable face"
                + (f" ({lost} images are unreadable or show no face with landmarks)" if lost else ""),
                f"take a k of {persons // self.least} or less" * (persons // self.least >= 2)
                or "give the whole folder that is to be de-identified, or --param gallery=FOLDER with the faces of other persons",
            )
        entries, groups = self._groups(entries)
        crops = np.stack([e.crop for e in entries])
        clusters, centres = self._clusters(crops, groups)
        self.fitted_ = _fitted(entries, clusters, centres)

    def _seen(self, sample: Sample, read: Reader) -> tuple[str, Box, Image] | None:
        """(hash of the image, box of the subject's face, its crop); None for what :meth:`anonymize` will withhold or not be given."""
        try:
            item = read(sample)
        except InputError:  # unreadable: whoever anonymises it says so
            return None
        face = None if image_fault(item.image) else subject_face(item.faces or (), sample.box)
        if face is None:
            return None
        try:
            self._check(face, item.image)
        except FaceProblem:
            return None
        return _pixels_sha256(item.image), face.box, self._crop(item.image, face)

    def _label(self, sample: Sample) -> str:
        """The utility label within which clusters are made; "" for all."""
        return ""

    def _groups(self, entries: list[_Entry]) -> tuple[list[_Entry], list[list[int]]]:
        """The entries, and their indices by group; clusters are made within a group."""
        return entries, [list(range(len(entries)))]

    def _clusters(self, crops: Image, groups: Sequence[Sequence[int]]) -> tuple[sets.Clusters, Image]:
        """The clusters of all groups, and the face that stands for each."""
        products = sets.products(crops)
        found = sets.Clusters([], [])
        for group in groups:
            made = self._partition(products, group)
            found.shown.extend(len(found.members) + i for i in made.shown)
            found.members.extend(made.members)
        return found, sets.averages(crops, found.members)

    def _partition(self, products: sets.Matrix, group: Sequence[int]) -> sets.Clusters:
        return sets.nearest(products, group, self.k)

    # -- work --------------------------------------------------------------------------------------------------
    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        """One result per item.  Raises InputError where :meth:`fit` was not called."""
        self.validate()
        if self.fitted_ is None:
            raise InputError(
                f"{self.name} averages the faces of a set, and was given none",
                "call fit(samples) with the set that is to be de-identified, or set gallery to a folder",
            )
        return [self._one(item, self.fitted_) for item in items]

    def _one(self, item: Item, fitted: Fitted) -> Anonymized:
        if fault := image_fault(item.image):
            return Anonymized.failed(item.id, fault)
        if item.faces is None:
            return Anonymized.failed(item.id, f"{self.name} needs to know the faces: pass Item(faces=FaceFinder().find(image))")
        if not item.faces:
            return Anonymized.no_face(item.id)
        try:
            return self._replace(item, item.faces, fitted)
        except Exception as error:  # one bad item must not take the batch with it; the reason is kept with the item
            return Anonymized.failed(item.id, f"{type(error).__name__}: {error}")

    def _replace(self, item: Item, faces: tuple[Face, ...], fitted: Fitted) -> Anonymized:
        members = fitted.members.get(_pixels_sha256(item.image), ())
        results: list[FaceResult] = []
        new: list[tuple[Cut, Image]] = []
        for face in faces:
            try:
                self._check(face, item.image)
            except FaceProblem as problem:
                results.append(FaceResult(problem.status, reason=problem.reason))
                continue
            cut = self._cut(face)
            box, cluster = max(members, key=lambda m: m[0].iou(face.box), default=(face.box, -1))
            reason = ""
            if cluster < 0 or box.iou(face.box) < SAME_BOX:
                cluster = sets.nearest_centre(self._crop(item.image, face), fitted.centres)
                reason = "not one of the fitted faces: the nearest cluster's face is shown, without the bound of 1/k"
            new.append((cut, fitted.centres[fitted.shown[cluster]]))
            results.append(FaceResult(Status.OK, self._box(cut), reason))
        if len(new) < len(faces):
            return release(item.id, item.image, results)
        if self.output == "crop":
            crops = [face.copy() for _, face in new]
            largest = max(range(len(new)), key=lambda i: new[i][0].size[0])
            return release(item.id, crops[largest], results, crops)
        out = item.image.copy()
        out.flags.writeable = True
        grey = bool((out == out[:, :, :1]).all())  # a grey frame stays grey though the set may hold coloured faces
        for cut, shown in new:
            square = np.repeat(luma(shown)[:, :, None], 3, axis=2) if grey else shown
            paste(out, square, cut, edge_share(cut, ellipse=False, feather=0.0))
        return release(item.id, out, results)

    def _check(self, face: Face, image: Image) -> None:
        """Raises FaceProblem for a face that cannot be aligned."""
        check_face(face)
        if face.box.clipped(image.shape[1], image.shape[0]).area <= 0:
            raise FaceProblem(Status.FAILED, "face lies outside the image")
        check_landmarks(face)

    def _cut(self, face: Face) -> Cut:
        """Where the crop lies in the frame."""
        matrix = alignment(face, self.crop)
        side = self.size / float(np.hypot(matrix[0, 0], matrix[1, 0]))
        return Cut(self.size, (0, 0, self.size, self.size), matrix, matrix / self.size, (side, side))

    def _crop(self, image: Image, face: Face) -> Image:
        """The face cut out; beyond the frame its edge goes on, for black corners would decide which faces are near."""
        import cv2

        spec, box = self.crop, self._cut(face).box
        h, w = image.shape[:2]
        left, top, right, bottom = (max(0, ceil(v)) for v in (-box.x0, -box.y0, box.x1 - w, box.y1 - h))
        if not (left or top or right or bottom):
            return align(image, face, spec)
        room = 2 * max(h, w)  # a face that is larger than the frame needs no more
        left, top, right, bottom = (min(v + 2, room) for v in (left, top, right, bottom))
        padded = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_REPLICATE)
        return align(padded, moved(face, np.array([[1.0, 0.0, left], [0.0, 1.0, top]])), spec)

    def _box(self, cut: Cut) -> Box:
        """Where the face lies in the output.  In a crop that is an average face's place: the own one would tell persons apart."""
        if self.output == "frame":
            return cut.box
        spec = self.crop
        m = similarity(
            np.array([AVERAGE_FACE[p] for p in spec.points], np.float64), np.array(spec.template, np.float64) * spec.size
        )
        (x0, y0), (x1, y1) = m[:, 2], m[:, :2] @ (1, 1) + m[:, 2]
        return Box(round(float(x0), 2), round(float(y0), 2), round(float(x1), 2), round(float(y1), 2))


@anonymizers.register("k-same-pixel")
class KSamePixel(KSame):
    """k-Same-Pixel: the mean of the aligned pixels of k persons whose faces are nearest to one another.

    k: persons who share a face, from 2; more is more private.  The last cluster takes who is left, up to 2k - 1.
    images: "one" makes clusters of persons, "each" takes every image for a person of its own (no bound where it is not).
    output: "frame" puts the aligned square back in the frame (a grey frame stays grey), "crop" gives it alone.
    size: side of the aligned square in pixels.  margin: how much it takes in; 1 reaches from the brow to the chin.
    gallery: a folder with one sub-folder per person (or one image per person) whose faces are averaged; "" for the set that is
    de-identified itself, which the bound of 1/k asks for.
    The nearness of two faces is the Euclidean distance of their pixels; faces are taken in the order of person and id.
    """

    citation = "Newton, Sweeney, Malin: Preserving Privacy by De-identifying Face Images, IEEE TKDE 17(2), 2005 (k-Same-Pixel)"

    def __init__(
        self,
        k: int = 5,
        images: str = "one",
        output: str = "frame",
        size: int = 128,
        margin: float = 1.25,
        gallery: str = "",
    ) -> None:
        self.k = k
        self.images = images
        self.output = output
        self.size = size
        self.margin = margin
        self.gallery = gallery


@anonymizers.register("k-same-eigen")
class KSameEigen(KSame):
    """k-Same-Eigen: the same in the space of eigenfaces; coordinates are compared and averaged, then made a face again.

    components: below 1 the least share of the variance that the kept eigenfaces hold, from 1 on their number.  With all of them
    this is k-Same-Pixel; with fewer, faces lose detail.  The eigenfaces are those of the set itself, a face a person.
    k, images, output, size, margin, gallery: see k-same-pixel.
    """

    citation = "Newton, Sweeney, Malin: Preserving Privacy by De-identifying Face Images, IEEE TKDE 17(2), 2005 (k-Same-Eigen)"

    def __init__(
        self,
        k: int = 5,
        components: float = 0.95,
        images: str = "one",
        output: str = "frame",
        size: int = 128,
        margin: float = 1.25,
        gallery: str = "",
    ) -> None:
        self.k = k
        self.components = components
        self.images = images
        self.output = output
        self.size = size
        self.margin = margin
        self.gallery = gallery

    def validate(self) -> None:
        super().validate()
        check_number(self.name, "components", self.components, 0, 100_000, open_low=True)
        if self.components > 1 and int(self.components) != self.components:
            raise InputError(
                f"{self.name}: components = {self.components!r} is not allowed",
                "below 1 it is a share of the variance, from 1 on a whole number",
            )

    def _clusters(self, crops: Image, groups: Sequence[Sequence[int]]) -> tuple[sets.Clusters, Image]:
        space = sets.Eigenspace(sets.products(crops), self.components)
        [group] = groups
        clusters = self._partition(space.products, group)
        return clusters, space.averages(crops, clusters.members)


@anonymizers.register("k-same-select")
class KSameSelect(KSame):
    """k-Same-Select: k-Same within groups of one label, so that what the label says is not averaged away.

    utility: the label: "emotion", or the name of one of the data set's groups (sex, age, ...) or attributes.
    A person with several labels has a face in each of their groups; in each the set is person-specific, and so is the bound.
    Groups of fewer than k persons, and images without this label, are pooled; a pool of fewer than k persons joins the
    largest group, whose label its images then lose.  Where no image has the label there is nothing to select by: an error.
    k, images, output, size, margin, gallery: see k-same-pixel (a gallery folder has no labels).
    """

    citation = (
        "Gross, Airoldi, Malin, Sweeney: Integrating Utility into Face De-identification, PET 2005, LNCS 3856 (k-Same-Select)"
    )

    def __init__(
        self,
        k: int = 5,
        utility: str = "emotion",
        images: str = "one",
        output: str = "frame",
        size: int = 128,
        margin: float = 1.25,
        gallery: str = "",
    ) -> None:
        self.k = k
        self.utility = utility
        self.images = images
        self.output = output
        self.size = size
        self.margin = margin
        self.gallery = gallery

    def _label(self, sample: Sample) -> str:
        if self.utility == "emotion":
            return sample.emotion or ""
        if self.utility in sample.groups:
            return sample.groups[self.utility]
        value = sample.attributes.get(self.utility)
        return "" if value is None else str(value)

    def _groups(self, entries: list[_Entry]) -> tuple[list[_Entry], list[list[int]]]:
        """Groups of at least k persons; within one, a person's faces of several labels become one."""
        if not any(e.label for e in entries):
            raise InputError(
                f"{self.name}: no image of the set has the label {self.utility!r}",
                "set utility to a label that the data set has, or take k-same-pixel, which needs none",
            )
        persons: dict[str, set[str]] = {}
        for e in entries:
            persons.setdefault(e.label, set()).add(e.person)
        large = {label: len(p) for label, p in persons.items() if label and len(p) >= self.k}
        pool = set().union(*(p for label, p in persons.items() if label not in large))
        # the most persons, then the first by name; without any, the pool holds everybody, who are k or more
        home = max(sorted(large), key=large.__getitem__) if large and len(pool) < self.k else ""
        for e in entries:
            if e.label not in large:
                e.label = home
        merged: list[_Entry] = []
        for _, group in groupby(sorted(entries, key=lambda e: (e.label, e.person)), key=lambda e: (e.label, e.person)):
            same = list(group)
            merged += same if self.images == "each" else _merge(same)
        labels = [e.label for e in merged]
        return merged, [[i for i, x in enumerate(labels) if x == label] for label in sorted(set(labels))]


@anonymizers.register("k-same-furthest")
class KSameFurthest(KSame):
    """k-Same-furthest: the mean of k faces that are as far away as possible, so that nothing of a face is in its output.

    Clusters come in pairs: the first face that is left with the k - 1 nearest to it, and the k furthest from it; each shows the
    average of the other (where fewer than 4k are left, the nearer and the further half).  At least 2k persons are needed.
    This is the idea of the paper, pairs exchanged; its order of picking and its active appearance model are not reproduced.
    k, images, output, size, margin, gallery: see k-same-pixel.
    """

    citation = "Meng, Sun: Face De-identification with Perfect Privacy Protection, MIPRO 2014 (k-Same-furthest)"
    least = 2

    def __init__(
        self,
        k: int = 5,
        images: str = "one",
        output: str = "frame",
        size: int = 128,
        margin: float = 1.25,
        gallery: str = "",
    ) -> None:
        self.k = k
        self.images = images
        self.output = output
        self.size = size
        self.margin = margin
        self.gallery = gallery

    def _partition(self, products: sets.Matrix, group: Sequence[int]) -> sets.Clusters:
        return sets.furthest(products, group, self.k)


# ----------------------------------------------------------------------------------------------------------- the set


def _one_each(entries: Sequence[_Entry]) -> list[_Entry]:
    """A person's faces of the same label made one: the most typical stands for all, and for their images."""
    out = []
    for label in sorted({e.label for e in entries}):
        same = [e for e in entries if e.label == label]
        chosen = same[sets.most_typical(np.stack([e.crop for e in same]))]
        out.append(_Entry(chosen.person, label, chosen.crop, [i for e in same for i in e.images]))
    return out


def _merge(entries: Sequence[_Entry]) -> list[_Entry]:
    """A person's entries of one group made one: the face that stands for the most images stands for all."""
    chosen = max(entries, key=lambda e: len(e.images))
    return [_Entry(chosen.person, chosen.label, chosen.crop, [i for e in entries for i in e.images])]


def _fitted(entries: Sequence[_Entry], clusters: sets.Clusters, centres: Image) -> Fitted:
    members: dict[str, list[tuple[Box, int]]] = {}
    for cluster, faces in enumerate(clusters.members):
        for i in faces:
            for image, box in entries[i].images:
                members.setdefault(image, []).append((box, cluster))
    h = hashlib.sha256(repr((centres.shape, clusters.shown)).encode())
    h.update(np.ascontiguousarray(centres).tobytes())
    frozen = {}
    for image in sorted(members):
        frozen[image] = tuple(sorted(members[image]))
        h.update(repr((image, [([float(v) for v in box], cluster) for box, cluster in frozen[image]])).encode())
    return Fitted(centres, tuple(clusters.shown), frozen, h.hexdigest())


def _pixels_sha256(image: Image) -> str:
    """Hash of a picture's shape and pixels, whatever file they came from."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _reader() -> Reader:
    """Reads files as they are and looks for faces in them."""
    from deidbench.faces import FaceFinder
    from deidbench.images import read_image

    finder = FaceFinder()

    def read(sample: Sample) -> Item:
        image = read_image(sample.path, sha256=sample.sha256 or None)
        return Item(sample.id, image, tuple(finder.find(image)), 0, sample.subject_id)

    return read


def _folder(root: Path) -> list[Sample]:
    """The images of a folder, one sub-folder per person or one image per person."""
    from deidbench.images import IMAGE_SUFFIXES

    found = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    names = [p.relative_to(root).as_posix() for p in found]
    return [Sample(name, path, person_of(name), "") for name, path in zip(names, found, strict=True)]
