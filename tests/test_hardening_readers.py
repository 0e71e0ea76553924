"""Files of strangers: bombs, paths that lead out, pipes that are waited for, and every fault that fuzzing has found.

Time and memory are measured in a process of their own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deidbench.data_fetch import unpack
from deidbench.datasets import affectnet, celeba, lfw
from deidbench.datasets.classes import csv_lines
from deidbench.datasets.files import natural_key, read_text
from deidbench.datasets.folder import Folder
from deidbench.errors import DeidbenchError, InputError, MissingError
from deidbench.images import encode_png, read_image, sha256_file
from deidbench.records import read_run
from deidbench.suite import holds_several, load_suite
from deidbench.toml_errors import DEEPEST, line_of, loads
from deidbench.weights import safe_torch_load

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference" / "demo"
PNG = encode_png(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))


def measured(code: str, *arguments: str, seconds: float = 60, mib: float = 250) -> str:
    """Runs ``code`` in a process of its own and returns the documented error that it ends with ("" for none).

    mib: by how much the process may have grown at its peak over what imports took.  ``read`` in the code is what is measured.
    """
    whole = f"""
import json, resource, sys, time
from deidbench.errors import DeidbenchError
{textwrap.dedent(code)}
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    read(*sys.argv[1:]); said = ""
except DeidbenchError as error:
    said = str(error)
