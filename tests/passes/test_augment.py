"""Made-up rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.labels import IGNORE
from prumux.optimizer.tasks.regression import Regression
from prumux.passes.training.augment import augmented
from prumux.passes.training.losses import label_error

CLASSES = Classification(("no", "yes"))
SCORES = Regression(("score",))


def coded(count: int = 200, pairs: bool = False) -> Encoded:
    random = np.random.default_rng(0)
    ids, types = [], []
    for _ in range(count):
        a = random.integers(4, 99, random.integers(1, 9)).tolist()
        b = random.integers(4, 99, 3).tolist()
        ids.append((2, *a, 3, *b, 3) if pairs else (2, *a, 3))
        types.append((0,) * (len(a) + 2) + ((1,) * 4 if pairs else ()))
    return Encoded(Ragged.of(ids), Ragged.of(types), np.arange(count) % 2, 0)


@pytest.mark.parametrize("pairs", [False, True])
def test_as_many_as_asked_after_the_real_ones(pairs: bool) -> None:
    rows = coded(pairs=pairs)
    found = augmented(rows, rows, 0.5, 0)
    assert found is augmented(rows, rows, 0.5, 0), "the same object: teachers remember by it"
    assert found.ids[:200].tolist() == rows.ids.tolist()
    assert len(found) == 300
    assert found.types is not None
    assert all(len(a) == len(b) for a, b in zip(found.ids, found.types, strict=True))
    made = list(map(tuple, found.ids[200:].tolist()))
    assert all(x[0] == 2 and x[-1] == 3 for x in made)
    assert found.lengths.max() <= rows.lengths.max()
    assert all(x.count(3) == (2 if pairs else 1) for x in made), "marks stay where they are"
    known = set(map(tuple, rows.ids.tolist()))
    assert np.mean([x in known for x in made]) < 0.5, "most are new"
    assert isinstance(found.labels, np.ndarray)
    assert (found.labels[200:] == IGNORE).all()
    assert (found.labels[:200] == rows.labels).all()


def test_texts_become_as_long_as_those_that_are_served() -> None:
    rows = coded()
    served = rows.lengths + 12
    like = Encoded(Ragged.of([2, *range(4, n + 2), 3] for n in served), None, None, 0)
    made = augmented(rows, like, 5.0, 1).lengths[200:]
    assert set(made) == set(served)
    assert abs(made.mean() - served.mean()) < 0.3
    short = augmented(rows, rows.take([int(rows.lengths.argmin())]), 1.0, 1)
    assert sorted(short.lengths[200:]) == sorted(rows.lengths), "none is cut"


def test_pairs_are_not_joined() -> None:
    rows = coded(pairs=True)
    made = augmented(rows, coded(), 1.0, 1)
    assert sorted(made.lengths[200:]) == sorted(rows.lengths)


def test_none_wanted_or_no_words_to_take() -> None:
    rows = coded()
    assert augmented(rows, rows, 0.0, 0) is rows
    bare = Encoded(Ragged.of([(2, 3)] * 10), None, None, 0)
    assert augmented(bare, bare, 1.0, 0).ids.tolist() == [[2, 3]] * 20


def test_other_kinds_of_labels() -> None:
    rows = coded(20)
    scores = Encoded(rows.ids, rows.types, np.linspace(0, 1, 20), 0)
    found = augmented(scores, rows, 1.0, 0).labels
    assert isinstance(found, np.ndarray)
    assert np.isnan(found[20:]).all()
    assert np.isfinite(found[:20]).all()
    tags = tuple(np.zeros(len(x), dtype=np.int64) for x in rows.ids)
    tagged = augmented(Encoded(rows.ids, rows.types, tags, 0), rows, 1.0, 0)
    assert isinstance(tagged.labels, tuple)
    assert [len(x) for x in tagged.labels] == tagged.lengths.tolist()
    assert all((x == IGNORE).all() for x in tagged.labels[20:])


def test_rows_without_labels_do_not_count() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    some = label_error(logits, np.array([0, 1, IGNORE]), CLASSES)
    assert float(some) == pytest.approx(
        float(label_error(logits[:2], np.array([0, 1]), CLASSES))
    )
    assert float(label_error(logits, np.full(3, IGNORE), CLASSES)) == 0.0
    scores = torch.tensor([[1.0], [2.0]])
    assert float(label_error(scores, np.array([0.0, np.nan]), SCORES)) == 1.0
    assert float(label_error(scores, np.full(2, np.nan), SCORES)) == 0.0
