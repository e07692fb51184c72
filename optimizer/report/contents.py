"""The fields of report.json, with units.

These dataclasses are the only description of a report. `encoding` writes and reads them as
JSON, `json_schema` makes report.schema.json from them, and `html` and `terminal` show them.

The type of a field gives its unit (`units`), and the text in `Annotated` describes it.
To add a field: add it here with a default, fill it in `build`, show it to users, and write
the schema again (`make schema`). A field with a default may be missing in a report of an
earlier version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from .costs_record import CostsRecord
from .engine_timings import EngineTiming, OtherEngine
from .units import (
    OMIT_NONE,
    Bytes,
    Count,
    Fraction,
    Interval,
    Positive,
    Probability,
    Seconds,
    Share,
    Times,
    Unit,
)
from .vocabulary_record import VocabularyRecord

SCHEMA_VERSION: Literal[1] = 1


T = TypeVar("T")


@dataclass(frozen=True)
class Pair(Generic[T]):
    """The same measurement of two models."""

    dense: Annotated[T, "Of the given model, unpruned and in fp32."]
    optimised: Annotated[T, "Of the model that the artifact folder holds."]


@dataclass(frozen=True)
class ByRole(Generic[T]):
    """The same measurement on two sets of rows that no choice was made on."""

    certify: Annotated[T, "On the rows that the certificate is computed on."]
    test: Annotated[T | None, "On the test rows, if there are any.", OMIT_NONE] = None

    def items(self) -> list[tuple[str, T]]:
        """Role of the rows and measurement, `test` only if there are test rows."""
        test = [] if self.test is None else [("test", self.test)]
        return [("certify", self.certify), *test]

    def values(self) -> list[T]:
        """The measurements."""
        return [x for _, x in self.items()]


@dataclass(frozen=True)
class TaskRecord:
    """The task and its labels."""

    kind: Annotated[str, "text-classification, token-classification or text-ranking."]
    problem: Annotated[str, "classification, multi-label, regression or ranking."]
    labels: Annotated[tuple[str, ...], "Label names in the order of the logits."]
    unit: Annotated[
        str | None,
        "What `rows` of a score counts, where these are not rows: queries.",
        OMIT_NONE,
    ] = None


@dataclass(frozen=True)
class Comparison:
    """The given model and another one, scored on the same rows, in pairs."""

    metric: Annotated[str, "Name of the metric."]
    rows: Annotated[Positive, "Rows that were compared."]
    score_dense: Annotated[Share, "Score of the given model, in [-1, 1]."]
    score: Annotated[Share, "Score of the other model on the same rows, in [-1, 1]."]
    loss: Annotated[Share, "score_dense - score. Below 0, the other model is better."]
    loss_upper: Annotated[
        Share, "Upper confidence bound of the true loss, one-sided, with `confidence`."
    ]
    confidence: Annotated[Probability, "Confidence level of loss_upper."]
    method: Annotated[
        str,
        "How the bound is computed: tango, stratified tango, clopper-pearson or bootstrap "
        "(approximate).",
    ]


@dataclass(frozen=True)
class Score(Comparison):
    """The given model against the shipped model."""

    interval: Annotated[Interval, "Two-sided 95 % confidence interval of `score`."]
    interval_dense: Annotated[
        Interval | None,
        "Two-sided 95 % confidence interval of `score_dense`. Missing for agreement.",
        OMIT_NONE,
    ] = None


@dataclass(frozen=True)
class ClassRecord:
    """Counts of one class for both models: its rows, and the rows answered with it."""

    label: Annotated[str, "Name of the class."]
    rows: Annotated[Count, "Rows of this class. In token tasks, positions."]
    found: Annotated[Pair[Count], "Rows of this class that the model answers with it."]
    answered: Annotated[Pair[Count], "Rows of any class that the model answers with it."]
    recall: Annotated[Pair[Fraction | None], "found divided by rows. Null without rows."]


@dataclass(frozen=True)
class ClassScores:
    """The share of equal answers of both models, overall and class by class."""

    agreement: Annotated[
        Share,
        "Share of rows with the same answer. For regression, the correlation. For embeddings, "
        "the share of ten nearest neighbours, or of ten found documents, that are kept.",
    ]
    against: Annotated[
        Literal["labels", "given model"] | None,
        "What the recalls are computed against. Without labels, the given model's answers. "
        "Null for regression.",
    ]
    classes: Annotated[tuple[ClassRecord, ...], "Every class. Empty for regression."]
    cosine: Annotated[
        float | None,
        "Mean cosine of both models' vectors of a text. Null but for embeddings.",
    ] = None


@dataclass(frozen=True)
class CertificateRecord(Comparison):
    """One certificate: is the upper bound of a candidate's loss within the budget?"""

    pipeline: Annotated[str, "Pipeline text of the candidate."]
    limit: Annotated[Share, "The loss that the budget allows."]
    holds: Annotated[bool, "Whether loss_upper is at most `limit`."]


