"""Laws that every task keeps: on scores, predictions, losses and Fisher information."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.embedding import SentenceEmbedding
from prumux.optimizer.tasks.fisher import DRAWS, EXACT_CLASSES, signs
from prumux.optimizer.tasks.labels import IGNORE
from prumux.optimizer.tasks.multilabel import MultiLabel
from prumux.optimizer.tasks.prediction import Prediction, TextSpan
from prumux.optimizer.tasks.question_answering import QuestionAnswering
from prumux.optimizer.tasks.ranking import Ranking
from prumux.optimizer.tasks.registry import task_types
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.tasks.tokens import Tokens

BINARY = Classification(("no", "yes"))
FIVE = Classification(tuple("abcde"))
VALUE = Regression(("score",))
NER = Tokens(("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))
POS = Tokens(("NOUN", "VERB", "ADJ"))
TOPICS = MultiLabel(tuple("abcde"))
TWO_TOPICS = MultiLabel(("a", "b"), (0.3, 0.6))
TASKS = (BINARY, FIVE, VALUE, NER, POS, TOPICS, TWO_TOPICS)
ELSEWHERE = {Ranking, SentenceEmbedding, QuestionAnswering}
"""Rows of a ranking are no independent draws: see test_ranking.py. Embeddings are vectors, not
labels: see test_embedding.py. Answers are spans of several windows: see
test_question_answering.py."""
CASES = [(task, metric.name) for task in TASKS for metric in task.metrics]
NAMED = [f"{task.name}-{len(task.labels)}-{metric}" for task, metric in CASES]


@dataclass(frozen=True)
class Drawn:
    """Random rows of a task."""

    logits: list[Any]
    """Per row [C], or [T, C]."""
    predictions: Any
    labels: Any

    def take(self, task: Task, order: Any) -> "Drawn":
        """The rows at these indices."""
        if task.ragged:
            labels: Any = tuple(self.labels[i] for i in order)
        else:
            labels = self.labels[list(order)]
        logits = [self.logits[i] for i in order]
        return Drawn(logits, predicted(task, logits, labels), labels)


def predicted(task: Task, logits: list[Any], labels: Any) -> Any:
    return task.predictions(logits, labels if task.ragged else None)


def draw(task: Task, seed: int, rows: int = 12) -> Drawn:
    """Logits that are right more often than not."""
    rng = np.random.default_rng(seed)
    classes = len(task.labels)
    if isinstance(task, Regression):
        values = rng.normal(size=rows)
        logits = [np.array([x + 0.5 * rng.normal()]) for x in values]
        return Drawn(logits, predicted(task, logits, values), values)
    if isinstance(task, MultiLabel):
        held = (rng.random((rows, classes)) < 0.4).astype(np.int64)
        logits = [3 * y - 1.5 + rng.normal(size=classes) for y in held]
        return Drawn(logits, predicted(task, logits, held), held)
    lengths = rng.integers(1, 6, rows) if task.ragged else np.ones(rows, np.int64)
    ids = [rng.integers(classes, size=n) for n in lengths]
    logits = [rng.normal(size=(len(x), classes)) + 1.5 * np.eye(classes)[x] for x in ids]
    if not task.ragged:
        flat = np.concatenate(ids)
        single = [x[0] for x in logits]
        return Drawn(single, predicted(task, single, flat), flat)
    for x in ids:
        x[rng.random(len(x)) < 0.2] = IGNORE
    ids[0][:] = 0  # some row has a label
    labels = tuple(ids)
    return Drawn(logits, predicted(task, logits, labels), labels)


def test_every_task_is_tried() -> None:
    assert {type(x) for x in TASKS} | ELSEWHERE == set(task_types())


@pytest.mark.parametrize(("task", "metric"), CASES, ids=NAMED)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_weights_of_ones_give_the_plain_score(task: Task, metric: str, seed: int) -> None:
    rows = draw(task, seed)
    scorer = task.scorer(metric, rows.predictions, rows.labels)
    plain = task.score(metric, rows.predictions, rows.labels)
    assert -1 <= plain <= 1
    for factor in (1.0, 3.0):
        assert scorer(np.full((2, 12), factor)) == pytest.approx([plain] * 2)
    # A row of weight 0 is not there, one of weight 2 is there twice.
    weights = np.random.default_rng(seed).integers(0, 3, 12)
    weights[:2] = 1
    repeated = rows.take(task, np.repeat(np.arange(12), weights))
    assert scorer(weights[None].astype(float))[0] == pytest.approx(
        task.score(metric, repeated.predictions, repeated.labels)
    )


@pytest.mark.parametrize(("task", "metric"), CASES, ids=NAMED)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(12)))
def test_the_order_of_rows_has_no_meaning(
    task: Task, metric: str, seed: int, order: list[int]
) -> None:
    rows = draw(task, seed)
    other = rows.take(task, order)
    for i, at in enumerate(order):
        assert np.array_equal(other.predictions[i], rows.predictions[at])
    assert task.score(metric, other.predictions, other.labels) == pytest.approx(
        task.score(metric, rows.predictions, rows.labels)
    )


@pytest.mark.parametrize("task", [BINARY, FIVE, POS])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_accuracy_and_matthews_as_in_scikit_learn(task: Task, seed: int) -> None:
    rows = draw(task, seed)
    p, y = rows.predictions, rows.labels
    if task.ragged:
        flat = np.concatenate([x[x != IGNORE] for x in y])
        expected = sklearn.metrics.accuracy_score(flat, np.concatenate(p))
    else:
        expected = sklearn.metrics.accuracy_score(y, p)
        matthews = sklearn.metrics.matthews_corrcoef(y, p)
        assert task.score("matthews_correlation", p, y) == pytest.approx(matthews)
    assert task.score("accuracy", p, y) == pytest.approx(expected)


@pytest.mark.parametrize(("task", "metric"), CASES, ids=NAMED)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_a_paired_score_is_the_share_of_right_rows(task: Task, metric: str, seed: int) -> None:
    rows = draw(task, seed)
    if task.metric(metric).statistic == "paired":
        right = task.right_rows(rows.predictions, rows.labels)
        assert right.dtype == np.bool_
        score = task.score(metric, rows.predictions, rows.labels)
        assert score == pytest.approx(right.mean())
    # A model agrees with itself, whether or not its score is a share of rows.
    if not task.metric(metric).needs_labels:
        own = rows.predictions
        assert task.score(metric, own, own) == pytest.approx(1.0)


@pytest.mark.parametrize(("task", "metric"), CASES, ids=NAMED)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_the_worst_case_adds_rows_that_are_lost(task: Task, metric: str, seed: int) -> None:
    rows, extra = draw(task, seed), 2.5
    own = rows.predictions
    worst = task.worst_case(metric, own, own, rows.labels, extra)
    assert len(worst.dense) == len(worst.optimised) == len(worst.labels)
    assert worst.weights.shape[1] == len(worst.labels)
    for i in range(12):
        assert np.array_equal(worst.dense[i], own[i])
        assert np.array_equal(worst.optimised[i], own[i])
        assert np.array_equal(worst.labels[i], rows.labels[i])
    assert (worst.weights[:, :12] == 1).all()
    assert worst.weights[:, 12:].sum(1) == pytest.approx(extra)
    before = task.scorer(metric, worst.dense, worst.labels)(worst.weights)
    after = task.scorer(metric, worst.optimised, worst.labels)(worst.weights)
    if isinstance(task, Classification):
        # Only the dense model has the added rows right: as Tango's bound without a change.
        assert np.array_equal(worst.dense[12:], worst.labels[12:])
        assert not task.right_rows(worst.optimised[12:], worst.labels[12:]).any()
        if metric == "accuracy":
            assert before - after == pytest.approx(extra / (12 + extra))
    elif isinstance(task, MultiLabel):
        assert np.array_equal(worst.dense[12:], worst.labels[12:])
        assert not task.right_rows(worst.optimised[12:], worst.labels[12:]).any()
        assert (before - after > 0).any()
    elif isinstance(task, Tokens):
        kept = [y[y != IGNORE] for y in rows.labels]
        lost = worst.optimised[12:]
        if metric == "f1":
            assert all((x == task.labels.index("O")).all() for x in lost)
        else:
            assert all((x != y).all() for x, y in zip(lost, kept, strict=True))
            assert (before - after >= 0).all()
    else:
        assert worst.optimised[12:] == pytest.approx(2 * own.mean() - own)
        assert np.mean(worst.optimised) == pytest.approx(own.mean())


@pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.name}-{len(t.labels)}")
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_instability(task: Task, seed: int) -> None:
    rows, other = draw(task, seed), draw(task, seed + 1)
    same = [rows.predictions] * 3
    assert task.instability(same) == pytest.approx(0.0, abs=1e-12)
    if not task.ragged:
        drawn = [rows.predictions, other.predictions]
        assert task.instability(drawn) == pytest.approx(task.instability(drawn[::-1]))
        assert (task.instability(drawn) > 0) == (drawn[0] != drawn[1]).any()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_no_constant_answer_is_better_than_the_best(seed: int) -> None:
    for task, metric in CASES:
        rows = draw(task, seed)
        best = task.best_constant(metric, rows.labels)
        if isinstance(task, Regression):
            constants: list[Any] = [np.full(12, 0.5)]
        elif task.ragged:
            real = [int((y != IGNORE).sum()) for y in rows.labels]
            constants = [tuple(np.full(n, c) for n in real) for c in range(len(task.labels))]
        elif isinstance(task, MultiLabel):
            sets = product((0, 1), repeat=len(task.labels))
            constants = [np.tile(x, (12, 1)) for x in sets]
        else:
            constants = [np.full(12, c) for c in range(len(task.labels))]
        scores = [task.score(metric, x, rows.labels) for x in constants]
        assert best.score == pytest.approx(max(scores))
        answers = (
            {"one number"} if isinstance(task, Regression) else {*task.labels, "no label"}
        )
        assert {*best.answer.strip("'").split(", ")} <= answers


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_the_score_of_guessing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(5, size=4000)
    guess = rng.integers(5, size=4000)
    assert FIVE.score("accuracy", guess, y) == pytest.approx(FIVE.chance("accuracy"), abs=0.05)
    flat = np.split(guess, 1000), np.split(y, 1000)
    found = NER.score("accuracy", *(tuple(x) for x in flat))
    assert found == pytest.approx(NER.chance("accuracy"), abs=0.05)
    assert VALUE.chance("pearson") == 0.0


@pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.name}-{len(t.labels)}")
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_answers_are_the_predictions(task: Task, seed: int) -> None:
    rows = draw(task, seed)
    logits = rows.logits if task.ragged else np.stack(rows.logits)
    ids = task.predictions(logits)
    for found, expected in zip(task.answers(logits), ids, strict=True):
        if isinstance(task, MultiLabel):
            assert isinstance(found, Prediction)
            held = {x for x, y in zip(task.labels, expected, strict=True) if y}
            assert {*found.labels} == held
            assert [*found.labels] == sorted(held, key=lambda x: -found.scores[x])
            assert found.label == (found.labels[0] if held else None)
            assert found.score == max(found.scores.values())
            continue
        assert not isinstance(found, TextSpan)
        each = [found] if isinstance(found, Prediction) else [*found]
        for answer, value in zip(each, np.atleast_1d(expected), strict=True):
            if isinstance(task, Regression):
                assert answer == Prediction(None, float(value))
                continue
            assert answer.label == task.labels[int(value)]
            assert answer.score == max(answer.scores.values())
            assert sum(answer.scores.values()) == pytest.approx(1.0)
            assert tuple(answer.scores) == task.labels


@pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.name}-{len(t.labels)}")
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([1.0, 2.0, 5.0]))
def test_the_distillation_loss_is_a_distance(
    task: Task, seed: int, temperature: float
) -> None:
    random = torch.Generator().manual_seed(seed % 2**31)
    a, b = torch.randn(2, 6, len(task.labels), generator=random)
    assert float(task.logit_loss(a, a, temperature)) == pytest.approx(0.0, abs=1e-6)
    apart = task.logit_loss(a, b, temperature)
    assert float(apart) > 0
    each = [float(task.logit_loss(a[i : i + 1], b[i : i + 1], temperature)) for i in range(6)]
    assert float(apart) == pytest.approx(np.mean(each), rel=1e-4)
    if isinstance(task, Regression):
        assert float(apart) == pytest.approx(float((a - b).square().mean()), rel=1e-5)
    elif isinstance(task, MultiLabel):  # every label is one of two classes of its own
        p, q = (x.div(temperature).sigmoid() for x in (b, a))
        kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        assert float(apart) == pytest.approx(
            float(temperature**2 * kl.sum(-1).mean()), rel=1e-3
        )
    else:  # a constant added to all logits of a row changes no prediction
        assert float(task.logit_loss(a + 3, b, temperature)) == pytest.approx(
            float(apart), rel=1e-3, abs=1e-5
        )


@pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.name}-{len(t.labels)}")
def test_what_has_no_label_does_not_count(task: Task) -> None:
    random = torch.Generator().manual_seed(0)
    shape = (4, 3) if task.pooling == "all" else (12,)
    logits = torch.randn(*shape, len(task.labels), generator=random)
    labels: Tensor = torch.randint(len(task.labels), shape, generator=random)
    missing: Any = IGNORE
    if isinstance(task, Regression):
        labels, missing = torch.randn(shape, generator=random), float("nan")
    if isinstance(task, MultiLabel):
        labels = torch.randint(2, (12, len(task.labels)), generator=random)
    whole, count = task.label_loss(logits, labels)
    assert count == 12
    assert float(whole) > 0
    some = labels.clone()
    rest = some if isinstance(task, MultiLabel) else some.view(-1)
    rest[3:] = missing
    part, few = task.label_loss(logits, some)
    three = labels[:3] if isinstance(task, MultiLabel) else labels.flatten()[:3]
    alone, same = task.label_loss(logits.flatten(0, -2)[:3], three)
    assert few == same == 3
    assert float(part) == pytest.approx(float(alone))
    none, zero = task.label_loss(logits.requires_grad_(), torch.full_like(some, missing))
    assert (float(none.detach()), zero) == (0.0, 0)
    none.backward()  # type: ignore[no-untyped-call]  # a batch without labels still trains
    assert not logits.grad.any()  # type: ignore[union-attr]


# Fisher information of a linear model z = W x, against gradients of each class ------------


def explicit(task: Task, weight: Tensor, x: Tensor) -> Tensor:
    """sum_c p(c) (d log p(c) / dW)^2, summed over the predictions x [N, D]; [C, D]."""
    total = torch.zeros_like(weight)
    for row in x:
        z = weight @ row
        if isinstance(task, Regression):
            total += torch.autograd.grad(z[0], weight)[0].square()
            continue
        if isinstance(task, MultiLabel):
            for c in range(len(z)):
                for log_p in (F.logsigmoid(z[c]), F.logsigmoid(-z[c])):
                    grad = torch.autograd.grad(log_p, weight, retain_graph=True)[0]
                    total += log_p.exp().detach() * grad.square()
            continue
        log_p = torch.log_softmax(z, -1)
        for c in range(len(z)):
            grad = torch.autograd.grad(log_p[c], weight, retain_graph=True)[0]
            total += log_p[c].exp().detach() * grad.square()
    return total.detach()


def squared(task: Task, weight: Tensor, x: Tensor, sign: Tensor, seed: int) -> Tensor:
    """Squared gradients of the task's scalars, [C, D]."""
    random = torch.Generator().manual_seed(seed)
    scalars = task.fisher_scalars(x @ weight.T, sign, random)
    if not isinstance(task, Regression):
        assert len(scalars) == (
            len(task.labels) if len(task.labels) <= EXACT_CLASSES else DRAWS
        )
    grads = [torch.autograd.grad(s, weight, retain_graph=True)[0] for s in scalars]
    return torch.stack(grads).square().sum(0)


