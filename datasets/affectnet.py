"""AffectNet: faces from the web, found by words for emotions, each with the emotion that one person saw in it.

Three layouts are read:

* that of March 2021 (AffectNet-8, and the smaller one of seven classes), one file of numpy for each label::

      val_set/images/1.jpg      val_set/annotations/1_exp.npy, 1_val.npy, 1_aro.npy, 1_lnd.npy
      train_set/...             the same

* the older lists, ``Manually_Annotated_file_lists/validation.csv`` (and ``training.csv``), with the pictures in
  ``Manually_Annotated_Images/689/737db....jpg``;
* copies with a folder for each class, ``Test/anger/*.jpg`` or ``val/0/*.jpg``.

Valence, arousal and the 68 landmarks are not read: no metric of deidbench uses them.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from deidbench.datasets.classes import Counted, below, class_folders, csv_lines, first_of, images_in, whole_number
from deidbench.datasets.files import Entry
from deidbench.datasets.official import Archive, Finding, Layout, Part
from deidbench.errors import InputError
from deidbench.kinds import datasets
from deidbench.types import Box

#: Codes of the labels, from the set's documentation.
CODES: Mapping[int, str] = {
    0: "neutral", 1: "happiness", 2: "sadness", 3: "surprise", 4: "fear", 5: "disgust", 6: "anger", 7: "contempt",
}  # fmt: skip
CLASSES = {str(code): word for code, word in CODES.items()}
#: Codes of the older lists that are no emotion.
NO_EMOTION: Mapping[int, str] = {8: "none of the emotions", 9: "uncertain", 10: "no face"}
#: Splits, and what their folders are called.  Only copies have a folder "test"; the validation part is then one of its own.
FOLDERS: Mapping[str, tuple[str, ...]] = {
    "test": ("test_set", "Test", "test"),
    "val": ("val_set", "validation_set", "Valid", "valid", "Val", "val"),
    "train": ("train_set", "Train", "train"),
}
LISTS: Mapping[str, str] = {"val": "validation.csv", "train": "training.csv"}
LIST_FOLDERS = ("Manually_Annotated_file_lists", ".")
PICTURES = (
    "Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated_Images", "Manually_Annotated_compressed/Manually_Annotated_Images",
    "Manually_Annotated_compressed",
)  # fmt: skip
COLUMNS = ("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "expression")
#: Pictures of the layout of 2021 with seven and with eight classes, as those report who have it (its documentation is not
#: public): some count 3,999 pictures to validate, some 4,000.
COUNTS: Mapping[str, tuple[int, ...]] = {"val": (3_500, 3_999, 4_000), "train": (283_901, 287_651)}
#: Pictures to validate in the older list: 500 of each of the eleven codes (Mollahosseini et al.), eight of which are emotions.
LISTED = 4_000
#: A label is one number; the file around it has about 130 bytes.
MAX_LABEL = 4096


def read_label(data: bytes, where: str) -> int:
    """The code in a file ``N_exp.npy``: one number, or one string that is a number, of any shape.

    Nothing is unpickled: an array of objects is refused, since unpickling runs whatever the file says.  Raises InputError.
    """
    import numpy as np

    remedy = "copy the folder annotations again from the set's archive"
    if not data.startswith(b"\x93NUMPY"):
        raise InputError(f"{where} is no file of numpy (pickles are never unpickled)", remedy)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.size != 1:
            raise InputError(f"{where} does not hold one number", remedy)
        value = array.reshape(-1)[0]
        text = value.decode("ascii") if isinstance(value, bytes) else str(value)
        number = float(text)
    except InputError:
        raise
    except Exception as error:  # numpy lets out what Python's tokenizer and memory say of a damaged header
        said = "an array of objects, which is never unpickled" if "pickle" in str(error).lower() else f"no label ({error})"
        raise InputError(f"{where} holds {said}", remedy) from None
    if number not in CODES and number not in NO_EMOTION:
        raise InputError(f"{where}: {text[:40]!r} is not one of the codes 0 to 10", remedy)
    return int(number)


def parse_face(cells: Mapping[str, str], where: str) -> Box | None:
    """The box of a line of the older lists, in pixels; None where it says NULL.  Raises InputError."""
    words = [cells[c] for c in ("face_x", "face_y", "face_width", "face_height")]
    if any(w.upper() in ("NULL", "") for w in words):
        return None
    try:
        x, y, w, h = (float(word) for word in words)
    except ValueError:
        w = h = x = y = -1.0
    if not (0 < w < 1e6 and 0 < h < 1e6 and -1e6 < x < 1e6 and -1e6 < y < 1e6):
        raise InputError(
            f"{where}: {', '.join(words)[:60]!r} is no box of a face", "copy the list again from the set's archive"
        )
    return Box(x, y, x + w, y + h)


@datasets.register("affectnet")
class AffectNet(Counted):
    """The labelled pictures of AffectNet; no identities.  The official test part was never handed out: the validation part is.

    split: "val" (about 500 pictures of each class), "train", or "" for all, of which the validation part is evaluated (in copies
        that have a part "test", that).  "val" is the quickest: 287,651 labels of the training part are as many files.

    Pictures that the older lists call "none", "uncertain" or "no face" are left out and counted.
    """

    title = "AffectNet (pictures from the web with eight emotions, labelled by hand)"
    citation = (
        "A. Mollahosseini, B. Hasani and M. H. Mahoor, AffectNet: A Database for Facial Expression, Valence, and Arousal Computing in "
        "the Wild, IEEE Transactions on Affective Computing 10, 2019 (online 2017), doi 10.1109/TAFFC.2017.2740923"
    )
    licence = "research only, by an agreement that the head of a laboratory signs; not to be passed on"
    homepage = "http://mohammadmahoor.com/affectnet/"
    terms = "an agreement, signed by the head of a laboratory or a professor"
    identities = False
    all_images = COUNTS["train"][-1] + COUNTS["val"][1]
    split_roles: ClassVar[Mapping[str, str]] = {"val": "evaluate", "test": "evaluate"}
    expected: ClassVar[Layout] = Layout(
        tree="""\
