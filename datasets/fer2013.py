"""FER2013: faces found on the web by words for emotions, 48 x 48 grey pixels, with one of seven emotions each.

Three layouts are read:

* the table, ``fer2013.csv`` or ``icml_face_data.csv``: ``emotion,pixels,Usage``, where ``pixels`` is 2,304 numbers.  It holds no
  picture files; ``deidbench data prepare fer2013 --from DIR`` writes them once, losslessly, into the user's data folder;
* copies with a folder for each class, ``train/angry/Training_3908.jpg`` and ``test/angry/PrivateTest_10131363.jpg``;
* the pictures as the authors of FER+ write them, ``FER2013Train/fer0000000.png`` (also ``FER2013Valid``, ``FER2013Test``).

FER+ (Barsoum et al. 2016) is ten other people's votes on the same pictures, ``fer2013new.csv`` beside them.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from deidbench.data_index import user_data
from deidbench.datasets.classes import Counted, below, class_folders, csv_lines, first_of, images_in, whole_number
from deidbench.datasets.files import Entry
from deidbench.datasets.official import Archive, Finding, Layout, Part, Progress
from deidbench.errors import EnvironmentFault, InputError, MissingError
from deidbench.kinds import datasets

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIDE = 48
#: Codes of the table, from its read-me.
CODES: Mapping[int, str] = {
    0: "anger", 1: "disgust", 2: "fear", 3: "happiness", 4: "sadness", 5: "surprise", 6: "neutral",
}  # fmt: skip
CLASSES = {str(code): word for code, word in CODES.items()}
#: What the table calls its splits -> ours.  The challenge was decided on PrivateTest.
USAGES: Mapping[str, str] = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
#: Folders of FER+'s pictures.
FERPLUS_FOLDERS: Mapping[str, str] = {"train": "FER2013Train", "val": "FER2013Valid", "test": "FER2013Test"}
#: Columns of votes in fer2013new.csv; the last two are no emotion.
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
#: Pictures of each class (Goodfellow et al. 2013, and the table itself): 28,709, 3,589 and 3,589.
COUNTS: Mapping[str, Mapping[str, int]] = {
    "train": {
        "anger": 3995,
        "disgust": 436,
        "fear": 4097,
        "happiness": 7215,
        "sadness": 4830,
        "surprise": 3171,
        "neutral": 4965,
    },
    "val": {"anger": 467, "disgust": 56, "fear": 496, "happiness": 895, "sadness": 653, "surprise": 415, "neutral": 607},
    "test": {"anger": 491, "disgust": 55, "fear": 528, "happiness": 879, "sadness": 594, "surprise": 416, "neutral": 626},
}
TABLES = ("fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv", "fer2013/icml_face_data.csv")
LABELS = ("fer2013", "fer+")
NAME = re.compile(r"(Training|PublicTest|PrivateTest)_[0-9]{1,9}\.(?:jpg|jpeg|png)")
#: The words that a table of pixels may hold.
_GREYS = {str(value): value for value in range(256)}
#: What is written beside pictures that came out of a table.
ORIGIN = "origin.json"
LISTING = "labels.csv"
#: Raise it when the pictures that are written change.
VERSION = 1


def parse_pixels(text: str, where: str) -> npt.NDArray[np.uint8]:
    """2,304 numbers from 0 to 255, separated by blanks, row by row, as uint8 (48, 48).  Raises InputError."""
    import numpy as np

    words = text.split()
    if len(words) != SIDE * SIDE:
        raise InputError(
            f"{where}: {len(words):,} pixels, not {SIDE * SIDE:,}", "is the file cut off?  copy or download it again"
        )
    try:  # numpy alone would take -1, 1e2 and 300 in one way or another; there are 83 million of them
        values = bytes(map(_GREYS.__getitem__, words))
    except KeyError as error:
        raise InputError(
            f"{where}: {str(error.args[0])[:20]!r} is no grey value from 0 to 255", "copy or download the file again"
        ) from None
    return np.frombuffer(values, np.uint8).reshape(SIDE, SIDE)


def grey_png(grey: npt.NDArray[np.uint8]) -> bytes:
    """grey: uint8 (H, W), at most 65,535 bytes with one more for each row, as PNG without compression.

    A compressor's bytes change with its version; these, and so the hashes of the set, are the same on every machine.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = grey.shape
    rows = b"".join(b"\0" + row.tobytes() for row in grey)  # 0: no filter
    stored = struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows  # one last block, as it is (RFC 1951, 3.2.4)
    packed = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def parse_votes(votes: Sequence[int]) -> str | None:
    """The emotion that FER+'s "majority" gives for ten votes in the order of :data:`VOTES`; None where there is none.

    Single votes are taken for slips and dropped; the emotion with more than half of the others is the label (Barsoum et al.
    2016); none where that is "unknown" or "no face".
    """
    kept = [v if v > 1 else 0 for v in votes]
    best = max(kept)
    if best == 0 or 2 * best <= sum(kept):
        return None
    name = VOTES[kept.index(best)]
    return None if name in ("unknown", "NF") else name


