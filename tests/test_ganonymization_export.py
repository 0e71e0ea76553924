"""ONNX: the exported generator gives the same faces, through the same method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from deidbench.anonymizers.ganonymization import Ganonymization
from deidbench.anonymizers.ganonymization.checkpoint import SHIPPED, load_generator
from deidbench.anonymizers.ganonymization.export import INPUT, description_of, export_onnx
from deidbench.cli import cli
from deidbench.errors import InputError
from deidbench.faces import FaceFinder
from deidbench.images import read_image
from deidbench.types import Item
from deidbench.weights import sha256_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "generator.onnx"
    done = CliRunner().invoke(cli, ["export", "shipped", str(path)])
    assert done.exit_code == 0, done.output
    return path


@pytest.mark.parametrize("n", [1, 3])
def test_the_graph_computes_what_the_network_computes(exported: Path, n: int) -> None:
    import onnxruntime
    import torch

    x = np.random.default_rng(n).uniform(-1, 1, (n, 3, 128, 128)).astype(np.float32)
    [out] = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"]).run(None, {INPUT: x})
    with torch.inference_mode():
        expected = load_generator(SHIPPED).generator(torch.from_numpy(x)).numpy()
    assert out.shape == expected.shape == (n, 3, 128, 128)
    assert np.abs(out - expected).max() < 1e-4
    assert np.ptp(expected) > 0.5


def test_the_method_gives_the_same_pictures(exported: Path, orl_folder: Path, finder: FaceFinder) -> None:
    items = []
    for person in (1, 8, 22, 35):
        image = read_image(orl_folder / f"s{person}" / "1.pgm")
        items.append(Item(f"s{person}", image, tuple(finder.find(image))))
    a, b = Ganonymization().anonymize(items), Ganonymization(checkpoint=str(exported)).anonymize(items)
    for x, y in zip(a, b, strict=True):
        assert x.image is not None
        assert y.image is not None
        difference = np.abs(x.image.astype(int) - y.image)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.001


def test_the_file_says_what_it_is(exported: Path) -> None:
    assert description_of(exported) == load_generator(SHIPPED).description
    assert Ganonymization(checkpoint=str(exported)).trained_on == ("CelebA-HQ:train_generator",)
    import onnx

    props = {p.key: p.value for p in onnx.load(str(exported)).metadata_props}
    assert props["checkpoint_sha256"] == sha256_of(SHIPPED)


def test_other_files_are_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(exported.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"broken\.onnx"):
        Ganonymization(checkpoint=str(tmp_path / "broken.onnx")).load()
    with pytest.raises(InputError, match="fp32"):
        Ganonymization(checkpoint=str(exported), precision="bf16").load()
    with pytest.raises(InputError):
        export_onnx(exported, tmp_path / "again.onnx")
    done = CliRunner().invoke(cli, ["export", "shipped", str(tmp_path / "x.bin")])
    assert isinstance(done.exception, InputError)
    assert "x.onnx" in str(done.exception)
