"""CK+, the Extended Cohn-Kanade data set: sequences of a posed expression, from the neutral face to its peak.

Three layouts are read:

* the official one (``extended-cohn-kanade-images.zip`` and ``Emotion_labels.zip``, unpacked side by side)::

      cohn-kanade-images/S005/001/S005_001_00000011.png      person, sequence, number of the frame
      Emotion/S005/001/S005_001_00000011_emotion.txt         "   3.0000000e+00", only for 327 of the 593 sequences

* ``CK+48``, the copy that went round: ``CK+48/anger/S010_004_00000017.png``, faces cut to 48 x 48 grey pixels, the last three
  frames of the labelled sequences;
* any folder with ``manifest.csv``, as the data set ``folder`` reads it.

Folders ``FACS`` and ``Landmarks`` are not read: no metric of deidbench uses action units or other people's landmarks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from deidbench.datasets.classes import Counted, below, class_folders, images_in, sub_folders
from deidbench.datasets.files import Entry, some
from deidbench.datasets.official import Archive, Finding, Layout, Part
from deidbench.errors import InputError
from deidbench.kinds import datasets

#: Codes of the label files, from the set's read-me.
CODES: Mapping[int, str] = {
    0: "neutral", 1: "anger", 2: "contempt", 3: "disgust", 4: "fear", 5: "happiness", 6: "sadness", 7: "surprise",
}  # fmt: skip
#: Labelled sequences of each emotion (Lucey et al. 2010): 327, of 118 persons.
SEQUENCES: Mapping[str, int] = {
    "anger": 45, "contempt": 18, "disgust": 59, "fear": 25, "happiness": 69, "sadness": 28, "surprise": 83,
}  # fmt: skip
ALL_SEQUENCES = 593
PERSONS, LABELLED_PERSONS = 123, 118
FRAMES = ("peak", "peak+neutral", "last3")
#: S005_001_00000011: person, sequence, number of the frame.
NAME = re.compile(r"(S[0-9]{3})_([0-9]{3})_([0-9]{1,9})")
IMAGES = (
    "cohn-kanade-images", "extended-cohn-kanade-images/cohn-kanade-images", "extended-cohn-kanade-images",
    "cohn-kanade-images/cohn-kanade-images", "CK+/cohn-kanade-images", "CK+/extended-cohn-kanade-images/cohn-kanade-images",
)  # fmt: skip
LABELS = ("Emotion", "Emotion_labels/Emotion", "Emotion_labels", "CK+/Emotion", "CK+/Emotion_labels/Emotion")


class Frame(NamedTuple):
    """One picture of a sequence.  path: relative to the set's folder."""

    person: str
    sequence: str
    number: int
    path: str


def parse_name(name: str) -> tuple[str, str, int] | None:
    """(person, sequence, number of the frame) of a file name such as ``S005_001_00000011.png``; None for another one."""
    stem, dot, ending = name.rpartition(".")
    found = NAME.fullmatch(stem)
    if found is None or not dot or ending.lower() not in ("png", "jpg", "jpeg", "tif", "tiff"):
        return None
    return found[1], f"{found[1]}_{found[2]}", int(found[3])


def parse_emotion(text: str, where: str) -> str:
    """The emotion of a label file: one number, written as a float with blanks before it.  Raises InputError."""
    words = text.split()
    try:
        code = float(words[0]) if len(words) == 1 else -1.0
    except ValueError:
        code = -1.0
    if code not in CODES:  # NaN is in no mapping
        raise InputError(
            f"{where}: {text.strip()[:40]!r} is not one of the codes 0 to 7",
            "copy the file again from Emotion_labels.zip, or take it out: the sequence then has no label",
        )
    return CODES[int(code)]


