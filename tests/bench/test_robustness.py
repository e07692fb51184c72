"""bench/robustness.py: small sizes, and planted faults that it must count."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from prumux.optimizer.cli import opt
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from tests.helpers.datafiles import write
from tests.helpers.quick import IMPORTED
from tests.helpers.scripts import script

ROBUSTNESS = script("robustness")  # from here on its parts can be imported


def part(name: str) -> Any:
    """A module of `bench/robust/`."""
    return importlib.import_module(f"bench.robust.{name}")


checkpoint_damage = part("checkpoint_damage")
crossed = part("crossed")
data_damage = part("data_damage")
inputs = part("inputs")
kills = part("kills")
mutate = part("mutate")
promise = part("promise")
sandbox = part("sandbox")
steps = part("steps")
text_damage = part("text_damage")
values = part("values")
linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the watch is for Linux")


@pytest.fixture(name="bench", scope="module")
def _bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One base, made here: a forked child may only use what is imported already."""
    folder = tmp_path_factory.mktemp("mutations")
    base = inputs.make_base(folder / "bases" / "bert", "bert")
    return mutate.Bench(folder, (base,), {False: 0.0, True: 0.0})


def ran(bench: Any, command: Callable[..., int], monkeypatch: Any) -> Any:
    """What the sandbox says of a run in which `prumux-opt` does this."""
    monkeypatch.setattr(opt, "main", command)
    folder = bench.folder / "planted"
    folder.mkdir()
    try:
        return sandbox.run_command(folder, ["model"], may_write=False, limit_s=2)
    finally:
        shutil.rmtree(folder)


def _open(path: str) -> int:
    Path(path).write_text("x")
    return 2


def _hang(_: Any) -> int:
    time.sleep(60)
    return 0


def _fail(_: Any) -> int:
    raise KeyError("a bug")


def _connect(_: Any) -> int:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))
    return 0


def _start(_: Any) -> int:
    subprocess.run(["true"], check=True)
    return 0


def _die(_: Any) -> int:
    os.kill(os.getpid(), signal.SIGUSR1)
    return 0


FAULTS: dict[str, tuple[Callable[..., int], str]] = {
    "an internal error": (lambda _: 1, "ended with 1"),
    "a traceback": (_fail, "said 'Traceback (most recent call last)'"),
    "a crash": (_die, "ended with -10"),
    "a hang": (_hang, "ran longer than 2 s"),
    "a file in the current folder": (lambda _: _open("stray"), "wrote or changed: here/stray"),
    "a file at home": (lambda _: _open(os.environ["HOME"] + "/x"), "wrote or changed: home/x"),
    "a file elsewhere": (lambda _: _open("../../elsewhere"), "opened for writing: "),
    "the network": (_connect, "used the network: socket.connect"),
    "a process": (_start, "started a process: "),
}


@linux
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name: str, bench: Any, monkeypatch: Any) -> None:
    command, said = FAULTS[name]
    found = ran(bench, command, monkeypatch)
    assert any(x.startswith(said) for x in found.faults), found


@linux
def test_a_good_refusal_is_no_fault(bench: Any, monkeypatch: Any) -> None:
    def refuse(_: Any) -> int:
        print("prumux-opt: no file\ngive one")  # noqa: T201
        return 2

    found = ran(bench, refuse, monkeypatch)
    assert (found.code, found.faults) == (2, ())
    assert found.message == "prumux-opt: no file"


@linux
def test_memory_beyond_the_inputs_size_is_a_fault(bench: Any) -> None:
    tight = replace(bench, peak_mb={False: 1.0, True: 1.0})
    case = mutate.run_case(tight, 0, 1)
    assert "MiB, at most" in case.outcome.faults[-1]


@linux
def test_cases_are_stored_replayed_and_summed_up(bench: Any, tmp_path: Path) -> None:
    said: list[str] = []
    parts = tmp_path / "parts.jsonl"
    numbers = [1, 2, 5, 7, 8, 11, 13, 17]
    first = mutate.run_all(bench, 0, numbers[:4], parts, said.append)
    with parts.open("a") as file:
        file.write('{"torn')
    cases = mutate.run_all(bench, 0, numbers, parts, said.append)
    assert cases[:4] == first
    assert len(mutate.read(parts)) == len(numbers)
    assert said == [], "a case gave a fault"
    again = mutate.run_case(bench, 0, numbers[-1])
    assert (again.mutation, again.command) == (cases[-1].mutation, cases[-1].command)
    assert mutate.run_case(bench, 1, numbers[-1]).mutation != again.mutation
    planted = replace(cases[0], outcome=replace(cases[0].outcome, code=1, faults=("a bug",)))
    found = mutate.summary([planted, *cases[1:]], bench, 0)
    assert found["faults"] == 1
    assert found["exit_codes"]["1"] == 1
    assert [x["number"] for x in found["faulty"]] == [1]
    *_, total = mutate.lines(found)
    assert total.split()[-1] == "1"


