"""WIDER FACE: pictures of 61 kinds of events from the web, with a box around every face.

The official layout is read::

    WIDER_val/images/0--Parade/0_Parade_marchingband_1_20.jpg      (also WIDER_train; WIDER_test has no boxes)
    wider_face_split/wider_face_val_bbx_gt.txt                     name, number of faces, a line for each:
                                                                   x y w h blur expression illumination invalid occlusion pose

A picture with 0 faces is followed by one line of zeros all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from deidbench.datasets.classes import Counted, below, first_of, whole_number
from deidbench.datasets.files import Entry, text_lines
from deidbench.datasets.official import Archive, Finding, Layout, Part
from deidbench.errors import InputError
from deidbench.kinds import datasets
from deidbench.types import Box

SPLITS = ("val", "train")
#: Pictures of each split (Yang et al. 2016: 32,203 pictures, 393,703 faces, 40 / 10 / 50 % of each event).
COUNTS: Mapping[str, int] = {"val": 3226, "train": 12880}
EVENTS = 61
#: A larger number is no number of faces.
MAX_FACES = 10_000
FIELDS = 10
FACES = ("largest", "every")


class WiderFace(NamedTuple):
    """A line of the list.  x, y, w, h: pixels.  Codes: blur and occlusion 0 to 2, the others 0 or 1."""

    x: int
    y: int
    w: int
    h: int
    blur: int
    expression: int
    illumination: int
    invalid: int
    occlusion: int
    pose: int

    @property
    def box(self) -> Box:
        return Box(self.x, self.y, self.x + self.w, self.y + self.h)


class Picture(NamedTuple):
    """path: relative to the folder images.  where: line of the list."""

    path: str
    faces: tuple[WiderFace, ...]
    where: str


def parse_list(lines: Sequence[tuple[int, str]], table: str) -> Iterator[Picture]:
    """The pictures of a list ``wider_face_*_bbx_gt.txt``.  lines: (number, text), none blank.  Raises InputError with the line."""
    i = 0
    cut = "the list is cut off: copy it again from wider_face_split.zip"
    while i < len(lines):
        number, path = lines[i]
        where = f"{table}, line {number}"
        if "/" not in path or not path.lower().endswith((".jpg", ".jpeg", ".png")):
            raise InputError(
                f"{where}: {path[:60]!r} is no picture (event/name.jpg)", "a number of faces above it is wrong, or " + cut
            )
        if i + 1 >= len(lines):
            raise InputError(f"{where}: no number of faces follows {path}", cut)
        count = whole_number(lines[i + 1][1], f"{table}, line {lines[i + 1][0]}", "the number of faces", 0, MAX_FACES)
        i += 2
        if count == 0:
            # one line of zeros stands for no face; a list that was mended may lack it
            if i < len(lines) and set(lines[i][1].split()) == {"0"}:
                i += 1
            yield Picture(path, (), where)
            continue
        faces = []
        for n, text in lines[i : i + count]:
            words = text.split()
            if len(words) != FIELDS:
                raise InputError(f"{table}, line {n}: {text[:60]!r} is no face, {count} of {path} were to come", cut)
            values = [whole_number(w, f"{table}, line {n}", "a number of a face", -100_000, 100_000) for w in words]
            faces.append(WiderFace(*values))
        if len(faces) < count:
            raise InputError(f"{where}: {len(faces)} faces of {count} follow {path}", cut)
        i += count
        yield Picture(path, tuple(faces), where)


@datasets.register("wider")
class Wider(Counted):
    """Faces among others, of all sizes; no identities: intervals are over pictures.

    split: "val", "train", or "" for both, of which the validation part is evaluated (boxes of the test part are not public).
    faces: "largest" takes the largest face of a picture that is fit to use, "every" all of them, each as a sample of its own.
    min_face: least side of a face's box, in pixels.  Smaller faces, those marked invalid and boxes without area are left out and
        counted, and so are pictures without any other.
    """

    title = "WIDER FACE (pictures of 61 kinds of events, every face with its box)"
    citation = (
        "S. Yang, P. Luo, C. C. Loy and X. Tang, WIDER FACE: A Face Detection Benchmark, CVPR 2016, doi 10.1109/CVPR.2016.596"
    )
    licence = "CC BY-NC-ND 4.0 as its copy on the Hugging Face hub states; pictures from the web"
    homepage = "http://shuoyang1213.me/WIDERFACE/"
    terms = "for research; the pictures' rights lie with others"
    identities = False
    all_images = sum(COUNTS.values())
    split_roles: ClassVar[Mapping[str, str]] = {"val": "evaluate"}
    expected: ClassVar[Layout] = Layout(
        tree="""\
