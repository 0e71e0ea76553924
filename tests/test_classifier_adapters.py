"""Classifiers from outside files: ONNX, timm, HSEmotion, deepface, with small real files of random weights."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deidbench.errors import InputError, MissingError
from deidbench.kinds import classifiers
from deidbench.listing import listing
from deidbench.metrics.models.base import Classifier
from deidbench.metrics.models.classifier_files import probabilities
from deidbench.metrics.models.hsemotion import VARIANTS
from deidbench.metrics.models.labels import ATTRIBUTES

Array = npt.NDArray[Any]
SIZE = 16
FER = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
OURS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")


def pictures(n: int, size: int = SIZE, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def write(
    path: Path,
    outputs: int = 7,
    *,
    size: int = SIZE,
    depth: int = 3,
    nchw: bool = True,
    batch: int | str = "n",
    end: str = "",
    linear: str = "gemm",
    half: bool = False,
    hidden: int = 5,
    seed: int = 1,
) -> Path:
    """Convolution, ReLU, mean, linear layer (Gemm, or MatMul and Add, or a convolution), and perhaps an activation."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    kind, elem = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    stored = {
        "k": rng.normal(size=(hidden, depth, 3, 3)) / 3,
        "w": rng.normal(size=(hidden, outputs)) * 2,
        "b": rng.normal(size=outputs),
    }
    if linear == "conv":
        stored["w"] = np.ascontiguousarray(stored["w"].T)[:, :, None, None]
    shape = [batch, depth, size, size] if nchw else [batch, size, size, depth]
    nodes = [] if nchw else [helper.make_node("Transpose", ["image"], ["chw"], perm=[0, 3, 1, 2])]
    nodes += [
        helper.make_node("Conv", ["image" if nchw else "chw", "k"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    ]
    if linear == "conv":
        nodes += [helper.make_node("Conv", ["p", "w", "b"], ["lc"]), helper.make_node("Flatten", ["lc"], ["logits"])]
    else:
        nodes.append(helper.make_node("Flatten", ["p"], ["features"]))
        if linear == "gemm":
            nodes.append(helper.make_node("Gemm", ["features", "w", "b"], ["logits"]))
        else:
            nodes += [helper.make_node("MatMul", ["features", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["logits"])]
    last = "logits"
    if end == "by hand":
        nodes += [
            helper.make_node("Exp", ["logits"], ["e"]),
            helper.make_node("ReduceSum", ["e", "one"], ["s"]),
            helper.make_node("Div", ["e", "s"], ["out"]),
        ]
        last = "out"
    elif end:
        nodes.append(helper.make_node(end, ["logits"], ["act"]))
        nodes.append(helper.make_node("Identity", ["act"], ["out"]))
        last = "out"
    weights = [numpy_helper.from_array(v.astype(kind), k) for k, v in stored.items()]
    if end == "by hand":
        weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", elem, shape)],
        [helper.make_tensor_value_info(last, elem, [batch, outputs])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def evaluate(path: Path, x: Array) -> Array:
    """First output of the file, by onnx's own interpreter."""
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(str(path)).run(None, {"image": x})[0], np.float64)


def make(path: Path, **params: Any) -> Classifier:
    return classifiers.create("onnx-classifier", path=str(path), **{"labels": FER, "size": SIZE, **params})


MEAN, STD = np.array([123.675, 116.28, 103.53], np.float32), np.array([58.395, 57.12, 57.375], np.float32)


# -- ONNX --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nchw", [True, False])
@pytest.mark.parametrize("batch", ["n", 1, 3])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_probabilities_and_features_are_those_of_the_file(tmp_path: Path, nchw: bool, batch: int | str, channels: str) -> None:
    path = write(tmp_path / "m.onnx", nchw=nchw, batch=batch)
    crops = pictures(40)
    c = make(path, channels=channels)
    x = (crops[..., ::-1] if channels == "bgr" else crops).astype(np.float32)
    x = (x - MEAN) / STD
    x = x.transpose(0, 3, 1, 2) if nchw else x
    want = softmax(np.concatenate([evaluate(path, x[i : i + 1]) for i in range(len(x))]))
    assert c.labels == OURS and c.task == "emotion" and not c.multilabel
    got = c.embed(crops)
    assert got.shape == (40, 7 + 5) and got.dtype == np.float32
    np.testing.assert_allclose(got[:, :7], want, atol=1e-5)
    np.testing.assert_allclose(c.predict(crops), want, atol=1e-5)
    # the features lead to the probabilities by the file's own last layer
    import onnx
    from onnx import numpy_helper

    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(str(path)).graph.initializer}
    np.testing.assert_allclose(softmax(got[:, 7:] @ stored["w"] + stored["b"]), want, atol=1e-5)
    assert want.std(0).max() > 1e-3, "the pictures differ"
    alone = np.concatenate([c.embed(crops[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, got[:5], atol=1e-5)
    np.testing.assert_array_equal(c.embed(crops[:0]), np.zeros((0, 12), np.float32))


def test_grey_input_is_luma(tmp_path: Path) -> None:
    from PIL import Image

    path = write(tmp_path / "m.onnx", depth=1)
    crops = pictures(4)
    grey = np.stack([np.asarray(Image.fromarray(c).convert("L")) for c in crops]).astype(np.float32)
    want = softmax(evaluate(path, (grey - 127.5)[:, None] / 127.5))
    got = make(path, channels="grey", mean=127.5, std=127.5).predict(crops)
    np.testing.assert_allclose(got, want, atol=0.01)  # Pillow rounds luma otherwise, by one grey level


@pytest.mark.parametrize("linear", ["gemm", "matmul", "conv"])
@pytest.mark.parametrize("end", ["", "Softmax", "LogSoftmax", "by hand"])
def test_the_activation_is_found_out(tmp_path: Path, linear: str, end: str) -> None:
    """However a file ends, its probabilities are the softmax of the same logits."""
    crops = pictures(6)
    x = ((crops.astype(np.float32) - MEAN) / STD).transpose(0, 3, 1, 2)
    want = softmax(evaluate(write(tmp_path / "plain.onnx", linear=linear), x))
    c = make(write(tmp_path / "m.onnx", linear=linear, end=end))
    np.testing.assert_allclose(c.predict(crops), want, atol=1e-5)
    with_features = linear != "conv" and end != "by hand"
    assert c.embed(crops).shape[1] == (12 if with_features else 7)
    assert make(tmp_path / "m.onnx", features="none").embed(crops).shape[1] == 7
    if end == "":
        with pytest.raises(InputError, match="no probabilities"):
            make(tmp_path / "m.onnx", activation="none").load()


def test_attributes_are_independent(tmp_path: Path) -> None:
    crops = pictures(6)
    x = ((crops.astype(np.float32) - MEAN) / STD).transpose(0, 3, 1, 2)
    words = ["smiling", "-", "wearing hat", "5_o_clock_shadow"]
    logits = evaluate(write(tmp_path / "plain.onnx", 4), x)
    want = (1 / (1 + np.exp(-logits)))[:, [0, 2, 3]]
    for end in ("", "Sigmoid"):
        c = make(write(tmp_path / f"m{end}.onnx", 4, end=end), task="attributes", labels=words, template="attributes")
        assert c.labels == ("Smiling", "Wearing_Hat", "5_o_Clock_Shadow") and c.multilabel
        np.testing.assert_allclose(c.predict(crops), want, atol=1e-5)
    assert set(c.labels) <= set(ATTRIBUTES)


@pytest.mark.parametrize("end", ["", "Softmax"])
def test_what_is_left_out_goes_to_the_others(tmp_path: Path, end: str) -> None:
    crops = pictures(6)
    x = ((crops.astype(np.float32) - MEAN) / STD).transpose(0, 3, 1, 2)
    whole = softmax(evaluate(write(tmp_path / "plain.onnx"), x))
    c = make(write(tmp_path / "m.onnx", end=end), labels=["-", "disgust", "", "happy", "sad", "-", "neutral"])
    assert c.labels == ("disgust", "happiness", "sadness", "neutral")
    part = whole[:, [1, 3, 4, 6]]
    np.testing.assert_allclose(c.predict(crops), part / part.sum(1, keepdims=True), atol=1e-5)


def test_probabilities_of_odd_outputs() -> None:
    zeros = np.array([[1.0, 0, 0], [0.5, 0.5, 0]])
    np.testing.assert_allclose(probabilities(zeros, (1, 2), "emotion", "none", "m"), [[0.5, 0.5], [1, 0]])
    huge = np.array([[1000.0, -1000, 0]])
    np.testing.assert_allclose(probabilities(huge, (0, 1, 2), "emotion", "softmax", "m"), [[1, 0, 0]])
    np.testing.assert_allclose(probabilities(huge, (0, 1), "attributes", "sigmoid", "m"), [[1, 0]])
    # what an ignored output says does not matter
    probabilities(np.array([[np.nan, 1, 2]]), (1, 2), "emotion", "softmax", "m")
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="not finite"):
            probabilities(np.array([[bad, 1, 2]]), (0, 1), "emotion", "softmax", "m")
    assert probabilities(np.zeros((0, 3)), (0, 1), "emotion", "softmax", "m").shape == (0, 2)


def test_half_precision(tmp_path: Path) -> None:
    crops = pictures(4)
    x = ((crops.astype(np.float32) - MEAN) / STD).transpose(0, 3, 1, 2)
    want = softmax(evaluate(write(tmp_path / "full.onnx"), x))
    got = make(write(tmp_path / "m.onnx", half=True)).embed(crops)
    assert got.dtype == np.float32 and got.shape == (4, 12)
    np.testing.assert_allclose(got[:, :7], want, atol=0.03)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"labels": [*FER[:6], "hungry"]}, r"'hungry' \(output 6\).*(?s:.)*allowed: anger, contempt"),
        ({"labels": [*FER[:6], "suprise"]}, "did you mean 'surprise'"),
        ({"labels": [*FER[:6], "happiness"]}, "outputs 3 and 6 both mean 'happiness'"),
        ({"labels": ["happy", *["-"] * 6]}, "1 classes"),
        ({"labels": "happy,sad"}, "a list of words"),
        ({"labels": [1, 2]}, "a list of words"),
        ({"task": "age"}, "task is 'age'"),
        ({"task": "attributes"}, "no attribute of CelebA"),
        ({"channels": "grau"}, "channels"),
        ({"template": "oval"}, "template"),
        ({"activation": "tanh"}, "activation"),
        ({"activation": "sigmoid"}, "exclude one another"),
        ({"features": "all"}, "features"),
        ({"size": 4}, "at least 8"),
        ({"threads": 0}, "at least 8"),
        ({"std": 0}, "std"),
        ({"mean": [1, 2]}, "mean"),
        ({"channels": "grey"}, "mean"),
    ],
)
def test_wrong_parameters_are_named(params: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        classifiers.create("onnx-classifier", path="m.onnx", **{"labels": FER, **params})


def test_wrong_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for content in (b"", b"junk" * 100, pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"m\.onnx is no ONNX model"):
            make(path).load()
    write(path, 8)
    with pytest.raises(InputError, match=r"m\.onnx gives 8 numbers a face, labels has 7 words"):
        make(path).load()
    with pytest.raises(InputError, match="set size = 16"):
        make(path, size=32).load()
    with pytest.raises(InputError, match="grey"):
        make(path, channels="grey", mean=127.5, std=127.5).load()
    with pytest.raises(MissingError, match=r"absent\.onnx"):
        make(tmp_path / "absent.onnx").load()
    assert "absent.onnx" in make(tmp_path / "absent.onnx").missing()
    assert "path" in classifiers.create("onnx-classifier").missing()
    assert "labels" in classifiers.create("onnx-classifier", path=str(path)).missing()
    with pytest.raises(MissingError, match="mean"):
        classifiers.create("onnx-classifier", path=str(path)).load()


def test_nan_in_the_weights_is_found(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    path = write(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    bias = next(i for i in model.graph.initializer if i.name == "b")
    bias.CopyFrom(numpy_helper.from_array(np.full(7, np.nan, np.float32), "b"))
    onnx.save(model, str(path))
    with pytest.raises(InputError, match=r"m\.onnx gives numbers that are not finite"):
        make(path).load()


def test_fingerprint_follows_what_matters(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    one = make(path).fingerprint
    assert make(path).fingerprint == one
    assert make(path, labels=["-", *FER[1:]]).fingerprint != one
    assert make(path, labels=[FER[1], FER[0], *FER[2:]]).fingerprint != one
    assert make(path, activation="softmax").fingerprint != one
    write(path, seed=9)
    assert make(path).fingerprint != one
    assert make(path).params()["labels"] == FER


def test_wrong_crops_are_refused_and_copies_travel(tmp_path: Path) -> None:
    c = make(write(tmp_path / "m.onnx"))
    want = c.embed(pictures(2))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(c)).embed(pictures(2)), want)
    with pytest.raises(InputError, match="onnx-classifier"):
        c.embed(pictures(2, 17))
    with pytest.raises(InputError, match="onnx-classifier"):
        c.embed(pictures(2).astype(np.float32))


# -- timm --------------------------------------------------------------------------------------------------------------
ARCHITECTURES = ["mobilenetv3_small_050", "vit_tiny_patch16_224"]


def timm_model(architecture: str, outputs: int, depth: int = 3) -> Any:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(architecture, pretrained=False, num_classes=outputs, in_chans=depth).eval()
    with torch.no_grad():
        if any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()):
            for module in model.modules():  # statistics of nothing would make all pictures look the same
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 1.0
            model.train()(torch.randn(8, depth, 64, 64))
            model.eval()
        head = model.get_classifier()
        head.weight.normal_(0, head.in_features**-0.5)
    return model


def make_timm(path: Path, architecture: str = ARCHITECTURES[0], **params: Any) -> Classifier:
    given = {"labels": FER, "size": 224 if architecture.startswith("vit") else 64, **params}
    return classifiers.create("timm-classifier", architecture=architecture, path=str(path), **given)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("form", ["pt", "safetensors", "wrapped"])
def test_timm_equals_plain_torch(tmp_path: Path, architecture: str, form: str) -> None:
    import torch
    from safetensors.torch import save_file

    model = timm_model(architecture, 7)
    path = tmp_path / ("m.safetensors" if form == "safetensors" else "m.pt")
    if form == "safetensors":
        save_file(model.state_dict(), path)
    elif form == "pt":
        torch.save(model.state_dict(), path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    before = torch.random.get_rng_state()
    c = make_timm(path, architecture)
    crops = pictures(3, c.crop.size)
    got = c.embed(crops)
    assert torch.equal(before, torch.random.get_rng_state()), "nobody else's random numbers are touched"
    x = torch.from_numpy(((crops.astype(np.float32) - MEAN) / STD).transpose(0, 3, 1, 2))
    with torch.no_grad():
        want = torch.softmax(model(x), 1).numpy()
        read = torch.softmax(model.get_classifier()(torch.from_numpy(got[:, 7:])), 1).numpy()
    np.testing.assert_allclose(got[:, :7], want, atol=1e-5)
    np.testing.assert_allclose(read, want, atol=1e-5)
    assert want.std(0).max() > 1e-4
    np.testing.assert_allclose(c.embed(crops[1:2]), got[1:2], atol=1e-4)
    assert c.embed(crops[:0]).shape == (0, got.shape[1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(c)).embed(crops), got)


def test_timm_attributes_and_grey(tmp_path: Path) -> None:
    import torch

    model = timm_model(ARCHITECTURES[0], 3, 1)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    c = make_timm(
        tmp_path / "m.pt",
        task="attributes",
        labels=["male", "-", "Young"],
        channels="grey",
        mean=0,
        std=255,
        template="attributes",
    )
    grey = np.repeat(pictures(2, 64)[..., :1], 3, 3)
    with torch.no_grad():
        want = torch.sigmoid(model(torch.from_numpy(grey[..., 0][:, None].astype(np.float32) / 255))).numpy()[:, [0, 2]]
    assert c.labels == ("Male", "Young")
    np.testing.assert_allclose(c.predict(grey), want, atol=1e-5)


class _Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (os.environ["DEIDBENCH_TEST_TRAP"],)


def test_timm_files_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    path = tmp_path / "m.pt"
    good = timm_model(ARCHITECTURES[0], 7).state_dict()
    key = "classifier.weight"

    def refused(state: Any, said: str) -> None:
        torch.save(state, path)
        with pytest.raises(InputError, match=said) as error:
            make_timm(path).load()
        assert "m.pt" in str(error.value)

    refused({k: v for k, v in good.items() if k != key}, f"lacks the tensor {key}")
    refused({**good, "extra": torch.ones(1)}, "does not have: extra")
    refused({**good, key: torch.ones(8, good[key].shape[1])}, rf"{key} has shape \(8, ")
    refused({**good, key: torch.full_like(good[key], float("nan"))}, f"{key} has values that are not finite")
    refused({**good, key: good[key].to(torch.int32)}, f"{key} is no tensor")
    refused({**good, key: "text"}, f"{key} is no tensor")
    refused([1, 2], "no state dict")
    refused(timm_model(ARCHITECTURES[0], 8).state_dict(), "has shape")
    trap = tmp_path / "trap"
    monkeypatch.setenv("DEIDBENCH_TEST_TRAP", str(trap))
    refused({**good, "x": _Hostile()}, "would have to be executed")
    assert not trap.exists()
    path.write_bytes(b"junk" * 50)
    with pytest.raises(InputError, match=r"m\.pt"):
        make_timm(path).load()
    torch.save({k: v for k, v in good.items() if not k.endswith("num_batches_tracked")}, path)
    make_timm(path).load()  # counters of training are not missed
    with pytest.raises(InputError, match="did you mean"):
        make_timm(path, "mobilenetv3_smal_050").load()
    for name in ("hf-hub:someone/model", "local-dir:/x", "a/b"):
        with pytest.raises(InputError, match="plain name"):
            make_timm(path, name)
    with pytest.raises(MissingError, match=r"absent\.pt"):
        make_timm(tmp_path / "absent.pt").load()
    assert "architecture" in classifiers.create("timm-classifier", path=str(path), labels=FER).missing()


def test_timm_wrong_size_is_named(tmp_path: Path) -> None:
    import torch

    torch.save(timm_model(ARCHITECTURES[1], 7).state_dict(), tmp_path / "m.pt")
    with pytest.raises(InputError, match="set size = 224"):
        make_timm(tmp_path / "m.pt", ARCHITECTURES[1], size=96).load()


# -- HSEmotion ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", ["enet_b0_8_best_afew", "enet_b2_7", "mbf_va_mtl"])
def test_hsemotion(tmp_path: Path, variant: str) -> None:
    spec = VARIANTS[variant]
    path = write(tmp_path / f"{variant}.onnx", len(spec.words), size=spec.size)
    c = classifiers.create(f"hsemotion:{variant}", path=str(tmp_path))  # a folder will do
    crops = pictures(3, spec.size)
    x = crops.astype(np.float32)
    mean, std = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)) if spec.half else (MEAN, STD)
    logits = evaluate(path, ((x - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2))
    assert list(c.labels) == sorted(c.labels) and len(c.labels) == (7 if "_7" in variant else 8)
    np.testing.assert_allclose(c.predict(crops), softmax(logits[:, : len(c.labels)]), atol=1e-5)
    assert c.embed(crops).shape[1] == len(c.labels) + 5
    assert c.crop.size == spec.size and "labels" not in c.params()


def test_hsemotion_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DEIDBENCH_WEIGHTS", str(tmp_path / "w"))
    c = classifiers.create("hsemotion:enet_b2_8")
    assert "enet_b2_8.onnx" in c.missing() and "emotiefflib" in c.missing()
    with pytest.raises(MissingError, match=r"enet_b2_8\.onnx"):
        c.load()
    (tmp_path / ".emotiefflib").mkdir()
    write(tmp_path / ".emotiefflib" / "enet_b2_8.onnx", 8, size=260)
    assert c.missing() == ""
    c.load()
    with pytest.raises(InputError, match="did you mean enet_b2_8"):
        classifiers.create("hsemotion:enet_b2_88")


# -- deepface ----------------------------------------------------------------------------------------------------------
_DEEPFACE = """
    import socket, sys
    def no_network(*args, **kwargs):
        raise AssertionError("went to the network")
    socket.create_connection = socket.socket.connect = socket.getaddrinfo = no_network
    import cv2, numpy as np, torch
    from deidbench.errors import InputError
    from deidbench.kinds import classifiers
    from deidbench.metrics.models.deepface_models import deepface_weights_folder
    folder = deepface_weights_folder()
    folder.mkdir(parents=True)
    from deepface.models.demography.pytorch.Emotion import EmotionModel
    torch.manual_seed(0)
    net = EmotionModel().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    crops = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    crops = np.stack([cv2.resize(c, (224, 224)) for c in crops])
    grey = [cv2.resize(cv2.cvtColor(c[..., ::-1].astype(np.float32) / 255, cv2.COLOR_BGR2GRAY), (48, 48)) for c in crops]
    x = torch.from_numpy(np.stack(grey)[:, None])
    with torch.no_grad():
        want = net(x).numpy()
    assert want.std(0).max() > 1e-3, want.std(0)
    where = {"pytorch": folder / "facial_expression_model_weights.pth", "onnx": folder / "facial_expression_model_weights.onnx"}
    backend = sys.argv[1]
    if backend == "pytorch":
        torch.save(net.state_dict(), where[backend])
    else:
        class Last(torch.nn.Module):  # released graphs take channels last
            def __init__(self):
                super().__init__()
                self.net = net.requires_grad_(False)
            def forward(self, x):
                return self.net(x.permute(0, 3, 1, 2))
        torch.onnx.export(Last().eval(), (x.permute(0, 2, 3, 1),), str(where[backend]), input_names=["input"], dynamo=False,
                          dynamic_axes={"input": {0: "n"}})
    c = classifiers.create("deepface-emotion")
    assert c.missing() == "", c.missing()
    assert c.runtime().endswith(backend)
    assert c.labels == ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    got = c.embed(crops)
    assert got.shape == (40, 7 + (1024 if backend == "pytorch" else 0)) and got.dtype == np.float32
    assert np.abs(got[:, :7] - want).max() < 1e-5, np.abs(got[:, :7] - want).max()
    alone = np.concatenate([c.embed(k[None]) for k in crops[:3]])
    assert np.abs(alone - got[:3]).max() < 1e-5
    assert c.embed(crops[:0]).shape == (0, got.shape[1])
    if backend == "pytorch":
        with torch.no_grad():
            read = torch.softmax(net.fc_3(torch.from_numpy(got[:, 7:])), 1).numpy()
        assert np.abs(read - want).max() < 1e-5
        torch.save({"conv": torch.ones(1)}, where[backend])
    else:
        where[backend].write_bytes(b"junk" * 30)
    try:
        classifiers.create("deepface-emotion").load()
    except InputError as error:
        assert "facial_expression_model_weights" in str(error), error
    else:
        raise AssertionError("a wrong file was taken")
    assert "tensorflow" not in sys.modules
    print("done")
"""


@pytest.mark.parametrize("backend", ["pytorch", "onnx"])
def test_deepface_emotion_with_random_weights_and_no_network(tmp_path: Path, backend: str) -> None:
    if importlib.util.find_spec("deepface") is None:
        pytest.skip("deepface is not installed")
    env = {k: v for k, v in os.environ.items() if not k.startswith("DEEPFACE")} | {
        "DEEPFACE_HOME": str(tmp_path),
        "DEEPFACE_BACKEND_ENGINE": backend,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_DEEPFACE), backend],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == "done"


