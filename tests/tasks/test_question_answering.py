"""Question answering: SQuAD's scores, spans, labels of tokens, losses, and reading answers."""

from __future__ import annotations

from itertools import product
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import DataError, ModelError, UsageError
from prumux.optimizer.certificate.betting import betting_upper
from prumux.optimizer.certificate.certificate import certify
from prumux.optimizer.certificate.confidence_bounds import (
    accuracy_upper,
    clopper_pearson_upper,
)
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.fisher import DRAWS
from prumux.optimizer.tasks.labels import IGNORE
from prumux.optimizer.tasks.layout import (
    LONGEST_ANSWER,
    Layout,
    Windows,
    best_span,
    token_labels,
)
from prumux.optimizer.tasks.metrics import AGREEMENT
from prumux.optimizer.tasks.question_answering import QuestionAnswering
from prumux.optimizer.tasks.registry import from_config
from prumux.optimizer.tasks.squad import (
    NO_ANSWER,
    FoundAnswer,
    as_numbers,
    from_numbers,
    normalised,
    read_answers,
)

TASK = QuestionAnswering(("start", "end"))


def fail(row: int | None, text: str) -> NoReturn:
    raise DataError(f"row {row}: {text}")


def answer(*texts: str) -> Any:
    """Right answers with these texts, or a prediction."""
    return as_numbers(
        [FoundAnswer(0, len(x), normalised(x)) if x else NO_ANSWER for x in texts]
    )


# SQuAD's scores ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Norman Conquest.", "norman conquest"),
        ("A theory, an ant & the theatre", "theory ant theatre"),
        ("U.S.A.", "usa"),
        ("twenty-one", "twentyone"),
        ("the", ""),
        ("Élan", "élan"),
        ("\u00a7 1 \u2013 2", "\u00a7 1 \u2013 2"),
    ],
)
def test_normalised_as_the_official_script_does(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("found", "aims", "em", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        ("the Denver Broncos!", ["denver broncos"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),
        ("in the year 1066", ["1066"], 0, 0.5),
        ("1066", ["in 1066", "1066"], 1, 1),
        ("a b b c", ["b b d"], 0, 2 * 2 / (3 + 3)),
        ("Santa Clara", ["Levi's Stadium", "Santa Clara, California"], 0, 0.8),
        ("Paris", ["London"], 0, 0),
        ("", [""], 1, 1),
        ("Paris", [""], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", ["Paris"], 0, 0),
        ("the", ["a"], 1, 1),
        ("", ["the", "Paris"], 0, 0),
    ],
)
def test_exact_match_and_f1(found: str, aims: list[str], em: float, f1: float) -> None:
    predictions, labels = (answer(found),), (answer(*aims),)
    assert TASK.score("em", predictions, labels) == em
    assert TASK.score("f1", predictions, labels) == pytest.approx(f1)
    assert TASK.right_rows(predictions, labels).tolist() == [bool(em)]


def test_scores_are_means_over_questions() -> None:
    predictions = answer("x y"), answer("z"), answer("")
    labels = answer("x y"), answer("z w"), answer("v")
    assert TASK.score("em", predictions, labels) == pytest.approx(1 / 3)
    assert TASK.score("f1", predictions, labels) == pytest.approx((1 + 2 / 3) / 3)
    weights = np.array([[2.0, 1.0, 0.0]])
    assert TASK.scorer("em", predictions, labels)(weights) == pytest.approx([2 / 3])
    assert TASK.metrics[0].statistic == "paired"
    assert TASK.default_metric == "f1"
    assert TASK.chance("f1") == 0


@given(st.lists(st.tuples(st.integers(-1, 99), st.integers(-1, 99), st.text()), min_size=1))
def test_numbers_hold_answers(answers: list[tuple[int, int, str]]) -> None:
    given = [FoundAnswer(*x) for x in answers]
    assert from_numbers(as_numbers(given)) == given


def test_the_constant_answer_is_none() -> None:
    labels = answer("x"), answer(""), answer("y"), answer("")
    found = TASK.best_constant("em", labels)
    assert found.score == 0.5
    assert found.answer == "nothing"
    worst = TASK.worst_case("f1", labels, labels, labels, 2.0)
    assert TASK.scorer("em", worst.dense, worst.labels)(worst.weights)[0] == 1
    # Four questions, and two more that the optimised model answers wrongly.
    assert TASK.scorer("em", worst.optimised, worst.labels)(worst.weights)[0] == (
        pytest.approx(4 / 6)
    )
    other = (labels[0], answer("x"), *labels[2:])
    assert TASK.other_answers(other, labels) == (1, 4)


def test_certified_by_question() -> None:
    random = np.random.default_rng(0)
    labels = tuple(answer("x y") for _ in range(200))
    dense = tuple(answer(random.choice(["x y", "x", "z"], p=[0.8, 0.1, 0.1])) for _ in labels)
    found = tuple(x if random.random() < 0.9 else answer("x") for x in dense)
    pairs = [[TASK.row_scores(m, x, labels) for x in (dense, found)] for m in ("em", "f1")]
    worse = int((pairs[0][0] > pairs[0][1]).sum())
    better = int((pairs[0][0] < pairs[0][1]).sum())
    em = certify("em", dense, found, labels, TASK, 0.5)
    assert em.loss_upper == accuracy_upper(200, worse, better, 0.95)
    f1 = certify("f1", dense, found, labels, TASK, 0.5)
    assert (f1.rows, f1.method) == (200, "betting")
    assert f1.loss_upper == betting_upper(pairs[1][0] - pairs[1][1], 0.95, -1.0, 1.0)
    kept = certify(AGREEMENT, dense, found, None, TASK, 0.5)
    changed = int((~TASK.right_rows(found, dense)).sum())
    assert kept.loss_upper == clopper_pearson_upper(200, changed, 0.95)


# Spans -------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), tokens=st.integers(1, 80))
def test_best_span_is_the_best_of_all(seed: int, tokens: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(tokens, 2)).astype(np.float32)
    counted = random.random(tokens) < 0.7
    counted[0] = True
    inside = [i for i in range(1, tokens) if counted[i]]
    spans = [(i, j) for i, j in product(inside, inside) if 0 <= j - i < LONGEST_ANSWER]
    total, first, last, empty = best_span(logits, counted)
    assert empty == pytest.approx(float(logits[0, 0]) + float(logits[0, 1]))
    if not spans:
        assert total < -1e8
        return
    sums = {(i, j): float(logits[i, 0]) + float(logits[j, 1]) for i, j in spans}
    assert total == pytest.approx(max(sums.values()))
    assert sums[int(first), int(last)] == pytest.approx(total)


CONTEXT = "Ann met Bob in  Paris."
SPANS = np.array(
    [(0, 0), (0, 2), (0, 0), (0, 3), (4, 7), (8, 11), (12, 14), (15, 21), (21, 22), (0, 0)],
    np.int32,
)
"""[CLS], one token of the question, [SEP], six of the context, [SEP]."""
INSIDE = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0], np.bool_)


