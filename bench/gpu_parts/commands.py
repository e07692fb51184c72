"""Parts b and c: run commands of prumux in other processes, each within its time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.shapes import SHAPES
from prumux.optimizer.base.errors import MissingError
from prumux.optimizer.pipeline.registry import parse_target

from .work import Facts, Work, say

BENCH = "prumux.export.benchmark.cli"
OPT = "prumux.optimizer.cli.opt"
TARGETS = {
    "cuda": {
        "rtx": "tensorrt{flavor=rtx}",
        "ort-cuda": "onnx{device=cuda}",
        "tensorrt": "tensorrt{flavor=tensorrt}",
    },
    "cpu": {"ort-cpu": "onnx"},
}
"""Targets by device, the preferred target first."""
KEPT = ("report.json", "trials.jsonl")
"""Files of a result to keep. Engines and weights are too large."""
GRACE_S = 45.0
"""Seconds by which a command may exceed its time limit, for export and timing."""
BUDGETS = ("2%", "5%")


class OverTimeError(Exception):
    """A command has exceeded its time limit."""


def here(device: str) -> dict[str, str]:
    """The targets that run on this machine, the preferred target first."""
    found = {}
    for name, text in TARGETS[device].items():
        try:
            parse_target(text).check()
        except MissingError:
            continue
        found[name] = text
    return found


def call(module: str, arguments: Sequence[str], seconds: float, log: Path) -> int:
    """Run a command of prumux and return its exit code. Its messages are written to `log`.

    Raises:
        OverTimeError: the command exceeded its time and was stopped as by Ctrl-C.
    """
    command = [sys.executable, "-m", module, *arguments]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            _stop(process)
            raise OverTimeError(f"stopped after {seconds:.0f} s") from None
        except BaseException:
            _stop(process)
            raise


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started, and its children."""
    for how in (signal.SIGINT, signal.SIGKILL):
        os.killpg(process.pid, how)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
        return


def last_lines(log: Path) -> str:
    """The end of a command's messages."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-2:])[:300]


def config_of(shape: str) -> Facts:
    """A Hugging Face config for a shape."""
    layers, heads, hidden, ffn, vocab = SHAPES[shape]
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


@dataclass(frozen=True)
class Costs:
    """Part b: cost tables of this device, for `prumux-opt --costs`."""

    device: str
    shapes: tuple[str, ...]
    batch: int
    length: int
    rounds: int = 5

    def run(self, work: Work) -> None:
        """Measure the costs of each target, first for single rows, then for mixed rows."""
        for mix in ("none", "2,5,10"):
            for shape in self.shapes:
                for name, target in here(self.device).items():
                    stored = f"b-{shape}-{name}-{'single' if mix == 'none' else 'mixed'}"
                    made = _Measured(self, work, shape, target, mix, stored)
                    if not work.attempt(stored, made.costs):
                        say("part b: the time is over")
                        return


@dataclass(frozen=True)
class _Measured:
    part: Costs
    work: Work
    shape: str
    target: str
    mix: str
    name: str

    def costs(self) -> Facts:
        """Write the costs file, and return its main figures."""
        file = self.work.folder / f"costs-{self.name[2:]}.json"
        log = self.work.folder / f"log-{self.name}.txt"
        with tempfile.TemporaryDirectory() as folder:
            config = json.dumps(config_of(self.shape))
            (Path(folder) / "config.json").write_text(config, encoding="utf-8")
            arguments = [
                *("--measure-costs", str(file), folder, "--target", self.target),
                *("--mix", self.mix, "--rounds", str(self.part.rounds), "--batch"),
                *(str(self.part.batch), "--length", str(self.part.length)),
                *("--device", self.part.device),
            ]
            try:
                code = call(BENCH, arguments, self.work.left_s, log)
            except OverTimeError as error:
                return {"unfinished": True, "failed": f"{error}; run it again, with more time"}
        found = {
            "shape": self.shape,
            "target": self.target,
            "mix": self.mix,
            "exit_code": code,
        }
        if code:
            return {**found, "failed": f"exit {code}: {last_lines(log)}"}
        targets = json.loads(file.read_text(encoding="utf-8"))["targets"]
        short = {
            k: {"dense_ms": x["single"]["dense_ms"], "error": x["single"]["error"]}
            for k, x in targets.items()
        }
        serving = {"batch": self.part.batch, "length": self.part.length}
        return {**found, **serving, "file": file.name, "targets": short}


@dataclass(frozen=True)
class Budgets:
    """Part c: complete runs with a budget, with training on the device."""

    device: str
    model: str
    data: str
    seconds: float
    """Seconds for both runs together."""
    scratch: Path
    """Folder of engines and weights. They are too large for the work folder."""
    effort: str = "standard"

    def run(self, work: Work) -> None:
        """Run each budget. A later call continues an interrupted run."""
        targets = here(self.device)
        if not targets:
            work.keep("c-none", {"failed": "no engine runs here"})
            return
        name, target = next(iter(targets.items()))
        for budget in BUDGETS:
            stored = f"c-{budget.rstrip('%')}-{name}"
            if not work.attempt(stored, partial(self.made, work, budget, target, stored)):
                say("part c: the time is over")
                return

    def made(self, work: Work, budget: str, target: str, name: str) -> Facts:
        """Run one budget, and return its main figures."""
        out, log = self.scratch / name, work.folder / f"log-{name}.txt"
        limit = max(5, round(self.seconds / len(BUDGETS)))
        try:
            code = call(
                OPT,
                [
                    *(self.model, "--data", self.data, "--budget", budget, "--target", target),
                    *("--effort", self.effort, "--time-limit", f"{limit}s", "--resume"),
                    *("--device", self.device, "--out", str(out), "--no-keep-answers"),
                ],
                min(limit + GRACE_S, work.left_s),
                log,
            )
        except OverTimeError as error:
            return {"budget": budget, "unfinished": True, "failed": f"{error}; run it again"}
        found: Facts = {
            "budget": budget,
            "target": target,
            "exit_code": code,
            "limit_s": limit,
        }
        if not (out / "report.json").exists():
            return {**found, "failed": f"exit {code}: {last_lines(log)}"}
        for file in KEPT:
            if (out / file).exists():
                shutil.copyfile(out / file, work.folder / f"report-{name}-{file}")
        return {
            **found,
            **short(json.loads((out / "report.json").read_text(encoding="utf-8"))),
        }


def short(report: dict[str, Any]) -> Facts:
    """Select the figures of a report that the table shows."""
    certify, test = report["scores"]["certify"], report["scores"].get("test")
    speed = report["speed"]
    return {
        "met": report["met"],
        "pipeline": report["pipeline"],
        "metric": report["metric"],
        "score_dense": certify["score_dense"],
        "loss": certify["loss"],
        "loss_upper": certify["loss_upper"],
        "test_loss": None if test is None else test["loss"],
        "throughput_ratio": report["throughput_ratio"],
        "rows_per_second": speed["optimised"]["rows_per_second"],
        "rows_per_second_dense": speed["dense"]["rows_per_second"],
        "serving": report["serving"],
    }