@datasets.register("fer2013")
class Fer2013(Counted):
    """35,887 pictures; no identities.  Some are drawings, some are there twice; people are right about 65 % of the
    labels (Goodfellow et al.).

    labels: "fer2013" (one of seven emotions) or "fer+" (votes of ten people, eight emotions; pictures without a majority are left
        out and counted).
    split: "train", "val" (PublicTest), "test" (PrivateTest), or "" for all, of which "test" is evaluated.

    The bundled classifier emotion-cnn learnt from FER+'s training part: evaluate it on "test" only.
    """

    title = "FER2013 (35,887 faces from the web, 48 x 48 grey, seven emotions)"
    citation = (
        "I. J. Goodfellow et al., Challenges in Representation Learning: A Report on Three Machine Learning Contests, ICONIP 2013, "
        "doi 10.1007/978-3-642-42051-1_16; FER+: E. Barsoum, C. Zhang, C. Canton Ferrer and Z. Zhang, Training Deep Networks for "
        "Facial Expression Recognition with Crowd-Sourced Label Distribution, ICMI 2016, doi 10.1145/2993148.2993165"
    )
    licence = "research; the pictures come from the web and their rights lie with others; FER+'s labels: MIT"
    homepage = "https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge"
    terms = "an account at Kaggle and the rules of the competition; FER+'s labels: https://github.com/microsoft/FERPlus"
    identities = False
    all_images = sum(sum(classes.values()) for classes in COUNTS.values())
    split_roles: ClassVar[Mapping[str, str]] = {"test": "evaluate", "val": "validation"}
    expected: ClassVar[Layout] = Layout(
        tree="""\
DIR/fer2013.csv   (or icml_face_data.csv), and fer2013new.csv beside for FER+
or  DIR/train/angry/Training_3908.jpg ...   DIR/test/angry/PrivateTest_10131363.jpg ...
or  DIR/FER2013Train/fer0000000.png ...   and fer2013new.csv""",
        parts=(
            Part(
                "pictures",
                (LISTING, *TABLES, "train", "test", *FERPLUS_FOLDERS.values(), *(f"images/{f}" for f in FERPLUS_FOLDERS.values())),
                "the table of pixels, or the pictures",
                called=TABLES[0],
            ),
            Part("votes", ("fer2013new.csv",), "FER+'s votes", required=False, remedy="https://github.com/microsoft/FERPlus"),
        ),
        archives=(Archive("fer2013.tar.gz"), Archive("challenges-in-representation-learning*.zip"), Archive("*.zip")),
    )  # fmt: skip

    def __init__(
        self,
        root: str = "",
        labels: str = "fer2013",
        split: str = "",
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(root, split, role, shares, split_seed, limit_persons, limit_images, partial)
        self.labels = labels

    # -- out of the table ---------------------------------------------------------------------------------------
    def materialise(self, root: Path, progress: Progress | None = None) -> Path:
        """Writes the pictures of a table as PNG into ``pictures/fer2013-HASH`` of the user's data folder, and returns that.

        HASH is of the table: another table gets another folder, the same one is not written twice.  Pictures that were lost or
        changed meanwhile are written again.  Other layouts are returned as they are.  Raises InputError naming the line.
        """
        table = first_of(root, *TABLES)
        if table is None or (root / LISTING).is_file():
            return root
        from deidbench.images import atomic_write, make_folder, sha256_file

        votes = first_of(table.parent, "fer2013new.csv") or first_of(root, "fer2013new.csv")
        digest = sha256_file(table)
        target = user_data() / "pictures" / f"fer2013-{digest[:12]}"
        origin = {
            "version": VERSION,
            "table": table.name,
            "sha256": digest,
            "votes_sha256": sha256_file(votes) if votes is not None else "",
        }
        if _complete(target, origin):
            return target
        make_folder(target)
        (target / ORIGIN).unlink(missing_ok=True)  # its presence means that all is there
        lines = ["file,emotion,usage,sha256"]
        for split in USAGES.values():
            make_folder(target / split)
        for name, emotion, usage, data in _pictures(table, progress):
            path = target / USAGES[usage] / name
            if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
                _write(path, data)
            lines.append(f"{USAGES[usage]}/{name},{emotion},{usage},{hashlib.sha256(data).hexdigest()}")
        if votes is not None:
            atomic_write(target / "fer2013new.csv", votes.read_bytes())
        atomic_write(target / LISTING, "\n".join(lines) + "\n")
        atomic_write(target / ORIGIN, json.dumps(origin, indent=1) + "\n")
        return target

    def missing(self) -> str:
        root = self.folder()
        if trouble := super().missing():
            return trouble
        if not self.reads_manifest and not (root / LISTING).is_file() and first_of(root, *TABLES) is not None:
            return f"the pictures of {root} are still numbers in a table: deidbench data prepare {self.name} --from {root}"
        return ""

    # -- the layouts --------------------------------------------------------------------------------------------
    def _recognised(self, root: Path) -> bool:
        found = self.expected.find(root, "pictures")
        return self.holds_classes(found, CLASSES) or (found is not None and found.name in FERPLUS_FOLDERS.values())

    def _entries(self, root: Path) -> Iterator[Entry]:
        """In the table's order, or by split, class and name."""
        self.start()
        if self.labels not in LABELS:
            raise InputError(f"data set 'fer2013': unknown labels {self.labels!r}", f"one of {', '.join(LABELS)}")
        if (root / LISTING).is_file():
            yield from self._listing(root)
        elif (
            base := next((b for b in (root, root / "images") if any((b / f).is_dir() for f in FERPLUS_FOLDERS.values())), None)
        ) is not None:
            yield from self._ferplus(root, base)
        elif first_of(root, *TABLES) is not None:
            raise InputError(
                f"data set 'fer2013': the pictures of {root} are still numbers in a table",
                f"deidbench data prepare fer2013 --from {root}",
            )
        else:
            yield from self._folders(root)

    def _listing(self, root: Path) -> Iterator[Entry]:
        """Pictures that :meth:`materialise` wrote."""
        votes = self._votes(root) if self.labels == "fer+" else None
        for n, row in csv_lines(root / LISTING, ("file", "emotion", "usage", "sha256")):
            emotion: str | None = row["emotion"]
            if votes is not None:
                emotion = self._majority(votes, Path(row["file"]).name)
                if emotion is None:
                    continue
            yield Entry(
                path=row["file"], subject="", role=USAGES.get(row["usage"], ""), emotion=emotion, id=Path(row["file"]).name,
                sha256=row["sha256"], where=f"{root / LISTING}, line {n}",
            )  # fmt: skip

    def _ferplus(self, root: Path, base: Path) -> Iterator[Entry]:
        """FER+'s own folders of pictures."""
        if self.labels != "fer+":
            raise InputError(
                f"data set 'fer2013': {base} holds the pictures of FER+, without the labels of FER2013", 'set labels = "fer+"'
            )
        votes = self._votes(root)
        for split, name in FERPLUS_FOLDERS.items():
            for picture in images_in(base / name) if (base / name).is_dir() else ():
                emotion = self._majority(votes, picture)
                if emotion is not None:
                    yield Entry(path=below(root, base / name / picture), subject="", role=split, emotion=emotion, id=picture)

    def _folders(self, root: Path) -> Iterator[Entry]:
        """A folder for each class."""
        if self.labels == "fer+":
            raise InputError(
                f"data set 'fer2013': the names in {root} do not tell which votes of FER+ are theirs", "FER+ needs fer2013.csv"
            )
        for part in ("train", "test"):
            for name, emotion in class_folders(root / part, CLASSES).items():
                for picture in images_in(root / part / name):
                    found = NAME.fullmatch(picture)
                    split = USAGES[found[1]] if found is not None else part
                    if (split == "train") != (part == "train"):
                        raise InputError(
                            f"{root / part / name / picture} lies in {part}: its name says {split}",
                            "put it into its own folder",
                        )
                    yield Entry(path=below(root, root / part / name / picture), subject="", role=split, emotion=emotion)

    def _votes(self, root: Path) -> dict[str, list[int]]:
        """File name -> votes in the order of :data:`VOTES`; lines without a name are pictures that FER+ took out."""
        table = self.expected.find(root, "votes")
        if table is None:
            raise MissingError(
                f"data set 'fer2013': {root} has no fer2013new.csv, the votes of FER+",
                f"get it from https://github.com/microsoft/FERPlus, put it beside, and deidbench data prepare {self.name} --from DIR again",
            )
        out: dict[str, list[int]] = {}
        for n, row in csv_lines(table, ("Usage", "Image name", *VOTES)):
            where = f"{table}, line {n}"
            if row["Usage"] not in USAGES:
                raise InputError(f"{where}: unknown Usage {row['Usage'][:40]!r}", f"one of {', '.join(USAGES)}")
            if not row["Image name"]:
                continue
            if row["Image name"] in out:
                raise InputError(f"{where}: {row['Image name']!r} is there twice", "copy the file again")
            out[row["Image name"]] = [whole_number(row[c], where, f"the number of votes for {c}", 0, 99) for c in VOTES]
        return out

    def _majority(self, votes: Mapping[str, Sequence[int]], name: str) -> str | None:
        if name not in votes:
            self.leave_out("pictures that FER+ took out (no face)")
            return None
        emotion = parse_votes(votes[name])
        if emotion is None:
            self.leave_out("pictures without a majority for an emotion")
        return emotion

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        yield from super()._more(there)
        if (origin := self.folder() / ORIGIN).is_file():
            table = json.loads(origin.read_text("utf-8"))
            yield Finding(
                "note", f"pictures written from {table['table']} (SHA-256 {table['sha256'][:16]}), kept here from now on"
            )
        if self.labels == "fer+" or self.reads_manifest:
            found = Counter(e.role for e in there)
            yield Finding("note", ", ".join(f"{split} {n:,}" for split, n in found.items()), found=len(there))
            return
        counts = COUNTS
        if not any(e.role == "val" for e in there) and sum(e.role == "test" for e in there) > sum(COUNTS["test"].values()):
            both = Counter(COUNTS["val"])
            both.update(COUNTS["test"])
            counts = {"train": COUNTS["train"], "test": both}  # a copy that holds both parts in its folder test
        yield from self.count_splits(there, counts)


def _pictures(table: Path, progress: Progress | None) -> Iterator[tuple[str, str, str, bytes]]:
    """(file name, emotion, usage, PNG) of the rows of the table.  Names are FER+'s: fer and the row's number, from 0."""
    rows = max(sum(1 for _ in _lines(table)) - 1, 0) if progress is not None else 0
    with progress("pictures out of the table", rows) if progress is not None else nullcontext(lambda done: None) as tick:
        for row, (n, cells) in enumerate(csv_lines(table, ("emotion", "pixels", "Usage"))):
            where = f"{table}, line {n}"
            emotion = CODES[whole_number(cells["emotion"], where, "the emotion", 0, 6)]
            if cells["Usage"] not in USAGES:
                raise InputError(f"{where}: unknown Usage {cells['Usage'][:40]!r}", f"one of {', '.join(USAGES)}")
            grey = parse_pixels(cells["pixels"], where)
            yield f"fer{row:07d}.png", emotion, cells["Usage"], grey_png(grey)
            tick(1)


def _write(path: Path, data: bytes) -> None:
    """Not synced: 35,887 times that would take minutes, and :data:`ORIGIN` is written last."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be written: {error.strerror or error}", "make room, or check the permissions"
        ) from error


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _complete(target: Path, origin: Mapping[str, object]) -> bool:
    """Whether ``target`` was written from the same table, and all its pictures are what they were."""
    from deidbench.images import sha256_file

    try:
        if json.loads((target / ORIGIN).read_text("utf-8")) != origin:
            return False
        return all(
            sha256_file(target / row["file"]) == row["sha256"] for _, row in csv_lines(target / LISTING, ("file", "sha256"))
        )
    except (OSError, ValueError, InputError):
        return False