def test_damage_is_the_same_for_a_seed_and_changes_something() -> None:
    data = bytes(range(256))
    made = [values.damage(Random(i), data)[0] for i in range(300)]
    assert made == [values.damage(Random(i), data)[0] for i in range(300)]
    assert sum(x != data for x in made) > 280
    trees = [
        values.change_tree(Random(i), {"a": [1, {"b": "x"}], "c": None}) for i in range(300)
    ]
    assert len({str(x) for x in trees}) > 100
    assert json.loads(values.dumps({"x": 1})) == {"x": 1}
    assert values.dumps([values.DEEP]).count("[") == 3001


@pytest.mark.parametrize("kind", data_damage.DATA)
def test_data_damage_leaves_files(kind: str, bench: Any, tmp_path: Path) -> None:
    source = bench.folder / "bases" / "bert" / "data"
    for i, path in enumerate(sorted(source.iterdir()) * 3):
        folder = tmp_path / str(i)
        folder.mkdir()
        before = {x.name: x.read_bytes() for x in path.iterdir()}
        for name, content in before.items():
            (folder / name).write_bytes(content)
        assert data_damage.DATA[kind](Random(i), folder)
        assert {x.name: x.read_bytes() for x in folder.iterdir()}


@pytest.mark.parametrize("by", ["exec", "system"])
def test_the_bomb_goes_off_where_it_is_unpickled(by: str, tmp_path: Path) -> None:
    """Else nothing would follow from a canary that is not there."""
    bomb = checkpoint_damage.Bomb(tmp_path / checkpoint_damage.CANARY, by)
    pickle.loads(pickle.dumps(bomb))
    assert (tmp_path / checkpoint_damage.CANARY).exists()


def test_sound_texts_are_sound() -> None:
    for text in text_damage.SOUND:
        assert Pipeline.space(text)
    for text in text_damage.TARGETS:
        assert parse_target(text)
    assert len({text_damage.damaged(Random(i), text_damage.SOUND[0]) for i in range(100)}) > 80


