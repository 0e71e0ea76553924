"""Reading and writing images: every file becomes RGB ``uint8`` (H, W, 3), or an error that names it.

What a file may hold and what becomes of it:

* EXIF orientation is applied, so arrays are upright and nothing downstream needs the tag.
* Transparency is composited on white (:data:`BACKGROUND`), which is what a viewer shows.
* Grey is repeated in three channels; palette, 1-bit, CMYK and YCCK are converted.
* 16-bit grey is scaled by 255/65535 and rounded, never clipped; Pillow reduces 16-bit colour to its high byte, which is
  within one level of that.  32-bit integer and float images have no agreed range: see :func:`_scaled`.
* Of animations and multi-page files the first frame is taken.
* Colour profiles (ICC) are not applied and no metadata is kept.

Nothing is guessed where pixels are missing: a truncated file is an error, never a picture that is grey from the middle on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import io
import os
import secrets
import stat
import threading
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import EnvironmentFault, ImageError, InputError
from deidbench.types import Image

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

#: Largest image that is decoded, in pixels (600 MB as RGB): above any camera of today, below a decompression bomb.
MAX_PIXELS = 200_000_000
#: Environment variable that overrides :data:`MAX_PIXELS`.
MAX_PIXELS_VARIABLE = "DEIDBENCH_MAX_PIXELS"
#: Colour (RGB) behind transparent pixels.
BACKGROUND = (255, 255, 255)
#: File endings (lower case) that are taken for images when a folder is walked.
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tif", ".tiff", ".webp"}
)
#: File endings (lower case) that :func:`write_image` can write -> Pillow's name of the format.
WRITABLE = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP",
    ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM",
}  # fmt: skip

# Only these decoders ever see a file.  EPS is left out on purpose (it would start Ghostscript), and so is whatever else
# Pillow can open but nobody keeps photographs in.
_PLUGINS = {
    "JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "PPM": "Ppm", "BMP": "Bmp", "GIF": "Gif", "TIFF": "Tiff",
    "JPEG2000": "Jpeg2K", "AVIF": "Avif",
}  # fmt: skip


def pixel_limit(max_pixels: int | None = None) -> int:
    """The limit in force: the argument, else the environment variable, else :data:`MAX_PIXELS`."""
    if max_pixels is None:
        text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
        if not text:
            return MAX_PIXELS
        try:
            max_pixels = int(text.replace("_", ""))
        except ValueError:
            max_pixels = 0
        if max_pixels <= 0:
            raise InputError(
                f"{MAX_PIXELS_VARIABLE}={text!r} is not a positive whole number",
                f"unset {MAX_PIXELS_VARIABLE}, or e.g. {MAX_PIXELS}",
            )
    if max_pixels <= 0:
        raise ValueError(f"max_pixels must be positive, not {max_pixels}")
    return max_pixels


# ---------------------------------------------------------------------------------------------------------- reading


def read_image(path: str | os.PathLike[str], *, max_pixels: int | None = None, sha256: str | None = None) -> Image:
    """The picture in ``path`` as RGB uint8 (H, W, 3), upright, in an array of its own.

    max_pixels: refuse anything larger *before* decoding it (default: :func:`pixel_limit`).
    sha256: expected hash of the file's bytes (that of a :class:`~deidbench.types.Sample`): the bytes that are decoded are
    the bytes that are hashed, so that a file which changed since its manifest was made is noticed.

    Raises ImageError for anything that is not a whole image, InputError where the hash differs.
    """
    limit = pixel_limit(max_pixels)
    data = read_bytes(path, max_bytes=8 * limit + (64 << 20))  # no format needs more than 16-bit RGBA
    if sha256 is not None:
        check_sha256(data, sha256, os.fspath(path))
    return read_image_bytes(data, os.fspath(path), max_pixels=limit)


def read_bytes(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> bytes:
    """The bytes of an ordinary, non-empty file.  Raises ImageError for anything else (directory, pipe, missing, ...)."""
    path = Path(path)
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise ImageError(
                f"{path} is a directory, not an image", "give an image file, or the folder to a command that takes one"
            )
        if not stat.S_ISREG(info.st_mode):  # reading a pipe or a device could wait for ever
            raise ImageError(f"{path} is not an ordinary file", "give an image file")
        if info.st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes)", "copy or download it again")
        if max_bytes is not None and info.st_size > max_bytes:
            raise ImageError(
                f"{path} holds {info.st_size} bytes, more than any image within the pixel limit could need ({max_bytes})",
                f"check that it is an image; {_raise_limit(info.st_size // 8)}",
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        broken = path.is_symlink()
        what = f"{path} is a symbolic link to nothing" if broken else f"{path} does not exist"
        raise ImageError(what, "check the path") from None
    except PermissionError:
        raise ImageError(f"{path} may not be read: permission denied", f"chmod u+r {path!s}, or run as its owner") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ImageError(f"{path} cannot be read: {error}", "check the path and the disk") from error


def read_image_bytes(data: bytes, name: str, *, max_pixels: int | None = None) -> Image:
    """Decodes the bytes of an image file; ``name`` is what messages call it.  Otherwise like :func:`read_image`.

    Raises ImageError and nothing else, whatever the bytes are.
    """
    limit = pixel_limit(max_pixels)
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)", "copy or download it again")
    try:
        with _strict(), _open(data, name) as picture:
            width, height = picture.size
            if width <= 0 or height <= 0:
                raise ImageError(f"{name} has no pixels ({width} x {height})", "export it again")
            if width * height > limit:
                raise ImageError(
                    f"{name} is {width} x {height} = {width * height / 1e6:.1f} megapixels; the limit is {limit / 1e6:g}",
                    f"make it smaller, or, if you trust it, {_raise_limit(width * height)}",
                )
            _check_whole(data, picture.format or "", name)
            picture.load()
            array = _to_rgb(picture, name)
            return np.ascontiguousarray(_upright(array, _orientation(picture)))
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory", "make it smaller, or close other programs") from None
    except Exception as error:  # decoders raise whatever they like on damaged data; the cause is kept
        raise ImageError(
            f"{name} is damaged or truncated ({len(data)} bytes; {type(error).__name__}: {error})",
            "copy or download it again, or export it anew from the original",
        ) from error


def _raise_limit(pixels: int) -> str:
    return f"raise the limit with the environment variable {MAX_PIXELS_VARIABLE}={pixels} (or max_pixels={pixels})"


_strict_lock = threading.Lock()


@contextlib.contextmanager
def _strict() -> Iterator[None]:
    """Sees to it that truncated files are errors, even where another library told Pillow to accept them."""
    from PIL import ImageFile

    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    # Pillow has no per-image switch.  One reader at a time borrows the global one and gives it back.
    with _strict_lock:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


@lru_cache(maxsize=1)
def _decoders() -> tuple[tuple[str, Any, Any], ...]:
    """(format, factory, accept) of the decoders in use, in the order in which they are tried."""
    from PIL import Image as pil

    found = []
    for name, plugin in _PLUGINS.items():
        try:
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
        except ImportError:  # AVIF came with Pillow 11.2
            continue
        if name in pil.OPEN:  # a plug-in without its C library does not register
            found.append((name, *pil.OPEN[name]))
    return tuple(found)


def _open(data: bytes, name: str) -> PILImage:
    """Reads the header.  Not ``PIL.Image.open``: that one obeys the process-wide ``MAX_IMAGE_PIXELS``, which could be raised
    for one image only by changing it for every other thread too; here the caller checks the size itself.
    """
    prefix, reasons = data[:16], []
    for label, factory, accept in _decoders():
        verdict = accept(prefix) if accept is not None else True
        if not verdict or isinstance(verdict, str):  # a string: known, but this Pillow was built without support
            reasons += [verdict] if verdict else []
            continue
        try:
            picture: PILImage = factory(io.BytesIO(data), None)
            return picture
        except (
            SyntaxError,
            IndexError,
            TypeError,
            KeyError,
            ValueError,
            EOFError,
            OSError,
            OverflowError,
            ArithmeticError,
        ) as error:
            reasons.append(f"{label}: {error}")
        except Exception as error:  # struct.error and what else a decoder may raise
            reasons.append(f"{label}: {type(error).__name__}: {error}")
    if reasons:
        raise ImageError(
            f"{name} is damaged or truncated ({len(data)} bytes; {'; '.join(reasons)})",
            "copy or download it again, or export it anew from the original",
        )
    if data[4:8] == b"ftyp":
        raise ImageError(f"{name} is a HEIC image or a video, which cannot be read", "export it as JPEG or PNG first")
    known = ", ".join(label for label, _, _ in _decoders())
    raise ImageError(f"{name} is not an image (its content is none of {known})", "check the file, or export it as JPEG or PNG")


def _check_whole(data: bytes, kind: str, name: str) -> None:
    """Raises ImageError for damage that decoders pass over in silence: downloads that broke off leave files of the right
    length with zeros in them, and those become pictures that are grey or black from some row on.
    """
    again = "copy or download it again, or export it anew from the original"
    if kind in ("JPEG", "MPO"):
        _check_jpeg_end(data, name)
    elif kind == "PNG":
        at = 8
        while True:
            length, chunk = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            end = at + 12 + length
            if end > len(data):
                raise ImageError(f"{name} is truncated: a PNG that ends within its data ({len(data)} bytes)", again)
            # an upper-case first letter marks chunks that the picture needs; Pillow checks their CRC only up to the pixels
            if chunk[:1].isupper() and zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(
                data[end - 4 : end], "big"
            ):
                raise ImageError(f"{name} is damaged: wrong checksum of PNG chunk {chunk!r} at byte {at}", again)
            if chunk == b"IEND":
                return
            if not chunk.isalpha():
                raise ImageError(f"{name} is damaged: no PNG chunk at byte {at}", again)
            at = end
    elif kind in ("WEBP", "AVIF", "JPEG2000") and len(data) > 64 and not any(data[-64:]):
        raise ImageError(f"{name} is damaged: it ends in zeros, like a download that broke off", again)


def _check_jpeg_end(data: bytes, name: str) -> None:
    """Raises ImageError where a JPEG stream has no end marker: libjpeg fills what is missing with grey and says nothing
    when a file was cut and padded with zeros, as broken downloads are.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
        elif marker == 0xDA:  # start of scan: thumbnails with end markers of their own lie before this
            break
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if data.find(b"\xff\xd9", at) < 0:
        raise ImageError(
            f"{name} is truncated: a JPEG without its end marker ({len(data)} bytes)",
            "copy or download it again; if the picture is known to be whole, export it anew",
        )


