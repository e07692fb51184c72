"""Validate ONNX graphs and write them to disk atomically."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from prumux.optimizer.base.errors import VerifyError

FILE = "model.onnx"
DATA = "model.onnx_data"
INLINE_LIMIT_BYTES = 2_000_000_000
"""Weights of at least this size do not fit into one protobuf message. They are written to a
second file."""


def verify(proto: onnx.ModelProto) -> None:
    """Run the ONNX checker and strict shape inference.

    Raises:
        VerifyError: the graph is not valid ONNX.
    """
    try:
        if is_large(proto):
            with tempfile.TemporaryDirectory() as folder:
                save(proto, Path(folder))
                onnx.checker.check_model(Path(folder) / FILE, full_check=True)
            return
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().split("\n")[0][:200]
        raise VerifyError(f"the exported graph is not valid ONNX: {first}") from error


def save(proto: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    """Write `model.onnx`, and `model.onnx_data` if the weights exceed 2 GB.

    Returns:
        The names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    large = is_large(proto)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as staging:
        staged = Path(staging)
        if large:
            copy = onnx.ModelProto()
            copy.CopyFrom(proto)  # saving removes the data from the tensors
            onnx.save_model(copy, staged / FILE, save_as_external_data=True, location=DATA)
            (staged / DATA).replace(folder / DATA)
        else:
            (staged / FILE).write_bytes(proto.SerializeToString(deterministic=True))
        (staged / FILE).replace(folder / FILE)
    if large:
        return (FILE, DATA)
    (folder / DATA).unlink(missing_ok=True)
    return (FILE,)


def is_large(proto: onnx.ModelProto) -> bool:
    """True if the weights need a second file."""
    # Not `ByteSize()`: it fails for graphs over 2 GB.
    return sum(len(x.raw_data) for x in proto.graph.initializer) >= INLINE_LIMIT_BYTES
