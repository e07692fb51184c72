"""Extractive question answering: the answer is a span of a context, in the format of SQuAD.

A model gives each token two logits: s_i for an answer that starts at token i, and e_j for an
answer that ends at token j. A context that is longer than a window is read in several windows.
The answer is the best span of all windows:

    max s_i + e_j    over i <= j < i + 30, both in the context of one window.

Position 0 means "no answer". It is used only if some questions in the data have no answer.
"No answer" is predicted if the smallest s_0 + e_0 of all windows exceeds the best span's sum.
Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.base.errors import ModelError, UsageError

from .fisher import DRAWS
from .labels import IGNORE, Fail, Labels
from .layout import END, LOWEST, START, Layout, Windows, best_span
from .losses import kl_divergence
from .metrics import AGREEMENT, Floats, Metric, Predictions, Scorer, share
from .prediction import Answer, TextSpan
from .squad import (
    NO_ANSWER,
    FoundAnswer,
    as_numbers,
    exact_match,
    f1,
    from_numbers,
    normalised,
    read_answers,
    texts_of,
)
from .task import ConstantAnswer, Pooling, Task, WorstCase

CONFIG_KEY = "question_answering"
"""The key of config.json with the stride and the flag `may_lack_answers`."""


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Extractive question answering: the answer is a span of the question's context.

    Predictions and labels are one array per question, encoded by `squad.as_numbers`. Before
    `arranged`, predictions are one result of `best_span` per window.
    """

    may_lack_answers: bool = False
    """True if a context may contain no answer, as in SQuAD 2."""
    stride: int = 0
    """Tokens that two neighbouring windows share; 0 = chosen by the length of the windows."""

    name: ClassVar[str] = "question-answering"
    kind: ClassVar[str] = "question-answering"
    problem: ClassVar[str] = "question-answering"
    problem_type: ClassVar[str] = "question_answering"
    head: ClassVar[str] = "ForQuestionAnswering"
    pooling: ClassVar[Pooling] = "all"
    columns: ClassVar[tuple[str, ...]] = ("answers",)
    other_columns: ClassVar[tuple[str, ...]] = ("answer",)
    ragged: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False
    exclusive: ClassVar[bool] = False
    unit: ClassVar[str] = "questions"
    agreement_meaning: ClassVar[str] = (
        "The share of questions that both models answer alike is"
    )
    finds_spans: ClassVar[bool] = True
    outputs: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")

    @classmethod
    def reads(cls, problem_type: str | None, labels: int) -> bool:
        """True for models with two logits per token."""
        del problem_type
        return labels == len(cls.outputs)

    @classmethod
    def of_config(cls, labels: tuple[str, ...], config: Mapping[str, Any]) -> Self:
        """See `Task.of_config`. Reads the stride and `may_lack_answers`."""
        unnamed = labels == ("LABEL_0", "LABEL_1")
        block = config.get(CONFIG_KEY) or {}
        lacking, stride = block.get("may_lack_answers", False), block.get("stride", 0)
        whole = isinstance(stride, int) and not isinstance(stride, bool) and stride >= 0
        if not isinstance(lacking, bool) or not whole:
            raise ModelError(
                f"config.json: {CONFIG_KEY} is {block!r:.80}: may_lack_answers must be true "
                "or false, stride a whole number from 0"
            )
        return cls(("start", "end") if unnamed else labels, lacking, stride)

    def to_config(self) -> dict[str, Any]:
        """See `Task.to_config`."""
        block = {"may_lack_answers": self.may_lack_answers, "stride": self.stride}
        return {CONFIG_KEY: block}

    @property
    def shared_tokens(self) -> int:
        """See `Spans.shared_tokens`."""
        return self.stride

    def with_stride(self, stride: int) -> Self:
        """See `Spans.with_stride`."""
        return replace(self, stride=stride)

    def on_labels(self, labels: Iterable[Labels | None]) -> Self:
        """The task with `may_lack_answers`, if some question has no answer."""
        lacking = any(int(x[0]) < 0 for some in labels if some is not None for x in some)
        return replace(self, may_lack_answers=self.may_lack_answers or lacking)

    def read_labels(
        self, values: Sequence[Any], words: Sequence[Sequence[str]] | None, fail: Fail
    ) -> tuple[NDArray[np.int64], ...]:
        """The answers to each question. Training uses the first. `words` are the contexts."""
        assert words is not None
        found, wrong = [], list[tuple[int, str]]()
        for i, (value, context) in enumerate(zip(values, words, strict=True)):
            answers = read_answers(value)
            if answers is None:
                cure = "write one whole number for each text"
                cure = "use jsonl, json or parquet" if isinstance(value, str) else cure
                fail(
                    i,
                    f"the answers are {value!r:.60}, not "
                    f'{{"text": [...], "answer_start": [...]}}: {cure}',
                )
            placed = [_placed(str(context), *x) for x in answers]
            if None in placed:
                text, start = answers[placed.index(None)]
                wrong.append((i, f"{text[:40]!r} does not stand at answer_start {start}"))
            found.append(as_numbers([x for x in placed if x is not None] or [NO_ANSWER]))
        if wrong:
            row, said = wrong[0]
            more = f"; {len(wrong)} rows are like this" if wrong[1:] else ""
            fail(
                row,
                f"{said} of a context of {len(words[row])} characters{more}\n"
                "count characters, not bytes or words, from 0, or remove the row",
            )
        return tuple(found)

    # Predictions and scores ----------------------------------------------------------------

    def predictions(
        self,
        logits: NDArray[Any] | Sequence[NDArray[Any]],
        scored: Sequence[NDArray[Any]] | None = None,
    ) -> tuple[Floats, ...]:
        """The best span of each window, see `best_span`."""
        tokens = scored or [np.zeros(len(x), np.int64) for x in logits]
        pairs = zip(logits, tokens, strict=True)
        return tuple(best_span(x[: len(y)], y != IGNORE) for x, y in pairs)

    def arranged(self, predictions: Predictions, layout: Layout) -> Predictions:
        """The answer to each question, from the best spans of its windows."""
        assert layout.windows is not None
        chosen = self._chosen(np.array([*predictions]), layout.windows)
        return tuple(as_numbers([x]) for x, _ in chosen)

    def _chosen(self, best: Floats, windows: Windows) -> list[tuple[FoundAnswer, int]]:
        """The answer to each question, and the window of the answer; `best` is [W, 4]."""
        cuts = np.flatnonzero(np.diff(windows.question)) + 1
        found = []
        for at in np.split(np.arange(len(best)), cuts):
            window = int(at[best[at, 0].argmax()])
            empty = int(at[best[at, 3].argmin()])
            total, first, last = best[window, :3]
            if not total > LOWEST or (self.may_lack_answers and best[empty, 3] > total):
                found.append((NO_ANSWER, empty))
                continue
            spans = windows.spans[window]
            context = windows.contexts[int(windows.question[window])]
            start, end = int(spans[int(first), 0]), int(spans[int(last), 1])
            raw = context[start:end]
            start, end = start + len(raw) - len(raw.lstrip()), start + len(raw.rstrip())
            answer = FoundAnswer(start, max(start, end), normalised(raw))
            found.append((answer, window))
        return found

    def span_answers(self, logits: Sequence[NDArray[Any]], layout: Layout) -> list[TextSpan]:
        """See `Spans.span_answers`. "No answer" is an empty text from 0 to 0."""
        windows = layout.windows
        assert windows is not None
        best = np.array(self.predictions(logits, windows.tokens))
        answers = []
        for question, (found, window) in enumerate(self._chosen(best, windows)):
            counted = windows.tokens[window] != IGNORE
            wide = np.asarray(logits[window], np.float64)[: len(counted)]
            starts, ends = (_log_softmax(wide[:, i], counted) for i in (0, 1))
            first, last = best[window, 1:3].astype(int) if found.start >= 0 else (0, 0)
            text = windows.contexts[question][max(found.start, 0) : max(found.end, 0)]
            score = float(np.exp(starts[first] + ends[last]))
            answers.append(TextSpan(text, score, max(found.start, 0), max(found.end, 0)))
        return answers

    def answers(self, logits: Sequence[NDArray[Any]] | NDArray[Any]) -> list[Answer]:
        """Not supported: logits alone do not show which tokens they belong to.

        Raises:
            UsageError: always. The message names `predict`.
        """
        raise UsageError(
            "a question's logits are of tokens, in several windows: call "
            "predict([('a question', 'its context')])"
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Exact match, mean F1 of the questions, and agreement of normalised answers."""
        return (
            Metric("em", "paired"),
            Metric("f1", "mean"),
            Metric(AGREEMENT, "paired", needs_labels=False),
        )

    @property
    def default_metric(self) -> str:
        """F1, the metric that ranks SQuAD's leaderboard."""
        return "f1"

    def _scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        return share(self.row_scores(metric, predictions, labels))

    def row_scores(self, metric: str, predictions: Predictions, labels: Predictions) -> Floats:
        """The score of each question, [N]."""
        one = f1 if metric == "f1" else exact_match
        pairs = zip(predictions, texts_of(labels), strict=True)
        return np.array([one(from_numbers(x)[0].text, aims) for x, aims in pairs])

    def right_rows(self, predictions: Predictions, labels: Predictions) -> NDArray[np.bool_]:
        """Questions with an exact match, [N]."""
        return np.asarray(self.row_scores("em", predictions, labels) > 0)

    def chance(self, metric: str) -> float:
        """0: a guessed span is hardly ever right."""
        self.metric(metric)
        return 0.0

    def worst_case(
        self,
        metric: str,
        dense: Predictions,
        optimised: Predictions,
        labels: Predictions,
        extra: float,
    ) -> WorstCase:
        """Adds copies of the questions. The optimised model answers all copies wrongly."""
        del metric
        rows = len(dense)
        wrong = tuple(as_numbers([FoundAnswer(0, 0, "\0")]) for _ in range(rows))
        d, o, y = tuple(dense), tuple(optimised), tuple(labels)
        weights = np.concatenate([np.ones(rows), np.full(rows, extra / rows)])[None]
        return WorstCase(d + d, o + wrong, y + y, weights)

    def best_constant(self, metric: str, truth: Predictions) -> ConstantAnswer:
        """The constant "no answer": no span is the answer to many questions."""
        constant = tuple(as_numbers([NO_ANSWER]) for _ in truth)
        return ConstantAnswer("nothing", self.score(metric, constant, truth))

    def other_answers(self, found: Predictions, certified: Predictions) -> tuple[int, int]:
        """Number of answers that differ from the certified ones, and number of all answers."""
        return int((~self.right_rows(found, certified)).sum()), len(found)

    # Training, importance and parity -------------------------------------------------------

    def counted(self, real: Tensor, labels: Any) -> Tensor:
        """True for tokens that can be in an answer; for all real tokens without labels."""
        if labels is None:
            return real
        known = torch.as_tensor(labels).to(real.device) != IGNORE
        return torch.where(known.any(1, keepdim=True), known, real)

    def position_loss(
        self, student: Tensor, teacher: Tensor, counted: Tensor, temperature: float
    ) -> tuple[Tensor, int]:
        """Softened KL divergence of starts plus divergence of ends, in nats per window."""
        return self.logit_loss(
            _hidden(student, counted), _hidden(teacher, counted), temperature
        ), len(student)

    def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """`position_loss` for logits [B, T, 2] if all positions count."""
        parts = zip(student.unbind(-1), teacher.unbind(-1), strict=True)
        losses = [kl_divergence(s, t, temperature) for s, t in parts]
        return torch.stack(losses).sum()

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Mean cross-entropy of start and end, over the windows in which both are known."""
        marks = labels.clamp(min=0)
        known = (marks & START).any(1)
        count = int(known.sum())
        if not count:
            return logits.float().sum() * 0.0, 0
        found = _hidden(logits, labels != IGNORE)[known]
        aims = [((marks & bit) > 0)[known].int().argmax(1) for bit in (START, END)]
        losses = [F.cross_entropy(found[..., i], aim) for i, aim in enumerate(aims)]
        return torch.stack(losses).mean(), count

    def fisher_scalars(
        self, logits: Tensor, weight: Tensor, random: torch.Generator
    ) -> list[Tensor]:
        """`DRAWS` starts and ends, drawn from the model's own prediction for each window."""
        counted = weight != 0
        rows = torch.arange(len(weight), device=weight.device)
        sign = weight[rows, counted.int().argmax(1)]
        total = []
        for log_p in torch.log_softmax(_hidden(logits, counted), 1).unbind(-1):
            drawn = torch.multinomial(
                log_p.detach().exp().cpu(), DRAWS, replacement=True, generator=random
            )
            total.append(log_p.gather(1, drawn.to(log_p.device)))
        # Start and end are drawn independently, so their cross terms vanish on average.
        picked = (total[0] + total[1]) * sign[:, None] / DRAWS**0.5
        return [*picked.sum(0)]

    def answer_logits(
        self,
        logits: Sequence[NDArray[Any]],
        masks: Sequence[NDArray[Any]] | None,
    ) -> NDArray[np.float64]:
        """Logits of windows, [N, 2 T]: the start logits of all tokens, then the end logits.

        Short windows are padded with their own smallest logit.
        """
        if masks is None:
            raise ValueError("question answering needs the attention masks")
        longest = max((x.shape[1] for x in logits), default=1)
        rows = []
        for batch, mask in zip(logits, masks, strict=True):
            for window, real in zip(np.asarray(batch, np.float64), mask != 0, strict=True):
                kept = window[: len(real)][real]
                filled = np.tile(kept.min(0, initial=np.inf), (longest, 1))
                filled[: len(kept)] = kept
                rows.append(filled.T.reshape(-1))
        return np.array(rows).reshape(len(rows), 2 * longest)

    def same_answers(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
        """True for windows with the same best start and the same best end, [N]."""
        a, b = (x.reshape(len(x), 2, -1).argmax(-1) for x in (one, other))
        return np.asarray((a == b).all(-1), dtype=np.bool_)


def _placed(context: str, text: str, start: int) -> FoundAnswer | None:
    """The answer at `start` in its context; None if the context has another text there."""
    found = context[start : start + len(text)] if start >= 0 else ""
    if not text.strip() or found.split() != text.split():
        return None
    start += len(found) - len(found.lstrip())
    return FoundAnswer(start, start + len(found.strip()), normalised(text))


def _hidden(logits: Tensor, counted: Tensor) -> Tensor:
    """Logits [B, T, 2] in float32, with `LOWEST` at positions that do not count."""
    return logits.float().masked_fill(~counted[..., None], LOWEST)


def _log_softmax(logits: Floats, counted: NDArray[np.bool_]) -> Floats:
    kept = np.where(counted, logits, LOWEST)
    kept = kept - kept.max()
    return np.asarray(kept - np.log(np.exp(kept).sum()))
