"""What is said about the data: before the search, in the report, and at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import prumux
from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.cli.opt import main
from tests.helpers import jobs


def test_lines_on_the_data_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = jobs.model_folder(tmp_path / "model")
    data = jobs.data_folder(tmp_path / "data", model)
    (data / "validation.jsonl").rename(data / "eval.jsonl")
    with (data / "eval.jsonl").open("a") as file:
        file.write('{"text": " ", "label": 1}\n')
    (data / "more.csv").write_text("text,label\n")
    rows = [json.loads(x) for x in (data / "test.jsonl").read_text().splitlines()]
    bare = [json.dumps({"text": x["text"], "id": 1}) for x in rows]
    (data / "test.jsonl").write_text("\n".join(bare))
    out = tmp_path / "out"
    args = [str(model), "--data", str(data), "--out", str(out), "--passes", "pool-early"]
    assert main(args) == 0
    printed, said = capsys.readouterr()
    report = json.loads((out / "report.json").read_text())
    expected = [
        f"not used: {data}/more.csv, which has no usual name of a split",
        "test: not used, it has no labels (no column 'label' or 'labels'; "
        "its columns are: id, text)",
        f"validation: rows are skipped: 1 without text ({data}/eval.jsonl, row 601)",
    ]
    assert report["warnings"][:3] == expected
    assert "columns not used: id (test)" in report["data"]["roles"]
    page = (out / "report.html").read_text()
    for line in expected:
        assert said.count(f"warning: {line}") == 1
        assert f"warning    {line}" in printed
        assert line.replace("'", "&#39;") in page
    assert "data: columns not used: id (test)" in said


def test_train_rows_certify_only_when_asked(tmp_path: Path) -> None:
    model = jobs.model_folder(tmp_path / "model")
    train = jobs.data_folder(tmp_path / "data", model) / "train.jsonl"
    options: dict[str, Any] = {"train": train, "passes": "pool-early", "out": tmp_path / "out"}
    with pytest.raises(DataError, match="all the same: --certify-on-train"):
        prumux.optimize(model, **options)
    with pytest.raises(UsageError, match="certify_on_train is 1, it must be True or False"):
        prumux.optimize(model, **options, certify_on_train=1)
    assert not (tmp_path / "out").exists()
    found = prumux.optimize(model, **options, certify_on_train=True)
    assert found.report["warnings"][0].startswith("certified on rows of the train split")
    assert found.report["scores"]["certify"]["rows"] == 150
