"""Anonymising a file or a folder tree: what ``deidbench anonymize IN OUT`` does.

The rules, all of them for the sake of the people in the pictures:

* The input is never written to, whatever links there are.
* A picture is written only when the method says ``ok`` for it and every face in it really changed.  Where no face was found,
  where the method failed or changed nothing, nothing is written: a copy of the input among anonymised pictures is a leak.
* No metadata (EXIF with its thumbnail and GPS position, comments, profiles) goes into an output.
* Every image has its line in ``deidbench-status.csv``; files that are no images are counted, and never copied.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deidbench.errors import DeidbenchError, EnvironmentFault, ExitCode, ImageError, InputError
from deidbench.images import IMAGE_SUFFIXES, WRITABLE, atomic_write, encode_image, make_folder, read_image
from deidbench.spreadsheet import exact, guard_exactly
from deidbench.types import Anonymized, Face, Image, Item, Sample, Status

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer
    from deidbench.progress import Ticker

logger = logging.getLogger(__name__)

STATUS_FILE = "deidbench-status.csv"
#: Grows while a run is under way; folded into the status file at its end, or by the next run after a crash.
JOURNAL_FILE = "deidbench-status.part.csv"
COLUMNS = ("path", "status", "faces", "reason", "seed", "method")
#: Statuses beside those of :class:`~deidbench.types.Status`.
UNREADABLE = "unreadable"
#: A file of the output's name was there and nothing is known of how it was made.
EXISTS = "exists"
#: A batch ends early when its images hold this many pixels together (192 MB as RGB).
BATCH_PIXELS = 64_000_000


class Finder(Protocol):
    """What finds faces, e.g. :class:`deidbench.faces.FaceFinder`."""

    def find(self, image: Image) -> list[Face]: ...


@dataclass(frozen=True)
class Line:
    """One line of the status file.

    path: of the input, relative to the source, with forward slashes.  faces: how many were found, "" where not looked for.
    seed: of this image.  method: label and fingerprint of what made the output.
    """

    path: str
    status: str
    faces: str = ""
    reason: str = ""
    seed: str = ""
    method: str = ""

    def cells(self) -> tuple[str, ...]:
        return (self.path, self.status, self.faces, self.reason, self.seed, self.method)


@dataclass(frozen=True)
class Summary:
    """What became of a tree.

    counts: status -> images, over all images of the source.  written: files written by this call.
    skipped: outputs that an earlier call had made (they count as ``ok``).  problems: a line for everything but ``ok``.
    ignored: file ending -> number of files that are no images (videos and raw photographs among them).
    links: folders that are symbolic links, which are not followed.  status_file: None for one file to one file.
    """

    counts: Mapping[str, int]
    written: int
    skipped: int
    problems: Sequence[Line] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    links: Sequence[str] = ()
    status_file: Path | None = None

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def exit_code(self) -> ExitCode:
        """PARTIAL when an image of the source has no output of ours."""
        return ExitCode.OK if self.counts.get(Status.OK.value, 0) == self.total and not self.links else ExitCode.PARTIAL


@dataclass(frozen=True)
class _Job:
    """One image: where it is, where it goes, its name in the status file."""

    source: Path
    target: Path
    name: str
    seed: int


def image_seed(seed: int, name: str) -> int:
    """Seed of one image (63 bits): depends on the run's seed and the relative path only, never on order or batches."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 1


