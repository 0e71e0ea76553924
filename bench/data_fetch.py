"""Getting a data set's files: downloads that its authors allow, and unpacking of what they hand out packed.

Both happen only when the user asks for them.  A download goes through :meth:`deidbench.weights.WeightFile.fetch`: it needs
consent, is limited in size, checked by its hash, and appears whole or not at all.
"""

from __future__ import annotations

import json
import posixpath
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from deidbench.errors import DeidbenchError, EnvironmentFault, InputError, MissingError
from deidbench.weights import WeightFile

if TYPE_CHECKING:
    from deidbench.datasets.official import Download

#: Bytes at which a download of unknown size is given up.
LIMIT = 2 << 30
#: Where figshare tells the size and MD5 of an article's files.
FIGSHARE = "https://api.figshare.com/v2/articles"
_RECORD_LIMIT = 1 << 20
_CHUNK = 1 << 20
#: An archive of more members than this is none of a face data set's.
MEMBERS = 2_000_000
#: Bytes that an archive may unpack to, whatever its own size, and for each byte that it has itself.
FREE_BYTES, BYTES_PER_BYTE = 64 << 20, 100


def secure(url: str) -> str:
    """``url``, which must be https; plain http is for this machine alone.  Raises InputError."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        return url
    raise InputError(f"{url!r} is not an https address", "nothing is fetched over an open connection")


def fetch(
    what: Download,
    folder: Path,
    *,
    consent: bool,
    progress: Callable[[int, int], None] | None = None,
    timeout: float = 30.0,
) -> Path:
    """Downloads one file into ``folder`` and returns its path; a file that is there with the right hash is left as it is.

    Raises InputError (no consent, no hash to check against, wrong content), MissingError (not reachable), EnvironmentFault.
    """
    secure(what.url)
    target = folder / what.filename
    if not consent:
        raise InputError(
            f"downloading {what.filename} from {what.url} needs consent", f"agree to it, or put the file at {target}"
        )
    size, md5 = (None, "") if what.figshare is None else _figshare(what, timeout)
    record = WeightFile(
        name=what.filename,
        filename=what.filename,
        sha256=what.sha256 or None,
        md5=md5 or None,
        size=size,
        limit=LIMIT,
        url=what.url,
    )
    try:
        return record.fetch(consent=True, folder=folder, progress=progress, timeout=timeout)
    except MissingError as error:
        why = error.message.partition("; ")[2] or error.message
        raise MissingError(
            f"{what.filename} could not be downloaded: {why}", f"get it by hand from {what.url}, and put it at {target}"
        ) from error


def _figshare(what: Download, timeout: float) -> tuple[int, str]:
    """(size, MD5) of a file by the record of its article."""
    address = secure(f"{FIGSHARE}/{what.figshare}")
    by_hand = f"get {what.filename} by hand from {what.url}"
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "deidbench", "Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as source:
            record = json.loads(source.read(_RECORD_LIMIT))
        found = next(f for f in record["files"] if f["name"] == what.filename)
        size, md5 = int(found["size"]), str(found.get("computed_md5") or found["supplied_md5"]).lower()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise MissingError(f"{what.filename} could not be downloaded: {address} cannot be read: {error}", by_hand) from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputError(f"{address} does not tell size and MD5 of {what.filename}; nothing was downloaded", by_hand) from error
    if len(md5) != 32 or not 0 < size <= LIMIT:
        raise InputError(
            f"{address} says that {what.filename} has {size} bytes and the MD5 {md5!r}; nothing was downloaded", by_hand
        )
    return size, md5


# ------------------------------------------------------------------------------------------------------------- unpacking


def unpack(archive: Path, into: Path, tick: Callable[[int], None] | None = None) -> int:
    """Unpacks a zip or tar archive into the folder ``into`` and returns the number of files.

    Everything is unpacked beside and then moved into place, so that a broken archive leaves nothing behind.  Only plain files
    and folders that stay within ``into`` are taken; nothing that is there is replaced.
    Raises InputError for an archive that holds anything else, is broken, or has something that is there already.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".deidbench-", dir=into))
    except OSError as error:
        raise EnvironmentFault(
            f"{into} cannot be written: {error}", "unpack the archive by hand into another folder"
        ) from error
    try:
        with _members(archive) as members:
            count = _write(archive, members, temporary, into, tick)
        for child in temporary.iterdir():
            child.rename(into / child.name)
        return count
    except FileExistsError as error:
        raise InputError(f"{archive} holds {error.filename!r} twice", "this is not the official archive") from error
    except OSError as error:
        raise EnvironmentFault(f"{archive} cannot be unpacked into {into}: {error}", "free some space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


Members = Iterator[tuple[str, bool, int, Callable[[], IO[bytes]]]]


@contextmanager
def _members(archive: Path) -> Iterator[Members]:
    """Gives (name, whether it is a folder, size, opener) of every member.  Raises InputError for what is neither file nor folder."""
    broken = f"get {archive.name} again: it is broken or no archive"
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                yield _zip(archive, file)
        else:
            with tarfile.open(archive) as tar:
                yield _tar(archive, tar)
    except (DeidbenchError, OSError):
        raise
    except Exception as error:  # zipfile and tarfile let out what zlib, lzma, struct and a name of no letters raise
        raise InputError(f"{archive} cannot be unpacked: {error}", broken) from error


def _zip(archive: Path, file: zipfile.ZipFile) -> Members:
    for info in file.infolist():
        mode = info.external_attr >> 16
        if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and stat.S_IFMT(mode):
            raise InputError(f"{archive}: {info.filename!r} is neither a file nor a folder", "this is not the official archive")
        yield info.filename, info.is_dir(), info.file_size, lambda info=info: file.open(info)  # type: ignore[misc]


def _tar(archive: Path, file: tarfile.TarFile) -> Members:
    for info in file:
        if not (info.isreg() or info.isdir()):
            raise InputError(f"{archive}: {info.name!r} is neither a file nor a folder", "this is not the official archive")

        def opened(info: tarfile.TarInfo = info) -> IO[bytes]:
            source = file.extractfile(info)
            assert source is not None
            return source

        yield info.name, info.isdir(), info.size, opened


def _write(archive: Path, members: Members, temporary: Path, into: Path, tick: Callable[[int], None] | None) -> int:
    count, total, packed = 0, 0, archive.stat().st_size
    seen: set[str] = set()
    for name, is_folder, size, opened in members:
        inside = _inside(archive, name)
        top = inside.partition("/")[0]
        if not inside or top.startswith("__MACOSX") or posixpath.basename(inside).startswith("._"):
            continue
        if top not in seen and (into / top).exists():
            raise InputError(
                f"{into / top} is there already", f"move it away, or leave {archive.name} packed if that is its content"
            )
        seen.add(top)
        target = temporary / inside
        if is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        total, count = total + size, count + 1
        if count > MEMBERS:
            raise InputError(f"{archive} holds more than {MEMBERS:,} files", "this is not the official archive")
        if total > FREE_BYTES + BYTES_PER_BYTE * packed:
            raise InputError(
                f"{archive} would unpack to {total:,} bytes or more, from {packed:,}",
                "pictures do not pack so well: this is not the official archive",
            )
        if size > shutil.disk_usage(temporary).free:
            raise EnvironmentFault(
                f"{into} has no room for {inside} ({size:,} bytes)", "free some space, or unpack it elsewhere by hand"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened() as source, target.open("xb") as sink:
            left = size
            while chunk := source.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise InputError(f"{archive}: {name!r} is longer than it says", "get the archive again")
                sink.write(chunk)
        if tick is not None:
            tick(1)
    return count


def _inside(archive: Path, name: str) -> str:
    """``name`` in its normal form, "" for the root itself.  Raises InputError for a name that leaves the folder."""
    odd = "\0" in name or "\\" in name or name.startswith("/") or bool(PureWindowsPath(name).drive)
    if odd or ".." in name.split("/"):
        raise InputError(
            f"{archive}: {name!r} leads out of the folder; nothing was unpacked", "this is not the official archive"
        )
    normal = posixpath.normpath(name)
    return "" if normal == "." else normal
