"""Locks between processes: one run per output folder, and a store that nobody prunes while it is in use.

A lock is the kernel's (``flock``) on a small file: it ends with its process, also with one that was killed, so nothing stale stays
behind on a local disk.  What the file says (process, machine, time) is for people, and for drives of other machines, where a kernel
cannot see whether the other process is still alive.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from deidbench.errors import EnvironmentFault, InputError

try:
    import fcntl
except ImportError:  # Windows: no locks there
    fcntl = None  # type: ignore[assignment]

#: In a run's folder while the run goes on.
RUN_LOCK = "run.lock"
#: Of a run's folder.
FOLDERS = ("samples", "figures", "tables")
#: What :func:`deidbench.images.atomic_write` calls a file that is not whole yet; after STALE seconds nobody is writing it.
TEMPORARY = ".deidbench-*.tmp"
STALE = 3600.0
#: File systems whose files several machines may write.
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "fuse.sshfs"}
    | {"fuse.glusterfs", "fuse.ceph", "davfs", "fuse.davfs2", "ncpfs", "pvfs2", "orangefs"}
)
#: What ``flock`` says where a file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def file_system(folder: Path) -> str:
    """Type of the file system that ``folder`` (or its nearest parent that exists) is on; "" where it cannot be told."""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    path = os.path.realpath(folder)
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts on one point the later one is seen
            best, kind = point, fields[2]
    return kind


def on_network(folder: Path) -> bool:
    """Is ``folder`` on a drive that other machines may write as well?"""
    return file_system(folder) in NETWORK


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: process id, machine, its boot (tells machines of one name apart), since when (ISO, UTC)."""

    pid: int
    host: str
    boot: str
    since: str

    @classmethod
    def me(cls) -> Holder:
        return cls(os.getpid(), socket.gethostname(), _boot(), datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """What a lock file says, None where it says nothing that can be read."""
        try:
            said = json.loads(path.read_text("utf-8"))
            return cls(int(said["pid"]), str(said["host"]), str(said["boot"]), str(said["since"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def here(self) -> bool:
        """Was it written on this machine?"""
        me = Holder.me()
        return self.boot == me.boot if self.boot and me.boot else self.host == me.host

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _boot() -> str:
    """Changes with every start of the machine; the same in all of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


class FileLock:
    """A lock on the file ``path``, for one process at a time or, ``shared``, for several.  Ends with the process."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: int | None = None

    def acquire(self, *, shared: bool = False) -> bool:
        """Takes the lock without waiting; False where somebody else has it.

        Where the file system knows no locks it is taken all the same: there is nothing to ask.  Raises OSError where the
        file cannot be opened.
        """
        if self._file is not None:
            raise RuntimeError(f"{self.path} is locked already")
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(handle)
                    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                        return False
                    raise
            # whoever held it before may have removed the file between our opening and locking it
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(self.path)):  # noqa: PTH116 - beside fstat
                    self._file = handle
                    return True
            os.close(handle)

    def write(self, text: str) -> None:
        """Says something in the file of a lock that is held."""
        assert self._file is not None, "acquire comes first"
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode("utf-8"), 0)

    def release(self, *, remove: bool = False) -> None:
        """Gives the lock back; with ``remove`` the file goes too (not for shared locks)."""
        if self._file is None:
            return
        if remove:
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._file)
        self._file = None


def holders(path: Path) -> list[int]:
    """Processes of this machine that hold a lock on ``path`` (Linux; [] where it cannot be told)."""
    try:
        info = path.stat()
        lines = Path("/proc/locks").read_text("ascii", "replace").splitlines()
    except OSError:
        return []
    me = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    found = set()
    for line in lines:  # "1: FLOCK  ADVISORY  READ 4711 fe:00:131074 0 EOF"; with "->" one that waits
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == me and fields[4].isdigit():
            found.add(int(fields[4]))
    return sorted(found)


#: Runs of this process: folder's lock -> (thread, how many times it took it).
_held: dict[Path, tuple[int, int]] = {}


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[Holder | None]:
    """Only one run at a time writes ``folder``, which is made where it is not there yet.

    Yields who held the lock before and died, if anybody.  A thread that has it may take it again.  Raises InputError where
    another run is at work, EnvironmentFault where the folder cannot be written.
    """
    from deidbench.images import make_folder

    make_folder(folder)
    path = Path(folder).resolve() / RUN_LOCK
    thread, count = _held.get(path, (0, 0))
    if thread == threading.get_ident():
        _held[path] = (thread, count + 1)
        try:
            yield None
        finally:
            _held[path] = (thread, count)
        return
    lock = FileLock(path)
    before = Holder.read(path)
    try:
        if not lock.acquire():
            raise _busy(folder, Holder.read(path))
        if before is not None and not before.here and on_network(path.parent):
            # the lock is ours, but the kernel of the other machine need not know of it
            lock.release()
            raise InputError(
                f"{folder} is on a network drive and is, or was, written by {before}; whether that run is alive cannot be told from here",
                f"see that no run is left on {before.host}, then rm {path} and run again; or choose another folder with --out",
            )
        lock.write(json.dumps(asdict(Holder.me())))
        _prepare(path.parent)
    except EnvironmentFault:
        lock.release(remove=True)
        raise
    except OSError as error:
        lock.release(remove=True)
        raise EnvironmentFault(
            f"{path} cannot be written: {error.strerror or error}", "free some space, or choose another folder with --out"
        ) from error
    _held[path] = (threading.get_ident(), 1)
    try:
        yield before
    finally:
        del _held[path]
        lock.release(remove=True)


def _prepare(folder: Path) -> None:
    """Looks whether a run can write where it will write hours later, and removes what killed ones left in the midst of a file.

    Raises EnvironmentFault.
    """
    inside = [p for name in FOLDERS if (p := folder / name).is_dir()]
    for place in (folder, *inside):
        if not os.access(place, os.W_OK | os.X_OK):
            raise EnvironmentFault(
                f"{place} cannot be written", f"chmod -R u+w {folder}, or choose another folder for the output (--out)"
            )
    now = (folder / RUN_LOCK).stat().st_mtime  # by the clock of the drive
    for place in (folder, *inside):
        for left in place.glob(TEMPORARY):
            with contextlib.suppress(OSError):
                if now - left.stat().st_mtime > STALE:  # else it may be a report's that is being written
                    left.unlink()


def _busy(folder: Path, holder: Holder | None) -> InputError:
    who = f" ({holder})" if holder is not None else ""
    remedy = "wait until it is done, or give this run a folder of its own with --out DIR; the store (--cache) may be shared"
    if holder is not None and holder.here and sys.platform.startswith("linux"):
        remedy += f"; kill {holder.pid} ends the other, and nothing that it computed is lost"
    return InputError(f"another deidbench run is writing {folder}{who}", remedy)
