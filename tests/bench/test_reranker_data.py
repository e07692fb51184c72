"""Queries with hard negatives made of articles."""

from __future__ import annotations

from tests.helpers.scripts import script


def test_negatives_are_near_and_never_the_article_itself() -> None:
    data = script("reranker_data")
    titles = [f"topic{i} of group{i // 5}" for i in range(40)]
    texts = [
        " ".join([f"topic{i} group{i // 5}", *(f"w{i}x{j}" for j in range(200))])
        for i in range(40)
    ]
    texts[7] = "too short"
    found = data.made(titles, texts, queries=30, seed=0)
    assert len(found) == 30 * (2 + data.NEGATIVES)
    assert set(found["query"]) <= set(titles) - {titles[7]}
    for query, rows in found.groupby("query"):
        i = titles.index(query)
        assert rows["label"].tolist() == [2, 1] + [0] * data.NEGATIVES
        head, middle, *others = rows["passage"]
        assert head.startswith(f"topic{i} ")
        assert middle in texts[i]
        assert not any(x.startswith(f"topic{i} ") for x in others)
        near = [x for x in others if f" group{i // 5} " in x]
        assert near == others[: len(near)]
        assert len(near) >= 3, "articles that share a word with the title come first"
