"""Sentence embeddings: one vector for each text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.base.errors import ModelError, UsageError

from . import neighbours
from .fisher import DRAWS
from .labels import Fail, Labels
from .layout import Layout, TextKind
from .metrics import AGREEMENT, Floats, Metric, Predictions, Scorer, share, spearman
from .prediction import Answer
from .regression import Regression
from .task import ConstantAnswer, Pooling, Task, WorstCase

CONFIG_KEY = "sentence_embedding"
"""The key of config.json with prompts and similarity."""
NEIGHBOURS = 10
"""Number of a text's nearest neighbours that agreement compares."""
MOST_FOUND = 100
"""Number of documents that are kept in a query's ranking."""
SAME_COSINE = 0.999
"""Vectors with at least this cosine count as the same answer."""
SIMILARITIES = 5.0
"""Weight of the loss of similarities in a batch, relative to the loss of the vectors."""
PROMPT_NAMES: dict[TextKind, tuple[str, ...]] = {
    "text": (),
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}
Similarity = Literal["cosine", "dot"]
_AT = re.compile(r"(ndcg|recall)@(\d+)")


@dataclass(frozen=True)
class SentenceEmbedding(Task):
    """One vector for each text. Scored rows are texts, pairs of texts, or queries.

    Predictions are vectors [N, D], pairs of vectors [N, 2, D], or the documents found for each
    query, best first, int64 [Q, K].
    """

    prompts: tuple[tuple[str, str], ...] = ()
    """Pairs of name and prompt. A prompt is put before the user's text."""
    default_prompt: str | None = None
    similarity: Similarity = "cosine"
    """The similarity by which documents are ranked."""

    name: ClassVar[str] = "sentence-embedding"
    kind: ClassVar[str] = "sentence-similarity"
    problem: ClassVar[str] = "sentence-embedding"
    problem_type: ClassVar[str] = "sentence_embedding"
    head: ClassVar[str] = "EmbeddingModel"
    pooling: ClassVar[Pooling] = "first"
    columns: ClassVar[tuple[str, ...]] = ("score",)
    other_columns: ClassVar[tuple[str, ...]] = (
        *("label", "similarity", "similarity_score", "relatedness_score", "scores", "labels"),
    )
    has_classes: ClassVar[bool] = False
    exclusive: ClassVar[bool] = False
    named_outputs: ClassVar[bool] = False
    scores_pairs: ClassVar[bool] = True
    retrieves: ClassVar[bool] = True
    hub_tags: ClassVar[tuple[str, ...]] = ("sentence-transformers", "feature-extraction")
    found_by_head: ClassVar[bool] = False

    @classmethod
    def auto_class(cls) -> str:
        """`AutoModel`. It returns hidden states, and sentence-transformers pools them."""
        return "AutoModel"

    @classmethod
    def reads(cls, problem_type: str | None, labels: int) -> bool:
        """True for every model that is read as an embedding model."""
        del problem_type, labels
        return True

    @classmethod
    def of_config(cls, labels: tuple[str, ...], config: Mapping[str, Any]) -> Self:
        """See `Task.of_config`. Reads prompts and similarity."""
        del labels
        block = config.get(CONFIG_KEY) or {}
        prompts = block.get("prompts") or {}
        named = {str(k): v for k, v in prompts.items() if isinstance(v, str)}
        default = block.get("default_prompt")
        if default is not None and default not in named:
            raise ModelError(
                f"the default prompt is '{default!s:.40}', the prompts are "
                f"{', '.join(named) or 'none'}: correct config_sentence_transformers.json"
            )
        similarity: Any = block.get("similarity") or "cosine"
        if similarity not in get_args(Similarity):
            raise ModelError(
                f"similarity_fn_name is '{similarity!s:.40}', prumux ranks by "
                f"{' or '.join(get_args(Similarity))}\n"
                "correct config_sentence_transformers.json"
            )
        return cls((), tuple(named.items()), default, similarity)

    def to_config(self) -> dict[str, Any]:
        """See `Task.to_config`."""
        block = {
            "prompts": dict(self.prompts),
            "default_prompt": self.default_prompt,
            "similarity": self.similarity,
        }
        return {CONFIG_KEY: block}

    def check(self, labels: int) -> None:
        """Check nothing: the entries of a vector have no names."""

    def prompt(self, name: str | None) -> str:
        """See `Task.prompt`."""
        known = dict(self.prompts)
        if name is None:
            return known.get(self.default_prompt or "", "")
        if name not in known:
            raise UsageError(
                f"this model has no prompt '{name:.40}', it has {', '.join(known) or 'none'}\n"
                "give the text itself: encode(texts, prompt='query: ')"
            )
        return known[name]

    def prompted(self, texts: Sequence[str], kind: TextKind = "text") -> tuple[str, ...]:
        """The texts, each after the prompt of its kind, or after the default prompt."""
        known = dict(self.prompts)
        named = next((known[x] for x in PROMPT_NAMES[kind] if x in known), self.prompt(None))
        return tuple(named + x for x in texts) if named else tuple(texts)

    def read_labels(
        self, values: Sequence[Any], words: Sequence[Sequence[str]] | None, fail: Fail
    ) -> Floats | None:
        """Scores of pairs [N] as float64; None if every value is -1."""
        return Regression(("score",)).read_labels(values, words, fail)

    def predictions(
        self,
        logits: NDArray[Any] | Sequence[NDArray[Any]],
        scored: Sequence[NDArray[Any]] | None = None,
    ) -> NDArray[np.float32]:
        """The vectors, float32 [N, D]."""
        del scored
        return np.asarray(np.stack([*logits]), dtype=np.float32)

    def arranged(self, predictions: Predictions, layout: Layout) -> Predictions:
        """Pairs of vectors [N, 2, D], or the found documents of each query [Q, K]."""
        vectors = np.asarray(predictions)
        if layout.kind == "pairs":
            return vectors.reshape(layout.rows, 2, -1)
        if self.similarity == "cosine":
            vectors = neighbours.unit(vectors)
        queries, documents = np.split(vectors, [layout.rows])
        count = min(MOST_FOUND, len(documents) - bool(layout.own))
        return neighbours.nearest(queries, documents, count, layout.own)

    def answers(self, logits: Sequence[NDArray[Any]] | NDArray[Any]) -> list[Answer]:
        """Not supported: vectors have no labels.

        Raises:
            UsageError: always. The message names `encode`.
        """
        raise UsageError(
            "an embedding model gives vectors, not labels: call encode(['a text'])"
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Spearman's correlation of pairs, scores of rankings, and agreement."""
        names = ("ndcg@10", "recall@1", "recall@10", "recall@100")
        rankings = (Metric(x, "mean") for x in names)
        return (Metric("spearmanr"), *rankings, Metric(AGREEMENT, "mean", needs_labels=False))

    def fitting(self, labels: Labels | None) -> tuple[Metric, ...]:
        """The metrics for pairs with a score, or for queries with judgements."""
        form = None if labels is None else np.ndim(np.asarray(labels))
        usable = {None: (), 1: ("spearmanr",)}
        names = usable.get(form, tuple(x.name for x in self.metrics if _AT.match(x.name)))
        return tuple(x for x in self.metrics if x.name in names or not x.needs_labels)

    @property
    def default_metric(self) -> str:
        """Spearman's correlation between the pairs' cosines and their scores."""
        return "spearmanr"

    def usual_metric(self, labels: Labels) -> str:
        """Spearman's correlation for pairs, nDCG at 10 for queries."""
        return self.fitting(labels)[0].name

    def _scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        p, y = np.asarray(predictions), np.asarray(labels)
        if metric != "spearmanr":
            return share(self.row_scores(metric, p, y))
        if p.ndim != len(("row", "text", "dimension")) or y.ndim != 1:
            raise UsageError(self._misfit(metric, "two texts and a score a row"))
        return spearman(neighbours.cosines(p[:, 0], p[:, 1]), y)

    def row_scores(self, metric: str, predictions: Predictions, labels: Predictions) -> Floats:
        """The score of each query; for agreement, each row's share of kept neighbours."""
        p, y = np.asarray(predictions), np.asarray(labels)
        if metric == AGREEMENT:
            return self._agreement(p, y)
        found = _AT.fullmatch(metric)
        if found is None or p.dtype.kind != "i" or y.shape[-1:] != (2,):
            raise UsageError(
                self._misfit(metric, "queries.jsonl, corpus.jsonl and judgements (qrels)")
            )
        score = neighbours.ndcg if found[1] == "ndcg" else neighbours.recall
        return score(p, y, int(found[2]))

    def _agreement(self, found: NDArray[Any], dense: NDArray[Any]) -> Floats:
        if found.dtype.kind == "i":
            return neighbours.kept(dense[:, :NEIGHBOURS], found[:, :NEIGHBOURS])
        lists = [
            neighbours.neighbours(x.reshape(-1, x.shape[-1]), NEIGHBOURS)
            for x in (dense, found)
        ]
        each = neighbours.kept(*lists)
        return np.asarray(each.reshape(len(found), -1).mean(1))

    @staticmethod
    def _misfit(metric: str, needs: str) -> str:
        return (
            f"metric '{metric}' needs {needs}, which this data does not have\n"
            "leave --metric out: it is chosen by the data"
        )

    def worst_case(
        self,
        metric: str,
        dense: Predictions,
        optimised: Predictions,
        labels: Predictions,
        extra: float,
    ) -> WorstCase:
        """Adds copies of the pairs, with optimised cosines that are mirrored at their mean."""
        del metric
        p, q, y = (np.asarray(x) for x in (dense, optimised, labels))
        weights = np.concatenate([np.ones(len(y)), np.full(len(y), extra / len(y))])[None]
        lost = q
        if q.ndim > 2 and q.shape[-1] > 1:
            cosine = neighbours.cosines(q[:, 0], q[:, 1])
            mirrored = np.clip(2 * cosine.mean() - cosine, -1.0, 1.0)
            lost = np.zeros_like(q)
            lost[:, 0, 0], lost[:, 1, 0] = 1.0, mirrored
            lost[:, 1, 1] = np.sqrt(1 - mirrored**2)
        return WorstCase(
            np.concatenate([p, p]), np.concatenate([q, lost]), np.tile(y, 2), weights
        )

    def best_constant(self, metric: str, truth: Predictions) -> ConstantAnswer:
        """The same vector for every text. All texts are then equally similar."""
        if metric == "spearmanr":
            return ConstantAnswer("one vector", 0.0)
        y = np.asarray(truth)
        if y.dtype.kind == "f":
            constant = np.ones_like(y)
        else:
            most = MOST_FOUND if y.ndim > 2 else y.shape[1]
            constant = np.tile(np.arange(most), (len(y), 1))
        return ConstantAnswer("one vector", self.score(metric, constant, truth))

    def other_answers(self, found: Predictions, certified: Predictions) -> tuple[int, int]:
        """Number of changed answers, and number of all answers.

        A vector is changed if its cosine with the certified one is below `SAME_COSINE`. A
        query is changed if it loses at least two of its ten documents.
        """
        p, y = np.asarray(found), np.asarray(certified)
        if p.dtype.kind == "i":
            other = self._agreement(p, y) < 1 - 1.5 / NEIGHBOURS
        else:
            other = neighbours.cosines(p, y) < SAME_COSINE
        return int(other.sum()), int(other.size)

    def mean_cosine(self, dense: Predictions, optimised: Predictions) -> float | None:
        """Mean cosine between the vectors of the optimised and of the given model."""
        p, q = np.asarray(dense), np.asarray(optimised)
        return None if p.dtype.kind == "i" else float(neighbours.cosines(p, q).mean())

    def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean of 1 - cosine, plus the squared errors of cosines between rows of the batch."""
        del temperature
        s, t = F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1)
        apart = (1 - (s * t).sum(-1)).mean()
        pairs = max(1, len(s) * (len(s) - 1))
        return apart + SIMILARITIES * (s @ s.T - t @ t.T).square().sum() / pairs

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Loss 0 and 0 labels: labels belong to pairs, but texts are run one by one."""
        del labels
        return logits.sum() * 0.0, 0

    def fisher_scalars(
        self, logits: Tensor, weight: Tensor, random: torch.Generator
    ) -> list[Tensor]:
        """Random projections of the unit vectors.

        For a vector and a slightly changed copy, 1 - cosine is half of the squared distance
        between their unit vectors u. With a random direction g of unit variance, the mean of
        (d g.u / dz)^2 is |du / dz|^2. So removing a unit adds about half of the unit's
        importance to 1 - cosine.
        """
        units = F.normalize(logits, dim=-1)
        shape = (DRAWS, *units.shape)
        directions = torch.randn(shape, generator=random).to(units) / math.sqrt(DRAWS)
        return [((units * g).sum(-1) * weight).sum() for g in directions]

    def same_answers(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
        """True for vectors with a cosine of at least `SAME_COSINE`, [N]."""
        return np.asarray(neighbours.cosines(one, other) >= SAME_COSINE)