@dataclass(frozen=True)
class ServingRecord:
    """The batches that engines are timed on."""

    batch: Annotated[Positive, "Rows in a batch."]
    length: Annotated[
        Positive | Literal["data"], "Tokens in a row, or `data` for the lengths of the data."
    ]
    mean_tokens: Annotated[Positive, "Mean number of tokens in a row."]
    threads: Annotated[Positive, "CPU threads of an engine."]
    arrivals: Annotated[
        Literal["sorted", "mixed"] | None,
        "sorted: rows of similar length share a batch. mixed: rows in the order of the data. "
        "Missing in reports of older versions, which sorted.",
        OMIT_NONE,
    ] = None


@dataclass(frozen=True)
class ModelCost:
    """Size and computation of one model, counted from its shapes."""

    parameters: Annotated[Count, "Number of weights."]
    encoder_parameters: Annotated[Count, "Number of weights without embeddings and head."]
    macs: Annotated[Count, "Multiply-adds for one row of serving.mean_tokens tokens."]
    size_bytes: Annotated[Bytes, "Size of the weights in float32."]
    mux_parameters: Annotated[Count, "Part of `parameters` that mixes and separates rows."]
    mux_macs: Annotated[Count, "Part of `macs` that mixes and separates rows."]


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of the shipped model and of the given one."""

    heads: Annotated[
        tuple[Count, ...], "Attention heads of each layer. 0 means that the block is removed."
    ]
    ffn: Annotated[
        tuple[Count, ...], "FFN units of each layer. 0 means that the block is removed."
    ]
    hidden: Annotated[Positive, "Hidden dimensions."]
    heads_dense: Annotated[tuple[Count, ...], "Attention heads of each layer, given model."]
    ffn_dense: Annotated[tuple[Count, ...], "FFN units of each layer, given model."]
    hidden_dense: Annotated[Positive | None, "Hidden dimensions, given model.", OMIT_NONE] = (
        None
    )


@dataclass(frozen=True)
class MuxRecord:
    """The effect on a row's answer of the rows that share its forward pass."""

    scores: Annotated[tuple[Share, ...], "Score with each random draw of partners."]
    mean: Annotated[Share, "Mean of `scores`."]
    slots: Annotated[
        tuple[float | None, ...],
        "Mean score of the rows in each slot, null for a slot with too few rows. "
        "There are as many slots as rows in one forward pass.",
    ]
    depends_on_partners: Annotated[
        float,
        Unit(minimum=0),
        "Share of rows (in token tasks, of words) whose answer is not the same in all draws. "
        "For regression, the deviation of a row's answers divided by that of the rows.",
    ]


