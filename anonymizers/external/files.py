"""Files of other people's programs: weights that are checked before anything reads them, and the source of a checkout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from deidbench.errors import InputError, MissingError
from deidbench.weights import sha256_of


@dataclass(frozen=True)
class Checkpoint:
    """A weight file of the program.  file: its name in the weights folder (torch.hub's: the last part of the address).

    md5: as the program states it.  sha256: its first digits, where the name of the file carries them.
    """

    what: str
    file: str
    md5: str = ""
    sha256: str = ""
    #: Where it can be downloaded, "" where the official host gives it out no longer.
    url: str = ""


def verified(method: str, folder: Path, needed: Sequence[Checkpoint], way: str, again: str) -> dict[str, str]:
    """File name -> SHA-256 of every checkpoint in ``folder``, checked.  Raises MissingError, InputError.

    way: how those without an address are got.  again: where a damaged one is got again, if it has no address.
    """
    if missing := [c for c in needed if not (folder / c.file).is_file()]:
        names = "; ".join(f"{c.what}: {c.file}" + (f" (MD5 {c.md5})" if c.md5 else "") for c in missing)
        ways = [f"curl -L --create-dirs -o {folder / c.file} {c.url}" for c in missing if c.url]
        if not all(c.url for c in missing):
            ways.insert(0, way)
        raise MissingError(f"{method}: weights are missing in {folder}: {names}", "; ".join(ways))
    found = {}
    for c in needed:
        path = folder / c.file
        remedy = f"delete it and get it again from {c.url or again}"
        if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise InputError(f"{path} is a Git LFS pointer, not the file itself", "git lfs pull, where it came from")
        if c.md5 and (md5 := _md5(path)) != c.md5:
            raise InputError(f"{path} is not the {c.what}: its MD5 is {md5}, expected {c.md5}; nothing of it was read", remedy)
        found[c.file] = sha256_of(path)
        if not found[c.file].startswith(c.sha256):
            raise InputError(f"{path} is not the {c.what}: its SHA-256 is {found[c.file]}, not {c.sha256}...", remedy)
    return found


def one_hash(hashes: Mapping[str, str]) -> str:
    """SHA-256 over files' SHA-256, "" where there are none."""
    return hashlib.sha256("".join(f"{k} {v}\n" for k, v in sorted(hashes.items())).encode()).hexdigest() if hashes else ""


def _md5(path: Path) -> str:
    stat = path.stat()
    return _md5_of(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _md5_of(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - file_digest wants a file
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def hash_of_folder(folder: Path) -> str:
    """SHA-256 of all source files below ``folder`` with their paths: what is not committed counts like the rest."""
    digest = hashlib.sha256()
    for path in sorted(p for e in ("py", "cpp", "cu", "h") for p in folder.rglob(f"*.{e}")):
        if ".git" in path.relative_to(folder).parts or not path.is_file():
            continue
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