DIR/WIDER_val/images/0--Parade/0_Parade_marchingband_1_20.jpg ...
DIR/wider_face_split/wider_face_val_bbx_gt.txt
(WIDER_train and wider_face_train_bbx_gt.txt the same)""",
        parts=(
            Part("images", tuple(f"{b}WIDER_{s}" for s in SPLITS for b in ("", "WIDER/", "widerface/")), "the pictures", called="WIDER_val"),
            Part(
                "boxes",
                tuple(f"{b}wider_face_{s}_bbx_gt.txt" for s in SPLITS for b in ("wider_face_split/", "", "widerface/wider_face_split/", "WIDER/wider_face_split/")),
                "the boxes of the faces (wider_face_split.zip)",
                called="wider_face_split/wider_face_val_bbx_gt.txt",
            ),
        ),
        archives=(Archive("WIDER_val.zip"), Archive("WIDER_train.zip"), Archive("wider_face_split.zip")),
    )  # fmt: skip

    def __init__(
        self,
        root: str = "",
        faces: str = "largest",
        min_face: int = 40,
        split: str = "",
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(root, split, role, shares, split_seed, limit_persons, limit_images, partial)
        self.faces = faces
        self.min_face = min_face

    def _entries(self, root: Path) -> Iterator[Entry]:
        """In the order of the lists, validation first."""
        self.start()
        if self.faces not in FACES:
            raise InputError(f"data set 'wider': unknown faces {self.faces!r}", f"one of {', '.join(FACES)}")
        if self.min_face < 1:
            raise InputError(f"data set 'wider': min_face = {self.min_face} is not positive", "min_face = 1 takes every face")
        for split in SPLITS:
            bases = ("", "WIDER/", "widerface/")
            table = first_of(root, *(f"{b}{f}wider_face_{split}_bbx_gt.txt" for b in bases for f in ("wider_face_split/", "")))
            folder = first_of(
                root, *(f"{b}WIDER_{split}{tail}" for b in bases for tail in ("/images", f"/WIDER_{split}/images"))
            )
            if table is None or folder is None:
                continue
            for picture in parse_list(text_lines(table), str(table)):
                yield from self._taken(picture, below(root, folder), split)

    def _taken(self, picture: Picture, prefix: str, split: str) -> Iterator[Entry]:
        """The faces of a picture that count."""
        fit = [(k, f) for k, f in enumerate(picture.faces) if self._fit(f)]
        if not fit:
            self.leave_out("pictures without a face that is fit to use" if picture.faces else "pictures without a face")
            return
        path = f"{prefix}/{picture.path}"
        if self.faces == "largest":
            _, face = max(fit, key=lambda kf: kf[1].w * kf[1].h)  # the first of equals
            yield Entry(path=path, subject=path, role=split, box=face.box, where=picture.where)
            return
        boxes: set[Box] = set()
        for k, face in fit:
            if face.box in boxes:
                self.leave_out("faces that are listed twice")
                continue
            boxes.add(face.box)
            # the picture is the unit of inference: faces of one picture share its light, its camera and its occasion
            yield Entry(path=path, subject=path, role=split, box=face.box, id=f"{path}#{k}", where=picture.where)

    def _fit(self, face: WiderFace) -> bool:
        if face.w <= 0 or face.h <= 0:
            self.leave_out("faces whose box has no area")
        elif face.invalid:
            self.leave_out("faces marked invalid")
        elif min(face.w, face.h) < self.min_face:
            self.leave_out(f"faces smaller than {self.min_face} pixels")
        else:
            return True
        return False

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        yield from super()._more(there)
        out = sum(n for why, n in self.left_out().items() if why.startswith("pictures"))
        splits = {e.role for e in there}
        listed = len({e.path for e in there}) + out
        expected = sum(n for split, n in COUNTS.items() if split in splits)
        if splits and splits <= set(SPLITS):
            yield self.count("pictures in the lists", listed, expected)
            events = len({e.path.rsplit("/", 2)[-2] for e in there})
            yield Finding(
                "note", f"{events} of {EVENTS} kinds of events have a face that is fit to use", found=events, expected=EVENTS
            )
