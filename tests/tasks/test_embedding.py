"""The task of sentence embeddings: metrics, losses, importance, prompts."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from prumux.optimizer.base.errors import ModelError, UsageError
from prumux.optimizer.tasks import neighbours
from prumux.optimizer.tasks.embedding import SentenceEmbedding
from prumux.optimizer.tasks.layout import Layout

TASK = SentenceEmbedding(())
RANDOM = np.random.default_rng(0)


def vectors(rows: int, width: int = 6, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def judged(*rows: dict[int, int]) -> Any:
    most = max(map(len, rows))
    found = np.full((len(rows), most, 2), -1)
    for i, row in enumerate(rows):
        found[i, : len(row)] = [*row.items()]
    return found


def test_spearman_of_the_cosines_of_pairs() -> None:
    found, scores = vectors(60).reshape(30, 2, 6), RANDOM.normal(size=30)
    cosine = [1 - scipy.spatial.distance.cosine(*x) for x in found]
    expected = scipy.stats.spearmanr(cosine, scores).statistic
    assert TASK.score("spearmanr", found, scores) == pytest.approx(expected)
    assert TASK.metric("spearmanr").statistic == "bootstrap"


def test_ndcg_is_that_of_scikit_learn() -> None:
    similarity = RANDOM.normal(size=(20, 50))
    grades = RANDOM.integers(0, 4, size=(20, 50)) * (RANDOM.random((20, 50)) < 0.2)
    grades[:, 0] = 1
    labels = judged(*({int(d): int(g) for d, g in enumerate(x) if g} for x in grades))
    ranks = np.argsort(-similarity, axis=1)
    each = [
        sklearn.metrics.ndcg_score(g[None], s[None], k=10)
        for g, s in zip(grades, similarity, strict=True)
    ]
    assert TASK.row_scores("ndcg@10", ranks, labels) == pytest.approx(np.array(each))
    assert TASK.score("ndcg@10", ranks, labels) == pytest.approx(np.mean(each))


def test_recall_is_the_share_of_relevant_documents_that_are_found() -> None:
    labels = judged({3: 1, 7: 2}, {1: 1}, {9: 1, 8: 1, 2: 1})
    found = np.array([[3, 5, 7], [2, 3, 4], [2, 9, 0]])
    assert TASK.row_scores("recall@1", found, labels).tolist() == [0.5, 0.0, 1 / 3]
    assert TASK.row_scores("recall@10", found, labels).tolist() == [1.0, 0.0, 2 / 3]


def test_agreement_is_the_share_of_neighbours_that_are_kept() -> None:
    dense, other = vectors(40), vectors(40, seed=1)
    distance = sklearn.metrics.pairwise.cosine_distances
    lists = []
    for x in (dense, other):
        far = distance(x)
        np.fill_diagonal(far, np.inf)
        lists.append([{*row[:10]} for row in np.argsort(far, axis=1)])
    expected = [len(a & b) / 10 for a, b in zip(*lists, strict=True)]
    assert TASK.row_scores("agreement", other, dense) == pytest.approx(np.array(expected))
    assert TASK.score("agreement", dense, dense) == 1.0
    both = TASK.row_scores("agreement", other.reshape(20, 2, 6), dense.reshape(20, 2, 6))
    assert both == pytest.approx(np.array(expected).reshape(20, 2).mean(1))
    assert TASK.metric("agreement").statistic == "mean"


def test_agreement_of_rankings_compares_ten_documents() -> None:
    dense = np.arange(200).reshape(2, 100)
    other = dense.copy()
    other[0, :3] = [50, 51, 52]
    assert TASK.row_scores("agreement", other, dense).tolist() == [0.7, 1.0]


def test_copies_of_a_text_rank_by_number_in_every_engine() -> None:
    given = np.tile(vectors(1), (8, 1))
    noisy = given * (1 + 1e-7 * RANDOM.normal(size=(8, 1))).astype(np.float32)
    assert np.array_equal(neighbours.neighbours(given, 3), neighbours.neighbours(noisy, 3))


def test_a_query_does_not_find_itself() -> None:
    given = vectors(9)
    found = TASK.arranged(np.concatenate([given[:2], given]), Layout("queries", 2, (0, -1)))
    assert np.asarray(found).shape == (2, 8)
    assert 0 not in found[0]
    assert found[1][0] == 1


def test_documents_are_ranked_by_the_similarity_of_the_model() -> None:
    texts = np.array([[1.0, 0.0], [1.0, 0.1], [9.0, 9.0]], dtype=np.float32)
    layout = Layout("queries", 1)
    assert np.asarray(TASK.arranged(texts, layout)).tolist() == [[0, 1]]
    dot = SentenceEmbedding((), similarity="dot")
    assert np.asarray(dot.arranged(texts, layout)).tolist() == [[1, 0]]


def test_the_data_says_which_metrics_fit() -> None:
    pairs, queries = np.zeros(9), np.zeros((9, 2, 2), np.int64)
    assert TASK.usual_metric(pairs) == "spearmanr"
    assert TASK.usual_metric(queries) == "ndcg@10"
    assert [x.name for x in TASK.fitting(None)] == ["agreement"]
    assert [x.name for x in TASK.fitting(pairs)] == ["spearmanr", "agreement"]
    with pytest.raises(UsageError, match="'ndcg@10' needs queries"):
        TASK.score("ndcg@10", vectors(18).reshape(9, 2, 6), pairs)
    with pytest.raises(UsageError, match="'spearmanr' needs two texts and a score"):
        TASK.score("spearmanr", np.zeros((9, 20), np.int64), queries)


def test_one_vector_for_all_texts_is_known_as_a_constant() -> None:
    scores = RANDOM.normal(size=9)
    assert TASK.best_constant("spearmanr", scores).score == 0.0
    dense = vectors(200)
    assert TASK.best_constant("agreement", dense).score < 0.1
    rankings = judged({0: 1}, {50: 1})
    assert TASK.best_constant("recall@10", rankings).score == 0.5


def test_the_worst_case_mirrors_cosines() -> None:
    found = vectors(24).reshape(12, 2, 6)
    scores = neighbours.cosines(found[:, 0], found[:, 1])
    worst = TASK.worst_case("spearmanr", found, found, scores, 2.5)
    assert worst.weights[:, 12:].sum() == pytest.approx(2.5)
    dense, ours = (
        TASK.scorer("spearmanr", x, worst.labels)(worst.weights)
        for x in (worst.dense, worst.optimised)
    )
    assert dense[0] == pytest.approx(1.0)
    assert ours[0] < 0.9


def test_the_distillation_loss() -> None:
    a, b = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    assert float(TASK.logit_loss(a, 3 * a, 1.0)) == pytest.approx(0.0, abs=1e-6)
    turned = a @ torch.linalg.qr(torch.randn(5, 5))[0]
    # A rotation keeps the similarities in the batch, but not the vectors.
    vectors_alone = 1 - torch.nn.functional.cosine_similarity(turned, a).mean()
    assert float(TASK.logit_loss(turned, a, 1.0)) == pytest.approx(float(vectors_alone), 1e-4)
    apart = 1 - torch.nn.functional.cosine_similarity(b, a).mean()
    assert float(TASK.logit_loss(b, a, 1.0)) > float(apart)
    assert float(TASK.logit_loss(a[:1], b[:1], 1.0)) > 0
    loss, count = TASK.label_loss(a.requires_grad_(), torch.zeros(8))
    assert (float(loss.detach()), count) == (0.0, 0)


def test_importance_is_the_gradient_of_the_distance_of_vectors() -> None:
    """The mean squared gradients are those of the unit vectors: exact on average."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=random, dtype=torch.double, requires_grad=True)
    x = torch.randn(1, 3, generator=random, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda w: torch.nn.functional.normalize(x @ w.T, dim=-1)[0], weight.detach()
    )
    expected = jacobian.square().sum(0)
    total = torch.zeros_like(expected)
    for _ in range(2000):
        for scalar in TASK.fisher_scalars(x @ weight.T, torch.ones(1), random):
            total += torch.autograd.grad(scalar, weight, retain_graph=True)[0].square()
    assert torch.allclose(total / 2000, expected, rtol=0.2, atol=0.03 * float(expected.max()))


