"""Model weights as records: what a file is called, where it may lie, its hash, its licence, and how to get it.

A model declares a :class:`WeightFile`; nothing is loaded, downloaded or created before somebody asks.  Looked for, in
this order: a path given by the user, the folder named by ``$DEIDBENCH_WEIGHTS``, an installed package that carries the
file, the user's data folder.  Downloads happen only where :meth:`WeightFile.fetch` is called with consent.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import pickle
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from deidbench.errors import EnvironmentFault, InputError, MissingError

#: Environment variable that names a folder with weight files; it goes before everything but an explicit path.
WEIGHTS_ENV = "DEIDBENCH_WEIGHTS"

_CHUNK = 1 << 20


def user_folder() -> Path:
    """Where downloads go: ``$DEIDBENCH_WEIGHTS``, else the user's data folder.  Not created here."""
    if named := os.environ.get(WEIGHTS_ENV):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_path("deidbench", appauthor=False)) / "weights"


@dataclass(frozen=True)
class WeightFile:
    """One weight file.

    name: short name for messages.  filename: what the file is called where it is looked for.
    sha256: lower-case hex; None where no hash is published (it is then recorded with results, not checked).
    md5: the same, where that is all that is published; it finds a broken download, and no forger.
    size: bytes, None where unknown.  limit: bytes at which a download of unknown size is given up.  trained_on: data sets that shaped the weights.
    package, package_path: importable package that carries the file, and the path inside it (found, not imported).
    install: the command that installs that package.  url: where the file can be downloaded, "" where it cannot.
    folders: further folders to look in (some library's own cache).
    """

    name: str
    filename: str
    sha256: str | None = None
    size: int | None = None
    licence: str = ""
    citation: str = ""
    trained_on: tuple[str, ...] = ()
    package: str = ""
    package_path: str = ""
    install: str = ""
    url: str = ""
    folders: tuple[Path, ...] = ()
    md5: str | None = None
    limit: int | None = None

    def candidates(self, path: str | Path | None = None) -> list[Path]:
        """Every place where the file is looked for, in order.  With ``path`` (file or folder), that place alone."""
        if path:
            given = Path(path).expanduser()
            return [given / self.filename if given.is_dir() else given]
        places = []
        if named := os.environ.get(WEIGHTS_ENV):
            places.append(Path(named).expanduser() / self.filename)
        places.extend(folder / self.filename for folder in self.folders)
        if root := package_folder(self.package):
            places.append(root / self.package_path)
        import platformdirs

        places.append(Path(platformdirs.user_data_path("deidbench", appauthor=False)) / "weights" / self.filename)
        return list(dict.fromkeys(places))

    def locate(self, path: str | Path | None = None) -> Path:
        """The file.  Quick: nothing is read.  Raises MissingError saying what is missing, where it goes and how to get it."""
        places = self.candidates(path)
        for place in places:
            if place.is_file():
                return place
        raise self._absent(places)

    def missing(self, path: str | Path | None = None) -> str:
        """Empty when the file is there, otherwise the text of the error that :meth:`locate` raises."""
        try:
            self.locate(path)
        except MissingError as error:
            return str(error)
        return ""

    def verify(self, path: Path) -> str:
        """SHA-256 of ``path``.  Raises InputError when it is not this record's file (a record without a hash accepts any)."""
        size = path.stat().st_size
        remedy = f"delete it and get it again: {self._how_to_get()}"
        if self.size is not None and size != self.size:
            raise InputError(f"{path} has {size} bytes, {self.name} has {self.size}: broken, cut short or another file", remedy)
        found = sha256_of(path)
        if self.sha256 is not None and found != self.sha256:
            raise InputError(f"{path} is not {self.name}: its SHA-256 is {found}, expected {self.sha256}", remedy)
        if self.sha256 is None and self.md5 is not None and (other := md5_of(path)) != self.md5:
            raise InputError(f"{path} is not {self.name}: its MD5 is {other}, expected {self.md5}", remedy)
        return found

    def open(self, path: str | Path | None = None) -> Path:
        """:meth:`locate` and :meth:`verify` in one: a path that can be handed to a loader."""
        found = self.locate(path)
        self.verify(found)
        return found

    def _how_to_get(self) -> str:
        ways = []
        if self.install:
            ways.append(self.install)
        if self.url:
            ways.append(f"download {self.url}")
        return ", or ".join(ways) or "from its authors"

    def _absent(self, places: Sequence[Path], why: str = "") -> MissingError:
        hash_ = f"SHA-256 {self.sha256}" if self.sha256 else f"MD5 {self.md5}" if self.md5 else "no hash is published"
        size = f"{self.size} bytes, " if self.size is not None else ""
        remedy = f"get it: {self._how_to_get()}; put it at " + ", or ".join(str(p) for p in places)
        if WEIGHTS_ENV not in os.environ and len(places) > 1:
            remedy += f", or in a folder that ${WEIGHTS_ENV} names"
        return MissingError(f"weights of {self.name} are missing: {self.filename} ({size}{hash_}){why}", remedy)

    def fetch(
        self,
        *,
        consent: bool,
        folder: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        timeout: float = 30.0,
    ) -> Path:
        """Downloads the file into ``folder`` (default :func:`user_folder`) and returns its path.

        consent: must be True, given by the user for this download; nothing goes over the network otherwise.
        progress: called with (bytes so far, bytes in all).  timeout: seconds without a byte.
        The file appears under its name only when it is complete and its hash is right.

        Raises InputError (no consent, no hash to check against, wrong content), MissingError (not reachable, with the
        place where the file can be put by hand), EnvironmentFault (folder cannot be written).
        """
        target = Path(folder).expanduser() if folder else user_folder()
        target = target / self.filename
        if not consent:
            raise InputError(
                f"downloading {self.filename} from {self.url or 'the network'} needs consent",
                "agree to the download, or put the file at " + str(target),
            )
        if not self.url or (self.sha256 or self.md5) is None or (self.size or self.limit) is None:
            lack = "address" if not self.url else "hash and size to check it against"
            raise InputError(
                f"{self.filename} cannot be downloaded: there is no published {lack}",
                f"get it by hand ({self._how_to_get()}) and put it at {target}",
            )
        if not self.url.startswith(("https://", "http://")):
            raise InputError(f"{self.url!r} is not a web address", f"put the file at {target}")
        if target.is_file():
            self.verify(target)
            return target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self.filename}.", suffix=".part", dir=target.parent)
        except OSError as error:
            raise EnvironmentFault(
                f"{target.parent} cannot be written: {error}", f"name another folder in ${WEIGHTS_ENV}"
            ) from error
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as sink:
                self._receive(sink, target, progress, timeout)
            part.chmod(0o644)  # mkstemp makes it readable for the owner alone
            part.replace(target)
            _sync_folder(target.parent)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _receive(self, sink: Any, target: Path, progress: Callable[[int, int], None] | None, timeout: float) -> None:
        """Body of the download into ``sink``, checked and synced.  Raises as :meth:`fetch` does."""
        most = self.size if self.size is not None else self.limit
        assert most is not None
        digest, other, got = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        try:
            request = urllib.request.Request(self.url, headers={"User-Agent": "deidbench"})
            with urllib.request.urlopen(request, timeout=timeout) as source:
                while chunk := source.read(_CHUNK):
                    got += len(chunk)
                    if got > most:
                        break
                    digest.update(chunk)
                    other.update(chunk)
                    _write(sink, chunk, target)
                    if progress is not None:
                        progress(got, most)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise self._absent([target], f"; {self.url} cannot be read: {error}") from error
        if got > most or (self.size is not None and got != self.size):
            what = "more than" if got > most else f"{got} of"
            raise InputError(
                f"{self.url} gave {what} {most} bytes: cut short or another file; nothing was kept",
                "try again, or download it by hand to " + str(target),
            )
        found, wanted = (digest.hexdigest(), self.sha256) if self.sha256 is not None else (other.hexdigest(), self.md5)
        if found != wanted:
            kind = "SHA-256" if self.sha256 is not None else "MD5"
            raise InputError(
                f"{self.url} gave a file with {kind} {found}, expected {wanted}; nothing was kept",
                f"do not use that file; another copy with the right hash can be put at {target}",
            )
        try:
            sink.flush()
            os.fsync(sink.fileno())
        except OSError as error:
            raise EnvironmentFault(f"{target.parent} cannot be written: {error}", "free some space") from error


