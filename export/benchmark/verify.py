"""`prumux-bench --verify`: check that an engine gives the certified answers here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.export.graph.parity import TOLERANCES, Parity, compare
from prumux.export.runtime.artifact_engine import (
    artifact_path,
    open_artifact_engine,
    plans_of,
    read_config,
)
from prumux.export.runtime.cascade_engine import FileEngine, open_stages, stage_folders
from prumux.export.runtime.engine_match import check_belongs
from prumux.export.triton.client import TritonEngine
from prumux.export.trt.engine import open_plan
from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.errors import GateError, MissingError, ModelError, PrumuxError
from prumux.optimizer.certificate.kept_answers import KeptAnswers, digests, read_answers
from prumux.optimizer.data.predict import row_logits, scored_positions, workload
from prumux.optimizer.data.tokenize import Encoded, encode
from prumux.optimizer.model.artifact import from_config
from prumux.optimizer.model.checkpoint.tokenizer_files import read_tokenizer
from prumux.optimizer.model.folder import read_json
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.pipeline.target import Engine
from prumux.optimizer.tasks.registry import of_data
from prumux.optimizer.tasks.task import Task

from .engines import OpenedModel
from .run import Entry, measure

ROUNDED = 1e-9
"""Scores that differ by less than this count as equal."""


MOVED = 0.02
"""Largest share of a cascade's rows that may move to the other stage on another machine."""


@dataclass(frozen=True)
class Verification:
    """The findings of `--verify`."""

    rows: int
    other_files: tuple[str, ...]
    """Files that differ from the certified files."""
    parity: Parity
    limit: float
    """Largest allowed difference of a logit."""
    metric: str
    score: float
    """Score of the answers here, by the metric of the certificate."""
    score_certified: float
    """Score of the certified answers to the same rows."""
    loss_upper: float
    """The certified upper bound of the loss, plus the fall of the score here."""
    budget: float | None
    engine: Mapping[str, str]
    certified_engine: Mapping[str, str]
    moved: int = 0
    """Number of rows of a cascade that another stage answers here: their logits differ by more
    than the limit. `parity` leaves these rows out. The number is 0 if they are more than
    `MOVED` of all rows."""

    @property
    def faults(self) -> tuple[str, ...]:
        """Descriptions of the faults; empty = the engine keeps the certified promise."""
        found = []
        if self.other_files:
            found.append(f"not the certified files: {', '.join(self.other_files)}")
        if not self.parity.max_abs_diff <= self.limit:
            found.append(
                f"logits differ by up to {self.parity.max_abs_diff:.3g}, "
                f"the limit is {self.limit:.3g}"
            )
        if not self.holds:
            found.append(
                f"the loss is at most {100 * self.loss_upper:.2f} points here, the budget "
                f"allows {100 * (self.budget or 0):.2f}"
            )
        return tuple(found)

    @property
    def holds(self) -> bool:
        """True if the budget holds on these rows, or if there was no budget."""
        fell = self.score < self.score_certified - ROUNDED
        return self.budget is None or not fell or self.loss_upper <= self.budget


@dataclass(frozen=True, eq=False)
class OpenedArtifact:
    """An artifact folder, its open engine, and its stored answers."""

    path: Path
    kept: KeptAnswers
    encoder: Encoder
    task: Task
    tokenizer: Any
    engine: Engine
    other_files: tuple[str, ...]


def open_artifact(name: str, threads: int, device: str, url: str = "") -> OpenedArtifact:
    """Open the engine that `prumux.load` would run. If there is a plan, the plan must run.

    Args:
        name: the artifact folder.
        threads: CPU threads of the engine.
        device: the device, as for `prumux.load`.
        url: host and port of a Triton server. If given, the server's engine is checked
            instead.

    Raises:
        GateError: a file differs from the certified file, and cannot be read.
        MissingError: the library or the GPU of a plan is missing.
        ModelError: the folder is damaged, or contains no certified answers.
    """
    path = artifact_path(name)
    config = read_config(path)
    kept = read_answers(path)
    now = digests(path)
    files = kept.facts.files
    other = tuple(x for x in sorted(files) if files[x] != now.get(x))
    try:
        encoder, task = from_config(config, path / "config.json")
        grouped = () if kept.rows.groups is None else ("query_id",)
        task = of_data(task, lambda: grouped, kept.facts.metric)
        tokenizer = read_tokenizer(path)
        engine = _served(path, url, encoder) if url else _engine(path, threads, device)
        check_belongs(engine, encoder, config, path)
    except MissingError:
        raise
    except PrumuxError as error:
        if not other:
            raise
        raise GateError(f"not the certified files: {', '.join(other)}\n{error}") from error
    return OpenedArtifact(path, kept, encoder, task, tokenizer, engine, other)


