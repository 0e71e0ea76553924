"""ONNX files made ready for ONNX Runtime: constants folded, batch left open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deidbench.errors import InputError, MissingError

#: Operators that only prepare weights in block-quantised files.
_WEIGHT_OPERATORS = ("DequantizeLinear", "Reshape", "Constant", "Cast", "Transpose")


def open_session(model: bytes | Path) -> Any:
    """An ONNX Runtime session on the CPU that keeps to ``$OMP_NUM_THREADS`` (unset: all cores).

    Raises MissingError without onnxruntime, and whatever it raises for a file that it cannot read.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError(f"onnxruntime cannot be imported: {error}", "pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def folded(path: Path, data_input: str) -> bytes:
    """The model of ``path`` with its weights computed once and the batch size of ``data_input`` left open.

    Block-quantised files compute float weights from integers in every call, and list them as inputs; older ones fix the
    batch at 1.  The numbers that come out are the same.  Raises InputError for a file that is no such model.
    """
    import numpy as np

    try:
        import onnx
    except ImportError as error:
        raise MissingError(f"onnx cannot be imported: {error}", "pip install onnx") from error
    from onnx import TensorProto, helper, numpy_helper

    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf has no error class of its own for a broken file
        raise InputError(f"{path} is not an ONNX model: {error}", "use the file that the weight record names") from error
    graph = model.graph
    inputs = [i for i in graph.input if i.name == data_input]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise InputError(f"{path} has no single input {data_input!r} and output", "use the file that the weight record names")
    stored = {i.name for i in graph.initializer}
    constant = set(stored)
    preparing = []
    for node in graph.node:
        if node.op_type in _WEIGHT_OPERATORS and all(not name or name in constant for name in node.input):
            constant.update(node.output)
            preparing.append(node)
    computing = [node for node in graph.node if node not in preparing]
    needed = {name for node in computing for name in node.input}
    weights = [i for i in graph.initializer if i.name in needed]
    wanted = sorted((needed & constant) - stored)
    versions = {"opset_imports": model.opset_import, "ir_version": model.ir_version}
    if wanted:
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted]
        prepared = helper.make_model(helper.make_graph(preparing, "weights", [], outputs, list(graph.initializer)), **versions)
        values = open_session(prepared.SerializeToString()).run(None, {})
        weights += [numpy_helper.from_array(np.asarray(v), name) for name, v in zip(wanted, values, strict=True)]
    for value in (*inputs, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    made = helper.make_graph(computing, graph.name or "model", inputs, list(graph.output), weights)
    return bytes(helper.make_model(made, **versions).SerializeToString())
