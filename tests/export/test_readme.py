"""The README of export/: its table of options, its figures and its Python examples."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from prumux.export.graph.parity import TOLERANCES
from prumux.export.graph.typed import CALIBRATION_ROWS
from prumux.export.onnx import Onnx
from prumux.export.runtime.fusion_choice import GAIN
from prumux.export.tensorrt import TensorRt
from prumux.optimizer.model.checkpoint.tokenizer_files import with_tokenizer
from prumux.optimizer.pipeline.registry import all_targets
from prumux.optimizer.search import precision_choice
from tests.helpers.factory import random_model, tiny_tokenizer
from tests.helpers.readme import ARTIFACT, python_blocks, run_blocks, write_artifact

FOLDER = Path(__file__).parents[2] / "export"
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_table_of_options_is_that_of_list_passes() -> None:
    expected = [
        f"| `{target.name}` | `{x.name}` | {x.type} | `{x.default}` | {x.help} |"
        for target in all_targets()
        for x in target.describe().options
    ]
    start = TEXT.index("| target | option |")
    found = TEXT[start:].split("\n\n")[0].splitlines()[2:]
    assert found == expected
    assert len(found) == 16


def test_figures_are_those_of_the_code() -> None:
    assert f"at most {100 * GAIN:.0f} % of the plain graph's time" in TEXT
    assert f"at least {precision_choice.GAIN:g} times as fast" in TEXT
    assert precision_choice.SHARE == 0.25, "a quarter of the budget"
    assert f"`atol`, {Onnx().atol:g}".replace("0.0001", "1e-4") in TEXT
    limits = ", ".join(
        f"{name} {'1e-3' if x == 1e-3 else f'{x:g}'}" for name, x in TOLERANCES.items()
    )
    assert f"as a share of the largest logit: {limits} |" in TEXT
    assert f"calibrated on {CALIBRATION_ROWS} of your rows" in TEXT
    assert TensorRt().precision == "fp16"


def test_every_folder_and_link_exists() -> None:
    named = re.findall(r"^\| `([\w./]+)` \|", TEXT.split("## The result")[0], re.MULTILINE)
    assert {x.name for x in FOLDER.iterdir() if (x / "__init__.py").exists()} == {
        x.rstrip("/") for x in named if x.endswith("/")
    }
    for name in named:
        assert (FOLDER / name).exists(), name


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_tokenizer(random_model(heads=(4, 3)), tiny_tokenizer())
    write_artifact(model, tmp_path / ARTIFACT)
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(TEXT)
    assert len(blocks) == 3
    logits = run_blocks(blocks)["logits"]
    assert isinstance(logits, np.ndarray)
    assert logits.shape == (2, 2)