def anonymize_tree(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    anonymizer: Anonymizer,
    *,
    finder: Finder | None,
    batch: int = 16,
    suffix: str | None = None,
    overwrite: bool = False,
    seed: int = 0,
    progress: Callable[[str, int], AbstractContextManager[Ticker]] | None = None,
) -> Summary:
    """Anonymises the image ``source``, or all images in the folder ``source``, into ``target``, keeping the tree.

    A method that averages the faces of a set (``anonymizer.needs_gallery``) gets the images of ``source`` as that set: a
    sub-folder is a person.

    target: a folder (made where absent).  For a single image it may be a file name, one with an image's ending.
    finder: finds the faces for methods that need them (``anonymizer.needs_faces``); may be None for others.
    batch: images per call of the method; never changes a result.
    suffix: ending and format of all outputs, e.g. ".png".  By default an output keeps its input's; where that cannot be
        written (".gif"), ".png" is appended.  JPEG is written with quality 95.
    overwrite: make outputs anew that are already there.  Otherwise they are skipped, so that the same command finishes what
        an interrupted one left.
    seed: of the run; see :func:`image_seed`.
    progress: opens a progress bar, e.g. :func:`deidbench.progress.progress`.

    Raises InputError before anything is written: no such source, no image in it, target within source or the other way
    round, outputs that would collide, a target that holds the work of another method or seed.  EnvironmentFault when
    the disk is full and the like, KeyboardInterrupt on Ctrl-C: finished images and the status file are there then too.
    """
    if batch < 1:
        raise InputError(f"batch = {batch} is not positive", "leave it out")
    if anonymizer.needs_faces and finder is None:
        raise ValueError(f"{anonymizer!r} needs faces, so it needs a finder")
    source, target = Path(source), Path(target)
    found = _Found.single(source) if _is_file(source) else _Found.tree(source)
    jobs, folder = _jobs(source, target, found, suffix, seed)
    if anonymizer.needs_gallery:
        finder = _fit(anonymizer, jobs, finder)
    method = f"{anonymizer!r} {anonymizer.fingerprint}"

    past = _read_status(folder) if folder is not None else {}
    there = {job.name for job in jobs if os.path.lexists(job.target)}
    if folder is None and there and not overwrite:
        raise InputError(f"{target} is already there", "choose another name for the output, or overwrite it (--overwrite)")
    done = {} if overwrite else {job.name: _past_line(past, job) for job in jobs if job.name in there}
    _refuse_mixture(done, method, seed, target)
    todo = [job for job in jobs if job.name not in done]
    targets = {job.target for job in jobs}
    for job in todo:  # the journal is written before the picture: a kill in between leaves a line without its picture
        if job.name not in there and job.name in past and past[job.name].status == Status.OK.value:
            del past[job.name]

    lines: dict[str, Line] = {**done, **{line.path: line for line in found.unreadable}}
    written = 0
    home = folder if folder is not None else target.parent
    make_folder(home)
    anonymizer.load()
    guard = _Guard(source if found.is_tree else None, home)
    with (
        _Status(folder, past, lines) as status,
        progress("anonymize", len(todo)) if progress else nullcontext(_no_tick) as tick,
    ):
        for good, items, bad in _batches(todo, batch, anonymizer, finder):
            work: list[tuple[_Job, Line, list[bytes]]] = [(job, line, []) for job, line in bad]
            work += [
                _encoded(job, item, result) for job, item, result in zip(good, items, _results(anonymizer, items), strict=True)
            ]
            work = [(job, replace(line, seed=str(job.seed), method=method), data) for job, line, data in work]
            work = [_without_collision(job, line, data, targets) for job, line, data in work]
            for job, _, _ in work:
                guard.check(job.target)
                # With overwrite something may be there.  It goes first, so that what is there always is what the journal says.
                for old in (job.target, *(p for p in _further(job.target) if p not in targets)):
                    _remove(old)
            status.note(line for _, line, _ in work)
            for job, line, data in work:
                lines[job.name] = line
                if data:
                    try:
                        for n, face in enumerate(data[1:], 2):  # the first face last: where it is, the others are
                            atomic_write(_face_path(job.target, n), face)
                        atomic_write(job.target, data[0])
                    except BaseException:  # Ctrl-C too, which may come after the renaming
                        if not os.path.lexists(job.target):
                            del lines[job.name]
                        raise
                    written += 1
            tick(len(work))
    counts = Counter(line.status for line in lines.values())
    return Summary(
        counts=dict(counts),
        written=written,
        skipped=sum(line.status == Status.OK.value for line in done.values()),
        problems=[line for line in lines.values() if line.status != Status.OK.value],
        ignored=dict(found.ignored),
        links=found.links,
        status_file=folder / STATUS_FILE if folder is not None else None,
    )


def _no_tick(done: int = 1) -> None:
    """Progress for nobody."""


# ------------------------------------------------------------------------------------------------ what is to be done