def peaks(*at: tuple[int, int, float]) -> Any:
    """Logits of a window that are high at some tokens: (token, column, logit)."""
    logits = np.zeros((len(SPANS), 2), np.float32)
    for token, column, value in at:
        logits[token, column] = value
    return logits


def layout(windows: int = 1) -> Layout:
    tokens = token_labels(SPANS, INSIDE, None)
    return Layout(
        "windows",
        1,
        windows=Windows(
            (CONTEXT,), np.zeros(windows, np.int64), (tokens,) * windows, (SPANS,) * windows
        ),
    )


@pytest.mark.parametrize(
    ("answer", "first", "last"),
    [
        ((0, 3), 3, 3),
        ((4, 11), 4, 5),
        ((5, 6), 4, 4),
        ((16, 21), 7, 7),
        ((0, 22), 3, 8),
        ((-1, -1), 0, 0),
        ((20, 30), 0, 0),
    ],
)
def test_labels_of_tokens(answer: tuple[int, int], first: int, last: int) -> None:
    labels = token_labels(SPANS, INSIDE, answer)
    assert labels[~INSIDE].tolist() == [labels[0], *[IGNORE] * 3]
    marks = np.maximum(labels, 0)
    assert np.flatnonzero(marks & 1).tolist() == [first]
    assert np.flatnonzero(marks & 2).tolist() == [last]


def test_a_window_that_cuts_the_answer_does_not_hold_it() -> None:
    for cut in (INSIDE & (np.arange(10) < 7), INSIDE & (np.arange(10) > 5)):
        labels = token_labels(SPANS, cut, (8, 21))
        assert labels[0] == 3
        assert set(labels[1:].tolist()) == {IGNORE, 0}
    assert token_labels(SPANS, INSIDE, None)[INSIDE].tolist() == [0] * 6


def test_answers_come_from_the_best_window() -> None:
    one = peaks((3, 0, 5.0), (3, 1, 1.0), (1, 0, 99.0), (0, 0, 9.0))
    two = peaks((5, 0, 4.0), (7, 1, 4.0), (9, 1, 30.0), (1, 1, 30.0))
    windows = layout(2)
    assert windows.windows is not None
    best = TASK.predictions([one, two], windows.windows.tokens)
    assert from_numbers(TASK.arranged(best, windows)[0]) == [
        FoundAnswer(8, 21, "bob in paris")
    ]
    [shown] = TASK.span_answers([one, two], windows)
    assert (shown.answer, shown.start, shown.end) == ("Bob in  Paris", 8, 21)