@dataclass(frozen=True)
class StageScores:
    """The scores of each stage of a cascade on the rows of a role."""

    deferred: Annotated[Fraction, "Share of the rows that the second stage answered."]
    first: Annotated[Share, "Score of the first stage alone, in torch."]
    second: Annotated[Share, "Score of the second stage alone, in torch."]


@dataclass(frozen=True)
class MarginBin:
    """Rows whose margin lies in one interval."""

    low: Annotated[float, Unit("logits"), "Smallest margin."]
    high: Annotated[float, Unit("logits"), "Largest margin."]
    rows: Annotated[Count, "Certify rows with such a margin."]
    differ: Annotated[Count, "Those of them that the two stages answer differently."]


@dataclass(frozen=True)
class CascadeRecord:
    """The rows that the second stage of a cascade answers, and the scores of each stage."""

    second: Annotated[str, "Sizes of the second stage."]
    threshold: Annotated[float, Unit("logits", minimum=0), "Rows below it are deferred."]
    max_share: Annotated[Fraction, "Most rows of a batch that are deferred, as a share."]
    stages: Annotated[ByRole[StageScores], "Share deferred, and each stage alone."]
    margins: Annotated[tuple[MarginBin, ...], "Histogram of the first stage's margins."]


@dataclass(frozen=True)
class PassRecord:
    """Receipt of one pass."""

    spec: Annotated[str, "The pass as pipeline text."]
    seconds: Annotated[Seconds, "Wall-clock time."]
    parameters_before: Annotated[Count, "Number of weights before the pass."]
    parameters_after: Annotated[Count, "Number of weights after the pass."]
    notes: Annotated[Mapping[str, Any], "What the pass reports. Each pass has its own fields."]


@dataclass(frozen=True)
class TrialRecord:
    """One candidate, scored on the select rows."""

    pipeline: Annotated[str, "Pipeline text."]
    score: Annotated[Share | None, "Score on the select rows, in [-1, 1]. Null if it failed."]
    loss: Annotated[
        Share | None, "The given model's score on the select rows - score. Null if it failed."
    ]
    seconds: Annotated[Seconds, "Wall-clock time of building and scoring."]
    macs: Annotated[Count | None, "Multiply-adds for one row of serving.mean_tokens tokens."]
    predicted_ratio: Annotated[
        Times | None,
        "Throughput divided by the dense engine's, predicted from timing the untrained shape, "
        "with a costs file from its times. Null if it was not timed.",
    ] = None
    error: Annotated[str | None, "Why the candidate failed, if it did.", OMIT_NONE] = None
    expected_loss: Annotated[
        Share | None,
        "Estimate of the loss on unseen rows. Select rows are weighted, so that they are as "
        "hard for the given model as unseen rows. Null if the candidate failed.",
    ] = None


