"""Collect the measurements of a run in a `Report`; write report.json and report.html."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from prumux.optimizer.base.environment import device, versions
from prumux.optimizer.base.errors import PrumuxError
from prumux.optimizer.base.store import write_atomic
from prumux.optimizer.certificate.certificate import interval
from prumux.optimizer.model.cost import count_model
from prumux.optimizer.model.vocabulary.trimmed import json_bytes
from prumux.optimizer.pipeline.own_rows import other_pieces
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.cascade_facts import cascade_facts

from .class_scores import class_scores, result_warnings
from .contents import (
    SCHEMA_VERSION,
    ByRole,
    CascadeRecord,
    CertificateRecord,
    ClassScores,
    DataRecord,
    LayerSizes,
    MarginBin,
    ModelCost,
    MuxRecord,
    Pair,
    PassRecord,
    Report,
    Score,
    ServingRecord,
    StageScores,
    TaskRecord,
    TrialRecord,
)
from .costs_record import CostsRecord
from .encoding import from_json, to_json
from .engine_timings import EngineTiming, OtherEngine, OwnBatchTiming
from .html import render
from .units import Interval
from .vocabulary_record import VocabularyRecord

if TYPE_CHECKING:
    from prumux.optimizer.model.model import Model
    from prumux.optimizer.model.sizes import Encoder
    from prumux.optimizer.pipeline.target import Emitted, Engine, Target
    from prumux.optimizer.search.bisection import SearchResult
    from prumux.optimizer.search.evaluator import Evaluator
    from prumux.optimizer.tasks.task import Task
    from prumux.optimizer.timing.serving_point import Speed

T = TypeVar("T")
JSON_NAME = "report.json"
HTML_NAME = "report.html"


class MeasuredEngine(Protocol):
    """The engine of one model on one target, with its timings."""

    @property
    def pipeline(self) -> Pipeline: ...
    @property
    def target(self) -> Target: ...
    @property
    def model(self) -> Model: ...
    @property
    def emitted(self) -> Emitted: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def speed(self) -> Speed: ...


class MeasuredEngines(Protocol):
    """Engines that were timed in the same rounds."""

    @property
    def dense(self) -> MeasuredEngine: ...
    @property
    def optimised(self) -> MeasuredEngine:
        """The shipped engine."""

    @property
    def dropped(self) -> MeasuredEngine | None:
        """The chosen engine, if it was slower than the given model's engine."""

    @property
    def beside(self) -> Sequence[MeasuredEngine]:
        """Engines that were timed but not shipped."""


def build_report(
    evaluator: Evaluator,
    found: SearchResult | None,
    engines: MeasuredEngines,
    *,
    budget: str | None,
    limit: float | None,
    serving: Mapping[str, Any],
    facts: Mapping[str, Any],
    command: str,
    seconds: float,
    warnings: Sequence[str] = (),
) -> Report:
    """Make the report, with all facts that are needed to check or repeat the result.

    Args:
        evaluator: scores the shipped model on the certify and the test rows.
        found: the result of the search; None = the user gave one pipeline.
        engines: the timed engines.
        budget: the budget as the user wrote it.
        limit: the allowed loss, a share.
        serving: the fields of `ServingRecord`.
        facts: facts that must be the same in a run that resumes this one.
        command: the command line.
        seconds: wall-clock time of the run so far.
        warnings: warnings about metric, budget and rows from before the search.
    """
    shipped, dense = engines.optimised, engines.dense
    model, pipeline, given = shipped.model, shipped.pipeline, evaluator.model
    length = evaluator.ctx.length
    scores = _by_role(evaluator, lambda role: _score(evaluator, shipped, limit or 0.0, role))
    classes = _by_role(evaluator, lambda role: _class_scores(evaluator, shipped, role))
    certificates = () if found is None else tuple(_certificate(*x) for x in found.proofs)
    return Report(
        schema_version=SCHEMA_VERSION,
        met=found is None or found.winner is not None,
        reason="the pipeline that was asked for" if found is None else found.reason,
        pipeline=str(pipeline),
        dropped=None if engines.dropped is None else _other_engine(engines.dropped),
        target=str(shipped.target),
        budget=budget,
        limit=limit,
        metric=evaluator.metric,
        task=_task(given.task),
        scores=scores,
        classes=classes,
        warnings=(*warnings, *result_warnings(scores.certify, certificates, classes)),
        throughput_ratio=shipped.speed.throughput_ratio,
        speed=Pair(_timing(dense), _timing(shipped)),
        beside=tuple(_other_engine(x) for x in engines.beside),
        serving=ServingRecord(**serving),
        costs=_costs(evaluator, engines.dropped or shipped),
        cost=Pair(_cost(dense.model, length), _cost(model, length)),
        file_bytes=Pair(dense.size_bytes, shipped.size_bytes),
        layers=_layer_sizes(given.encoder, model.encoder),
        mux=_mux(evaluator, shipped),
        cascade=_cascade(evaluator, shipped),
        vocabulary=_vocabulary(evaluator, model),
        passes=tuple(PassRecord(**asdict(x)) for x in model.history),
        export=Pair(dict(dense.emitted.notes), dict(shipped.emitted.notes)),
        engine=dict(shipped.engine.describe()),
        trials=() if found is None else tuple(_trial(x) for x in found.trials),
        proofs=certificates,
        data=DataRecord(evaluator.data_digest, tuple(evaluator.notes)),
        source=dict(given.source),
        facts=facts,
        seed=evaluator.ctx.seed,
        command=command,
        seconds=seconds,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        device={**device(), **evaluator.ctx.cores.facts()},
    )


