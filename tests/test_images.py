"""Reading and writing images: everything that a file named .jpg may turn out to be."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import resource
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as pil
from PIL import ImageFile

from deidbench import images
from deidbench.errors import EnvironmentFault, ImageError, InputError
from deidbench.images import (
    atomic_write,
    decode_png,
    encode_image,
    encode_png,
    read_image,
    read_image_bytes,
    sha256_file,
    write_image,
)

RNG = np.random.default_rng(0)
#: Blocks of colour with a little noise: survives JPEG, and no two corners are alike.
PICTURE = np.clip(
    np.kron(RNG.integers(20, 230, (6, 8, 3)), np.ones((8, 8, 1))) + RNG.integers(-5, 6, (48, 64, 3)), 0, 255
).astype(np.uint8)


def encoded(array: npt.NDArray[Any], kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    picture = pil.fromarray(array)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def cmyk_jpeg(inks: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    pil.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG made by hand from raw scan lines (each with its filter byte)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def assert_image(image: npt.NDArray[Any], shape: tuple[int, int]) -> None:
    assert image.dtype == np.uint8
    assert image.shape == (*shape, 3)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert image.flags.owndata or image.base is None or image.base.flags.writeable


# ------------------------------------------------------------------------------------------------ what is read right


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_come_back_to_the_bit(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(PICTURE, kind, **options))
    image = read_image(path)
    assert_image(image, (48, 64))
    assert np.array_equal(image, PICTURE)


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 95, "progressive": True}, {"quality": 95, "mode": "CMYK"}])
def test_jpeg(options: dict[str, Any]) -> None:
    image = read_image_bytes(encoded(PICTURE, "JPEG", subsampling=0, **options), "x.jpg")
    assert_image(image, (48, 64))
    assert np.abs(image.astype(int) - PICTURE).mean() < 4


INKS = {(0, 255, 255, 0): (255, 0, 0), (255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 255): (0, 0, 0), (0, 0, 0, 0): (255, 255, 255)}


@pytest.mark.parametrize("inks", INKS, ids=str)
def test_cmyk_and_ycck_jpeg_are_not_inverted(inks: tuple[int, int, int, int]) -> None:
    patch = np.full((16, 16, 4), inks, np.uint8)
    data = cmyk_jpeg(patch)
    assert np.abs(read_image_bytes(data, "cmyk.jpg").astype(int) - INKS[inks]).max() <= 2
    # YCCK, as Photoshop writes it: the first three inks as YCbCr, and transform 2 in Adobe's segment.
    y, cb, cr = pil.new("RGB", (1, 1), inks[:3]).convert("YCbCr").getpixel((0, 0))
    stored = np.full((16, 16, 4), (255 - y, 255 - cb, 255 - cr, inks[3]), np.uint8)  # Pillow stores 255 - value
    data = cmyk_jpeg(stored)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    assert np.abs(read_image_bytes(data[:at] + b"\x02" + data[at + 1 :], "ycck.jpg").astype(int) - INKS[inks]).max() <= 3


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("PPM", {}), ("BMP", {}), ("TIFF", {})])
def test_grey_is_repeated(kind: str, options: dict[str, Any]) -> None:
    grey = PICTURE[..., 0].copy()
    image = read_image_bytes(encoded(grey, kind, **options), "grey")
    assert_image(image, (48, 64))
    assert np.array_equal(image, np.repeat(grey[..., None], 3, axis=2))


def test_one_bit_and_palette() -> None:
    bits = np.zeros((5, 9), bool)
    bits[1, 2] = True
    image = read_image_bytes(encoded(bits), "bits.png")
    assert image[1, 2].tolist() == [255] * 3
    assert image.sum() == 3 * 255
    flat = np.zeros((4, 4, 3), np.uint8)
    flat[:2] = (200, 10, 30)
    assert np.array_equal(
        read_image_bytes(encoded(flat, "PNG", "P"), "p.png"), np.array(pil.fromarray(flat).convert("P").convert("RGB"))
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_composited_on_white(kind: str) -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (200, 0, 0, 128)
    image = read_image_bytes(encoded(rgba, kind, **({"lossless": True} if kind == "WEBP" else {})), "rgba")
    assert image[0, 0].tolist() == [10, 20, 30]
    assert np.abs(image[0, 1].astype(int) - [227, 127, 127]).max() <= 1
    assert (image[1] == images.BACKGROUND).all()


def test_transparency_of_grey_and_of_palettes() -> None:
    grey = np.array([[[50, 255], [50, 0]]], np.uint8)
    assert read_image_bytes(encoded(grey), "la.png").tolist() == [[[50] * 3, [255] * 3]]
    palette = pil.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=1)
    assert read_image_bytes(buffer.getvalue(), "p.png").tolist() == [[[1, 2, 3], [255] * 3]]


DEEP = np.array([[0, 128, 257, 32768], [40000, 65278, 65407, 65535]], np.uint16)
DEEP_AS_8 = np.rint(DEEP / 257).astype(np.uint8)


def test_16_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(read_image_bytes(encoded(DEEP, kind), kind)[..., 0], DEEP_AS_8)
    pgm = b"P5\n4 2\n65535\n" + DEEP.astype(">u2").tobytes()
    assert np.array_equal(read_image_bytes(pgm, "deep.pgm")[..., 0], DEEP_AS_8)


def test_16_bit_colour_and_alpha_are_scaled() -> None:
    rows = b"".join(b"\0" + np.stack([row] * 3, 1).astype(">u2").tobytes() for row in DEEP)
    assert np.abs(read_image_bytes(png(4, 2, 16, 2, rows), "rgb16.png")[..., 1].astype(int) - DEEP_AS_8).max() <= 1
    rows = b"".join(b"\0" + np.stack([row, np.full(4, 65535)], 1).astype(">u2").tobytes() for row in DEEP)
    assert np.abs(read_image_bytes(png(4, 2, 16, 4, rows), "la16.png")[..., 1].astype(int) - DEEP_AS_8).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_images_are_scaled_by_their_range(top: float) -> None:
    values = np.linspace(0, top, 12, dtype=np.float32).reshape(3, 4)
    image = read_image_bytes(encoded(values, "TIFF"), "f.tif")
    assert np.array_equal(image[..., 2], np.rint(np.linspace(0, 255, 12)).reshape(3, 4))


@pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 1e9], [np.nan, 1.0], [np.inf, 0.0]])
def test_float_images_without_a_known_range_are_refused(values: list[float]) -> None:
    with pytest.raises(ImageError, match=r"odd.tif holds float values"):
        read_image_bytes(encoded(np.array([values], np.float32), "TIFF"), "odd.tif")


def test_32_bit_integers_beyond_16_bits_are_refused() -> None:
    with pytest.raises(ImageError, match=r"deep.tif holds integers from 0 to 70000"):
        read_image_bytes(encoded(np.array([[0, 70000]], np.int32), "TIFF"), "deep.tif")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_many(kind: str) -> None:
    first, second = (pil.new("RGB", (20, 10), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=[second, first], **({"lossless": True} if kind == "WEBP" else {}))
    assert (read_image_bytes(buffer.getvalue(), "many") == (250, 0, 0)).all()


# What lies upright at (row 0, column 0), (0, right) and (bottom, 0) is stored where TIFF 6.0 says for each orientation.
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = pil.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](PICTURE))
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    image = read_image_bytes(encoded(stored, kind, exif=exif, **options), "turned")
    assert_image(image, (48, 64))
    assert np.abs(image.astype(int) - PICTURE).mean() < (3 if kind == "JPEG" else 0.01)


def test_orientations_against_pillow() -> None:
    """An independent reference for the table above."""
    from PIL import ImageOps

    for orientation in range(1, 9):
        picture = pil.fromarray(np.ascontiguousarray(STORED[orientation](PICTURE)))
        picture.getexif()[0x0112] = orientation
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(picture)), PICTURE), orientation


@pytest.mark.parametrize("value", [0, 9, 77])
def test_orientation_out_of_range_is_no_orientation(value: int) -> None:
    exif = pil.Exif()
    exif[0x0112] = value
    assert np.array_equal(read_image_bytes(encoded(PICTURE, "PNG", exif=exif), "x.png"), PICTURE)


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    data = encoded(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_image(read_image_bytes(data, "x.jpg"), (48, 64))


def test_one_pixel() -> None:
    assert read_image_bytes(encoded(np.full((1, 1, 3), 7, np.uint8)), "dot.png").tolist() == [[[7, 7, 7]]]


# ------------------------------------------------------------------------------------------------- what is refused


def refusal(path: Path, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(path, **options)
    assert str(path) in caught.value.message
    assert caught.value.remedy
    return caught.value


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert "empty" in refusal(tmp_path / "a.jpg").message
    with pytest.raises(ImageError, match="empty"):
        read_image_bytes(b"", "nothing")


def test_text_named_jpg(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("Dear Sir or Madam,\n" * 40)
    assert "not an image" in refusal(tmp_path / "a.jpg").message


def test_heic_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    assert "HEIC" in refusal(tmp_path / "a.heic").message


def test_postscript_is_never_interpreted(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    assert "not an image" in refusal(tmp_path / "a.jpg").message


def test_directory_named_png(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert "directory" in refusal(tmp_path / "a.png").message


def test_missing_file_broken_link_and_file_as_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "a.png").message
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    assert "symbolic link to nothing" in refusal(tmp_path / "b.png").message
    (tmp_path / "c").touch()
    assert "does not exist" in refusal(tmp_path / "c" / "a.png").message


def test_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "not an ordinary file" in refusal(tmp_path / "a.png").message


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PICTURE))
    if os.geteuid() == 0:  # root may read everything: say no in the system's stead

        def no(self: Path) -> bytes:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

        monkeypatch.setattr(Path, "read_bytes", no)
    else:
        path.chmod(0)
    error = refusal(path)
    assert "permission denied" in error.message
    assert "chmod" in error.remedy


@pytest.mark.parametrize("data", [b"P5 0 0 255\n", b"P6\n0 5\n255\n", png(0, 4, 8, 0, b"\0" * 4)])
def test_no_pixels(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"none\.x"):
        read_image_bytes(data, "none.x")


FORMATS = [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"mode": "CMYK"}), ("PNG", {}), ("WEBP", {}), ("BMP", {}),
    ("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("JPEG2000", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), FORMATS, ids=str)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
def test_truncated_is_an_error_or_the_whole_picture(kind: str, options: dict[str, Any]) -> None:
    data = encoded(PICTURE, kind, **options)
    whole = read_image_bytes(data, "whole")
    refused = 0
    cuts = [*range(1, len(data), max(1, len(data) // 60)), *(len(data) - n for n in range(1, 6))]
    for cut in cuts:
        try:
            image = read_image_bytes(data[:cut], "cut.file")
        except ImageError as error:
            refused += "cut.file" in error.message
        else:  # only what comes after the pixels was cut off
            assert np.array_equal(image, whole), cut
    assert refused >= len(cuts) - 12


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {"lossless": True})], ids=str
)
def test_broken_download_padded_with_zeros_is_refused(kind: str, options: dict[str, Any]) -> None:
    data = encoded(PICTURE, kind, **options)
    for share in (0.2, 0.5, 0.8):
        cut = int(len(data) * share)
        with pytest.raises(ImageError, match=r"x.img is (truncated|damaged)"):
            read_image_bytes(data[:cut] + bytes(len(data) - cut), "x.img")


def test_flipped_bit_in_png_is_noticed() -> None:
    data = bytearray(encoded(PICTURE))
    data[len(data) // 2] ^= 4
    with pytest.raises(ImageError, match=r"x.png is damaged"):
        read_image_bytes(bytes(data), "x.png")


def test_truncated_stays_an_error_when_another_library_told_pillow_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for kind in ("BMP", "PPM", "PNG", "JPEG"):
        data = encoded(PICTURE, kind)
        with pytest.raises(ImageError):
            read_image_bytes(data[: len(data) // 2], "half")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def giant() -> bytes:
    """20 000 x 20 000 pixels of one bit: 50 MB of zeros, 50 kB as a file."""
    return png(20_000, 20_000, 1, 0, bytes(20_000 * 2501))


def test_400_megapixels_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "giant.png"
    path.write_bytes(giant())

    def decode(self: Any, *args: Any) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    error = refusal(path)
    assert "20000 x 20000" in error.message
    assert "400.0 megapixels; the limit is 200" in error.message
    assert "DEIDBENCH_MAX_PIXELS=400000000" in error.remedy


def test_limit_by_argument_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PICTURE)
    with pytest.raises(ImageError, match="limit"):
        read_image_bytes(data, "x", max_pixels=48 * 64 - 1)
    assert_image(read_image_bytes(data, "x", max_pixels=48 * 64), (48, 64))
    monkeypatch.setenv("DEIDBENCH_MAX_PIXELS", "3_071")
    with pytest.raises(ImageError, match="limit"):
        read_image_bytes(data, "x")
    for bad in ("many", "-1", "0"):
        monkeypatch.setenv("DEIDBENCH_MAX_PIXELS", bad)
        with pytest.raises(InputError, match="DEIDBENCH_MAX_PIXELS"):
            read_image_bytes(data, "x")


def test_pillows_own_limit_neither_counts_nor_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PICTURE)
    monkeypatch.setattr(pil, "MAX_IMAGE_PIXELS", 10)  # somebody else's choice
    seen: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=lambda: seen.append(read_image_bytes(data, "x").shape)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [(48, 64, 3)] * 4
    assert pil.MAX_IMAGE_PIXELS == 10


def test_20_megapixels_are_fine() -> None:
    assert_image(read_image_bytes(png(5_000, 4_000, 1, 0, bytes(4_000 * 626)), "photo.png"), (4_000, 5_000))


def test_huge_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    assert "pixel limit" in refusal(path).message


def test_sha256_of_the_bytes_that_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PICTURE))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_file(path) == digest
    assert_image(read_image(path, sha256=digest), (48, 64))
    path.write_bytes(encoded(255 - PICTURE))
    with pytest.raises(InputError, match="not the file of the manifest") as caught:
        read_image(path, sha256=digest)
    assert str(path) in caught.value.message
    with pytest.raises(InputError, match="gone"):
        sha256_file(tmp_path / "gone")


SEEDS = [encoded(PICTURE[:8, :8].copy(), kind, **options) for kind, options in FORMATS]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_fuzzed_bytes_raise_nothing_but_image_errors(draw: st.DataObject) -> None:
    data = bytearray(draw.draw(st.sampled_from(SEEDS) | st.binary(max_size=200)))
    for _ in range(draw.draw(st.integers(0, 6))):
        if not data:
            break
        at = draw.draw(st.integers(0, len(data) - 1))
        what = draw.draw(st.sampled_from(["set", "cut", "insert", "drop"]))
        if what == "set":
            data[at] = draw.draw(st.integers(0, 255))
        elif what == "cut":
            del data[at:]
        elif what == "insert":
            data[at:at] = draw.draw(st.binary(max_size=8))
        else:
            del data[at : at + draw.draw(st.integers(1, 9))]
    try:
        image = read_image_bytes(bytes(data), "fuzz", max_pixels=1_000_000)
    except ImageError as error:
        named = "fuzz" in error.message
    else:
        named = True
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.size > 0
    assert named


# -------------------------------------------------------------------------------------------------------- writing


def test_png_round_trip() -> None:
    assert np.array_equal(decode_png(encode_png(PICTURE)), PICTURE)
    view = PICTURE[::2, ::-1]  # not contiguous
    assert np.array_equal(decode_png(encode_png(view)), view)
    with pytest.raises(ImageError):
        decode_png(encode_png(PICTURE)[:-30])


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)],
)
def test_only_images_are_encoded(bad: npt.NDArray[Any]) -> None:
    for suffix in (".png", ".jpg"):
        with pytest.raises(ValueError, match="RGB uint8"):
            encode_image(bad, suffix)


@pytest.mark.parametrize("suffix", sorted(images.WRITABLE))
def test_write_and_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix.upper()}"
    write_image(path, PICTURE)
    image = read_image(path)
    assert_image(image, (48, 64))
    with pil.open(path) as picture:
        assert picture.format == images.WRITABLE[suffix]
    if suffix == ".pgm":
        assert path.read_bytes().startswith(b"P5")
        assert np.array_equal(image[..., 0], np.asarray(pil.fromarray(PICTURE).convert("L")))
    elif images.WRITABLE[suffix] in ("JPEG", "WEBP"):
        assert np.abs(image.astype(int) - PICTURE).mean() < 9
    else:
        assert np.array_equal(image, PICTURE)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'\.gif'"):
        write_image(tmp_path / "a.gif", PICTURE)
    with pytest.raises(InputError, match="quality"):
        write_image(tmp_path / "a.jpg", PICTURE, quality=0)
    with pytest.raises(InputError, match="65535"):
        write_image(tmp_path / "a.jpg", np.zeros((1, 65536, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, "Grüße\n")
    assert path.read_text("utf-8") == "Grüße\n"
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    atomic_write(tmp_path / ("n" * 255), b"long name")
    link = tmp_path / "link"
    link.symlink_to(path)
    atomic_write(link, b"new")  # replaces the link, never what it points to
    assert path.read_bytes() == b"\x00\xff"


FAULTS = [
    (errno.ENOSPC, "disk is full"),
    (errno.EDQUOT, "quota"),
    (errno.EACCES, "Permission denied"),
    (errno.EIO, "cannot be written"),
]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(("number", "words"), FAULTS)
def test_faults_leave_the_old_file_and_nothing_else(
    call: str, number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(images.os, call, fail)
    with pytest.raises(EnvironmentFault, match=words) as caught:
        write_image(path, PICTURE)
    monkeypatch.undo()
    assert str(path) in caught.value.message
    assert caught.value.remedy
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_really_full(tmp_path: Path) -> None:
    """The kernel's own refusal: no file of this process may grow beyond 1000 bytes."""
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(EnvironmentFault, match="disk is full"):
            atomic_write(tmp_path / "a.bin", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", b"data")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="folder does not exist"):
        atomic_write(tmp_path / "no" / "a", b"")
    (tmp_path / "d").mkdir()
    with pytest.raises(EnvironmentFault, match="directory has that name"):
        atomic_write(tmp_path / "d", b"")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