@dataclass
class _Found:
    """Images of the source by relative name, in order, and what else lies there."""

    images: dict[str, Path] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)
    unreadable: list[Line] = field(default_factory=list)
    is_tree: bool = True

    @classmethod
    def single(cls, source: Path) -> _Found:
        return cls(images={source.name: source}, is_tree=False)

    @classmethod
    def tree(cls, source: Path) -> _Found:
        found = cls()

        def broken(error: OSError) -> None:
            name = Path(error.filename).relative_to(source).as_posix()
            found.unreadable.append(Line(name + "/", UNREADABLE, reason=f"folder cannot be listed: {error.strerror}"))

        for folder, folders, files in os.walk(source, onerror=broken):
            folders.sort()
            here = Path(folder)
            for name in folders:
                if (here / name).is_symlink():
                    found.links.append((here / name).relative_to(source).as_posix())
            for name in sorted(files):
                ending = Path(name).suffix.lower()
                if ending in IMAGE_SUFFIXES and not name.startswith("._"):
                    found.images[(here / name).relative_to(source).as_posix()] = here / name
                else:
                    found.ignored[ending or name] += 1
        if not found.images:
            reasons = "".join(f"; {line.path} {line.reason}" for line in found.unreadable[:1])
            raise InputError(
                f"{source} holds no image ({found.ignored.total()} other files{reasons})",
                f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
        return found


def _is_file(source: Path) -> bool:
    try:
        if source.is_dir():
            return False
        source.stat()
    except FileNotFoundError:
        raise InputError(f"{source} does not exist", "check the path") from None
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}", "check the path and its permissions") from error
    return True


def _jobs(source: Path, target: Path, found: _Found, suffix: str | None, seed: int) -> tuple[list[_Job], Path | None]:
    """The work, and the folder that receives outputs and status file (None: a single file to a single file)."""
    if suffix is not None and suffix.lower() not in WRITABLE:
        raise InputError(f"images cannot be written as {suffix!r}", f"use one of {', '.join(sorted(WRITABLE))}")
    if not found.is_tree and not target.is_dir() and target.suffix.lower() in WRITABLE:
        if suffix is not None and target.suffix.lower() != suffix.lower():
            raise InputError(f"{target} does not end in {suffix}", "leave out the suffix, or change the name")
        _refuse_same(source, target)
        return [_Job(source, target, source.name, image_seed(seed, source.name))], None
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is not a folder", "choose another name for the output")
    if found.is_tree:
        _refuse_overlap(source, target)
    jobs, taken = [], dict[Path, str]()
    for name, path in found.images.items():
        ending = path.suffix.lower()
        output = Path(name).with_suffix(suffix) if suffix else Path(name) if ending in WRITABLE else Path(name + ".png")
        if output in taken:
            raise InputError(
                f"{taken[output]} and {name} would both become {output}", "choose another suffix, or rename one of them"
            )
        taken[output] = name
        jobs.append(_Job(path, target / output, name, image_seed(seed, name)))
    if not found.is_tree:
        _refuse_same(source, jobs[0].target)
    return jobs, target


def _refuse_same(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        raise InputError(f"{target} is the input itself", "choose another name for the output: the input is never overwritten")


def _refuse_overlap(source: Path, target: Path) -> None:
    """Neither folder may lie within the other, all links resolved: outputs would become inputs, or replace them."""
    inner, outer = Path(os.path.realpath(target)), Path(os.path.realpath(source))
    if inner == outer:
        raise InputError(
            f"{target} and {source} are the same folder", "choose another folder for the output: the input is never overwritten"
        )
    if inner.is_relative_to(outer):
        raise InputError(f"{target} lies within {source}", "choose a folder outside the input, for example beside it")
    if outer.is_relative_to(inner):
        raise InputError(f"{source} lies within {target}", "choose a folder for the output that does not hold the input")


class _Guard:
    """Checks before each write that the folder written to really lies in the target and not, by a link, in the source."""

    def __init__(self, source: Path | None, target: Path) -> None:
        self.source = None if source is None else Path(os.path.realpath(source))
        self.target = Path(os.path.realpath(target))
        self._good: set[Path] = set()

    def check(self, path: Path) -> None:
        folder = path.parent
        if folder in self._good:
            return
        real = Path(os.path.realpath(folder))  # before anything is made in it
        if not real.is_relative_to(self.target) or (self.source is not None and real.is_relative_to(self.source)):
            raise InputError(f"{folder} leads out of the output folder by a symbolic link (to {real})", "remove the link")
        make_folder(folder)
        self._good.add(folder)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be replaced: {error.strerror or error}", "check the folder's permissions"
        ) from error