print(json.dumps([said, time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
"""
    done = subprocess.run([sys.executable, "-c", whole, *arguments], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said, took, grew = json.loads(done.stdout.splitlines()[-1])
    assert took < seconds and grew < mib, (said, took, grew)
    return str(said)


# ------------------------------------------------------------------------------------------------------------------ bombs
def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, pixels: bytes, before: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _zeros(mib: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(mib)) + packer.flush()


def _tiff(width: int, height: int, data: bytes) -> bytes:
    """Grey, one strip, deflate."""
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(data)),
    ]
    listed = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + listed


def _gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0"
        + bytes(6)
        + b","
        + struct.pack("<HHHH", 0, 0, width, height)
        + b"\0\2\2D\1\0;"
    )


def _webp(side: int) -> bytes:
    size = (side - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + size


TINY = zlib.compress(bytes(2 * 3))
BOMBS: dict[str, Callable[[], bytes]] = {
    "png 20000 x 20000": lambda: _png(20000, 20000, _zeros(382)),
    "png, 300 MB after its pixels": lambda: _png(2, 2, _zeros(300)),
    "png, zTXt of 300 MB": lambda: _png(2, 2, TINY, _chunk(b"zTXt", b"k\0\0" + _zeros(300))),
    "png, iTXt of 300 MB": lambda: _png(2, 2, TINY, _chunk(b"iTXt", b"k\0\1\0\0\0" + _zeros(300))),
    "png, iCCP of 300 MB": lambda: _png(2, 2, TINY, _chunk(b"iCCP", b"k\0\0" + _zeros(300))),
    "tiff 100000 x 100000": lambda: _tiff(100000, 100000, _zeros(300)),
    "gif 60000 x 60000": lambda: _gif(60000, 60000),
    "webp 16 million x 16 million": lambda: _webp(1 << 24),
    "bmp 30000 x 30000": lambda: b"BM" + struct.pack("<IHHI", 60, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0),
    "ppm 90000 x 90000": lambda: b"P5 90000 90000 255\n" + bytes(10),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BOMBS))
def test_image_bombs_cost_neither_memory_nor_time(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[name]())
    code = """
    from deidbench.images import read_image, read_image_bytes, encode_png
    import numpy
    read_image_bytes(encode_png(numpy.zeros((2, 2, 3), "uint8")), "warm")  # decoders are imported
    read = read_image
    """
    said = measured(code, str(path), mib=100)
    assert str(path) in said or name == "png, 300 MB after its pixels"  # that picture is whole; the rest is never unpacked


@pytest.mark.slow
def test_checkpoint_bombs(tmp_path: Path) -> None:
    """A torch archive with a gigabyte of zeros packed, and the same claims in the other formats."""
    import torch

    good = io.BytesIO()
    torch.save({"a": torch.ones(4)}, good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "zip.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            if not info.filename.endswith("data/0"):
                new.writestr(info.filename, old.read(info))
        with new.open(next(i.filename for i in old.infolist() if i.filename.endswith("data/0")), "w") as member:
            for _ in range(1024):
                member.write(bytes(1 << 20))
    assert (tmp_path / "zip.pt").stat().st_size < 4 << 20
    legacy = io.BytesIO()
    torch.save(torch.zeros(4), legacy, _use_new_zipfile_serialization=False)
    raw = legacy.getvalue()
    at = raw.rfind(struct.pack("<q", 4))
    (tmp_path / "legacy.pt").write_bytes(raw[:at] + struct.pack("<q", 16 << 30) + raw[at + 8 :])
    header = b'{"a":{"dtype":"F32","shape":[100000,100000],"data_offsets":[0,40000000000]}}'
    (tmp_path / "claim.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + header)
    code = """
    import torch
    from safetensors.torch import load_file
    from deidbench.weights import safe_torch_load as read
    """
    for name in ("zip.pt", "legacy.pt", "claim.safetensors", "header.safetensors"):
        assert name in measured(code, str(tmp_path / name), mib=200)


def test_parquet_bombs(tmp_path: Path) -> None:
    """Half a megabyte that is a hundred million lines, and one cell that is a quarter of a gigabyte."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("run.json", "curves.parquet", "images.parquet", "evidence.parquet"):
        shutil.copy(REFERENCE / name, tmp_path / name)
    million = pa.table({"method": ["x"] * 1_000_000, "value": [0.0] * 1_000_000})
    with pq.ParquetWriter(tmp_path / "rows.parquet", million.schema) as writer:
        for _ in range(60):
            writer.write_table(million)
    code = """
    import pandas, pyarrow.parquet
    from pathlib import Path
    from deidbench.records import read_run
    read = lambda folder: read_run(Path(folder))
    """
    assert "that many are not read" in measured(code, str(tmp_path), mib=200)
    pq.write_table(
        pa.table({"method": ["a" * (64 << 20)] * 8}), tmp_path / "rows.parquet", compression="zstd", use_dictionary=False
    )
    assert "that many are not read" in measured(code, str(tmp_path), mib=200)
    shutil.copy(REFERENCE / "rows.parquet", tmp_path / "rows.parquet")
    wide = pa.table({"rows": [[0]] * 1000, "columns": pa.array([[0.0] * 100_000] * 1000)})
    with pq.ParquetWriter(tmp_path / "evidence.parquet", wide.schema, compression="zstd") as writer:
        writer.write_table(wide)
    code = """
    import pandas, pyarrow.parquet
    from pathlib import Path
    from deidbench import evidence
    read = lambda folder: evidence.read(Path(folder), 10)
    """
    assert "that many are not read" in measured(code, str(tmp_path), mib=200)


def test_damaged_column_metadata_does_not_end_the_process(tmp_path: Path) -> None:
    """Found by fuzzing: pyarrow's bindings call std::terminate where a column's statistics do not fit its definition levels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copy(REFERENCE / "run.json", tmp_path / "run.json")
    buffer = io.BytesIO()
    pq.write_table(pa.table({"abc": [1, None, 3]}), buffer)
    optional, required = (
        b"\x25\x02\x18\x03abc",
        b"\x25\x00\x18\x03abc",
    )  # the column's repetition and name in Thrift's compact form
    assert buffer.getvalue().count(optional) == 1
    for name in ("rows", "curves", "images", "evidence"):
        (tmp_path / f"{name}.parquet").write_bytes(buffer.getvalue().replace(optional, required))
    code = """
    import sys
    from pathlib import Path
    from deidbench import evidence, history, records
    from deidbench.errors import InputError
    folder = Path(sys.argv[1])
    for read in (records.read_run, lambda f: evidence.read(f, 3), lambda f: history._columns(f, f / "rows.parquet", "rows")):
        try:
            read(folder)
        except InputError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("is damaged") == 3, done.stdout


@pytest.mark.parametrize("kind", ["zip", "tar.gz", pytest.param("tar.xz", marks=pytest.mark.slow)])
def test_archive_bombs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z, z.open("a/zeros.jpg", "w") as member:
            for _ in range(400):
                member.write(bytes(1 << 20))
    else:
        with tarfile.open(path, f"w:{kind[4:]}") as t:
            info = tarfile.TarInfo("a/zeros.jpg")
            info.size = 400 << 20
            t.addfile(info, _Zeros())
    with pytest.raises(InputError, match="would unpack to"):
        unpack(path, tmp_path / "into")
    assert not list((tmp_path / "into").iterdir())


class _Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def test_quick_on_long_lines_and_long_lists(tmp_path: Path) -> None:
    """Patterns that look back and forth over blanks took minutes; cells and lines without end are refused or read once."""
    start = time.perf_counter()
    blank = "x = '''\n[" + " " * 200_000 + "\n" + "\n" * 200_000 + "'''\n"
    assert line_of(blank, ("y",)) == 1
    assert not holds_several("\n" * 300_000)
    assert len(loads(blank)) == 1
    table = tmp_path / "manifest.csv"
    table.write_text("path,subject_id\n" + "a" * 10_000_000 + ",x\n")
    with pytest.raises(InputError, match="line 2"):
        list(Folder(tmp_path).samples())
    table.write_text("path,subject_id\n" + "a.png,x\n" * 200_000)
    with pytest.raises(InputError, match=r"listed twice|not there"):
        list(Folder(tmp_path).samples())
    table.write_text("path,subject_id\n" + "".join(f"a{i}.png,x\n" for i in range(100_000)))
    with pytest.raises(InputError, match="100000 of 100000"):
        list(Folder(tmp_path).samples())
    assert time.perf_counter() - start < 60


# ------------------------------------------------------------------------------------------------- paths that lead elsewhere
@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "anna").mkdir(parents=True)
    (root / "anna" / "1.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.png").write_bytes(PNG)
    return root


OUT = (
    "../secret.png", "anna/../../secret.png", "/etc/passwd", "//etc/passwd", "~/x.png", "~root/x.png", "C:\\x.png", "C:/x.png", "c:x.png", "\\\\host\\share\\x.png", "anna\\1.png",
    "anna/1.png\0.txt", "..", "../", "/proc/self/environ",
)  # fmt: skip
#: None of these is a path to anything; they must not become one by normalisation.
TRICKS = ("anna/1.png ", "anna/１.png", "ａnna/1.png", "anna∕1.png", "․․/secret.png", "‥/secret.png", "anna/1.png\u202e", "%2e%2e/secret.png", "anna/1.PNG", "file:///etc/passwd")  # fmt: skip


@pytest.mark.parametrize("path", OUT)
def test_manifest_paths_stay_in_the_folder(tree: Path, path: str) -> None:
    (tree / "manifest.csv").write_text(f"path,subject_id\n{path},anna\n")
    with pytest.raises(InputError, match="line 2"):
        list(Folder(tree).samples())


@pytest.mark.parametrize("path", TRICKS)
def test_manifest_paths_are_taken_to_the_letter(tree: Path, path: str) -> None:
    (tree / "manifest.csv").write_text(f'path,subject_id\n"{path}",anna\n')
    if path.strip() == "anna/1.png":  # blanks around a cell are no part of it
        assert [s.path for s in Folder(tree).samples()] == [tree / "anna" / "1.png"]
    else:
        with pytest.raises(InputError, match="not there"):
            list(Folder(tree).samples())


@pytest.mark.parametrize("layout", ["manifest", "folders", "pattern"])
def test_links_and_pipes_in_a_data_folder(tree: Path, tmp_path: Path, layout: str) -> None:
    """Links that lead out are refused in every layout, links within are followed, and no pipe is waited for."""

    def read() -> list[Any]:
        if layout == "manifest":
            names = sorted(p.relative_to(tree).as_posix() for p in (tree / "anna").iterdir())
            (tree / "manifest.csv").write_text("path,subject_id\n" + "".join(f"{n},anna\n" for n in names))
        return list(Folder(tree, subject_from=r"re:(anna)/" if layout == "pattern" else "auto").samples())

    assert len(read()) == 1
    within = tree / "anna" / "within.png"
    within.symlink_to("1.png")
    assert len(read()) == 2
    for make, words in (
        (lambda p: p.symlink_to(tmp_path / "secret.png"), "symbolic link"),
        (lambda p: p.symlink_to("../../secret.png"), "symbolic link"),
        (lambda p: p.symlink_to("/dev/zero"), "symbolic link"),
        (lambda p: os.mkfifo(p), "not a file"),
    ):
        odd = tree / "anna" / "odd.png"
        make(odd)
        start = time.perf_counter()
        with pytest.raises(InputError, match=words):
            read()
        assert time.perf_counter() - start < 10
        odd.unlink()
    # a hard link is the file itself: no reader can tell, and whoever could make it could read the file
    os.link(tmp_path / "secret.png", tree / "anna" / "hard.png")
    assert len(read()) == 3


def test_link_to_a_folder_is_not_followed(tree: Path, tmp_path: Path) -> None:
    (tree / "ben").symlink_to(tmp_path / "elsewhere")
    data = Folder(tree)
    assert [s.id for s in data.samples()] == ["anna/1.png"] and data.skipped == {"(link to a folder)": 1}
    (tree / "manifest.csv").write_text("path,subject_id\nben/2.png,ben\n")
    with pytest.raises(InputError, match="symbolic link"):
        list(Folder(tree).samples())


def test_pipes_and_devices_are_refused_everywhere(tree: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (pipe, tmp_path / "zero"):
        for read in (
            read_image, sha256_file, read_text, lambda p: list(csv_lines(p, ("a",))), safe_torch_load, load_suite,
            lambda p: lfw.read_pairs(p),
        ):  # fmt: skip
            start = time.perf_counter()
            with pytest.raises(DeidbenchError):
                read(path)
            assert time.perf_counter() - start < 10
    os.mkfifo(tree / "manifest.csv")
    with pytest.raises(InputError, match="ordinary file"):
        list(Folder(tree).samples())


def test_finished_pictures_from_elsewhere_are_refused(tree: Path, tmp_path: Path) -> None:
    from deidbench.anonymizers.finished import FinishedFolder
    from deidbench.types import Sample

    (tree / "anna" / "2.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match="symbolic link"):
        FinishedFolder(str(tree)).fit([Sample("anna/1.png", Path(), "anna", "")])


@pytest.mark.parametrize("place", ["../secret.bin", "absolute", "link.bin"])
def test_models_read_weights_from_their_own_folder(tmp_path: Path, place: str) -> None:
    """Of a recogniser; that of a method is tested beside it.  The same model with weights beside it runs."""
    import onnx
    from onnx import TensorProto, helper

    from deidbench.metrics.models.onnx_file import OnnxFile

    folder = tmp_path / "model"
    folder.mkdir()
    weights = np.full((192, 16), 0.5, np.float32).tobytes()
    for path in (tmp_path / "secret.bin", folder / "own.bin"):
        path.write_bytes(weights)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[192, 16], data_location=TensorProto.EXTERNAL)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [tensor],
    )
    crops = np.full((1, 8, 8, 3), 200, np.uint8)
    for location, good in (("own.bin", True), (str(tmp_path / "secret.bin") if place == "absolute" else place, False)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model.graph.initializer[0].external_data.add(key="location", value=location)
        (folder / "x.onnx").write_bytes(model.SerializeToString())
        assert onnx.load(str(folder / "x.onnx"), load_external_data=False)
        if good:
            assert OnnxFile(str(folder / "x.onnx"), size=8).embed(crops).shape == (1, 16)
        else:
            with pytest.raises(InputError, match=r"x\.onnx"):
                OnnxFile(str(folder / "x.onnx"), size=8).embed(crops)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "a\\..\\..\\evil", "C:\\evil", "\0evil"])
def test_archives_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        z.writestr(info, "evil")
    with tarfile.open(tmp_path / "x.tar", "w") as t:
        member = tarfile.TarInfo(name.replace("\0", "n"))
        t.addfile(member, io.BytesIO())
    for archive in ("x.zip", "x.tar"):
        with contextlib.suppress(InputError):
            unpack(tmp_path / archive, tmp_path / "into" / archive)
        written = [p for p in tmp_path.rglob("*") if p.is_file() and "evil" in p.name]
        assert all((tmp_path / "into" / archive) in p.parents for p in written)
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_archives_hold_files_and_folders_only(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as t:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        t.addfile(info)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        unpack(tmp_path / "x.tar", tmp_path / "into")


# ---------------------------------------------------------------------------------------------- what fuzzing has found
@pytest.mark.parametrize("text", ["a = " + "[" * 5000 + "]" * 5000, "a = " + "{a=" * 2000, "a = " + "9" * 5000, "a = " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)])  # fmt: skip
def test_toml_of_no_bounds(tmp_path: Path, text: str) -> None:
    from deidbench.anonymizers.external import recipe
    from deidbench.collection import load_collection
    from deidbench.gate import load_margins
    from deidbench.training import load_recipe

    path = tmp_path / "x.toml"
    path.write_text(text)
    for read in (load_suite, load_collection, load_margins, lambda p: recipe.load(str(p)), lambda p: load_recipe(str(p))):
        with pytest.raises(InputError):
            read(path)


def test_storeys_that_are_of_use_are_read() -> None:
    assert loads("a = " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))