@dataclass(frozen=True)
class DataRecord:
    """The origin of the rows."""

    digest: Annotated[str, "SHA-256 of all rows and their roles, in hex."]
    roles: Annotated[tuple[str, ...], "Which rows were used for what, in words."]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The measurements of one run."""

    schema_version: Annotated[Literal[1], "Version of this schema."]
    met: Annotated[bool, "True if a candidate was certified or no budget was given."]
    reason: Annotated[str, "Why this model was chosen, in words."]
    pipeline: Annotated[str, "Pipeline text of the shipped model. Empty for the given model."]
    dropped: Annotated[
        OtherEngine | None,
        "The chosen engine, if it was slower than the dense engine and was not shipped.",
    ]
    target: Annotated[str, "Target text of the shipped engine."]
    budget: Annotated[
        str | None, "As given: 2% (points) or 2%rel (of the score). Null without a budget."
    ]
    limit: Annotated[Share | None, "The loss that the budget allows. Null without a budget."]
    metric: Annotated[str, "Name of the metric of scores and losses."]
    task: Annotated[TaskRecord | None, "What the labels mean.", OMIT_NONE] = None
    scores: Annotated[ByRole[Score], "The given model against the shipped model."]
    classes: Annotated[
        ByRole[ClassScores] | None, "The same comparison, class by class.", OMIT_NONE
    ] = None
    warnings: Annotated[
        tuple[str, ...],
        "Inputs that were not used, and reasons to doubt the result or to choose another "
        "metric.",
    ] = ()
    throughput_ratio: Annotated[
        Times, "speed.optimised.throughput_ratio: throughput divided by the dense engine's."
    ]
    speed: Annotated[Pair[EngineTiming], "Both engines at the serving point."]
    beside: Annotated[
        tuple[OtherEngine, ...], "Other engines that were timed in the same rounds."
    ] = ()
    serving: Annotated[ServingRecord, "The serving point."]
    costs: Annotated[
        CostsRecord | None,
        "The costs file that candidates were chosen by. `speed` and `throughput_ratio` were "
        "measured on `device` all the same. Null if candidates were timed there.",
    ] = None
    cost: Annotated[Pair[ModelCost], "Size and computation of both models, counted."]
    file_bytes: Annotated[Pair[Bytes], "Size of the engines' files, in bytes."]
    layers: Annotated[LayerSizes, "Sizes of both models, layer by layer."]
    mux: Annotated[
        MuxRecord | None,
        "How much answers depend on mixed rows, on the certify rows. Null without mux.",
    ]
    cascade: Annotated[
        CascadeRecord | None, "The stages of a cascade. Null where the result is one model."
    ] = None
    vocabulary: Annotated[
        VocabularyRecord | None, "What trim-vocabulary dropped. Null where all pieces stay."
    ] = None
    passes: Annotated[tuple[PassRecord, ...], "Receipts of the shipped pipeline, in order."]
    export: Annotated[
        Pair[Mapping[str, Any]],
        "What the target reports of its graphs, in its own fields. `parity`: largest "
        "difference of a logit; `agreement`: share of same answers; `_ms`: milliseconds.",
    ]
    engine: Annotated[
        Mapping[str, str],
        "The shipped engine: library, version, provider, device, threads, precision.",
    ]
    trials: Annotated[tuple[TrialRecord, ...], "Every candidate that was built, in order."]
    proofs: Annotated[
        tuple[CertificateRecord, ...],
        "Every certificate, in the order of testing. Only the last one can have failed.",
    ]
    data: Annotated[DataRecord, "Where the rows come from."]
    source: Annotated[
        Mapping[str, str],
        "The given model: name, model_type, digest (SHA-256 of weights and sizes).",
    ]
    facts: Annotated[
        Mapping[str, Any], "What a run must have in common with this run to resume it."
    ]
    seed: Annotated[Count, "Seed of every random choice."]
    command: Annotated[str, "The exact command line. Empty for a run from Python."]
    seconds: Annotated[Seconds, "Wall-clock time of the whole run."]
    date: Annotated[str, "When the run ended, ISO 8601 with time zone."]
    versions: Annotated[
        Mapping[str, str], "Versions of Python and of the libraries that results depend on."
    ]
    device: Annotated[
        Mapping[str, str],
        "The machine: processor, its instructions for int8 and bf16, architecture, system, "
        "number of processors. thread_join_us: median, least and most microseconds to join "
        "two threads, before timed rounds.",
    ]
    files: Annotated[
        tuple[str, ...], "Names of the files of the result, report.json among them."
    ] = ()

    @property
    def certificate(self) -> CertificateRecord | None:
        """The certificate of the shipped model; None if no certificate holds."""
        held = (x for x in self.proofs if x.pipeline == self.pipeline and x.holds)
        return next(held, None)

    def model_name(self, pipeline: str) -> str:
        """The role of a pipeline in this run, in a word or two."""
        names = {"": "dense", self.pipeline: "shipped"} if self.pipeline else {"": "dense"}
        if self.dropped is not None:
            names[self.dropped.pipeline] = "dropped"
        return names.get(pipeline, "other candidate")