DIR/val_set/images/1.jpg ...   DIR/val_set/annotations/1_exp.npy ...   (train_set the same)
or  DIR/Manually_Annotated_file_lists/validation.csv   DIR/Manually_Annotated_Images/689/737db....jpg
or  DIR/Test/{Anger,Contempt,Disgust,Fear,Happy,Neutral,Sad,Surprise}/*.jpg   (Train the same)""",
        parts=(
            Part(
                "labels",
                (
                    "val_set/annotations", "train_set/annotations", "validation_set/annotations", "annotations",
                    *(f"{folder}/{name}".removeprefix("./") for name in LISTS.values() for folder in LIST_FOLDERS),
                    *(name for names in FOLDERS.values() for name in names),
                ),
                "labels: files of numpy, lists, or folders named by class",
                called="val_set/annotations",
            ),
        ),
        archives=(Archive("val_set.tar*"), Archive("train_set.tar*"), Archive("*.zip"), Archive("Manually_Annotated*.rar")),
    )  # fmt: skip

    def _recognised(self, root: Path) -> bool:
        found = self.expected.find(root, "labels")
        return self.holds_classes(found, CLASSES) or (found is not None and found.name == "annotations")

    def _entries(self, root: Path) -> Iterator[Entry]:
        """Validation before training, each in natural order or that of its list."""
        self.start()
        done = False
        for split, names in FOLDERS.items():
            for name in names:
                if (root / name / "annotations").is_dir():
                    done = True
                    yield from self._numpy(root, root / name, split)
                    break
        if not done and (root / "annotations").is_dir():
            done = True
            yield from self._numpy(root, root, "train" if root.name == "train_set" else "val")
        if done:
            return
        for split, table in LISTS.items():
            if (found := first_of(root, *(f"{folder}/{table}" for folder in LIST_FOLDERS))) is not None:
                done = True
                yield from self._list(root, found, split)
        if done:
            return
        folders = {split: folder for split, names in FOLDERS.items() if (folder := first_of(root, *names)) is not None}
        for split, folder in folders.items():
            yield from self._folders(root, folder, "validation" if split == "val" and "test" in folders else split)

    def _wanted(self, split: str) -> bool:
        """Whether labels of a split need to be read: 287,651 files are many."""
        return self.split in ("", split)

    def _numpy(self, root: Path, folder: Path, split: str) -> Iterator[Entry]:
        if not (folder / "images").is_dir():
            raise InputError(f"data set 'affectnet': {folder} has no folder images", f"unpack {folder.name} anew")
        for name in images_in(folder / "images"):
            path = folder / "annotations" / f"{Path(name).stem}_exp.npy"
            try:
                if path.stat().st_size > MAX_LABEL:
                    raise InputError(f"{path} holds {path.stat().st_size:,} bytes, more than a label", "copy it again")
                code = read_label(path.read_bytes(), str(path)) if self._wanted(split) else None
            except FileNotFoundError:
                self.leave_out(f"pictures of {folder.name} without a label")
                continue
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror or error}", "check its permissions") from error
            if code is not None and code in NO_EMOTION:
                self.leave_out(f"pictures labelled {NO_EMOTION[code]!r}")
                continue
            emotion = None if code is None else CODES[code]
            yield Entry(path=below(root, folder / "images" / name), subject="", role=split, emotion=emotion)

    def _list(self, root: Path, table: Path, split: str) -> Iterator[Entry]:
        folder = first_of(root, *PICTURES)
        if folder is None:
            raise InputError(
                f"data set 'affectnet': {root} has no folder Manually_Annotated_Images",
                "unpack the archives Manually_Annotated.part*.rar",
            )
        prefix = below(root, folder)
        for n, cells in csv_lines(table, COLUMNS):
            where = f"{table}, line {n}"
            code = whole_number(cells["expression"], where, "the expression", 0, 10)
            if code in NO_EMOTION:
                self.leave_out(f"pictures labelled {NO_EMOTION[code]!r}")
                continue
            yield Entry(
                path=f"{prefix}/{cells['subDirectory_filePath']}",
                subject="",
                role=split,
                emotion=CODES[code],
                box=parse_face(cells, where),
                where=where,
            )

    def _folders(self, root: Path, folder: Path, split: str) -> Iterator[Entry]:
        """A folder for each class, named by a word or by the set's code."""
        for name, emotion in class_folders(folder, CLASSES).items():
            for picture in images_in(folder / name):
                yield Entry(path=below(root, folder / name / picture), subject="", role=split, emotion=emotion)

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        yield from super()._more(there)
        if self.reads_manifest:
            return
        found = Counter(e.role for e in there)
        root = self.folder()
        if any((root / name / "annotations").is_dir() for names in FOLDERS.values() for name in (*names, ".")):
            for split, known in COUNTS.items():
                if n := found[split]:
                    nearest = min(known, key=lambda k: (abs(k - n), k))
                    yield self.count(f"pictures of {split!r}", n, nearest)
        elif any(first_of(root, f"{folder}/{LISTS['val']}") for folder in LIST_FOLDERS):
            yield self.count("pictures of 'val' with an emotion", found["val"], LISTED)