class TestCrossed:
    """A million rows, here 600."""

    def test_every_row_comes_back_to_its_caller(self, tmp_path: Path) -> None:
        pytest.importorskip("tritonclient")
        lanes = crossed.run(tmp_path, 600)
        assert len(lanes) == 3
        for x in lanes:
            faults = ("crossed", "not_answered", "groups_of_two_tenants")
            assert [x[k] for k in (*faults, "groups_too_alike_to_tell")] == [0, 0, 0, 0]
            assert x["groups"] >= 200
            assert x["largest_difference_from_torch"] < crossed.TORCH
        assert lanes[0]["runs"] < lanes[0]["calls"], "calls were run together"
        assert crossed.run(tmp_path, 600) == lanes, "stored"

    def test_crossed_and_lost_answers_are_counted(self) -> None:
        def engine(given: Any) -> Any:
            ids = np.asarray(given["input_ids"], np.float32)
            return ids[:, 2:5] / 7

        witness = crossed.Witness(engine)

        def ids(number: int) -> np.ndarray[Any, Any]:
            digits = [number // 30**i % 30 for i in range(3)]
            return np.array([1, 5 + number % 3 * (number > 30), *digits, 2], np.int64)

        def ask(call: Any) -> Any:
            numbers = [*call] + [call[-1]] * (-len(call) % crossed.SLOTS)
            rows = np.stack([ids(i) for i in numbers])
            found = witness.run({"input_ids": rows, "attention_mask": np.ones_like(rows)})
            found = found[: len(call)]
            if call[0] == 0:
                found = found[::-1]  # crossed, but for the one in the middle
            return found[:-1] if call[-1] == 99 else found

        result = crossed.lane("x", ask, witness, 100, lambda i: ids(i).tobytes())
        first = len(crossed.calls(100)[0])
        assert result["crossed"] == first - first % 2
        assert result["not_answered"] == 1
        assert result["groups_of_two_tenants"] > 0

    def test_texts_are_distinct(self) -> None:
        assert len({crossed.text(i) for i in range(50_000)}) == 50_000
        assert sum(map(len, crossed.calls(5000))) == 5000


class TestKills:
    """Kills, here two."""

    def test_a_steady_clock_knows_sizes_only(self) -> None:
        class Engine:
            sizes = "encoder{hidden=24 head_dim=6 heads=4,4 ffn=64,32}"
            slots = 1

            def describe(self) -> dict[str, str]:
                return {"precision": "fp32"}

        engine, half = Engine(), Engine()
        half.slots = 2
        done: list[int] = []
        ms = kills.steady_ms(lambda: done.append(engine.slots))
        assert ms == kills.steady_ms(lambda: done.append(engine.slots))
        assert kills.steady_ms(lambda: done.append(half.slots)) == ms / 2
        assert done == [1, 1, 2]

    def test_differences_are_named_and_times_are_none(self) -> None:
        a = {"seconds": 1, "x": [{"loss": 0.1, "seconds": 3}], "date": "today"}
        b = {"seconds": 2, "x": [{"loss": 0.1, "seconds": 4}], "date": "then"}
        assert kills.without_times(a) == kills.without_times(b)
        b["x"] = [{"loss": 0.2}]
        found = kills.differences(kills.without_times(a), kills.without_times(b))
        assert found == [".x[0].loss: 0.1, not 0.2"]

    def test_only_workers_are_killed(self) -> None:
        names = (b"ray::IDLE\x00", b"ray::work\x00", b"ray::DashboardAgent\x00", b"raylet\x00")
        assert [kills.is_worker(x) for x in names] == [True, True, False, False]

    @linux
    @pytest.mark.slow
    def test_killed_runs_give_the_result_of_quiet_ones(
        self, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(kills, "EFFORTS", {"quick": ()})
        for name in IMPORTED:  # here, so that no forked process does it again
            importlib.import_module(name)
        said: list[str] = []
        runs = kills.run(tmp_path, 2, 0, said.append)
        found = kills.summary(runs, 0)
        assert found["kills"] >= 2
        assert found["other_result"] == 0, found
        bad = replace(runs[0], differs=("pipeline",))
        assert kills.summary([bad], 0)["other_result"] == 1


class TestPromise:
    """Tasks that are made of others."""

    def test_positives_are_rare(self, tmp_path: Path) -> None:
        for split in promise.SPLITS:
            columns: dict[str, list[Any]] = {
                "text": [f"{split} {i}" for i in range(400)],
                "label": [0, 1] * 200,
            }
            write(tmp_path / "given" / f"{split}.parquet", **columns)
        for folder in ("one", "two"):
            promise.rare_positives(tmp_path / "given", tmp_path / folder)
        found = data_damage.read(tmp_path / "one" / "test.parquet")
        assert found == data_damage.read(tmp_path / "two" / "test.parquet")
        assert (found["label"].count(0), found["label"].count(1)) == (200, 11)
        assert len(set(found["text"])) == 211

    def test_classes_are_the_most_frequent_ones(self, tmp_path: Path) -> None:
        labels = [0] * 2 + [1] * 9 + [2] * 5 + [3] * 7
        for split in promise.SPLITS:
            columns: dict[str, list[Any]] = {
                "text": [f"text {x}" for x in labels],
                "label": labels,
            }
            write(tmp_path / "given" / f"{split}.parquet", **columns)
        names = {"labels": ["rare", "neutral", "some", "most"]}
        (tmp_path / "given" / "labels.json").write_text(json.dumps(names))
        folder = promise.common_classes(tmp_path / "given", tmp_path / "made", count=2)
        assert json.loads((folder / "labels.json").read_text()) == {"labels": ["most", "some"]}
        found = data_damage.read(folder / "train.parquet")
        assert found["label"] == [1] * 5 + [0] * 7
        assert found["text"] == ["text 2"] * 5 + ["text 3"] * 7

    def test_the_worst_share_is_in_the_table(self) -> None:
        cells = {
            "budget": 0.01,
            "rows": 300,
            "exact_only": 0.0,
            "cascade": 0.1,
            "refused": 0.5,
        }
        entries = [
            {**cells, "broken": x, "median_true_loss": y}
            for x, y in ((0.0, None), (0.07, 0.002))
        ]
        found = promise.lines([{"task": "x", "metric": "accuracy", "entries": entries}])
        assert "refused  50.0 %, median true loss     -" in found[0]
        assert found[-1] == "broken for at most 7.0 % of users; 5 % are allowed"


def test_steps_are_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> list[int]:
        made.append(1)
        return made

    assert steps.stored(tmp_path / "a" / "x.json", make) == [1]
    assert steps.stored(tmp_path / "a" / "x.json", make) == [1]


def test_the_script_has_the_parts_of_its_docstring() -> None:
    for name in ROBUSTNESS.PARTS:
        assert f"robustness.py {name}" in (ROBUSTNESS.__doc__ or "")