def test_numbers_of_thousands_of_digits(tmp_path: Path) -> None:
    long = "9" * 5000
    assert sorted([f"s{long}", "s2", "s10"], key=natural_key) == ["s2", "s10", f"s{long}"]
    path = tmp_path / "list"
    for text, read in (
        (f"{long}\t1\n", lfw.read_pairs), (f"1\t{long}\n", lfw.read_pairs), (f"1\nanna {long}\n", lfw.read_people),
        (f"{long}\nMale\na.jpg 1\n", celeba.flags), ("²\nMale\n", celeba.flags),
    ):  # fmt: skip
        path.write_text(text, "utf-8")
        with pytest.raises(InputError):
            read(path)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300"])
def test_boxes_have_bounds(tmp_path: Path, number: str) -> None:
    path = tmp_path / "list_bbox_celeba.txt"
    path.write_text(f"1\nimage_id x_1 y_1 width height\na.jpg 1 2 3 {number}\n")
    with pytest.raises(InputError, match="line 3"):
        celeba.read_boxes(path)


@pytest.mark.parametrize(
    ("old", "new"), [(b"'shape': (), ", b"'shape': (9999999999999,), "), (b"'shape': ()", b"'shape': 0x"), (b"{'descr'", b"{\x00descr'"), (b"}", b"("), (b"'<i8'", b"'|O'")]
)  # fmt: skip
def test_labels_of_numpy_with_odd_headers(old: bytes, new: bytes) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array(3, np.int64))
    data = buffer.getvalue()
    assert affectnet.read_label(data, "x") == 3 and old in data
    with pytest.raises(InputError, match="x "):
        affectnet.read_label(data.replace(old, new), "x")


