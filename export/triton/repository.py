"""Write a Triton model repository around an engine, ready to serve.

Clients call one model, `NAME`: a packer (`packer.py`) in front of the engine, `NAME_engine`. A
cascade of two engines has another one, `NAME_second`, for the rows that the packer defers.
The packer is needed for three reasons. Triton's own batcher only joins requests of equal
length. A bad request fails all requests of its batch. In a multiplexed engine, the batcher
would put rows of different tenants into one group.

Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from prumux.export.graph.graph import input_names, output_name
from prumux.export.graph.graph_file import DATA
from prumux.optimizer.base.errors import ModelError, UsageError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model import row_groups as slots
from prumux.optimizer.model.model import SecondStage
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.tasks.task import Task

from . import onnx_model, packer
from .guide import guide
from .packer import RUN_TOKENS, TENANT
from .pbtxt import Word, dump

FOLDER = "triton"
NAME = "prumux"
MAX_BATCH = 64
WARM_TOKENS = 16
"""Number of tokens per row of the smaller warm-up run."""
FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
"""Backends that run the engine directly, each with the name of its file."""
CHECKED = (
    *(("max_batch", 1), ("length", 1), ("delay_us", 0), ("profiles", 1)),
    *(("threads", 0), ("packers", 1)),
)
Backend = Literal["onnxruntime", "python"]
"""The backend of a graph: Triton's onnxruntime, or ONNX Runtime in a Python model."""
SLOTS_FILE = "prumux_slots.py"
PACKERS = 2
"""Number of packers: one groups rows while the other waits for the engine."""


