"""`bench/lee_texts.py`: correlation of vectors with ratings of pairs of texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prumux.optimizer.run.run import optimize
from tests.helpers.embeddings import scored_pairs, sentence_folder
from tests.helpers.scripts import script


def test_an_exact_result_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("lee_texts")
    model, result = sentence_folder(tmp_path / "model"), tmp_path / "result"
    words = ["abc", "def", "ghi", "xyz", "one", "two", "three", "four"]
    texts = [f"{a} {b}" for a in words for b in words]
    data = scored_pairs(tmp_path / "data", model)
    optimize(
        model,
        passes="pool-early",
        data=data,
        out=result,
        target="onnx{precision=fp32 fusion=none}",
    )
    ratings = np.corrcoef(module.given_vectors(str(model), texts))
    (tmp_path / "lee.cor").write_text("\n".join(texts) + "\n")
    np.savetxt(tmp_path / "similarities0-1.txt", ratings)
    out = tmp_path / "out.json"
    line = [str(tmp_path), str(model), str(result), "--out", str(out)]
    module.main(line)
    found = json.loads(out.read_text())["models"]
    assert found["given"]["loss"] == 0
    assert found["given"]["spearman"] > 0.5
    assert found["result"]["loss"] == pytest.approx(0, abs=0.1)
    assert "result" in capsys.readouterr().err
    np.savetxt(tmp_path / "similarities0-1.txt", ratings[:-1])
    with pytest.raises(SystemExit, match=r"64 texts and ratings of shape \(63, 64\)"):
        module.main(line)


def test_the_correlation_is_that_of_the_pairs() -> None:
    module = script("lee_texts")
    vectors = np.eye(3) + np.array([[0, 1, 0], [0, 0, 0.2], [0, 0, 0]])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    everything = np.arange(3)
    assert module.correlation(vectors, cosines, everything) == pytest.approx(1)
    assert module.correlation(vectors, -cosines, everything) == pytest.approx(-1)
    twice = np.array([0, 0, 1, 2])  # the pair of a text with itself does not count
    assert module.correlation(vectors, cosines, twice) == pytest.approx(1)
