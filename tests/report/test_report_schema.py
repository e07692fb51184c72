"""report.schema.json describes every report, and nothing that is in none."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from prumux.optimizer.cli.opt import main
from prumux.optimizer.report.json_schema import text
from tests.helpers import jobs
from tests.helpers.reports import KINDS, as_report, changed, recorded

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads(
    files("prumux").joinpath("report.schema.json").read_text(encoding="utf-8")
)
CHECK = Draft202012Validator(SCHEMA, format_checker=FormatChecker())
LATER = {"error"}
"""Described, and written where a trial failed."""


def wrong(report: Any) -> list[str]:
    """What does not fit, as paths and messages."""
    return [f"{list(e.absolute_path)}: {e.message}" for e in CHECK.iter_errors(report)]


def described(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside, with where it is."""
    yield path, schema
    inner = [(f"{path}/{k}", v) for k, v in schema.get("properties", {}).items()]
    inner += [(f"{path}/$defs/{k}", v) for k, v in schema.get("$defs", {}).items()]
    inner += [(f"{path}[{i}]", v) for i, v in enumerate(schema.get("oneOf", []))]
    inner += [(f"{path}[]", schema["items"])] if "items" in schema else []
    for name, value in inner:
        yield from described(value, name)


def test_the_schema_is_the_one_of_the_dataclasses() -> None:
    file = files("prumux").joinpath("report.schema.json")
    assert file.read_text(encoding="utf-8") == text(), "write it again: make schema"


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["additionalProperties"] is False


def test_every_field_is_described_with_its_unit() -> None:
    for name, value in SCHEMA["properties"].items():
        assert value["description"].endswith("."), name
    for path, value in described(SCHEMA):
        if "/" in path and not path.endswith("]"):
            assert value.get("description") or "$ref" in value, path
        words = value.get("description", "")
        name = path.rpartition("/")[2]
        for part, unit in (("seconds", "seconds"), ("_ms", "milliseconds"), ("bytes", "ytes")):
            if part in name and "per" not in name:
                assert unit in words, path
        if name.startswith(("rows_per_second", "throughput_ratio")):
            assert "rows per second" in words or "times" in words, path


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_reports_fit(kind: str) -> None:
    assert wrong(changed(kind)) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["surprise"], 1, "'surprise' was unexpected"),
        (["throughput_ratio"], "4x", "is not of type 'number'"),
        (["scores", "certify", "loss_upper"], None, "is not of type 'number'"),
        (["scores", "train"], {}, "'train' was unexpected"),
        (["speed", "dense", "latency_ms_p50"], -1, "less than or equal to the minimum"),
        (["trials", 0, "loss"], "0.1", "is not of type 'number', 'null'"),
        (["proofs", 0, "confidence"], 95, "greater than or equal to the maximum"),
        (["schema_version"], 2, "1 was expected"),
    ],
)
def test_what_does_not_fit_is_said(path: list[Any], value: Any, said: str) -> None:
    report = copy.deepcopy(recorded())
    inner = report
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert any(said in text for text in wrong(report)), wrong(report)


def test_a_field_that_is_missing_is_said() -> None:
    for name in SCHEMA["required"]:
        report = recorded()
        del report[name]
        assert wrong(report) == [f"[]: '{name}' is a required property"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a search on a tiny model."""
    here = tmp_path_factory.mktemp("job")
    model = jobs.model_folder(here / "model")
    data = jobs.data_folder(here / "data", model)
    space = "pool-early,prune{sparsity=0.1|0.3|0.9 of=macs},slice"
    args = [str(model), "--data", str(data), "--budget", "30%", "--passes", space]
    assert main([*args, "--out", str(here / "out"), "-q"]) in (0, 3)
    return here / "out"


def test_a_run_writes_what_the_schema_says(out: Path) -> None:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert wrong(report) == []
    assert report.keys() >= SCHEMA["properties"].keys()
    trial = SCHEMA["$defs"]["TrialRecord"]["properties"].keys()
    assert report["trials"][0].keys() >= trial - LATER
    assert report["task"]["labels"]
    low, high = report["scores"]["test"]["interval_dense"]
    assert low <= report["scores"]["test"]["score_dense"] <= high


def test_a_run_writes_the_page_of_its_report(out: Path) -> None:
    from prumux.optimizer.report.html import render

    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert "report.html" in report["files"]
    assert (out / "report.html").read_text(encoding="utf-8") == render(as_report(report))


def test_a_wheel_holds_schema_and_templates(tmp_path: Path) -> None:
    for name in ("optimizer", "passes", "export"):
        copytree(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    data = [x for x in (ROOT / "optimizer").rglob("*") if x.suffix in (".jinja", ".css")]
    assert len(data) == 4
    assert held >= {f"prumux/{x.relative_to(ROOT).as_posix()}" for x in data}
    assert held >= {"prumux/report.schema.json", "prumux/py.typed"}
