"""Networks out of ONNX and TorchScript files: the face goes through and comes back into its place."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deidbench import kinds
from deidbench.errors import InputError, MissingError
from deidbench.faces import FaceFinder
from deidbench.types import Box, Face, Item, Status


class Negative(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 - x


class Same(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


def onnx_file(path: Path, *, shape: tuple[Any, ...] = (1, 3, "h", "w"), what: str = "negative", **more: Any) -> Path:
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = {
        "negative": [helper.make_node("Sub", ["one", "x"], ["y"])],
        "same": [helper.make_node("Mul", ["one", "x"], ["y"])],
        "nan": [helper.make_node("Log", ["x"], ["z"]), helper.make_node("Sub", ["z", "z"], ["y"])],
        "flat": [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=1)],
    }[what]
    info = [helper.make_tensor_value_info("x", more.get("dtype", TensorProto.FLOAT), list(shape))]
    if more.get("second"):
        info.append(helper.make_tensor_value_info("z2", TensorProto.FLOAT, [1]))
    graph = helper.make_graph(nodes, "g", info, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture(params=["onnx", "torchscript"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    def made(what: str = "negative", **params: Any) -> Any:
        if request.param == "onnx":
            return kinds.anonymizers.create("onnx", path=str(onnx_file(tmp_path / f"{what}.onnx", what=what)), **params)
        path = tmp_path / f"{what}.pt"
        torch.jit.script({"negative": Negative(), "same": Same()}[what]).save(str(path))
        return kinds.anonymizers.create("torchscript", path=str(path), trust=True, **params)

    return made


@pytest.fixture(scope="module")
def item(orl_folder: Path, finder: FaceFinder) -> Item:
    image = np.ascontiguousarray(cv2.imread(str(orl_folder / "s1" / "1.pgm"))[..., ::-1])
    image = cv2.copyMakeBorder(image, 30, 30, 40, 40, cv2.BORDER_REPLICATE)
    return Item("s1/1", image, tuple(finder.find(image)))


def test_in_the_face_and_nowhere_else(make: Callable[..., Any], item: Item) -> None:
    """A network that inverts: by hand the same is 255 - pixel in the region, and nothing outside."""
    image = item.image.copy()
    face = Face(Box(40, 30, 100, 90))
    anonymizer = make(margin=1.0, region="box")
    anonymizer.load()
    [result] = anonymizer.anonymize([Item("x", image, (face,))])
    assert result.status is Status.OK
    inside = np.zeros(image.shape[:2], bool)
    inside[30:90, 40:100] = True
    assert (result.image[inside] == 255 - image[inside]).all()
    assert (result.image[~inside] == image[~inside]).all()
    assert result.faces[0].box == Box(40, 30, 100, 90)


@pytest.mark.parametrize("region", ["box", "ellipse", "oval", "frame"])
@pytest.mark.parametrize("size", [0, 64, 200])
def test_comes_back_into_its_place(make: Callable[..., Any], item: Item, region: str, size: int) -> None:
    """A network that changes nothing gives the picture back, at any working size up to the blur of resizing."""
    [result] = make("same", region=region, size=size, margin=1.2).anonymize([item])
    assert result.status is Status.OK, result.reason
    difference = np.abs(result.image.astype(int) - item.image)
    limit = {0: 0.6, 64: 9, 200: 2.5}[size]
    changed = difference.max(axis=2) > 0
    assert difference.mean() < limit
    if size:  # not shifted: the best fit among shifts is none
        big = item.image.astype(float)[10:-10, 10:-10]
        shifts = {
            (dy, dx): np.abs(result.image.astype(float)[10 + dy : dy - 10 or None, 10 + dx : dx - 10 or None][: big.shape[0], : big.shape[1]] - big).mean()
            for dy in (-1, 0, 1) for dx in (-1, 0, 1)
        }  # fmt: skip
        assert min(shifts, key=lambda k: shifts[k]) == (0, 0)
    if region != "frame":
        assert not changed[:, :5].any()


@pytest.mark.parametrize("range", ["0..1", "-1..1", "0..255"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_ranges_and_channels(make: Callable[..., Any], range: str, channels: str) -> None:
    image = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    [result] = make("same", range=range, channels=channels, region="frame").anonymize(
        [Item("x", image, (Face(Box(0, 0, 9, 9)),))]
    )
    assert (result.image == image).all()
    [result] = make(range="0..1", output_range="0..1", channels=channels, region="frame").anonymize(
        [Item("x", image, (Face(Box(0, 0, 9, 9)),))]
    )
    assert (result.image == 255 - image).all()


def test_contract(make: Callable[..., Any], item: Item) -> None:
    anonymizer = make()
    anonymizer.load()
    other = pickle.loads(pickle.dumps(anonymizer))
    assert other.fingerprint == anonymizer.fingerprint
    a, b = anonymizer.anonymize([item, item]), other.anonymize([item])
    assert (a[0].image == b[0].image).all() and (a[1].image == b[0].image).all()
    assert anonymizer.anonymize([Item("x", item.image, ())])[0].status is Status.NO_FACE
    assert anonymizer.anonymize([Item("x", item.image, None)])[0].status is Status.FAILED
    assert make("same").fingerprint != anonymizer.fingerprint
    assert make(margin=1.4).fingerprint != anonymizer.fingerprint


def test_fingerprint_is_the_contents(tmp_path: Path) -> None:
    first = kinds.anonymizers.create("onnx", path=str(onnx_file(tmp_path / "a.onnx")))
    second = kinds.anonymizers.create("onnx", path=str(onnx_file(tmp_path / "b.onnx")))
    assert first.fingerprint == second.fingerprint


def test_channels_last_and_fixed_size(tmp_path: Path, item: Item) -> None:
    last = kinds.anonymizers.create("onnx", path=str(onnx_file(tmp_path / "l.onnx", shape=(1, 48, 48, 3))), region="frame")
    last.load()
    [result] = last.anonymize([item])
    assert result.image is not None
    assert np.abs(result.image.astype(int) - (255 - item.image)).mean() < 12
    with pytest.raises(InputError, match="takes 48 alone"):
        kinds.anonymizers.create("onnx", path=str(tmp_path / "l.onnx"), size=64).load()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"shape": (1, 1, "h", "w")}, "not float"),
        ({"shape": (3, "h", "w")}, "not float"),
        ({"shape": (1, 3, 32, 64)}, "not square"),
        ({"second": True}, "has 2 inputs"),
        ({"what": "flat"}, "its output is"),
        ({"what": "nan"}, "not finite"),
    ],
)
def test_models_that_do_not_fit(tmp_path: Path, made: dict[str, Any], words: str) -> None:
    path = onnx_file(tmp_path / "m.onnx", **made)
    params = {"range": "-1..1"} if made.get("what") == "nan" else {}
    with pytest.raises(InputError) as caught:
        kinds.anonymizers.create("onnx", path=str(path), **params).load()
    assert words in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize("data", [b"", b"not a model", bytes(range(256)) * 10])
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_files_that_are_none(tmp_path: Path, kind: str, data: bytes) -> None:
    path = tmp_path / "bad"
    path.write_bytes(data)
    params = {"trust": True} if kind == "torchscript" else {}
    with pytest.raises(InputError, match="bad"):
        kinds.anonymizers.create(kind, path=str(path), **params).load()
    with pytest.raises(MissingError, match="no file"):
        kinds.anonymizers.create(kind, path=str(tmp_path / "gone"), **params).load()


def test_weights_from_elsewhere_are_refused(tmp_path: Path) -> None:
    """ONNX may keep weights in files of their own: a hostile one names somebody else's."""
    path = onnx_file(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="would read its weights from"):
        kinds.anonymizers.create("onnx", path=str(path)).load()