@pytest.mark.parametrize("change", [{"root": 5}, {"root": None}, {"params": []}, {"images": "many"}, {"version": {}}])
def test_records_of_prepared_sets_of_another_shape(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any]
) -> None:
    from deidbench import data_index, kinds

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = data_index.record_of("lfw")
    path.parent.mkdir(parents=True)
    good = {"name": "lfw", "root": "/x", "version": "1", "images": 2, "persons": 1, "manifest_sha256": "a", "date": "2026", "params": {}, "schema": data_index.SCHEMA}  # fmt: skip
    path.write_text(json.dumps(good))
    assert "/x" in kinds.datasets.create("lfw").missing()
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(InputError, match="is damaged"):
        kinds.datasets.create("lfw").missing()


# ------------------------------------------------------------------------------------------------ results of strangers
@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(REFERENCE, folder)
    return folder


def _changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "run.json").read_text("utf-8"))
    change(record)
    (folder / "run.json").write_text(json.dumps(record), "utf-8")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "counts that are texts": lambda r: r["methods"][0]["counts"].update(ok="a"),
    "counts beyond counting": lambda r: r["methods"][0]["counts"].update(ok=10**400),
    "a method that is a number": lambda r: r["methods"].append(5),
    "methods that are a table": lambda r: r.update(methods={"a": 1}),
    "a label that is a list": lambda r: r["methods"][0].update(label=["x"]),
    "trained_on that is a number": lambda r: r["methods"][0].update(trained_on=5),
    "a seed that is a text": lambda r: r["protocol"].update(seed="5"),
    "images that are a text": lambda r: r["dataset"].update(n_images="many"),
    "unreadable that is a list": lambda r: r["dataset"].update(unreadable=["a"]),
    "packages that are a list": lambda r: r["environment"].update(packages=[1]),
    "no number": lambda r: r["timings"].update(x=float("nan")),
    "endless": lambda r: r["timings"].update(x=float("inf")),
    "many storeys": lambda r: r.update(x=json.loads("[" * 100 + "]" * 100)),
    "a record that is no table": lambda r: r.update(dataset=7),
}