def write_report(report: Report, folder: Path) -> dict[str, Any]:
    """Write report.json and report.html into the folder of the result.

    Returns:
        The JSON values of report.json, including the list of the result's files.
    """
    written = {str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()}
    names = written | {HTML_NAME, JSON_NAME}
    if report.trials:
        names.add("trials.jsonl")  # `Workspace.publish` adds this file at the end
    text = json.dumps(
        to_json(replace(report, files=tuple(sorted(names)))), indent=2, allow_nan=False
    )
    values: dict[str, Any] = json.loads(text)
    write_html(from_json(Report, values), folder)
    write_atomic(folder / JSON_NAME, f"{text}\n".encode())
    return values


def write_html(report: Report, folder: Path) -> None:
    """Write report.html."""
    write_atomic(folder / HTML_NAME, render(report).encode())


def _task(task: Task) -> TaskRecord:
    unit = None if task.unit == "rows" else task.unit
    return TaskRecord(task.kind, task.problem, task.labels, unit)


def _by_role(evaluator: Evaluator, measure: Callable[[str], T]) -> ByRole[T]:
    test = None if evaluator.test_rows is None else measure("test")
    return ByRole(measure("certify"), test)


def _class_scores(evaluator: Evaluator, shipped: MeasuredEngine, role: str) -> ClassScores:
    """Compare both models on the rows of a role, class by class."""
    dense = evaluator.predictor.with_labels(Pipeline(()), role)[0]
    answers = evaluator.predictor.with_labels(shipped.pipeline, role, shipped.target)[0]
    rows = evaluator.certify_rows if role == "certify" else evaluator.test_rows
    labels = None if rows is None else rows.labels
    return class_scores(dense, answers, labels, evaluator.model.task)


def _score(evaluator: Evaluator, shipped: MeasuredEngine, limit: float, role: str) -> Score:
    """Compare the scores of both models on the rows of a role."""
    pipeline, target = shipped.pipeline, shipped.target
    values = asdict(evaluator.compare(pipeline, role, limit, target=target))
    del values["limit"]
    dense = evaluator.model.task.metric(evaluator.metric).needs_labels
    return Score(
        **values,
        interval=_interval(evaluator, role, pipeline, target),
        interval_dense=_interval(evaluator, role, Pipeline(())) if dense else None,
    )


def _interval(
    evaluator: Evaluator, role: str, pipeline: Pipeline, target: Target | None = None
) -> Interval:
    predictions, labels = evaluator.predictor.with_labels(pipeline, role, target)
    task, seed = evaluator.model.task, evaluator.ctx.seed
    return interval(evaluator.metric, predictions, labels, task, seed=seed)


def _mux(evaluator: Evaluator, shipped: MeasuredEngine) -> MuxRecord | None:
    if not shipped.model.encoder.mux:
        return None
    values = evaluator.predictor.partner_sensitivity(shipped.pipeline, "certify")
    return from_json(MuxRecord, to_json(values))