def test_scores_are_probabilities_within_the_window() -> None:
    logits = peaks((5, 0, 2.0), (7, 1, 3.0), (1, 0, 50.0), (9, 1, 50.0))
    [found] = TASK.span_answers([logits], layout())
    start = np.exp(2.0) / (np.exp(2.0) + 6)  # six other tokens: five of the context and [CLS]
    end = np.exp(3.0) / (np.exp(3.0) + 6)
    assert found.answer == "Bob in  Paris"
    assert found.score == pytest.approx(start * end)


def test_no_answer_only_where_there_may_be_none() -> None:
    sure = peaks((0, 0, 9.0), (0, 1, 9.0), (3, 0, 1.0), (3, 1, 1.0))
    unsure = peaks((3, 0, 1.0), (3, 1, 1.5))
    lacking = QuestionAnswering(TASK.labels, may_lack_answers=True)
    assert TASK.span_answers([sure], layout())[0].answer == "Ann"
    [none] = lacking.span_answers([sure], layout())
    assert (none.answer, none.start, none.end) == ("", 0, 0)
    assert none.score == pytest.approx((np.exp(9.0) / (np.exp(9.0) + np.exp(1.0) + 5)) ** 2)
    # The least sum of position 0 counts: one window that is unsure is enough for an answer.
    assert lacking.span_answers([sure, unsure], layout(2))[0].answer == "Ann"
    best = lacking.predictions([sure], [token_labels(SPANS, INSIDE, None)])
    assert from_numbers(lacking.arranged(best, layout())[0]) == [NO_ANSWER]


def test_labels_say_whether_answers_may_be_missing() -> None:
    labels = answer("x"), answer("")
    assert TASK.on_labels([labels[:1], None]) == TASK
    assert TASK.on_labels([labels[:1], labels]).may_lack_answers
    assert QuestionAnswering(TASK.labels, True).on_labels([labels[:1]]).may_lack_answers


# Reading -----------------------------------------------------------------------------------


def read(*values: Any, contexts: list[str] | None = None) -> list[list[FoundAnswer]]:
    words: Any = contexts or [CONTEXT] * len(values)
    return [from_numbers(x) for x in TASK.read_labels(values, words, fail)]


