"""The given model's logits for training rows, and for single pieces of its vocabulary.

Rows are drawn at random. Pieces are ordered by their frequency in the training rows, most
frequent first. `ROWS_MACS` and `PIECES_MACS` limit the given model's multiply-adds for rows
and for pieces. Rows and pieces together take about a minute of one core.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.data.predict import row_logits
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.cost import count
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.pipeline.context import Context

ROWS_MACS = PIECES_MACS = 10**12
LEAST_ROWS = 1024
"""The given model runs on at least this many rows, even if they exceed `ROWS_MACS`."""
BATCH = 64


@dataclass(frozen=True, eq=False)
class Taught:
    """The given model's logits for training rows and single pieces."""

    rows: Tensor
    """Numbers of the training rows, ascending, int64 [R]."""
    logits: Tensor
    """Logits of the training rows, [R, C]."""
    pieces: NDArray[np.int64]
    """Ids of the pieces, [P]. The given model read each piece as a text of its own."""
    piece_logits: Tensor
    """Logits of the pieces, [P, C]."""


def ask(rows: Encoded, most: int | None, ctx: Context) -> Taught:
    """Run the given model on training rows and single pieces. The results are cached.

    Args:
        rows: the training rows.
        most: number of rows to run; None = as many as `ROWS_MACS` allow.
        ctx: contains the given model.
    """
    most = most or max(LEAST_ROWS, _affordable(ctx, float(rows.lengths.mean()), ROWS_MACS))
    drawn = torch.randperm(len(rows), generator=ctx.generator("bag"))[:most].sort().values
    single = piece_rows(rows, ctx)
    pieces = single.ids.values.reshape(-1, 3)[:, 1].astype(np.int64)

    def make() -> dict[str, Tensor]:
        found = {"rows": dense_logits(rows.take(drawn.numpy()), ctx)}
        none = found["rows"][:0]
        return found | {"pieces": dense_logits(single, ctx) if len(single) else none}

    kept = ctx.cached("bag-teacher", (ctx.dense, rows, most), make)
    return Taught(drawn, kept["rows"], pieces, kept["pieces"])


def piece_rows(rows: Encoded, ctx: Context) -> Encoded:
    """Make rows of one piece, between the special tokens that begin and end all rows.

    The result has no rows if the given rows have no such tokens, or are pairs of texts.
    """
    none = rows.take([])
    lengths, ids = rows.ids.lengths, rows.ids.values
    paired = rows.types is not None and bool(rows.types.values.any())
    if paired or not len(rows) or lengths.min() < 2:
        return none
    first, last = ids[rows.ids.starts], ids[rows.ids.ends - 1]
    if (first != first[0]).any() or (last != last[0]).any():
        return none
    often = np.bincount(ids, minlength=ctx.dense.encoder.vocab)
    often[[first[0], last[0], rows.pad_id]] = -1
    order = np.argsort(-often, kind="stable")[: int((often >= 0).sum())]
    order = order[: _affordable(ctx, 3.0, PIECES_MACS)]
    made = Ragged.of((int(first[0]), int(x), int(last[0])) for x in order)
    types = None if rows.types is None else replace(made, values=np.zeros_like(made.values))
    return Encoded(made, types, None, rows.pad_id)


def dense_logits(rows: Encoded, ctx: Context) -> Tensor:
    """Compute the given model's logits for rows, [N, C]."""
    encoder = ctx.dense.encoder
    early = replace(encoder, pool_early=encoder.reads_first)
    module = EncoderModule(replace(ctx.dense, encoder=early)).to(ctx.device).eval()

    def run(inputs: Any) -> NDArray[Any]:
        with torch.inference_mode():
            given = {k: torch.as_tensor(v).to(ctx.device) for k, v in inputs.items()}
            found: NDArray[Any] = module(**given).float().cpu().numpy()
        return found

    with ctx.progress.task("asking the dense model", -(-len(rows) // BATCH)) as tick:
        return torch.from_numpy(np.stack(row_logits(run, rows, tick)))


def _affordable(ctx: Context, length: float, macs: int) -> int:
    """Number of rows of a length that cost the given model `macs` multiply-adds."""
    return int(macs / max(1, count(ctx.dense.encoder, max(1, round(length))).macs))