@pytest.mark.parametrize("task", [BINARY, VALUE, Classification(("a", "b", "c")), TWO_TOPICS])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_fisher_scalars_of_one_row_are_exact(task: Task, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(task.labels), 4, generator=random, dtype=torch.double)
    x = torch.randn(1, 4, generator=random, dtype=torch.double)
    found = squared(task, weight.requires_grad_(), x, torch.ones(1), seed)
    assert torch.allclose(found, explicit(task, weight, x))


@pytest.mark.parametrize("task", [BINARY, VALUE, POS, TWO_TOPICS])
def test_the_signs_of_positions_cancel_cross_terms(task: Task) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(len(task.labels), 4, generator=random, dtype=torch.double)
    x = torch.randn(3, 4, generator=random, dtype=torch.double)
    weight.requires_grad_()
    patterns = [torch.tensor(s, dtype=torch.double) for s in product((-1, 1), repeat=3)]
    mean = torch.stack([squared(task, weight, x, s, 0) for s in patterns]).mean(0)
    assert torch.allclose(mean, explicit(task, weight, x))
    # Without signs the cross terms stay.
    plain = squared(task, weight, x, torch.ones(3, dtype=torch.double), 0)
    assert not torch.allclose(plain, explicit(task, weight, x))


@pytest.mark.parametrize("task", [FIVE, NER, TOPICS])
def test_drawn_classes_are_right_on_average(task: Task) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=random, requires_grad=True)
    x = torch.randn(1, 3, generator=random)
    runs = [squared(task, weight, x, torch.ones(1), seed) for seed in range(1500)]
    found, expected = torch.stack(runs).mean(0), explicit(task, weight, x)
    assert torch.allclose(found, expected, rtol=0.25, atol=0.05 * float(expected.max()))


