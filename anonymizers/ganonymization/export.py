"""ONNX export of a generator, with its description inside the file."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from deidbench.anonymizers.ganonymization.checkpoint import Description, load_generator, unpack_description
from deidbench.errors import InputError

#: Input and output of the graph: float32 (n, 3, s, s) in [-1, 1], n open.
INPUT, OUTPUT = "landmarks", "face"
OPSET = 17


def export_onnx(checkpoint: str | Path, path: str | Path, size: int | None = None) -> Path:
    """Writes the generator of ``checkpoint`` as ONNX and returns the path; the graph is checked before it is written.

    The batch is open, the side fixed.  Raises InputError, MissingError as :func:`load_generator` does.
    """
    import onnx
    import torch

    from deidbench.images import atomic_write

    loaded = load_generator(checkpoint, size)
    side = loaded.description.side
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own future, nothing that a user could act on
        traced = Path(folder) / "generator.onnx"
        # the exporter by tracing: it writes a plain graph with an open batch and needs no further package
        torch.onnx.export(
            loaded.generator, (torch.zeros(2, 3, side, side),), traced, dynamo=False, opset_version=OPSET,
            input_names=[INPUT], output_names=[OUTPUT], dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
        )  # fmt: skip
        model = onnx.load(str(traced))
    for key, value in {**loaded.description.pack(), "checkpoint_sha256": loaded.sha256}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    target = Path(path)
    atomic_write(target, model.SerializeToString())
    return target


def description_of(path: Path) -> Description:
    """What an exported file says of itself.  Raises InputError where it is no export of ours."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's own errors share no base
        raise InputError(
            f"{path} is no readable ONNX file: {type(error).__name__}", "export it again: deidbench export CHECKPOINT OUT.onnx"
        ) from error
    found = {p.key: p.value for p in model.metadata_props}
    if "description" not in found:
        raise InputError(f"{path} is no generator that deidbench exported", "deidbench export CHECKPOINT OUT.onnx")
    return unpack_description(found, path)
