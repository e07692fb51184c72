"""What a model costs, counted. Measured costs are in `table.py`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from .ir import Encoder, expected_shapes


@dataclass(frozen=True)
class Cost:
    """Counts of one model; multiply-adds are for one row of `length` real tokens."""

    parameters: int
    encoder_parameters: int
    """Without embeddings and head: what `sparsity` counts."""
    macs: int
    size_bytes: int
    mux_parameters: int
    """Of mixing rows and of taking them apart; counted in `parameters` as well."""
    mux_macs: int
    """Likewise, counted in `macs` as well."""

    def to_json(self) -> dict[str, int]:
        """Field names and values."""
        return asdict(self)


def count(encoder: Encoder, length: int) -> Cost:
    """Count an encoder's parameters, bytes in float32, and multiply-adds at `length`."""
    sizes = {name: _product(shape) for name, shape in expected_shapes(encoder).items()}
    parameters = sum(sizes.values())
    head = sum(v for k, v in sizes.items() if k.startswith("head.") and k.endswith("weight"))
    macs = head * (1 if encoder.pooled else length)
    if encoder.projected:
        macs += encoder.embedding * encoder.hidden * length
    for i, layer in enumerate(encoder.layers):
        macs += layer.heads * head_macs(encoder, i, length)
        macs += layer.ffn * ffn_macs(encoder, i, length)
    mux = {k: v for k, v in sizes.items() if k.startswith(("mux.", "demux."))}
    mux_macs = _mux_macs(encoder, length)
    macs += mux_macs
    return Cost(
        parameters=parameters,
        encoder_parameters=sum(v for k, v in sizes.items() if k.startswith("layers.")),
        macs=macs,
        size_bytes=4 * parameters,
        mux_parameters=sum(mux.values()),
        mux_macs=mux_macs,
    )


def head_macs(encoder: Encoder, index: int, length: int) -> int:
    """Multiply-adds of one head of layer `index` per row: its maps, scores and context."""
    d, k = encoder.hidden, encoder.head_dim
    rows = _rows(encoder, index, length)
    macs = 2 * d * k * length + 2 * d * k * rows + 2 * rows * length * k
    return macs // sharing(encoder, index)


def ffn_macs(encoder: Encoder, index: int, length: int) -> int:
    """Multiply-adds of one FFN unit of layer `index`, per row."""
    macs = 2 * encoder.hidden * _rows(encoder, index, length)
    return macs // sharing(encoder, index)


def sharing(encoder: Encoder, index: int) -> int:
    """Rows that a layer runs on at once."""
    return encoder.slots if encoder.mux and index >= encoder.mux.at else 1


def _mux_macs(encoder: Encoder, length: int) -> int:
    """Mixing multiplies every state once; demultiplexing runs where the head reads."""
    if encoder.mux is None:
        return 0
    maps = 1 + 2 * encoder.mux.demux * encoder.hidden
    mixed = 1 if encoder.mux.at > encoder.narrow_from else length
    return encoder.hidden * (mixed + maps * (1 if encoder.pooled else length))


def _rows(encoder: Encoder, index: int, length: int) -> int:
    """Positions at which a layer runs; without any attention nothing is narrowed."""
    return 1 if index >= encoder.narrow_from else length


def branch_cost(encoder: Encoder, length: int, of: Literal["weights", "macs"]) -> int:
    """What all layers cost, in weights or in multiply-adds of a row: what sparsity counts."""
    if of == "weights":
        return count(encoder, length).encoder_parameters
    return sum(
        x.heads * head_macs(encoder, i, length) + x.ffn * ffn_macs(encoder, i, length)
        for i, x in enumerate(encoder.layers)
    )


def head_weights(encoder: Encoder) -> int:
    """Weights of one head: query, key, value, output, with the biases it owns."""
    return 4 * encoder.hidden * encoder.head_dim + 3 * encoder.head_dim


def block_weights(encoder: Encoder) -> int:
    """Weights of a branch that lives, whatever its width: output bias and LayerNorm."""
    return 3 * encoder.hidden


def ffn_weights(encoder: Encoder) -> int:
    """Weights of one FFN unit: its row up, its column down, its bias."""
    return 2 * encoder.hidden + 1


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
