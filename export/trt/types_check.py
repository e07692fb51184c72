"""Check that a network and its built engine have the requested types.

A build can fall back to float32 without an error, so the types are checked twice. The first
check reads the parsed network; a strongly typed build must keep its types. The second check
reads the built engine with TensorRT's inspector.

Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prumux.export.graph.builder import Precision
from prumux.optimizer.base.errors import GateError

from .library import Flavor

if TYPE_CHECKING:
    import tensorrt as trt

WORDS: tuple[tuple[str, str], ...] = (
    ("BFLOAT16", "bf16"),
    ("BF16", "bf16"),
    ("HALF", "fp16"),
    ("FP16", "fp16"),
    ("INT8", "int8"),
    ("INT32", "int32"),
    ("INT64", "int64"),
    ("BOOL", "bool"),
    ("FP32", "fp32"),
    ("FLOAT", "fp32"),
)
"""Words of the inspector (`Half`, `Row major linear FP16`) and our types. Long words first."""
LOW_SHARE = 0.25
"""Smallest share of the floats between kernels that must have the requested low type.
LayerNorm and the logits stay float32. The share is 0 if an engine fell back to float32."""
FUSED = ("FOREIGNNODE", "MYELIN")
"""Words in the name or kind of fused layers. The inspector hides the values inside them."""
FIX = "this is a fault of prumux or of TensorRT; please report it"


@dataclass(frozen=True)
class TypeReport:
    """Types of the values in an engine, as its inspector reports them."""

    types: dict[str, int]
    """Number of inputs and outputs of layers, by type."""
    closed: int = 0
    """Number of layers without types: fused layers, and layers with a name only."""
    unseen: str = ""
    """A note if the requested types can be neither confirmed nor ruled out."""

    def notes(self) -> dict[str, Any]:
        """Entries for the notes of an export."""
        note = {"types_unseen": self.unseen} if self.unseen else {}
        return {"types": self.types, **note}


def check_network(
    network: trt.INetworkDefinition, precision: Precision, quantised: bool, flavor: Flavor
) -> None:
    """Check that matrix products have the requested type, and only int8 has Q/DQ pairs.

    Raises:
        GateError: a type differs, or Q/DQ pairs are missing or not expected. The message names
            the first layer with another type.
    """
    trt = flavor.library()
    asked = _asked(trt, precision)
    products, pairs = 0, 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        pairs += layer.type == trt.LayerType.QUANTIZE
        if layer.type != trt.LayerType.MATRIX_MULTIPLY:
            continue
        products += 1
        found = layer.get_output(0).dtype
        if found != asked:
            raise GateError(
                f"{precision} was asked for, and '{layer.name}' of the parsed network gives "
                f"{found}\n{FIX}"
            )
    if not products or (pairs > 0) != quantised:
        raise GateError(
            f"the parsed network has {products} matrix products and {pairs} quantised values, "
            f"{'some' if quantised else 'no'} quantised ones were asked for\n{FIX}"
        )


def check_built(
    engine: trt.ICudaEngine,
    names: Sequence[str],
    precision: Precision,
    quantised: bool,
    flavor: Flavor,
) -> TypeReport:
    """Check that inputs are int64, logits float32, and inner values of the requested types.

    Raises:
        GateError: a type differs; the message has both types.
    """
    trt = flavor.library()
    every = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    wanted = {x: trt.DataType.INT64 if x in names else trt.DataType.FLOAT for x in every}
    for name, dtype in wanted.items():
        found = engine.get_tensor_dtype(name)
        if found != dtype:
            raise GateError(f"'{name}' of the engine is {found}, not {dtype}\n{FIX}")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    seen = seen_in(json.loads(text))
    if flavor.portable and not seen.types:  # kernels are chosen when they first run
        seen = replace(seen, closed=max(1, seen.closed))
    return check_types(seen, precision, quantised)


def seen_in(information: Mapping[str, Any]) -> TypeReport:
    """Count the inputs and outputs of an engine's layers by type.

    Scalars, such as the factors of a matrix product, are left out: they are float32 in every
    engine.

    Args:
        information: the inspector's JSON report of the engine.
    """
    layers = information.get("Layers", ())
    return TypeReport(dict(sorted(Counter(_types(layers)).items())), sum(map(_closed, layers)))


def check_types(seen: TypeReport, precision: Precision, quantised: bool) -> TypeReport:
    """Check the value types of an engine.

    Enough floats must have the requested type. The engine must have int8 values if and only if
    it is quantised.

    Returns:
        The report. It has a note if some layers hide their types, and no visible type is
        wrong.

    Raises:
        GateError: the types are wrong; the message has the types of the engine.
    """
    types = seen.types
    floats = {name: types.get(name, 0) for name in ("fp32", "fp16", "bf16")}
    share = floats[precision] / max(1, sum(floats.values()))
    least = 1.0 if precision == "fp32" else LOW_SHARE
    if share >= least and (types.get("int8", 0) > 0) == quantised:
        return seen
    asked = f"{'int8 with ' if quantised else ''}{precision}"
    counts = ", ".join(f"{count} {name}" for name, count in types.items()) or "none"
    found = f"{asked} was asked for; the engine's layers hold values of these types: {counts}"
    lower = precision == "fp32" and floats["fp16"] + floats["bf16"] > 0
    if seen.closed and not lower and not (types.get("int8") and not quantised):
        note = f"{seen.closed} layers do not tell what they hold; the parsed network was right"
        return replace(seen, unseen=f"{found}; {note}")
    raise GateError(f"{found}\n{FIX}")


def _closed(layer: Any) -> bool:
    if not isinstance(layer, Mapping):
        return True
    named = f"{layer.get('Name', '')} {layer.get('LayerType', '')}".upper()
    return any(word in named for word in FUSED)


def _types(layers: Sequence[Any]) -> Iterator[str]:
    for layer in layers:
        if not isinstance(layer, Mapping):  # only its name is given
            continue
        for value in [*layer.get("Inputs", ()), *layer.get("Outputs", ())]:
            if all(size == 1 for size in value.get("Dimensions", (0,))):
                continue
            text = str(value.get("Format/Datatype") or value.get("Datatype", "")).upper()
            found = next((name for word, name in WORDS if word in text), None)
            if found is not None:
                yield found


def _asked(trt: Any, precision: Precision) -> Any:
    return {
        "fp32": trt.DataType.FLOAT,
        "fp16": trt.DataType.HALF,
        "bf16": trt.DataType.BF16,
    }[precision]