def _costs(evaluator: Evaluator, chosen: MeasuredEngine) -> CostsRecord | None:
    """The costs file's estimate for the chosen model; None without a costs file."""
    costs = evaluator.ctx.costs
    if costs is None:
        return None
    name, found = chosen.target.timed_as, None
    with suppress(PrumuxError):  # this target or mixing was not measured
        found = costs.estimate_model(
            chosen.model,
            evaluator.model.encoder,
            name,
            evaluator.target.baseline().timed_as,
        )
    measured = costs.targets.get(name)
    return CostsRecord(
        file=costs.path.name,
        digest=costs.digest,
        date=costs.date,
        measured_on=dict(costs.machine),
        target=name,
        engine={} if measured is None else dict(measured.engine),
        batch=costs.batch,
        length=costs.length,
        error=max(x.error for x in costs.targets.values()),
        dense_ms=None if found is None else found.dense_ms,
        chosen_ms=None if found is None else found.ms,
        throughput_ratio=None if found is None else found.speedup,
    )


def _cascade(evaluator: Evaluator, shipped: MeasuredEngine) -> CascadeRecord | None:
    second = shipped.model.second
    if second is None:
        return None
    facts = _by_role(
        evaluator,
        lambda role: cascade_facts(
            evaluator.predictor, shipped.pipeline, role, shipped.engine
        ),
    )
    of = facts.certify
    bars = zip(of.edges, of.edges[1:], of.rows, of.differ, strict=False)
    scores = {k: StageScores(x.deferred, x.first, x.second) for k, x in facts.items()}
    return CascadeRecord(
        second=str(second.model.encoder),
        threshold=second.threshold,
        max_share=second.max_share,
        stages=ByRole(scores["certify"], scores.get("test")),
        margins=tuple(MarginBin(*x) for x in bars),
    )


def _vocabulary(evaluator: Evaluator, model: Model) -> VocabularyRecord | None:
    """Facts about both tokenizers; None if the shipped model has the given tokenizer."""
    given = evaluator.model.tokenizer
    if model.kept_pieces is None or model.tokenizer is None or given is None:
        return None
    test = evaluator.test_rows
    return VocabularyRecord(
        pieces_dense=len(given.get_vocab()),
        pieces=len(model.kept_pieces),
        tokenizer_bytes_dense=json_bytes(given),
        tokenizer_bytes=json_bytes(model.tokenizer),
        other_pieces_select=other_pieces(evaluator.select_rows, model),
        other_pieces_certify=other_pieces(evaluator.certify_rows, model),
        other_pieces_test=None if test is None else other_pieces(test, model),
    )


def _timing(engine: MeasuredEngine) -> EngineTiming:
    own = engine.speed.own_batch
    values = {**asdict(engine.speed), "own_batch": None}
    timing = EngineTiming(**values)
    return timing if own is None else replace(timing, own_batch=OwnBatchTiming(**asdict(own)))


def _other_engine(engine: MeasuredEngine) -> OtherEngine:
    return OtherEngine(
        **{**asdict(engine.speed), "own_batch": None},
        pipeline=str(engine.pipeline),
        target=str(engine.target),
        file_bytes=engine.size_bytes,
    )


def _cost(model: Model, length: int) -> ModelCost:
    return ModelCost(**asdict(count_model(model, length)))


def _layer_sizes(given: Encoder, shipped: Encoder) -> LayerSizes:
    return LayerSizes(
        heads=tuple(x.heads for x in shipped.layers),
        ffn=tuple(x.ffn for x in shipped.layers),
        hidden=shipped.hidden,
        heads_dense=tuple(x.heads for x in given.layers),
        ffn_dense=tuple(x.ffn for x in given.layers),
        hidden_dense=given.hidden,
    )


def _trial(trial: Any) -> TrialRecord:
    return TrialRecord(
        str(trial.pipeline),
        trial.score,
        trial.observed_loss,
        trial.seconds,
        trial.macs,
        trial.predicted_ratio,
        expected_loss=trial.loss,
    )


def _certificate(pipeline: Pipeline, certificate: Any) -> CertificateRecord:
    return CertificateRecord(**certificate.to_json(), pipeline=str(pipeline))