def test_deepface_emotion_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("deepface") is None:
        pytest.skip("deepface is not installed")
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    c = classifiers.create("deepface-emotion", backend="pytorch")
    assert "facial_expression_model_weights.pth" in c.missing()
    with pytest.raises(MissingError, match=r"facial_expression_model_weights\.pth"):
        c.load()
    assert c.params() == {"backend": "pytorch"} and c.crop.size == 224
    with pytest.raises(InputError, match="backend"):
        classifiers.create("deepface-emotion", backend="jax")


def test_deepface_words_are_those_of_the_installed_deepface() -> None:
    """Read, not run."""
    root = importlib.util.find_spec("deepface")
    if root is None or not root.submodule_search_locations:
        pytest.skip("deepface is not installed")
    from deidbench.metrics.models.deepface_emotion import WORDS

    text = (Path(next(iter(root.submodule_search_locations))) / "models/demography/DemographyUtils.py").read_text()
    assert f"EMOTION_LABELS: List[str] = {list(WORDS)!r}".replace("'", '"') in text


# -- all ---------------------------------------------------------------------------------------------------------------
def test_they_are_listed_without_heavy_imports() -> None:
    names = ("onnx-classifier", "timm-classifier", "hsemotion", "deepface-emotion", "inception")
    rows = {r["name"]: r for r in listing("classifiers")}
    for name in names:
        assert rows[name]["what"] and not rows[name]["what"].startswith("cannot be used"), rows[name]
    code = (
        "import sys; from deidbench.kinds import classifiers; [classifiers.get(n) for n in classifiers.names()]; "
        "print({'torch', 'cv2', 'onnx', 'onnxruntime', 'timm', 'deepface', 'torch_fidelity'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