def test_signs() -> None:
    random, logits = torch.Generator().manual_seed(0), torch.zeros(64, 2)
    assert signs(logits, None, False, random).eq(1).all()
    mixed = signs(logits, None, True, random)
    assert set(mixed.tolist()) == {-1.0, 1.0}
    real = torch.rand(64, 5, generator=random) < 0.5
    found = signs(torch.zeros(64, 5, 3), real, False, random)
    assert found.abs().bool().equal(real)
    assert set(found.flatten().tolist()) == {-1.0, 0.0, 1.0}


# Parity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.name}-{len(t.labels)}")
def test_logits_that_an_answer_depends_on(task: Task) -> None:
    rng = np.random.default_rng(0)
    masks = [np.array([[1, 1, 0], [1, 0, 0]]), np.ones((1, 3), np.int64)]
    everywhere = [rng.normal(size=(*m.shape, len(task.labels))) for m in masks]
    if task.pooling == "first":
        first = [x[:, 0] for x in everywhere]
        assert task.answer_logits(first, None).shape == (3, len(task.labels))
        return
    kept = task.answer_logits(everywhere, masks)
    assert kept.shape == (6, len(task.labels))
    assert task.same_answers(kept, kept).all()
    assert task.same_answers(kept, -kept).sum() == 0
    with pytest.raises(ValueError, match="need the attention masks"):
        task.answer_logits(everywhere, None)
