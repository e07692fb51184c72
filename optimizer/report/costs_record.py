"""The field `costs` of report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from .units import Fraction, Milliseconds, Positive, Times


@dataclass(frozen=True)
class CostsRecord:
    """Times of another machine that candidates were chosen by: `--costs`."""

    file: Annotated[str, "Name of the file."]
    digest: Annotated[str, "SHA-256 of the file, in hex."]
    date: Annotated[str, "When it was measured."]
    measured_on: Annotated[
        Mapping[str, str],
        "The machine that the times are of. The one that searched: `device`.",
    ]
    target: Annotated[str, "The measured target that stands for the chosen engine's."]
    engine: Annotated[Mapping[str, str], "Facts of the engine that was measured."]
    batch: Annotated[Positive, "Rows in a batch."]
    length: Annotated[Positive, "Tokens in a row."]
    error: Annotated[
        Fraction, "Largest relative error of the times on models that were not in their fit."
    ]
    dense_ms: Annotated[Milliseconds | None, "Time of a batch, given model, milliseconds."]
    chosen_ms: Annotated[
        Milliseconds | None, "Estimated time of a batch, chosen model, milliseconds."
    ]
    throughput_ratio: Annotated[
        Times | None,
        "Estimated throughput of the chosen model on that machine divided by the given "
        "model's. Null if rows are mixed in a way that was not measured.",
    ]
