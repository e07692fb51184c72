"""Every kind of bad input: the right exit code, a short message with the remedy, no trace."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prumux.optimizer.cli.opt import main
from tests.helpers import jobs
from tests.helpers.checkpoints import config, state, write
from tests.helpers.datafiles import write as write_rows

Case = Callable[["Place"], list[str]]


class Place:
    """A good model, good data, and a folder to spoil copies of them in."""

    def __init__(self, here: Path, model: Path, data: Path) -> None:
        self.here, self.model, self.data = here, model, data
        self.out, self.marker = here / "out", here / "executed"

    def copy(self, what: Path) -> Path:
        """A copy of the model or the data that may be spoilt."""
        to = self.here / f"bad-{what.name}"
        shutil.copytree(what, to)
        return to

    def args(self, model: Path | str | None = None, *more: str) -> list[str]:
        """A command that would work with the good model and data."""
        found = [str(model or self.model), "--data", str(self.data), "--out", str(self.out)]
        budget = [] if {"--budget", "--passes"} & set(more) else ["--budget", "2%"]
        return [*found, *budget, *more]

    def rows(self, **columns: list[Any]) -> list[str]:
        """The same with another validation file."""
        file = write_rows(self.here / "rows.jsonl", **columns)
        base = [str(self.model), "--validation", str(file), "--out", str(self.out)]
        return [*base, "--budget", "2%"]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def bomb_pickle(p: Place) -> list[str]:
    torch.save({"weights": Bomb(str(p.marker))}, p.here / "bomb.pt")
    return p.args(p.here / "bomb.pt")


def bomb_raw(p: Place) -> list[str]:
    (p.here / "raw.pt").write_bytes(pickle.dumps(Bomb(str(p.marker))))
    return p.args(p.here / "raw.pt")


def json_as_weights(p: Place) -> list[str]:
    (p.here / "model.pt").write_text('{"weights": [1, 2]}')
    return p.args(p.here / "model.pt")


def labels_in_a_list(p: Place) -> list[str]:
    bad = p.copy(p.model)
    (bad / "config.json").write_text(json.dumps(jobs.CONFIG | {"id2label": ["a", "b"]}))
    return p.args(bad)


def truncated(p: Place) -> list[str]:
    bad = p.copy(p.model)
    whole = (bad / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return p.args(bad)


def wrong_shapes(p: Place) -> list[str]:
    return p.args(write(p.here / "m", config(hidden_size=24), state(config())))


def no_tokenizer(p: Place) -> list[str]:
    return p.args(write(p.here / "m", jobs.CONFIG))


def config_not_json(p: Place) -> list[str]:
    bad = p.copy(p.model)
    (bad / "config.json").write_text("{")
    return p.args(bad)


def unsupported(p: Place) -> list[str]:
    bad = p.copy(p.model)
    (bad / "config.json").write_text(json.dumps(jobs.CONFIG | {"model_type": "t5"}))
    return p.args(bad)


def remote_code(p: Place) -> list[str]:
    bad = p.copy(p.model)
    (bad / "evil.py").write_text(f"open({str(p.marker)!r}, 'w')\nclass T: pass\n")
    path = bad / "tokenizer_config.json"
    made = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    path.write_text(json.dumps(made | {"tokenizer_class": "T"}))
    (bad / "tokenizer.json").write_text("{}")
    return p.args(bad)


def weights_alone(p: Place) -> list[str]:
    torch.save(state(jobs.CONFIG), p.here / "alone.pt")
    return p.args(p.here / "alone.pt")


def not_a_state_dict(p: Place) -> list[str]:
    torch.save([1, 2, 3], p.here / "list.pt")
    return p.args(p.here / "list.pt")


def existing_out(p: Place) -> list[str]:
    p.out.mkdir()
    (p.out / "thesis.txt").write_text("mine")
    return p.args()


def out_is_a_file(p: Place) -> list[str]:
    p.out.write_text("mine")
    return p.args()


def unwritable_out(p: Place) -> list[str]:
    (p.here / "file").write_text("mine")
    return [*p.args()[:3], "--out", str(p.here / "file" / "out"), "--budget", "2%"]


def no_data(p: Place) -> list[str]:
    return [str(p.model), "--out", str(p.out), "--budget", "2%"]


def empty_file(p: Place) -> list[str]:
    (p.here / "empty.csv").write_text("")
    return [*no_data(p), "--validation", str(p.here / "empty.csv")]


def one_class(p: Place) -> list[str]:
    return p.rows(text=jobs.texts(50, 0), label=[1] * 50)


def label_out_of_range(p: Place) -> list[str]:
    return p.rows(text=jobs.texts(50, 0), label=[0, 1] * 24 + [0, 7])


def unknown_label(p: Place) -> list[str]:
    return p.rows(text=jobs.texts(50, 0), label=["good", "bad"] * 24 + ["ugly", "good"])


def too_few_rows(p: Place) -> list[str]:
    return p.rows(text=jobs.texts(6, 0), label=[0, 1] * 3)


def option(*more: str) -> Case:
    return lambda p: p.args(None, *more)


CASES: dict[str, tuple[Case, int, str]] = {
    "no model given": (lambda p: ["--budget", "2%"], 2, "no model given"),
    "missing file": (lambda p: p.args("missing.pt"), 2, "no file or folder 'missing.pt'"),
    "missing folder": (lambda p: p.args("./no/such"), 2, "no file or folder './no/such'"),
    "folder without a model": (lambda p: p.args(p.data), 2, "it has no config.json"),
    "pickled object": (bomb_pickle, 2, "it was not executed"),
    "raw pickle": (bomb_raw, 2, "raw.pt"),
    "JSON as weights": (json_as_weights, 2, "'model.pt' is JSON text, not a state dict"),
    "labels in a list": (labels_in_a_list, 2, "config.json: id2label is a list"),
    "truncated safetensors": (truncated, 2, "damaged"),
    "wrong shapes": (wrong_shapes, 2, "config.json says"),
    "no tokenizer": (no_tokenizer, 2, "no tokenizer lies beside"),
    "config is not JSON": (config_not_json, 2, "cannot be read"),
    "unsupported architecture": (unsupported, 2, "supported: albert, bert, "),
    "tokenizer with remote code": (remote_code, 2, "tokenizer"),
    "weights without config": (weights_alone, 2, "no config.json lies beside it"),
    "not a state dict": (not_a_state_dict, 2, "holds a list, not a state dict"),
    "no data": (no_data, 2, "--data"),
    "missing data folder": (option("--data", "nowhere/at/all"), 2, "nowhere/at/all"),
    "empty data file": (empty_file, 2, "empty.csv"),
    "one class only": (one_class, 2, "class"),
    "label out of range": (label_out_of_range, 2, "row 50"),
    "unknown label name": (unknown_label, 2, "ugly"),
    "too few rows": (too_few_rows, 2, "6"),
    "unknown column": (option("--columns", "text=review"), 2, "review"),
    "malformed column": (option("--columns", "review"), 2, "KEY=NAME"),
    "unknown pass": (option("--passes", "prume{sparsity=0.5}"), 2, "did you mean 'prune'?"),
    "unknown option": (
        option("--passes", "prune{sparsty=0.5}"),
        2,
        "did you mean 'sparsity'?",
    ),
    "wrong option type": (option("--passes", "prune{sparsity=much}"), 2, "sparsity"),
    "option out of range": (option("--passes", "prune{sparsity=1.5}"), 2, "[0, 1)"),
    "unclosed brace": (option("--passes", "prune{sparsity=0.5"), 2, "^"),
    "alternatives without budget": (
        option("--passes", "prune{sparsity=0.1|0.2}"),
        2,
        "budget",
    ),
    "slice forgotten": (option("--passes", "prune{sparsity=0.5}"), 2, "add slice"),
    "keeps what is not there": (
        option("--target", "onnx{precision=int8 keep=nope}", "--dry-run"),
        2,
        "keep: the model has no 'nope' that int8 would lower",
    ),
    "no kernels for it": (
        option("--target", "onnx{precision=bf16}"),
        5,
        "no bf16 kernels for CPUs",
    ),
    "unknown target": (option("--target", "onyx"), 2, "did you mean 'onnx'?"),
    "negative budget": (option("--budget", "-1%"), 2, "--budget"),
    "budget in words": (option("--budget", "abc"), 2, "'abc'"),
    "budget over 100 %": (option("--budget", "200%"), 2, "200 %"),
    "budget without unit": (option("--budget", "2"), 2, "2%"),
    "unknown metric": (option("--metric", "bleu"), 2, "accuracy"),
    "zero batch": (option("--batch", "0"), 2, "batch"),
    "length beyond the model": (option("--length", "4096"), 2, "40"),
    "bad time limit": (option("--time-limit", "soon"), 2, "30m"),
    "unknown command option": (option("--bugdet", "2%"), 2, "--bugdet"),
    "output folder of others": (existing_out, 2, "was not written by prumux"),
    "output is a file": (out_is_a_file, 2, "is a file"),
    "unwritable output": (unwritable_out, 2, "cannot be written"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    here = tmp_path_factory.mktemp("good")
    model = jobs.model_folder(here / "model")
    return model, jobs.data_folder(here / "data", model)


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str,
    good: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path, *good)
    case, code, says = CASES[name]
    arguments = case(place)
    before = snapshot(tmp_path)
    assert main(arguments) == code
    out, err = capsys.readouterr()
    message = err[err.index("prumux-opt: ") :].strip().split("\n")
    assert says in "\n".join(message)
    assert len(message) <= 5, message
    assert "Traceback" not in err
    assert out == ""
    assert not place.marker.exists(), "something in a file was executed"
    assert snapshot(tmp_path) == before, "something was written"


def snapshot(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_there_are_at_least_twenty() -> None:
    assert len(CASES) >= 20