def _write(sink: Any, chunk: bytes, target: Path) -> None:
    # Told apart from network errors, which are OSErrors too.
    try:
        sink.write(chunk)
    except OSError as error:
        raise EnvironmentFault(f"{target.parent} cannot be written: {error}", "free some space") from error


def _sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` durable; platforms that cannot open folders have nothing to sync."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def package_folder(package: str) -> Path | None:
    """Folder of an installed top-level package, found without importing it; None where it is not installed."""
    if not package:
        return None
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a half-removed package
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, lower-case hex.  Kept per (path, size, modification time), so asking again costs nothing."""
    path = Path(path)
    try:
        stat = path.stat()
        return _sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError as error:
        raise MissingError(f"{path} does not exist", "check the path") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", "check its permissions") from error


def md5_of(path: str | Path) -> str:
    """MD5 of a file, lower-case hex: it recognises published files and protects nothing."""
    with open(path, "rb") as file:  # noqa: PTH123 - file_digest wants a file
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - file_digest wants a file
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_torch_load(path: str | Path) -> Any:
    """Reads a PyTorch or safetensors file on the CPU without running any code in it.

    Returns what was saved: tensors, numbers, strings and containers of them.
    Raises MissingError where there is no such file; InputError where it is broken, cut short, no weight file, or
    holds anything that would have to be executed to be read (such a file is never unpickled).
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a weight file", "name the file in it")
    if not path.is_file():
        raise MissingError(f"{path} does not exist", "check the path")
    remedy = "get the file again from its authors; compare its SHA-256"
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", "check its permissions") from error
    if len(head) == 0:
        raise InputError(f"{path} is empty", remedy)
    if head == b"version h":
        raise InputError(f"{path} is a Git LFS pointer, not the file itself", "git lfs pull, where it came from")
    if path.suffix == ".safetensors" or head[8:9] == b"{":  # 8 bytes of header length, then JSON
        from safetensors.torch import load_file

        try:
            return load_file(str(path), device="cpu")
        except MemoryError as error:
            raise EnvironmentFault(f"not enough memory to read {path}", "close other programs") from error
        except Exception as error:  # of the library's own class, or of torch's for a shape that it cannot have
            raise InputError(f"{path} is no readable safetensors file: {_first_line(error)}", remedy) from error
    if (unpacked := _unpacked(path)) > 2 * path.stat().st_size + (64 << 20):
        raise InputError(
            f"{path} says that it holds {unpacked:,} bytes, packed into {path.stat().st_size:,}: torch packs nothing, and so much is not unpacked",
            remedy,
        )
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise EnvironmentFault(f"not enough memory to read {path}", "close other programs") from error
    except pickle.UnpicklingError as error:
        text = str(error)
        if "GLOBAL" in text or "Unsupported global" in text or "Unsupported class" in text:
            what = "holds Python objects that would have to be executed"
        else:
            what = "is no PyTorch weight file, or holds Python objects that would have to be executed"
        raise InputError(
            f"{path} {what}; nothing in it was run",
            "save it again as a plain state dict, torch.save(model.state_dict(), ...), or as safetensors",
        ) from error
    except Exception as error:  # what a broken file raises depends on where it is broken; all mean the same to the user
        raise InputError(
            f"{path} is broken or no PyTorch file: {type(error).__name__}: {_first_line(error)}", remedy
        ) from error


def _unpacked(path: Path) -> int:
    """Bytes of all members of a zip archive as it says itself; 0 for another file, and for an archive that is broken."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except Exception:  # the loader says what is wrong with it
        return 0


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