@datasets.register("ck+")
class CKPlus(Counted):
    """593 sequences of 123 persons; 327 of them have one of seven emotions.

    frames: "peak" takes the last frame of each sequence, the one that the label is about; "peak+neutral" its first frame too, as
        "neutral"; "last3" the last three, as most papers on CK+ do (near-copies of one another: never across a split).
    unlabelled: True adds the sequences without a label (posed action units that are no prototypic emotion), for identity only.
    """

    title = "CK+, Extended Cohn-Kanade (593 sequences of 123 persons, posed)"
    citation = (
        "P. Lucey, J. F. Cohn, T. Kanade, J. Saragih, Z. Ambadar and I. Matthews, The Extended Cohn-Kanade Dataset (CK+): A "
        "complete dataset for action unit and emotion-specified expression, CVPR Workshops 2010, doi 10.1109/CVPRW.2010.5543262"
    )
    licence = "non-commercial research, by an agreement; not to be passed on; faces of some persons only may be printed"
    homepage = "http://www.jeffcohn.net/resources/"
    terms = "an agreement to be signed; a few persons only allowed their faces to be printed (the agreement lists them)"
    all_images = sum(SEQUENCES.values())
    expected: ClassVar[Layout] = Layout(
        tree="""\
DIR/cohn-kanade-images/S005/001/S005_001_00000001.png ... S005_001_00000011.png
DIR/Emotion/S005/001/S005_001_00000011_emotion.txt
or  DIR/CK+48/{anger,contempt,disgust,fear,happy,sadness,surprise}/S010_004_00000017.png ...""",
        parts=(
            Part("images", (*IMAGES, "CK+48", "anger"), "the sequences (extended-cohn-kanade-images.zip), or CK+48", called=IMAGES[0]),
            Part("labels", LABELS, "the emotions (Emotion_labels.zip)", required=False, called=LABELS[0]),
        ),
        archives=(
            Archive("extended-cohn-kanade-images.zip"), Archive("Emotion_labels.zip"), Archive("CK+48.zip"), Archive("CK+48*.zip"),
        ),
    )  # fmt: skip

    def __init__(
        self,
        root: str = "",
        frames: str = "peak",
        unlabelled: bool = False,
        role: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        limit_persons: int | None = None,
        limit_images: int | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(
            root, role=role, shares=shares, split_seed=split_seed, limit_persons=limit_persons, limit_images=limit_images, partial=partial
        )  # fmt: skip
        self.frames = frames
        self.unlabelled = unlabelled

    def size(self) -> tuple[int | None, int | None]:
        """Of the labelled sequences, one picture each."""
        return LABELLED_PERSONS, self.all_images

    def _entries(self, root: Path) -> Iterator[Entry]:
        """In the order of persons, sequences and frames."""
        self.start()
        if self.frames not in FRAMES:
            raise InputError(f"data set 'ck+': unknown frames {self.frames!r}", f"one of {', '.join(FRAMES)}")
        images = self.expected.find(root, "images")
        if images is None:
            return
        cut = root if images.name == "anger" else images
        if class_folders(cut):
            yield from self._cut(root, cut)
            return
        labels = self.expected.find(root, "labels")
        if labels is None and not self.unlabelled:
            raise InputError(
                f"data set 'ck+': {root} has no folder {LABELS[0]}: no sequence would have an emotion",
                f"unpack Emotion_labels.zip into {root}; or unlabelled = true, for identity only",
            )
        yield from self._sequences(root, images, labels)

    def _sequences(self, root: Path, images: Path, labels: Path | None) -> Iterator[Entry]:
        """The official layout."""
        for person in sub_folders(images):
            if not re.fullmatch(r"S[0-9]{3}", person):
                self.leave_out(f"folders that are no person's ({person})")
                continue
            for sequence in sub_folders(images / person):
                folder = images / person / sequence
                frames = self._frames(root, folder, f"{person}_{sequence}")
                if not frames:
                    self.leave_out("sequences without a picture")
                    continue
                emotion = self._emotion(labels / person / sequence, frames[-1]) if labels is not None else None
                if emotion is None and not self.unlabelled:
                    self.leave_out("sequences without an emotion (unlabelled = true takes them, for identity)")
                    continue
                yield from self._taken(frames, emotion)

    def _frames(self, root: Path, folder: Path, sequence: str) -> list[Frame]:
        frames = []
        for name in images_in(folder):
            parsed = parse_name(name)
            if parsed is None:
                self.leave_out("pictures with another name")
                continue
            if parsed[1] != sequence:
                raise InputError(
                    f"{folder / name}: its name says sequence {parsed[1]}, its folder {sequence}", "unpack the archive anew"
                )
            frames.append(Frame(*parsed, below(root, folder / name)))
        return sorted(frames, key=lambda f: f.number)

    def _emotion(self, folder: Path, peak: Frame) -> str | None:
        """The label of a sequence; None where it has no file."""
        found = sorted(p for p in folder.glob("*_emotion.txt") if not p.name.startswith(".")) if folder.is_dir() else []
        if not found:
            return None
        if len(found) > 1:
            raise InputError(
                f"{folder} holds {len(found)} labels: {some([p.name for p in found])}", "leave the right one there"
            )
        named = NAME.fullmatch(found[0].name.removesuffix("_emotion.txt"))
        if named is None or named[1] != peak.person or f"{named[1]}_{named[2]}" != peak.sequence:
            raise InputError(f"{found[0]} is no label of sequence {peak.sequence}", "unpack Emotion_labels.zip anew")
        if int(named[3]) != peak.number:  # frames at the end are missing, or the label is another copy's
            raise InputError(
                f"{found[0].name} is about frame {int(named[3])}, the last frame of {peak.sequence} that is there is {peak.number}",
                "unpack extended-cohn-kanade-images.zip anew: frames are missing",
            )
        try:
            if found[0].stat().st_size > 1000:
                raise InputError(f"{found[0]} is no label: {found[0].stat().st_size:,} bytes", "unpack Emotion_labels.zip anew")
            return parse_emotion(found[0].read_text("ascii", errors="replace"), str(found[0]))
        except OSError as error:
            raise InputError(f"{found[0]} cannot be read: {error.strerror or error}", "check its permissions") from error

    def _taken(self, frames: list[Frame], emotion: str | None) -> Iterator[Entry]:
        """The frames of a sequence that ``frames`` asks for."""
        chosen = {"peak": frames[-1:], "peak+neutral": [frames[0], frames[-1]], "last3": frames[-3:]}[self.frames]
        if self.frames == "peak+neutral" and len(frames) == 1:
            chosen = frames
        for frame in chosen:
            neutral = self.frames == "peak+neutral" and frame is frames[0] and len(frames) > 1
            yield Entry(path=frame.path, subject=frame.person, emotion="neutral" if neutral else emotion)

    def _cut(self, root: Path, folder: Path) -> Iterator[Entry]:
        """CK+48: one folder for each emotion."""
        sequences: dict[str, list[Frame]] = {}
        emotions: dict[str, str] = {}
        for name, emotion in class_folders(folder).items():
            for picture in images_in(folder / name):
                parsed = parse_name(picture)
                if parsed is None:
                    self.leave_out("pictures with another name")
                    continue
                frame = Frame(*parsed, below(root, folder / name / picture))
                if (other := emotions.setdefault(frame.sequence, emotion)) != emotion:
                    raise InputError(
                        f"{frame.path}: sequence {frame.sequence} is in the folders of {other} and of {emotion}",
                        "leave it in one of them",
                    )
                sequences.setdefault(frame.sequence, []).append(frame)
        self._no_neutral(f"{folder} is CK+48")
        for sequence in sorted(sequences):
            yield from self._taken(sorted(sequences[sequence], key=lambda f: f.number), emotions[sequence])

    def _no_neutral(self, what: str) -> None:
        if self.frames == "peak+neutral":
            raise InputError(
                f"data set 'ck+': {what}, which has no neutral frames", 'frames = "peak" or "last3", or the official set'
            )

    def _listed(self, root: Path) -> Iterable[Entry]:
        """A manifest that lists the set's own file names is cut down to the frames that are asked for, too."""
        entries = list(super()._listed(root))
        if not self.reads_manifest or self.frames == "last3":
            return entries
        names = [parse_name(Path(e.path).name) for e in entries]
        last: dict[str, int] = {}
        for parsed in names:
            if parsed is None:
                return entries
            last[parsed[1]] = max(last.get(parsed[1], 0), parsed[2])
        self._no_neutral(f"{root} is read by its manifest")
        return [e for e, parsed in zip(entries, names, strict=True) if parsed is not None and parsed[2] == last[parsed[1]]]

    def _more(self, there: Sequence[Entry]) -> Iterator[Finding]:
        """Sequences of each emotion against those of the paper."""
        yield from super()._more(there)
        sequences: dict[str, str | None] = {}
        for entry in there:
            if (parsed := parse_name(Path(entry.path).name)) is None:
                return  # a manifest with names of its own
            if entry.emotion != "neutral" or parsed[1] not in sequences:
                sequences[parsed[1]] = entry.emotion
        labelled = [e for e in sequences.values() if e is not None]
        found = {emotion: labelled.count(emotion) for emotion in SEQUENCES}
        yield self.count("labelled sequences", len(labelled), sum(SEQUENCES.values()))
        if wrong := [f"{e} {n} (of {SEQUENCES[e]})" for e, n in found.items() if n != SEQUENCES[e]]:
            yield self.count(f"sequences by emotion: {', '.join(wrong)}", len(labelled), sum(SEQUENCES.values()))
        if self.unlabelled:
            yield self.count("sequences", len(sequences), ALL_SEQUENCES)
        who = "persons in all" if self.unlabelled else "persons with a label"
        yield self.count(who, len({e.subject for e in there}), PERSONS if self.unlabelled else LABELLED_PERSONS)