def test_texts_that_are_no_utf8(tmp_path: Path) -> None:
    """Found by fuzzing: protobuf and ONNX Runtime let them pass, and they came to light where they were used."""
    from deidbench.metrics.models.onnx_file import OnnxFile

    path = onnx_file(tmp_path / "m.onnx", shape=(1, 3, "height", "w"))
    good = path.read_bytes()
    path.write_bytes(good.replace(b"height", b"\xf7eight"))
    with pytest.raises(InputError, match=r"m\.onnx is no ONNX model that runs here"):
        kinds.anonymizers.create("onnx", path=str(path)).load()
    with pytest.raises(InputError, match=r"m\.onnx is no ONNX model that can be run"):
        OnnxFile(str(path), size=8).embed(np.zeros((1, 8, 8, 3), np.uint8))
    model = onnx.load_from_string(good)
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    path.write_bytes(model.SerializeToString().replace(b"weights.bin", b"weights.\x80in"))
    with pytest.raises(InputError, match=r"m\.onnx"):
        kinds.anonymizers.create("onnx", path=str(path)).load()


def test_a_program_is_run_only_when_trusted(tmp_path: Path) -> None:
    torch.jit.script(Negative()).save(str(tmp_path / "m.pt"))
    with pytest.raises(InputError, match="is a program") as caught:
        kinds.anonymizers.create("torchscript", path=str(tmp_path / "m.pt")).validate()
    assert "trust = true" in caught.value.remedy


def test_bad_parameters() -> None:
    for params, words in (
        ({}, "names no file"), ({"path": "x", "range": "0-1"}, "range"), ({"path": "x", "size": -1}, "size"),
        ({"path": "x", "channels": "gbr"}, "channels"), ({"path": "x", "margin": 0}, "margin"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            kinds.anonymizers.create("onnx", **params).validate()
