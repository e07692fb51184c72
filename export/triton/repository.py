"""A Triton model repository around an engine, ready to serve.

Clients call one model, whatever is behind it. Where rows are not mixed that is the engine.
Where n rows are, it is a packer (`packer.py`) in front of the engine, which is then called
`NAME_engine`: Triton's own batcher would fill groups with whatever comes, of any tenant.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prumux.export.graph.graph import OUTPUT, input_names
from prumux.export.graph.graph_file import DATA
from prumux.optimizer.base.errors import ModelError, UsageError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model import row_groups as slots
from prumux.optimizer.model.ir import Encoder
from prumux.optimizer.tasks.task import Task

from . import packer
from .guide import guide
from .packer import TENANT
from .pbtxt import Word, dump

FOLDER = "triton"
NAME = "prumux"
MAX_BATCH = 64
WARM_TOKENS = 16
"""Tokens a row of the smaller warm-up run."""
BACKENDS = {".onnx": "onnxruntime", ".plan": "tensorrt"}
CHECKED = (("max_batch", 1), ("length", 1), ("delay_us", 0), ("profiles", 1))
SLOTS_FILE = "prumux_slots.py"
PACKER_INSTANCES = 2
"""One packs while the other waits for the engine."""


@dataclass(frozen=True)
class Serving:
    """How an engine is to be served."""

    name: str = NAME
    """Of the model that clients call."""
    max_batch: int = MAX_BATCH
    """Most rows of one run; whole groups of mixed rows are made of it."""
    length: int = 128
    """Tokens a row of the larger warm-up run."""
    delay_us: int = 1000
    """How long a request waits for others to share its run."""
    kind: Literal["KIND_AUTO", "KIND_CPU"] = "KIND_AUTO"
    """Where ONNX Runtime runs it: on a GPU if there is one, or never."""
    profiles: int = 1
    """How many of a plan's optimisation profiles, from the first on, take `max_batch` rows:
    Triton chooses among those that it is told, and it is told these."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise UsageError(
                f"a Triton model cannot be called '{self.name}': "
                "use letters, digits, '_', '-' and '.'"
            )
        for what, least in CHECKED:
            if getattr(self, what) < least:
                raise UsageError(f"{what} is {getattr(self, what)}: use {least} or more")


def serving_point(workload: Sequence[Batch]) -> Serving:
    """How a graph is served that takes any number of rows: warmed up at this workload."""
    rows = max(len(batch.rows) for batch in workload)
    length = max(batch.input_ids.shape[1] for batch in workload)
    return Serving(max_batch=max(MAX_BATCH, rows), length=length)


def write_bundle(
    encoder: Encoder, task: Task, engine: Path, folder: Path, serving: Serving | None = None
) -> tuple[str, ...]:
    """Write the repository into `folder`, which may exist and is replaced.

    The engine's file is linked where the file system can, so that it takes no room twice.

    Args:
        encoder: sizes of what the engine runs.
        task: names of its labels.
        engine: `model.onnx`, with `model.onnx_data` beside it if it is large, or `model.plan`.
        folder: the repository.
        serving: names, batch sizes and delays; the defaults where left out.

    Returns:
        What was written, relative to `folder`.

    Raises:
        ModelError: there is no such engine, or it is of neither kind.
    """
    serving = serving or Serving()
    backend = BACKENDS.get(engine.suffix)
    if backend is None or not engine.is_file():
        raise ModelError(f"'{engine}' is not a model.onnx or model.plan that could be served")
    shutil.rmtree(folder, ignore_errors=True)
    name = serving.name if encoder.slots == 1 else f"{serving.name}_engine"
    _engine_files(engine, folder / name)
    _write(folder / name / "config.pbtxt", engine_config(encoder, task, backend, serving))
    if encoder.slots > 1:
        _packer_files(folder / serving.name / "1")
        _write(folder / serving.name / "config.pbtxt", packer_config(encoder, task, serving))
    # Named in the output, for Triton's classification extension.
    if task.output_labels:
        lines = "".join(" ".join(x.split()) + "\n" for x in task.output_labels)
        _write(folder / serving.name / "labels.txt", lines)
    text = guide(encoder, task, serving.name, _rows(encoder, serving), backend == "tensorrt")
    _write(folder / "README.md", text)
    return tuple(sorted(str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()))