def test_a_recogniser_without_a_name_can_be_compared(stranger: Path) -> None:
    """Found by fuzzing: an entry may be absent, and texts and nothing cannot be sorted."""
    from deidbench.comparable import differences

    def nameless(record: dict[str, Any]) -> None:
        record["recognizers"][0].pop("name")
        record["recognizers"][1]["runtime"] = "another"

    _changed(stranger, nameless)
    both = read_run(stranger), read_run(REFERENCE)
    assert any("sface ran on another against" in r for r in differences(*both).remarks)
    assert differences(both[0], both[0]).remarks == []


@pytest.mark.parametrize("name", list(CHANGES))
def test_records_of_another_shape(stranger: Path, name: str) -> None:
    _changed(stranger, CHANGES[name])
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_run(stranger)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", "5", '{"schema": 1, "a": ' + "9" * 5000 + "}", '{"schema": 1e999}', "\ud800", "", '{"schema": true}'],
)
def test_records_that_are_none(stranger: Path, text: str) -> None:
    (stranger / "run.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"run\.json"):
        read_run(stranger)


def _other_rows(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    import pyarrow.parquet as pq

    pq.write_table(change(pq.read_table(folder / f"{name}.parquet")), folder / f"{name}.parquet")


def test_tables_of_another_shape(stranger: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = pq.read_metadata(REFERENCE / "rows.parquet").num_rows
    texts = pa.array(["x"] * n)
    for column, values in (
        ("value", texts), ("trusted", texts), ("n_images", pa.array([float("inf")] * n)), ("note", pa.array([[1]] * n)),
        ("metric", pa.array([b"\x80\x04\x95pickle"] * n)), ("label", pa.array([{"a": 1}] * n)),
        ("dataset", pa.Array.from_buffers(pa.string(), n, [None, pa.py_buffer(np.arange(n + 1, dtype=np.int32).tobytes()), pa.py_buffer(b"\xff" * n)])),
    ):  # fmt: skip
        shutil.copy(REFERENCE / "rows.parquet", stranger / "rows.parquet")
        _other_rows(stranger, "rows", lambda t, c=column, v=values: t.set_column(t.column_names.index(c), c, v))
        with pytest.raises(InputError, match=r"rows\.parquet is damaged"):
            read_run(stranger)
    shutil.copy(REFERENCE / "rows.parquet", stranger / "rows.parquet")
    _other_rows(stranger, "rows", lambda t: t.append_column("value", t.column("value")))
    with pytest.raises(InputError, match=r"rows\.parquet is damaged"):
        read_run(stranger)


def test_nothing_in_a_result_is_executed(stranger: Path, tmp_path: Path) -> None:
    """Pickles, in a column of bytes and as pandas' metadata, stay bytes."""
    import pickle

    import pyarrow as pa

    mark = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (os.system, (f"touch {mark}",))

    trap = pickle.dumps(Trap())

    def change(table: pa.Table) -> pa.Table:
        table = table.append_column("extra", pa.array([trap] * table.num_rows))
        return table.replace_schema_metadata({b"pandas": json.dumps({"index_columns": [], "columns": [{"name": "extra", "pandas_type": "object", "numpy_type": "object", "metadata": None}], "column_indexes": []}).encode()})  # fmt: skip

    _other_rows(stranger, "rows", change)
    from deidbench.report import write_report

    write_report(stranger, figures=False)
    assert not mark.exists()
    (stranger / "rows.parquet").write_bytes(trap)
    with pytest.raises(InputError):
        read_run(stranger)
    assert not mark.exists()


def test_a_pipe_in_a_result_is_not_waited_for(stranger: Path) -> None:
    for name in ("rows.parquet", "images.parquet"):
        (stranger / name).rename(stranger / "kept")
        os.mkfifo(stranger / name)
        with pytest.raises(MissingError):
            read_run(stranger)
        (stranger / name).unlink()
        (stranger / "kept").rename(stranger / name)


def test_a_million_lines_are_read_in_bounds(stranger: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(stranger / "rows.parquet")
    many = pa.concat_tables([table] * 180).slice(0, 1_000_000)
    pq.write_table(many, stranger / "rows.parquet")
    code = """
    import pandas, pyarrow.parquet
    from pathlib import Path
    from deidbench.records import read_run
    def read(folder):
        assert len(read_run(Path(folder)).rows) == 1_000_000
    """
    assert measured(code, str(stranger), seconds=120, mib=1500) == ""


def test_replicates_that_fit_into_no_memory(stranger: Path) -> None:
    from deidbench.compare import compare

    _changed(stranger, lambda r: r["protocol"].update(replicates=900_000_000))
    with pytest.raises(InputError, match="replicates"):
        compare([read_run(stranger)])


@pytest.fixture
def pictured(stranger: Path) -> Path:
    (stranger / "samples").mkdir()
    (stranger / "samples" / "a.png").write_bytes(PNG)
    labels = [m["label"] for m in json.loads((stranger / "run.json").read_text())["methods"]][:2]
    rows = [{"label": label, "files": ["a.png"], "statuses": ["ok"]} for label in labels]
    (stranger / "samples" / "index.json").write_text(json.dumps({"columns": ["x"], "faces": True, "rows": rows}))
    return stranger


def _grid(folder: Path) -> Any:
    from deidbench.report.figures import style
    from deidbench.report.samples import sample_grid
    from deidbench.report.view import View

    with style():
        return sample_grid(View(read_run(folder)))


@pytest.mark.parametrize(
    "name",
    ["../../secret.png", "/etc/passwd", "a.png\0", "\ud800", "link.png", "pipe.png", "bomb.png", "script.eps", "ring.png", "."],
)
def test_pictures_of_a_result_lie_in_it(pictured: Path, name: str) -> None:
    samples = pictured / "samples"
    (pictured.parent / "secret.png").write_bytes(PNG)
    (samples / "link.png").symlink_to(pictured.parent / "secret.png")
    (samples / "ring.png").symlink_to("ring.png")
    os.mkfifo(samples / "pipe.png")
    (samples / "bomb.png").write_bytes(_png(20000, 20000, TINY))
    (samples / "script.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/executed) (w) file closefile\n"
    )
    index = json.loads((samples / "index.json").read_text())
    index["rows"][0]["files"] = [name]
    (samples / "index.json").write_text(json.dumps(index))
    drawing = _grid(pictured)
    assert "1 picture could not be read" in drawing.caption


def test_a_folder_of_pictures_that_is_a_link_is_not_looked_into(pictured: Path) -> None:
    elsewhere = pictured.parent / "elsewhere"
    (pictured / "samples").rename(elsewhere)
    (pictured / "samples").symlink_to(elsewhere)
    assert "2 pictures could not be read" in _grid(pictured).caption


@pytest.mark.parametrize("change", [{"rows": 5}, {"rows": [5]}, {"columns": [1]}, {"rows": [{"label": "x", "files": [1], "statuses": 5}]}, {"cases": 5}, {"cases": {"rows": [{"worst": 5}]}}])  # fmt: skip
def test_lists_of_pictures_of_another_shape(pictured: Path, change: dict[str, Any]) -> None:
    path = pictured / "samples" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        _grid(pictured)


def test_reports_write_into_the_folder_alone(stranger: Path) -> None:
    from deidbench.report import write_report

    elsewhere = stranger.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "samples.png").write_bytes(b"mine")
    for name in ("figures", "tables"):
        (stranger / name).symlink_to(elsewhere)
        with pytest.raises(InputError, match="symbolic link"):
            write_report(stranger, figures=False)
        (stranger / name).unlink()
    assert [p.name for p in elsewhere.iterdir()] == ["samples.png"]


def test_figures_that_a_note_names_lie_in_the_folder(stranger: Path) -> None:
    """A note that says "these are drawn already" can name no file elsewhere for the page to show."""
    from deidbench.report import reuse
    from deidbench.report.view import View

    secret = stranger.parent / "secret.svg"
    secret.write_text("<svg>mine</svg>")
    view = View(read_run(stranger))
    folder = stranger / "figures"
    folder.mkdir()
    digest = reuse._digest(view, "")
    (folder / "link.svg").symlink_to(secret)
    for name in ("../../secret.svg", "link.svg"):
        entry = {"name": "plane", "title": "t", "caption": "c", "alt": "a", "why": "", "narrow": [name], "wide": [name]}
        for files in ({}, {name: reuse._sha256(folder / name)}):
            (folder / "drawn.json").write_text(json.dumps({"digest": digest, "files": files, "figures": [entry]}))
            import deidbench.report.figures as drawing

            before, drawing.draw_all = drawing.draw_all, lambda *a, **k: []  # type: ignore[assignment]
            try:
                assert reuse.figures(view, folder) == []  # drawn anew
            finally:
                drawing.draw_all = before