def _served(path: Path, url: str, encoder: Encoder) -> Engine:
    """The engine of a Triton server; for a cascade of two engines both of them."""
    first = stage_folders(path)[0]

    def one(place: Path) -> FileEngine:
        if place == first:
            return TritonEngine(url, encoder.slots)
        return TritonEngine(url, part="second")

    return open_stages(path, one)


def _engine(path: Path, threads: int, device: str) -> Engine:
    found = [plans_of(x) for x in stage_folders(path)]
    if not any(found) or device == "cpu":
        return open_artifact_engine(path, threads, device)
    first = next(x[0] for x in found if x)
    try:
        return open_stages(path, _open_plan)
    except MissingError as error:
        raise MissingError(
            f"'{first}' cannot run here: {error}\n"
            "--device cpu verifies the typed graph that was certified in its place"
        ) from error


def _open_plan(place: Path) -> FileEngine:
    plans = plans_of(place)
    if not plans:
        raise ModelError(f"'{place}' holds no plan: build both engines again")
    return open_plan(plans[0])


def verify(opened: OpenedArtifact) -> Verification:
    """Tokenise the stored texts, run the engine, and compare its answers with the stored ones.

    Raises:
        GateError: the tokens or the shape of a logit array differ from the stored ones.
    """
    kept, task, facts = opened.kept, opened.task, opened.kept.facts
    rows, slots = encoded(opened), opened.encoder.slots
    found = row_logits(
        opened.engine.run,
        rows,
        None,
        slots=slots,
        seed=facts.seed if slots > 1 else None,
        by_length=facts.arrivals == "sorted",
    )
    certified, score = (_score(opened, rows, x) for x in (kept.logits, found))
    largest = max(float(np.abs(x).max(initial=0.0)) for x in kept.logits)
    share = TOLERANCES.get(facts.engine.get("precision", ""), TOLERANCES["fp32"])
    limit = share * max(1.0, largest)
    parity, moved = _parity(kept, found, task), 0
    if read_json(opened.path / "config.json").get("second") is not None:
        parity, moved = _of_one_stage(kept.logits, found, task, limit)
    return Verification(
        rows=len(rows),
        other_files=opened.other_files,
        parity=parity,
        moved=moved,
        limit=limit,
        metric=facts.metric,
        score=score,
        score_certified=certified,
        loss_upper=facts.loss_upper + certified - score,
        budget=facts.limit,
        engine=dict(opened.engine.describe()),
        certified_engine=dict(facts.engine),
    )


def encoded(opened: OpenedArtifact) -> Encoded:
    """Tokenise the stored texts.

    Raises:
        GateError: the tokens differ from the certified tokens.
    """
    kept = opened.kept
    files = f"\nnot the certified files: {', '.join(opened.other_files)}"
    files = files if opened.other_files else ""
    if opened.tokenizer is None:
        raise GateError(f"'{opened.path}' holds no tokenizer that can be read{files}")
    given = replace(kept.rows, stride=opened.task.shared_tokens)
    rows = encode(given, opened.tokenizer, opened.encoder)
    pairs = zip(rows.ids, kept.ids, strict=False)
    other = [i for i, (a, b) in enumerate(pairs) if not np.array_equal(a, b)]
    if len(rows) != len(kept.ids):
        raise GateError(
            f"the tokenizer of '{opened.path}' is not the certified one: it gives {len(rows)} "
            f"windows, not {len(kept.ids)}{files}\n"
            "copy the tokenizer again from where prumux-opt wrote it, and use its versions"
        )
    if other:
        raise GateError(
            f"the tokenizer of '{opened.path}' is not the certified one: it gives other "
            f"tokens for {len(other)} of {len(rows)} rows, {len(rows.ids[other[0]])} in place "
            f"of {len(kept.ids[other[0]])} for the first{files}\n"
            "copy the tokenizer again from where prumux-opt wrote it, and use its versions"
        )
    return rows


