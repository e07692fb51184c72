"""`prumux-bench --text`: time `predict`, from text to label, the tokenizer and the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prumux.export.runtime.grouping import DirectRunner
from prumux.export.runtime.predictor import Predictor, leaves_cores
from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.certificate.kept_answers import FILE, read_answers
from prumux.optimizer.data.encodings import Side, encodings
from prumux.optimizer.data.layouts import flattened, windowed
from prumux.optimizer.data.predict import workload
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import Encoded, batches, encode, row_limit
from prumux.optimizer.timing.interleave import interleave, speedup

from .engines import OpenedModel
from .run import Inputs

LEAST_TEXTS = 2048
"""Smallest number of texts to time. Fewer texts are repeated."""
PREDICT_BATCH = 32
"""Default batch size, the same as in `Predictor.predict`."""
PARTS = (
    "tokenizer alone: one call of its library for all texts; engine alone: on padded batches "
    "of like length; whole: Predictor.predict"
)


@dataclass(frozen=True)
class TextTiming:
    """Rates of one model from text to label. Each rate is a median over rounds."""

    name: str
    graph: str
    texts: int
    batch: int
    overlap: bool
    """True if texts are tokenised while the engine runs."""
    tokenizer_rows_per_second: float
    engine_rows_per_second: float
    rows_per_second: float
    """Rate from text to label."""
    share: float
    """`rows_per_second`, divided by the rate of running the tokenizer and then the engine: the
    median over rounds."""
    share_low: float
    share_high: float
    throughput_ratio: float
    """`rows_per_second` divided by that of the first model: the median over rounds."""
    throughput_ratio_low: float
    throughput_ratio_high: float


def texts_of(models: Sequence[str], read: Callable[[], Rows] | None) -> Rows:
    """The texts to answer: the texts of `--data`, or the certified texts of a result.

    Args:
        models: names that the user gave. The first result with certified answers is read.
        read: reads the rows of `--data`; None = the user gave no `--data`.

    Raises:
        UsageError: there are no texts.
        ModelError: the certified answers are damaged.
    """
    if read is not None:
        rows = read()
    else:
        kept = (Path(x) for x in models if (Path(x) / FILE).exists())
        folder = next(kept, None)
        if folder is None:
            raise UsageError(
                f"--text needs texts, and none of the models holds a {FILE}\n"
                "name a file or folder of texts: --data DIR"
            )
        rows = read_answers(folder).rows
    if not len(rows):
        raise UsageError("--text found no row with text\nname another file: --data DIR")
    return repeated(rows, LEAST_TEXTS)


def repeated(rows: Rows, least: int) -> Rows:
    """Repeat the rows, without labels, until there are at least `least`."""
    times = -(-least // len(rows))
    return Rows(
        rows.text_a * times,
        None if rows.text_b is None else rows.text_b * times,
        None if rows.words is None else rows.words * times,
    )


def check_texts(opened: Sequence[OpenedModel]) -> None:
    """Check that every model has a tokenizer.

    Raises:
        UsageError: a model has no tokenizer.
    """
    for x in opened:
        if x.tokenizer is None or x.encoder is None or x.task is None:
            raise UsageError(
                f"--text needs a tokenizer, and '{x.name}' has none\n"
                "name its folder, or leave --text out"
            )


def batches_of(rows: Rows, opened: OpenedModel, batch: int) -> list[Inputs]:
    """All rows as padded batches of similar length."""
    return [x.inputs() for x in batches(_coded(rows, opened), batch)]


def some_batches_of(rows: Rows, opened: OpenedModel, batch: int) -> list[Inputs]:
    """A few batches that represent all rows, for choosing the fastest graph."""
    return [x.inputs() for x in workload(_coded(rows, opened), batch, None)]


def _coded(rows: Rows, opened: OpenedModel) -> Encoded:
    """Tokenise the rows. Contexts of questions are cut into windows."""
    assert opened.encoder is not None
    assert opened.tokenizer is not None
    assert opened.task is not None
    given = replace(rows, stride=opened.task.shared_tokens)
    return encode(given, opened.tokenizer, opened.encoder).texts()


def time_texts(
    opened: Sequence[OpenedModel],
    rows: Rows,
    batch: int,
    rounds: int,
    *,
    threads: int,
    cores: CoreMonitor,
) -> list[TextTiming]:
    """Time the tokenizer, the engine and both together, for each model, all in turn.

    Args:
        opened: models with tokenizers, each in one graph.
        rows: texts, pairs or words.
        batch: rows in one run of an engine.
        rounds: timed rounds.
        threads: CPU threads of the engines.
        cores: waits until threads run on cores near each other, before each run.
    """
    works = list[Callable[[], object]]()
    predictors = [_predictor(x, threads) for x in opened]
    if rows.text_b is not None and any(x.task and x.task.scores_pairs for x in opened):
        rows = flattened(rows)  # a vector for each text of a pair
    for x, predictor in zip(opened, predictors, strict=True):
        works += _parts(x, predictor, rows, batch)
    timings = interleave(works, rounds, warmup=1, repeat=True, cores=cores)
    found = []
    for i, (x, predictor) in enumerate(zip(opened, predictors, strict=True)):
        tokens, engine, whole = (timing.rounds_ms for timing in timings[3 * i : 3 * i + 3])
        shares = [(a + b) / c for a, b, c in zip(tokens, engine, whole, strict=True)]
        gain = speedup(timings[2], timings[3 * i + 2])
        rates = [1000 * len(rows) / float(np.median(ms)) for ms in (tokens, engine, whole)]
        found.append(
            TextTiming(
                x.name,
                x.graph,
                len(rows),
                batch,
                predictor.overlap,
                rates[0],
                rates[1],
                rates[2],
                float(np.median(shares)),
                min(shares),
                max(shares),
                gain.median,
                gain.low,
                gain.high,
            )
        )
    return found


def _predictor(opened: OpenedModel, threads: int) -> Predictor:
    """A predictor on this engine, like those that `prumux.load` returns."""
    encoder, task, tokenizer = opened.encoder, opened.task, opened.tokenizer
    assert encoder is not None
    assert task is not None
    assert tokenizer is not None
    overlap = leaves_cores(opened.engine, threads)
    runner = DirectRunner(opened.engine, encoder.slots)
    return Predictor(encoder, task, tokenizer, runner, overlap=overlap)


def _parts(
    opened: OpenedModel, predictor: Predictor, rows: Rows, batch: int
) -> list[Callable[[], object]]:
    """Functions that run the tokenizer alone, the engine alone, and text to label."""
    tokenizer, encoder = predictor.tokenizer, predictor.encoder
    inputs = batches_of(rows, opened, batch)
    side: Side = "left" if tokenizer.truncation_side == "left" else "right"
    pair = rows.text_b is not None
    length = row_limit(tokenizer, encoder, None, pair)
    texts: Any = rows.words if rows.words is not None else rows.text_a
    if rows.text_b is not None:
        texts = list(zip(rows.text_a, rows.text_b, strict=True))
    stride = predictor.task.shared_tokens
    windows = replace(rows, stride=stride)

    answer: Callable[..., Any] = (
        predictor.encode if predictor.task.scores_pairs else predictor.predict
    )

    def tokens() -> list[list[Any]]:
        if stride is None:
            return [*encodings(rows, tokenizer, length, side)]
        return [*windowed(windows, tokenizer, length, side, [])]

    return [
        tokens,
        lambda: [opened.engine.run(x) for x in inputs],
        lambda: answer(texts, batch_size=batch),
    ]


def text_lines(timings: Sequence[TextTiming]) -> list[str]:
    """Format the lines to print."""
    width = max(len(_label(x)) for x in timings)
    heads = ("tokenizer", "engine", "whole", "of one after the other", "against the first")
    lines = [f"{'rows/s':<{width}}  {heads[0]:>9}  {heads[1]:>9}  {heads[2]:>9}  "
             f"{heads[3]:>24}  {heads[4]:>24}"]  # fmt: skip
    for x in timings:
        share = f"{x.share:.2f} [{x.share_low:.2f}, {x.share_high:.2f}]"
        low, high = x.throughput_ratio_low, x.throughput_ratio_high
        ratio = f"{x.throughput_ratio:.2f}x [{low:.2f}, {high:.2f}]"
        lines.append(
            f"{_label(x):<{width}}  {x.tokenizer_rows_per_second:>9.0f}  "
            f"{x.engine_rows_per_second:>9.0f}  {x.rows_per_second:>9.0f}  "
            f"{share:>24}  {ratio:>24}"
        )
    first = timings[0]
    return [*lines, f"{first.texts} texts, batch {first.batch}; {PARTS}"]


def _label(x: TextTiming) -> str:
    return f"{x.name}, {x.graph}" if x.graph else x.name