class _Known:
    """A finder that was asked before: what it found in an image is kept, so that no image is searched twice."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self._faces: dict[str, list[Face]] = {}

    def find(self, image: Image) -> list[Face]:
        pixels = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        if pixels not in self._faces:
            self._faces[pixels] = self.finder.find(image)
        return self._faces[pixels]


def _fit(anonymizer: Anonymizer, jobs: Sequence[_Job], finder: Finder | None) -> Finder | None:
    """Gives the method the set that it de-identifies: all images of the source, whether their outputs are there or not.

    An image's person is its first sub-folder; an image that lies in none is a person of its own.  Returns the finder for
    the rest of the work.
    """
    from deidbench.anonymizers.base import person_of

    known = _Known(finder) if finder is not None else None

    def read(sample: Sample) -> Item:
        image = read_image(sample.path)
        return Item(sample.id, image, tuple(known.find(image)) if known else None)

    anonymizer.load()
    anonymizer.fit([Sample(job.name, job.source, person_of(job.name), "") for job in jobs], read)
    return known


# ------------------------------------------------------------------------------------------------------- the doing


def _batches(
    jobs: Iterable[_Job], size: int, anonymizer: Anonymizer, finder: Finder | None
) -> Iterator[tuple[list[_Job], list[Item], list[tuple[_Job, Line]]]]:
    """(jobs, their items, jobs that cannot be worked on), never more than ``size`` images or about BATCH_PIXELS at a time."""
    good: list[_Job] = []
    items: list[Item] = []
    bad: list[tuple[_Job, Line]] = []
    pixels = 0
    for job in jobs:
        try:
            image = read_image(job.source)
            faces = tuple(finder.find(image)) if finder is not None and anonymizer.needs_faces else None
        except ImageError as error:
            bad.append((job, Line(job.name, UNREADABLE, reason=error.message.replace(str(job.source), job.name))))
        except DeidbenchError:
            raise
        except Exception as error:  # a finder may raise anything; the reason is kept and the other images go on
            logger.exception("%s: the face finder failed", job.source)
            bad.append((job, Line(job.name, Status.FAILED.value, reason=f"face finder: {type(error).__name__}: {error}")))
        else:
            good.append(job)
            items.append(Item(job.name, image, faces, job.seed))
            pixels += image.shape[0] * image.shape[1]
        if len(good) + len(bad) >= size or pixels >= BATCH_PIXELS:
            yield good, items, bad
            good, items, bad, pixels = [], [], [], 0
    if good or bad:
        yield good, items, bad


def _face_path(target: Path, n: int) -> Path:
    """Where face ``n`` (from 2) of a picture goes, of methods that give each face alone: ``name.face2.png``."""
    return target.with_name(f"{target.stem}.face{n}{target.suffix}")


def _without_collision(job: _Job, line: Line, data: list[bytes], targets: set[Path]) -> tuple[_Job, Line, list[bytes]]:
    """Withholds a picture whose further faces would get the name of another picture's output."""
    for n in range(2, len(data) + 1):
        if (path := _face_path(job.target, n)) in targets:
            reason = f"image withheld: its face {n} would be called {path.name}, as another input is; rename one of them"
            return job, replace(line, status=Status.FAILED.value, reason=reason), []
    return job, line, data


def _further(target: Path) -> list[Path]:
    """Further faces of this picture that an earlier call wrote: numbered without a gap."""
    found: list[Path] = []
    while os.path.lexists(path := _face_path(target, len(found) + 2)):
        found.append(path)
    return found


def _encoded(job: _Job, item: Item, result: Anonymized) -> tuple[_Job, Line, list[bytes]]:
    """The status line of one result, and the bytes of its files where there is something to release (one, or one per face)."""
    result = _releasable(item, result)
    line = Line(job.name, result.status.value, "" if item.faces is None else str(len(item.faces)), result.reason)
    if result.image is None:
        return job, line, []
    try:
        return job, line, [encode_image(image, job.target.suffix) for image in result.crops or (result.image,)]
    except InputError as error:  # e.g. more than 65535 pixels a side as JPEG
        return job, replace(line, status=Status.FAILED.value, reason=f"{error.message} ({error.remedy})"), []


def _results(anonymizer: Anonymizer, items: Sequence[Item]) -> list[Anonymized]:
    from deidbench.adapter_calls import run_adapter

    return run_adapter(anonymizer, items) if items else []