def speed(
    opened: OpenedArtifact, batches: Sequence[int], rounds: int, cores: CoreMonitor
) -> list[Entry]:
    """Time the engine on the stored rows."""
    rows, encoder = encoded(opened), opened.encoder
    one = OpenedModel(
        str(opened.path),
        opened.engine,
        encoder.vocab,
        encoder.token_types > 0,
        0,
        opened.tokenizer,
        encoder,
        opened.task,
    )
    found: list[Entry] = []
    for batch in batches:
        inputs = [x.inputs() for x in workload(rows, batch, None)]
        found += measure([one], [inputs], batch, rounds, cores=cores)
    return found


def _parity(kept: KeptAnswers, found: Sequence[NDArray[Any]], task: Task) -> Parity:
    if not task.ragged:
        return compare([np.stack(kept.logits)], [np.stack(found)], task)
    masks = kept.scored or [np.ones(len(x), dtype=np.bool_) for x in kept.ids]
    certified, here, real = ([x[None] for x in some] for some in (kept.logits, found, masks))
    return compare(certified, here, task, real)


def _of_one_stage(
    certified: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]], task: Task, limit: float
) -> tuple[Parity, int]:
    """Parity without rows that another stage answers here, and the number of these rows.

    Processors round differently, so rows near the threshold may move to another stage. If more
    than `MOVED` of the rows differ, rounding is not the reason: then all rows are compared.
    """
    kept, here = np.stack(certified), np.stack(found)
    near = np.abs(kept - here).max(-1) <= limit
    if (~near).mean() > MOVED:
        near[:] = True
    return compare([kept[near]], [here[near]], task), int((~near).sum())


def _score(opened: OpenedArtifact, rows: Encoded, logits: Sequence[NDArray[Any]]) -> float:
    kept, task = opened.kept, opened.task
    predictions = task.predictions(list(logits), kept.scored or scored_positions(rows))
    if rows.layout is not None:
        predictions = task.arranged(predictions, rows.layout)
    if kept.rows.groups is not None:
        predictions = task.with_groups(predictions, kept.rows.groups)
    if task.ragged:
        references: Any = tuple(np.asarray(x) for x in kept.references)
    else:
        references = np.asarray(kept.references)
    return task.score(kept.facts.metric, predictions, references)


def lines_of(found: Verification, entries: Sequence[Entry]) -> list[str]:
    """Format the lines to print."""
    same = round(found.parity.agreement * found.parity.rows)
    rows = [
        ("answered", f"by {_named(found.engine)}"),
        ("certified", f"by {_named(found.certified_engine)}"),
        ("files", "not all certified ones" if found.other_files else "the certified ones"),
        ("equal labels", f"{same} of {found.parity.rows}"),
        (
            "logits",
            f"differ by up to {found.parity.max_abs_diff:.3g}, limit {found.limit:.3g}",
        ),
        (
            found.metric,
            f"{100 * found.score:.2f} here, {100 * found.score_certified:.2f} certified, on "
            f"the same {found.rows} rows",
        ),
    ]
    if found.moved:
        rows.append(("other stage", f"{found.moved} rows at the threshold, not compared"))
    if found.budget is not None:
        rows.append(
            (
                "budget",
                f"{'holds' if found.holds else 'does not hold'}: loss at most "
                f"{100 * found.loss_upper:.2f} points, {100 * found.budget:.2f} allowed",
            )
        )
    for x in entries:
        rows.append(
            (
                f"batch {x.batch}",
                f"{x.rows_per_second:.0f} rows/s; p50 {x.batch_ms_p50:.2f} ms, "
                f"p99 {x.batch_ms_p99:.2f} ms",
            )
        )
    return [f"{name:<14}{text}" for name, text in rows]


def _named(engine: Mapping[str, str]) -> str:
    name = " ".join(engine.get(x, "") for x in ("engine", "version", "precision")).strip()
    text = f"{name} on {engine.get('device', 'cpu')}"
    return f"{text}, in place of {engine['instead_of']}" if "instead_of" in engine else text