def test_the_same_answer_is_a_cosine_near_one() -> None:
    a = vectors(20)
    assert TASK.same_answers(a, 2 * a).all()
    assert TASK.other_answers(a, a + 1e-4) == (0, 20)
    b = a.copy()
    b[3] = -b[3]
    assert TASK.same_answers(a, b).sum() == 19
    assert TASK.other_answers(b, a) == (1, 20)
    ranks = np.arange(40).reshape(2, 20)
    changed = ranks.copy()
    changed[0, :2] = [90, 91]
    assert TASK.other_answers(changed, ranks) == (1, 2)
    assert TASK.mean_cosine(ranks, ranks) is None
    assert TASK.mean_cosine(a, b) == pytest.approx(0.9)


def test_prompts() -> None:
    block = {"prompts": {"query": "q: ", "passage": "p: "}, "default_prompt": None}
    task = SentenceEmbedding.of_config((), {"sentence_embedding": block})
    kinds = [task.prompted(["x"], kind)[0] for kind in ("text", "query", "document")]
    assert kinds == ["x", "q: x", "p: x"]
    assert (task.prompt(None), task.prompt("query")) == ("", "q: ")
    with pytest.raises(UsageError, match="no prompt 'other', it has query, passage"):
        task.prompt("other")
    default = block | {"default_prompt": "query"}
    task = SentenceEmbedding.of_config((), {"sentence_embedding": default})
    assert task.prompted(["x"]) == ("q: x",)
    assert SentenceEmbedding.of_config((), task.to_config()) == task


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"default_prompt": "query"}, "default prompt is 'query', the prompts are none"),
        ({"similarity": "euclidean"}, "prumux ranks by cosine or dot"),
    ],
)
def test_what_cannot_be_done(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        SentenceEmbedding.of_config((), {"sentence_embedding": block})


def test_vectors_are_no_labels() -> None:
    with pytest.raises(UsageError, match=r"call encode\(\['a text'\]\)"):
        TASK.answers(vectors(2))


def test_rankings_of_many_documents_are_those_of_a_plain_sort() -> None:
    queries, documents = vectors(7, seed=2), vectors(500, seed=3)
    found = neighbours.nearest(queries, documents, 20)
    products = queries.astype(float) @ documents.T.astype(float)
    for row, line in zip(found, products, strict=True):
        best = line[row]
        assert all(a >= b - 2e-6 for a, b in pairwise(best))
        assert best.min() >= np.sort(line)[-20] - 2e-6