@dataclass(frozen=True)
class Serving:
    """Options for serving an engine."""

    name: str = NAME
    """Name of the model that clients call."""
    max_batch: int = MAX_BATCH
    """Most rows of one run. For a multiplexed model it is rounded down to whole groups."""
    length: int = 128
    """Number of tokens per row of the larger warm-up run."""
    delay_us: int = 1000
    """Microseconds for which a request waits for other requests to share its run."""
    kind: Literal["KIND_AUTO", "KIND_CPU"] = "KIND_AUTO"
    """Kind of the ONNX Runtime instance: KIND_AUTO = a GPU if there is one."""
    profiles: int = 1
    """Number of a plan's optimisation profiles that accept `max_batch` rows. These are the
    first profiles of the plan. The configuration lists them, and Triton chooses one."""
    backend: Backend = "onnxruntime"
    """Triton backend of a graph. A plan always runs in Triton's tensorrt backend."""
    threads: int = 0
    """CPU threads of a graph in the Python backend; 0 = ONNX Runtime's choice."""
    packers: int = PACKERS
    """Number of processes that group rows."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise UsageError(
                f"a Triton model cannot be called '{self.name}': "
                "use letters, digits, '_', '-' and '.'"
            )
        for what, least in CHECKED:
            if getattr(self, what) < least:
                raise UsageError(f"{what} is {getattr(self, what)}: use {least} or more")


@dataclass(frozen=True, eq=False)
class SecondEngine:
    """The second engine of a cascade, and the rule that selects its rows."""

    engine: Path
    """The file, as in `write_bundle`."""
    stage: SecondStage

    @property
    def encoder(self) -> Encoder:
        """Sizes of the model that the engine runs."""
        return self.stage.model.encoder


def serving_point(workload: Sequence[Batch]) -> Serving:
    """Serving options of this workload, for a graph that takes any number of rows."""
    rows = max(len(batch.rows) for batch in workload)
    length = max(batch.input_ids.shape[1] for batch in workload)
    return Serving(max_batch=max(MAX_BATCH, rows), length=length)


def write_bundle(
    encoder: Encoder,
    task: Task,
    engine: Path,
    folder: Path,
    serving: Serving | None = None,
    *,
    second: SecondEngine | None = None,
) -> tuple[str, ...]:
    """Write the repository to `folder`. An existing folder is replaced.

    The engine's file is hard-linked if the file system allows it, to save space.

    Args:
        encoder: sizes of the model that the engine runs.
        task: names of the labels.
        engine: `model.plan`, or `model.onnx`; a large graph has `model.onnx_data` beside it.
        folder: the repository.
        serving: names, batch sizes and delays; by default `Serving()`.
        second: the second engine of a cascade, of the same kind as `engine`; None for one
            model, and for a cascade in one graph.

    Returns:
        Names of the written files, relative to `folder`.

    Raises:
        ModelError: an engine does not exist, or is neither an ONNX graph nor a plan.
    """
    serving = serving or Serving()
    rows = _rows(encoder, serving)
    backend = _backend(engine, serving)
    if second is not None:
        _backend(second.engine, serving)
    shutil.rmtree(folder, ignore_errors=True)
    _write_engine(encoder, engine, folder / f"{serving.name}_engine", serving)
    if second is not None:
        place = folder / f"{serving.name}_second"
        _write_engine(second.encoder, second.engine, place, replace(serving, max_batch=rows))
    _packer_files(folder / serving.name / "1")
    config = packer_config(encoder, task, serving, second)
    _write(folder / serving.name / "config.pbtxt", config)
    # The output's configuration names this file, for Triton's classification extension.
    if task.output_labels:
        lines = "".join(" ".join(x.split()) + "\n" for x in task.output_labels)
        _write(folder / serving.name / "labels.txt", lines)
    text = guide(encoder, task, serving.name, rows, backend, cascade=second is not None)
    _write(folder / "README.md", text)
    return tuple(sorted(str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()))


def engine_config(encoder: Encoder, backend: str, serving: Serving, name: str = "") -> str:
    """Write the `config.pbtxt` of an engine. The engine takes token ids of any length.

    Args:
        encoder: sizes of the model.
        backend: the engine's Triton backend.
        serving: batch sizes and names.
        name: the engine's name; by default that of the only or the first engine.
    """
    rows = _rows(encoder, serving)
    length = min(serving.length, encoder.most_tokens)
    comments = ["Rows in, logits out. max_batch_size counts rows."]
    if encoder.slots > 1:
        comments += [
            f"Runs {encoder.slots} neighbouring rows in one forward pass: call",
            f"'{serving.name}', which sends whole groups. There is no dynamic batching here:",
            "it would put rows of unrelated requests into one group, and a request of a wrong",
            "size would fail the others.",
        ]
    name = name or f"{serving.name}_engine"
    fields: dict[str, Any] = {"name": name, "backend": backend}
    if backend in FILES:
        fields["default_model_filename"] = FILES[backend]
    fields |= {
        "max_batch_size": rows,
        "input": _inputs(encoder),
        "output": [_output(encoder)],
    }
    if encoder.slots == 1 and backend in FILES:
        fields["dynamic_batching"] = {}  # without a delay: the packer has waited already
    instances: dict[str, Any] = {"count": 1, "kind": Word(serving.kind)}
    if backend == "tensorrt":
        chosen = [str(i) for i in range(serving.profiles)]
        instances = {"count": 1, "kind": Word("KIND_GPU"), "profile": chosen}
    fields["instance_group"] = [instances]
    if backend == "python":
        fields["parameters"] = _parameters({"threads": serving.threads})
    fields["model_warmup"] = [
        _warm_up(encoder, encoder.slots, min(WARM_TOKENS, length)),
        _warm_up(encoder, rows, length),
    ]
    return _text(comments, fields)


def packer_config(
    encoder: Encoder, task: Task, serving: Serving, second: SecondEngine | None = None
) -> str:
    """Write the `config.pbtxt` of the packer, the model that clients call."""
    rows = _rows(encoder, serving)
    comments = [
        "Runs rows of similar length together, and returns to each request the logits of its",
        "rows. max_batch_size counts rows.",
    ]
    if encoder.slots > 1:
        comments += [
            f"Fills groups of {encoder.slots} rows of similar length and of one tenant.",
        ]
    rule: dict[str, str | int] = {}
    if second is not None:
        comments += [f"Gives unsure rows to '{serving.name}_second' as well: a cascade."]
        stage = second.stage
        rule = {"threshold": repr(stage.threshold), "max_share": repr(stage.max_share)}
        rule = {"second": f"{serving.name}_second", **rule}
    comments += ["There is no warm-up: it would call the engine, which may not be loaded yet."]
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
        "run_tokens": RUN_TOKENS,
    }
    fields: dict[str, Any] = {
        "name": serving.name,
        "backend": "python",
        "max_batch_size": rows,
        # Ragged: one batch has requests of different lengths, and each group is padded alone.
        "input": [*({**x, "allow_ragged_batch": True} for x in _inputs(encoder)), tenant],
        "output": [_output(encoder, task)],
        "dynamic_batching": _batching(encoder, serving),
        "instance_group": [{"count": serving.packers, "kind": Word("KIND_CPU")}],
        "parameters": _parameters({"engine": f"{serving.name}_engine", **rule, **limits}),
    }
    return _text(comments, fields)


def _parameters(values: Mapping[str, str | int]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": str(x)}} for key, x in values.items()]


def _text(comments: list[str], fields: dict[str, Any]) -> str:
    return "".join(f"# {line}\n" for line in comments) + dump(fields)


def _rows(encoder: Encoder, serving: Serving) -> int:
    """Largest number of rows of a run, in whole groups."""
    return slots.batch_rows(serving.max_batch, encoder.slots)


def _batching(encoder: Encoder, serving: Serving) -> dict[str, Any]:
    rows = _rows(encoder, serving)
    preferred = sorted({slots.batch_rows(rows // 2, encoder.slots), rows})
    return {
        "preferred_batch_size": preferred,
        "max_queue_delay_microseconds": serving.delay_us,
    }


def _inputs(encoder: Encoder) -> list[dict[str, Any]]:
    """The inputs, each [rows, tokens]. Triton's `dims` leave out the rows."""
    return [
        {"name": name, "data_type": Word("TYPE_INT64"), "dims": [-1]}
        for name in input_names(encoder)
    ]