def _to_rgb(picture: PILImage, name: str) -> Image:
    """A decoded picture as uint8 (H, W, 3)."""
    from PIL import Image as pil

    mode = picture.mode
    if mode == "I" or mode == "F" or mode.startswith("I;"):
        grey = _scaled(np.asarray(picture), name)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        # RGBa and La are premultiplied and convert to RGBA only by way of their straight twin
        straight = picture.convert({"La": "LA"}.get(mode, mode)).convert("RGBA") if mode == "La" else picture.convert("RGBA")
        base = pil.new("RGBA", straight.size, (*BACKGROUND, 255))
        return np.array(pil.alpha_composite(base, straight).convert("RGB"))
    if mode == "LAB":
        raise ImageError(f"{name} has the colour mode LAB, which is not supported", "export it as RGB")
    return np.array(picture if mode == "RGB" else picture.convert("RGB"))


def _scaled(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Grey values of more than 8 bits as uint8, rounded.

    uint16 and 32-bit integers (which Pillow uses for 16-bit files): 0..65535 -> 0..255.  Float: 0..1 is taken as such, else
    0..255, else 0..65535, whichever is the first that holds all values.  What fits nowhere is refused, not clipped.
    """
    if values.dtype.kind == "f":
        low, high = (float(values.min()), float(values.max()))
        if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
            raise ImageError(
                f"{name} holds float values from {low:g} to {high:g}: no known range", "scale it to 0..1 and save it again"
            )
        top = 1.0 if high <= 1 else 255.0 if high <= 255 else 65535.0
        scaled: npt.NDArray[np.uint8] = np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)
        return scaled
    if values.dtype.itemsize > 2 and values.size and (int(values.min()) < 0 or int(values.max()) > 65535):
        raise ImageError(
            f"{name} holds integers from {int(values.min())} to {int(values.max())}: beyond 16 bits there is no known range",
            "save it again with 8 or 16 bits",
        )
    rounded: npt.NDArray[np.uint8] = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return rounded


def _orientation(picture: PILImage) -> int:
    """EXIF orientation, 1..8.  Asked after decoding: Pillow itself turns TIFF and AVIF and then takes the tag away."""
    try:
        value = picture.getexif().get(0x0112, 1)
    except Exception:  # a damaged metadata block is no reason to refuse a picture; viewers show it unturned as well
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(array: Image, orientation: int) -> Image:
    """Undoes EXIF ``orientation`` (TIFF 6.0, tag 274): 5..8 have rows and columns exchanged."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    # after the transposition: which of (rows, columns) run backwards
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[
        orientation
    ]
    return array[::rows, ::columns]


# ---------------------------------------------------------------------------------------------------------- writing


def _as_image(image: npt.NDArray[Any]) -> Image:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image is RGB uint8 (H, W, 3) with pixels, not {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)


def encode_png(image: Image) -> bytes:
    """Lossless and quick.  image: RGB uint8 (H, W, 3).

    OpenCV's default (run-length strategy, fastest level): about half the time of Pillow at level 1 for some 15 % more bytes
    on photographs of faces.
    """
    import cv2

    ok, data = cv2.imencode(".png", cv2.cvtColor(_as_image(image), cv2.COLOR_RGB2BGR))
    if not ok:
        raise EnvironmentFault("an image could not be encoded as PNG", "check that memory is left")
    return bytes(data.tobytes())


def decode_png(data: bytes, name: str = "a PNG in memory") -> Image:
    """The inverse of :func:`encode_png`; as strict as :func:`read_image`, without its pixel limit (the bytes are our own)."""
    return read_image_bytes(data, name, max_pixels=1 << 62)


def encode_image(image: Image, suffix: str, quality: int = 95) -> bytes:
    """image: RGB uint8 (H, W, 3) in the format of ``suffix`` (".jpg"), without any metadata.

    quality: 1..100, for JPEG (without chroma subsampling from 90 up) and WebP; the others are lossless.
    ``.pgm`` can hold no colour: the image is stored as luma (ITU-R 601-2).
    """
    from PIL import Image as pil

    suffix = suffix.lower()
    if suffix not in WRITABLE:
        raise InputError(f"images cannot be written as {suffix!r}", f"use one of {', '.join(sorted(WRITABLE))}")
    if not 1 <= quality <= 100:
        raise InputError(f"quality must be 1..100, not {quality}", "95 is the default")
    if suffix == ".png":
        return encode_png(image)
    image = _as_image(image)
    longest = {"JPEG": 65535, "WEBP": 16383}.get(WRITABLE[suffix])
    if longest and max(image.shape[:2]) > longest:
        raise InputError(
            f"{image.shape[1]} x {image.shape[0]} pixels do not fit into {WRITABLE[suffix]} (at most {longest} a side)",
            "write it as .png",
        )
    picture = pil.fromarray(image)
    options: dict[str, Any] = {}
    if WRITABLE[suffix] == "JPEG":
        options = {"quality": quality, "subsampling": 0 if quality >= 90 else 2}
    elif WRITABLE[suffix] == "WEBP":
        options = {"quality": quality}
    elif WRITABLE[suffix] == "TIFF":
        options = {"compression": "tiff_adobe_deflate"}
    elif suffix == ".pgm":
        picture = picture.convert("L")
    buffer = io.BytesIO()
    picture.save(buffer, WRITABLE[suffix], **options)
    return buffer.getvalue()


def write_image(path: str | os.PathLike[str], image: Image, quality: int = 95) -> None:
    """Writes RGB uint8 (H, W, 3) in the format of the path's ending, whole or not at all (:func:`atomic_write`).

    Raises InputError for an ending that cannot be written, EnvironmentFault where the machine fails.
    """
    path = Path(path)
    atomic_write(path, encode_image(image, path.suffix, quality))


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a folder with its parents, where it is not there yet.  Raises EnvironmentFault where that is not possible."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(
            f"folder {folder} cannot be made: {error.strerror or error}", "choose another folder for the output"
        ) from error


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes a file whole or not at all: temporary name in the same folder, fsync, rename.

    Text is stored as UTF-8.  The folder must exist.  Raises EnvironmentFault (disk full, no permission, ...); then neither a
    torn file nor the temporary one is left, and what was at ``path`` before is untouched.
    """
    path = Path(path)
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    # a short name of its own: one built from the target's could be too long for the file system
    temporary = path.parent / f".deidbench-{secrets.token_hex(8)}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)  # noqa: PTH105 - patched by name in tests
    except OSError as error:
        _remove(temporary)
        raise _write_fault(path, error) from error
    except BaseException:  # Ctrl-C in the middle
        _remove(temporary)
        raise
    _sync_folder(path.parent)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it may never have been made; the first error is the one to report
        path.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable.  Not every file system can; the file itself is whole either way."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_fault(path: Path, error: OSError) -> EnvironmentFault:
    folder = path.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return EnvironmentFault(
            f"{path} cannot be written: the disk is full or its quota used up ({error.strerror})",
            f"free space (df -h {folder!s}), then run the same command again",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return EnvironmentFault(
            f"{path} cannot be written: {error.strerror}", f"choose another folder, or make it writable: chmod u+w {folder!s}"
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return EnvironmentFault(f"{path} cannot be written: its folder does not exist", f"mkdir -p {folder!s}")
    if error.errno == errno.EISDIR:
        return EnvironmentFault(f"{path} cannot be written: a directory has that name", "choose another name")
    return EnvironmentFault(f"{path} cannot be written: {error}", "check the path and the disk")


# ---------------------------------------------------------------------------------------------------------- hashes


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hex.  Raises InputError naming the file when it cannot be read, or is a pipe or a device."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"{path} is not an ordinary file", "name a file")
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", "check the path and its permissions") from error


def check_sha256(data: bytes, expected: str, name: str) -> None:
    """Raises InputError naming ``name`` unless ``data`` has the SHA-256 ``expected`` (hex)."""
    found = hashlib.sha256(data).hexdigest()
    if found != expected.lower():
        raise hash_mismatch(name, expected, found)


def hash_mismatch(name: str, expected: str, found: str) -> InputError:
    """The error for a file whose bytes are not those of the manifest."""
    return InputError(
        f"{name} is not the file of the manifest: its SHA-256 is {found}, the manifest has {expected}",
        "fetch the file again, or correct the manifest's sha256",
    )