def engine_config(encoder: Encoder, task: Task, backend: str, serving: Serving) -> str:
    """`config.pbtxt` of the engine: without a tokenizer, any length."""
    alone, rows = encoder.slots == 1, _rows(encoder, serving)
    length = min(serving.length, encoder.most_tokens)
    says = ["Rows in, logits out. max_batch_size counts rows."]
    if not alone:
        says += [
            f"Mixes {encoder.slots} neighbours into one: call '{serving.name}', which fills",
            "whole groups. No dynamic batching here, on purpose: it would join requests that",
            "have nothing to do with each other, and one of a wrong size would spoil all.",
        ]
    fields: dict[str, Any] = {
        "name": serving.name if alone else f"{serving.name}_engine",
        "backend": backend,
        "default_model_filename": "model.onnx" if backend == "onnxruntime" else "model.plan",
        "max_batch_size": rows,
        "input": _inputs(encoder),
        "output": [_output(encoder, task if alone else None)],
    }
    if alone:
        fields["dynamic_batching"] = _batching(encoder, serving)
    instances = {"count": 1, "kind": Word(serving.kind)}
    if backend == "tensorrt":
        chosen = [str(i) for i in range(serving.profiles)]
        instances = {"count": 1, "kind": Word("KIND_GPU"), "profile": chosen}
    fields["instance_group"] = [instances]
    fields["model_warmup"] = [
        _warm_up(encoder, encoder.slots, min(WARM_TOKENS, length)),
        _warm_up(encoder, rows, length),
    ]
    return _text(says, fields)


def packer_config(encoder: Encoder, task: Task, serving: Serving) -> str:
    """`config.pbtxt` of the packer, which clients of a multiplexed model call."""
    rows = _rows(encoder, serving)
    says = [
        f"Fills groups of {encoder.slots} rows, of like length and of one tenant, and gives",
        "every request its own rows' logits. max_batch_size counts rows, not groups. It has",
        "no warm-up of its own: that would call the engine, which may not be loaded yet.",
    ]
    tenant = {
        "name": TENANT,
        "data_type": Word("TYPE_STRING"),
        "dims": [1],
        "optional": True,
    }
    limits = {
        "slots": encoder.slots,
        "rows": rows,
        "tokens": encoder.most_tokens,
        "vocab": encoder.vocab,
        "token_types": encoder.token_types,
        "pad_id": encoder.pad_id,
    }
    told = {"engine": f"{serving.name}_engine", **limits}
    fields: dict[str, Any] = {
        "name": serving.name,
        "backend": "python",
        "max_batch_size": rows,
        # Ragged: requests of several lengths come together, and are padded group by group.
        "input": [*({**x, "allow_ragged_batch": True} for x in _inputs(encoder)), tenant],
        "output": [_output(encoder, task)],
        "dynamic_batching": _batching(encoder, serving),
        "instance_group": [{"count": PACKER_INSTANCES, "kind": Word("KIND_CPU")}],
        "parameters": [
            {"key": key, "value": {"string_value": str(value)}} for key, value in told.items()
        ],
    }
    return _text(says, fields)


def _text(says: list[str], fields: dict[str, Any]) -> str:
    return "".join(f"# {line}\n" for line in says) + dump(fields)


def _rows(encoder: Encoder, serving: Serving) -> int:
    """Most rows of a run: whole groups."""
    return slots.batch_rows(serving.max_batch, encoder.slots)


def _batching(encoder: Encoder, serving: Serving) -> dict[str, Any]:
    rows = _rows(encoder, serving)
    preferred = sorted({slots.batch_rows(rows // 2, encoder.slots), rows})
    return {
        "preferred_batch_size": preferred,
        "max_queue_delay_microseconds": serving.delay_us,
    }


def _inputs(encoder: Encoder) -> list[dict[str, Any]]:
    """[rows, tokens] each; Triton leaves the rows out of `dims`."""
    return [
        {"name": name, "data_type": Word("TYPE_INT64"), "dims": [-1]}
        for name in input_names(encoder)
    ]


def _output(encoder: Encoder, task: Task | None) -> dict[str, Any]:
    """The logits; named by the labels where a task is given whose answer is the largest."""
    dims = [encoder.labels] if encoder.pooled else [-1, encoder.labels]
    found: dict[str, Any] = {
        "name": OUTPUT,
        "data_type": Word("TYPE_FP32"),
        "dims": dims,
    }
    if task is not None and task.output_labels:
        found["label_filename"] = "labels.txt"
    return found


def _warm_up(encoder: Encoder, rows: int, tokens: int) -> dict[str, Any]:
    zeros = {"data_type": Word("TYPE_INT64"), "dims": [tokens], "zero_data": True}
    return {
        "name": f"{rows} rows of {tokens} tokens",
        "batch_size": rows,
        "inputs": [{"key": name, "value": zeros} for name in input_names(encoder)],
    }


def _engine_files(engine: Path, folder: Path) -> None:
    place = folder / "1"
    data = engine.with_name(DATA)
    if engine.suffix == ".onnx" and data.is_file():
        place /= "model.onnx"  # a folder of this name holds a graph with its weights beside it
        _link(data, place / DATA)
    _link(engine, place / f"model{engine.suffix}")


def _packer_files(folder: Path) -> None:
    """The packer and the packing, as they are tested here, under names of their own."""
    source = Path(packer.__file__).read_text(encoding="utf-8")
    module = SLOTS_FILE.removesuffix(".py")
    _write(folder / "model.py", source.replace(f"from {slots.__name__} ", f"from {module} "))
    _write(folder / SLOTS_FILE, Path(slots.__file__).read_text(encoding="utf-8"))


def _link(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        to.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, to)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