def _releasable(item: Item, result: Anonymized) -> Anonymized:
    """``result``, without its image unless every face was worked on and came out changed."""
    from deidbench.pipeline import passthrough

    if result.image is None:
        return result
    if result.status is not Status.OK:
        return Anonymized(result.id, result.status, None, result.faces, result.reason or "image withheld")
    bad = [(i, face) for i, face in enumerate(result.faces, 1) if face.status is not Status.OK]
    if bad:
        reason = "; ".join(f"face {i} of {len(result.faces)}: {face.reason or face.status.value}" for i, face in bad)
        return Anonymized(result.id, Status.FAILED, None, result.faces, f"image withheld; {reason}")
    unchanged = [i for i, face in enumerate(item.faces or (), 1) if passthrough(item.image, result.image, face)]
    if unchanged:
        reason = f"output withheld: face {unchanged[0]} of {len(item.faces or ())} is the input's, or nearly"
        return Anonymized(result.id, Status.PASSTHROUGH, None, result.faces, reason)
    if not item.faces and passthrough(item.image, result.image, None):
        return Anonymized(result.id, Status.PASSTHROUGH, None, result.faces, "output withheld: it is the input, or nearly")
    return result


# ------------------------------------------------------------------------------------------------- the status file


def _past_line(past: Mapping[str, Line], job: _Job) -> Line:
    """What is known of an output that is already there."""
    line = past.get(job.name)
    if line is not None and line.status == Status.OK.value:
        return line
    return Line(
        job.name, EXISTS, reason=f"{job.target.name} was already there, and not from deidbench: left alone, not checked"
    )


def _refuse_mixture(done: Mapping[str, Line], method: str, seed: int, target: Path) -> None:
    """Outputs of another method or seed beside new ones would be taken for the new method's."""
    for line in done.values():
        if line.method and (line.method != method or line.seed != str(image_seed(seed, line.path))):
            what = "another seed" if line.method == method else line.method.rsplit(" ", 1)[0]
            raise InputError(
                f"{target} already holds images made with {what}, {line.path} for one",
                "choose another folder, or overwrite them (--overwrite)",
            )


def _read_status(folder: Path) -> dict[str, Line]:
    """Lines that earlier runs left, by path: the status file, and over it the journal of a run that was killed."""
    lines: dict[str, Line] = {}
    for name in (STATUS_FILE, JOURNAL_FILE):
        try:
            text = (folder / name).read_bytes().decode("utf-8", "surrogateescape")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise EnvironmentFault(
                f"{folder / name} cannot be read: {error.strerror or error}", "check its permissions"
            ) from error
        if name == JOURNAL_FILE:
            text = text[: text.rfind("\n") + 1]  # a kill may have torn the last line
        rows = csv.reader(io.StringIO(text, newline=""))
        try:
            if name == STATUS_FILE and tuple(next(rows, ())) != COLUMNS:
                raise InputError(f"{folder / name} is not a status file of deidbench", "choose another folder for the output")
            found = (Line(*map(exact, cells)) for cells in rows if len(cells) == len(COLUMNS))
            lines |= {line.path: line for line in found}
        except csv.Error as error:
            raise InputError(
                f"{folder / name} is damaged: {error}", "remove it, or choose another folder for the output"
            ) from error
    return lines


def _csv(lines: Iterable[Line]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([guard_exactly(cell) for cell in line.cells()] for line in lines)
    return text.getvalue()


class _Status:
    """Keeps the status on disk: a journal that is appended to and synced per batch, and the sorted file at the end.

    The end comes by Ctrl-C and by errors too.  ``lines`` is shared with the caller; without a folder nothing is stored.
    """

    def __init__(self, folder: Path | None, past: Mapping[str, Line], lines: dict[str, Line]) -> None:
        self.folder, self.past, self.lines = folder, past, lines

    def __enter__(self) -> _Status:
        if self.folder is not None and (self.folder / JOURNAL_FILE).exists():  # of a run that was killed
            self._fold(self.past)
        return self

    def note(self, fresh: Iterable[Line]) -> None:
        """Puts lines into the journal, safely on disk before their pictures are."""
        if self.folder is None:
            return
        journal = self.folder / JOURNAL_FILE
        try:
            with journal.open("ab") as file:
                file.write(_csv(fresh).encode("utf-8", "surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EnvironmentFault(
                f"{journal} cannot be written: {error.strerror or error}",
                "free space or choose another folder, then run the command again",
            ) from error

    def _fold(self, lines: Mapping[str, Line]) -> None:
        assert self.folder is not None
        atomic_write(self.folder / STATUS_FILE, ",".join(COLUMNS) + "\n" + _csv(lines[path] for path in sorted(lines)))
        _remove(self.folder / JOURNAL_FILE)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.folder is None:
            return
        try:
            self._fold({**self.past, **self.lines})
        except EnvironmentFault as second:
            if error is None:
                raise
            # the first error is the one to report; the journal is still there and the next run reads it
            logger.warning("%s not brought up to date: %s", self.folder / STATUS_FILE, second)