def test_answers_of_hub_and_of_squads_own_files() -> None:
    hub = {"text": ["Bob", "met Bob"], "answer_start": [8, 4]}
    own = [{"text": "Bob", "answer_start": 8}, {"text": "met Bob", "answer_start": 4}]
    expected = [FoundAnswer(8, 11, "bob"), FoundAnswer(4, 11, "met bob")]
    assert read(hub, own, {"text": "Bob", "answer_start": 8}) == [
        expected,
        expected,
        expected[:1],
    ]
    assert read({"text": [], "answer_start": []}, []) == [[NO_ANSWER]] * 2
    assert read({"text": "Bob", "answer_start": 8.0}) == [expected[:1]]
    # White space around an answer is no part of it.
    assert read({"text": [" in "], "answer_start": [11]}) == [[FoundAnswer(12, 14, "in")]]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("Bob", r"row 0: the answers are 'Bob', not .*use jsonl"),
        ({"text": ["Bob"]}, "row 0: the answers are .*: write one whole number for each text"),
        ({"text": ["Bob"], "answer_start": [8.5]}, "write one whole number for each text"),
        ({"text": ["Ann\n"], "answer_start": [9]}, r"row 0: 'Ann\\n' does not stand"),
        ({"text": ["Bob"], "answer_start": []}, "row 0: the answers are"),
        ({"text": ["Bob"], "answer_start": ["8"]}, "row 0: the answers are"),
        ({"text": [8], "answer_start": [8]}, "row 0: the answers are"),
        ({"text": ["Bob"], "answer_start": [9]}, "row 0: 'Bob' does not stand at .* 9 of"),
        ({"text": ["Bob"], "answer_start": [-1]}, "answer_start -1 of a context of 22"),
        ({"text": ["Bob"], "answer_start": [400]}, "answer_start 400"),
        ({"text": [""], "answer_start": [0]}, "'' does not stand"),
    ],
)
def test_bad_answers_are_refused(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(value)
    if isinstance(value, dict) and read_answers(value):
        with pytest.raises(DataError, match="2 rows are like this\ncount characters"):
            read({"text": ["Bob"], "answer_start": [8]}, value, value)


def test_the_task_of_a_config() -> None:
    config: dict[str, Any] = {"architectures": ["BertForQuestionAnswering"]}
    assert from_config(config) == TASK
    block = {"may_lack_answers": True, "stride": 64}
    task = from_config(config | {"question_answering": block})
    assert task == QuestionAnswering(TASK.labels, True, 64)
    assert task.to_config() == {"question_answering": block}
    with pytest.raises(ModelError, match="with 3 labels"):
        from_config(config | {"num_labels": 3})
    for wrong in ({"stride": -1}, {"stride": True}, {"may_lack_answers": 1}):
        with pytest.raises(ModelError, match="question_answering is"):
            from_config(config | {"question_answering": wrong})
    assert TASK.with_stride(32).shared_tokens == 32
    with pytest.raises(UsageError, match="--stride 32 is for question answering"):
        Classification(("a", "b")).with_stride(32)
    with pytest.raises(UsageError, match=r"predict\(\["):
        TASK.answers([])


# Training, importance and parity -----------------------------------------------------------


def windows_of_tokens(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [3, 8, 2], labels [3, 8] and real tokens; the last row has padding."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 8, 2, generator=random)
    labels = torch.full((3, 8), IGNORE)
    labels[:, 0] = 0
    labels[:, 3:6] = 0
    labels[0, 3] += 1
    labels[0, 5] += 2
    labels[1, 0] = 3
    real = torch.ones(3, 8, dtype=torch.bool)
    real[2, 6:] = False
    return logits, labels, real


def test_only_tokens_of_the_context_count() -> None:
    logits, labels, real = windows_of_tokens(0)
    counted = TASK.counted(real, labels.numpy())
    assert counted.tolist() == (labels != IGNORE).tolist()
    assert TASK.counted(real, None) is real
    bare = torch.full_like(labels, IGNORE)
    assert torch.equal(TASK.counted(real, bare), real)
    other = torch.where(counted[..., None], logits, logits + 5.0)
    assert TASK.position_loss(other, logits, counted, 2.0)[0] == pytest.approx(0.0, abs=1e-6)
    moved = logits.clone()
    moved[0, 4, 1] += 1.0
    loss, count = TASK.position_loss(moved, logits, counted, 1.0)
    aim, got = (x[0, counted[0], 1].log_softmax(0) for x in (logits, moved))
    assert count == 3
    assert float(loss) == pytest.approx(float((aim.exp() * (aim - got)).sum()) / 3, abs=1e-6)


def test_label_loss_is_the_cross_entropy_of_start_and_end() -> None:
    logits, labels, _ = windows_of_tokens(1)
    loss, count = TASK.label_loss(logits, labels)
    kept = [0, 3, 4, 5]
    scores = logits[:2, kept].log_softmax(1)  # the third window has no label
    aims = [(0, 1, 0), (0, 3, 1), (1, 0, 0), (1, 0, 1)]
    expected = -sum(float(scores[row, at, column]) for row, at, column in aims) / 4
    assert count == 2
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    assert TASK.label_loss(logits[2:], labels[2:])[1] == 0
    logits.requires_grad_()
    TASK.label_loss(logits, labels)[0].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[0, [1, 2, 6, 7]].any()


def test_fisher_scalars_estimate_the_information_of_start_and_end() -> None:
    logits, labels, real = windows_of_tokens(2)
    logits.requires_grad_()
    counted = TASK.counted(real, labels)
    random = torch.Generator().manual_seed(0)
    total = torch.zeros(3, 8, 2)
    repeats = 3000
    for _ in range(repeats):
        weight = counted * (torch.randint(0, 2, (3, 8), generator=random) * 2.0 - 1)
        scalars = TASK.fisher_scalars(logits, weight, random)
        assert len(scalars) == DRAWS
        for scalar in scalars:
            (grad,) = torch.autograd.grad(scalar, logits, retain_graph=True)
            total += grad.square()
    with torch.no_grad():
        p = logits.masked_fill(~counted[..., None], -1e9).softmax(1)
    assert torch.allclose(total / repeats, p * (1 - p), atol=0.02)


def test_parity_compares_the_span_of_each_window() -> None:
    random = np.random.default_rng(0)
    batches = [random.normal(size=(2, 5, 2)), random.normal(size=(3, 9, 2))]
    masks = [np.ones((2, 5)), np.ones((3, 9))]
    masks[0][1, 3:] = 0
    batches[0][1, 3:] = 99.0  # padding counts in no engine
    flat = TASK.answer_logits(batches, masks)
    assert flat.shape == (5, 18)
    assert flat.max() < 50
    assert TASK.same_answers(flat, flat).all()
    moved = [x.copy() for x in batches]
    moved[1][2, 4, 1] = 40.0
    same = TASK.same_answers(flat, TASK.answer_logits(moved, masks))
    assert same.tolist() == [True] * 4 + [False]
    with pytest.raises(ValueError, match="attention masks"):
        TASK.answer_logits(batches, None)