def _output(encoder: Encoder, task: Task | None = None) -> dict[str, Any]:
    """The output, the logits. It refers to the label file if the task has output labels."""
    dims = [encoder.labels] if encoder.pooled else [-1, encoder.labels]
    found: dict[str, Any] = {
        "name": output_name(encoder),
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


def _backend(engine: Path, serving: Serving) -> str:
    """The Triton backend of an engine's file.

    Raises:
        ModelError: the file does not exist, or is neither an ONNX graph nor a plan.
    """
    found = {".onnx": serving.backend, ".plan": "tensorrt"}.get(engine.suffix)
    if found is None or not engine.is_file():
        raise ModelError(f"'{engine}' is not a model.onnx or model.plan that could be served")
    return found


def _write_engine(encoder: Encoder, engine: Path, place: Path, serving: Serving) -> None:
    """Write the Triton model of an engine, named as its folder."""
    backend = _backend(engine, serving)
    _engine_files(engine, place)
    if backend == "python":
        _write(place / "1" / "model.py", Path(onnx_model.__file__).read_text(encoding="utf-8"))
    _write(place / "config.pbtxt", engine_config(encoder, backend, serving, place.name))


def _engine_files(engine: Path, folder: Path) -> None:
    place = folder / "1"
    data = engine.with_name(DATA)
    if engine.suffix == ".onnx" and data.is_file():
        place /= "model.onnx"  # Triton takes a folder of this name as a graph and its weights
        _link(data, place / DATA)
    _link(engine, place / f"model{engine.suffix}")


def _packer_files(folder: Path) -> None:
    """Copy the packer and `row_groups.py`, and rename the packer's import of the latter."""
    source = Path(packer.__file__).read_text(encoding="utf-8")
    module = SLOTS_FILE.removesuffix(".py")
    _write(folder / "model.py", source.replace(f"from {slots.__name__} ", f"from {module} "))
    _write(folder / SLOTS_FILE, Path(slots.__file__).read_text(encoding="utf-8"))


def _link(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        to.hardlink_to(source)
    except OSError:  # another file system, or a file system without links
        shutil.copyfile(source, to)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
