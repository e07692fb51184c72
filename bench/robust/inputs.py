"""Small sound models and data, the inputs of the mutations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from prumux.optimizer.cli.opt import main
from tests.helpers import jobs
from tests.helpers.checkpoints import config, state, write
from tests.helpers.datafiles import FORMATS
from tests.helpers.datafiles import write as write_rows
from tests.helpers.factory import tiny_tokenizer

SIZES = {"train": 64, "validation": 40, "test": 16}
TOKENS = {"vocab_size": 101, "max_position_embeddings": 40}
READY = "ready.json"


@dataclass(frozen=True)
class Base:
    """A sound input: a folder with `model/` and `data/FORMAT/`."""

    name: str
    model: str
    """The MODEL argument, relative to the folder."""
    budget: bool
    """True if the model scores better than a constant answer, so that a budget is accepted."""


def make(folder: Path) -> tuple[Base, ...]:
    """Make all bases below `folder`, unless they exist."""
    ready = folder / READY
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        bases = [make_base(folder / name, name) for name in MAKERS]
        made = [{"name": x.name, "model": x.model, "budget": x.budget} for x in bases]
        ready.write_text(json.dumps(made), encoding="utf-8")
    return tuple(Base(**x) for x in json.loads(ready.read_text(encoding="utf-8")))


def make_base(folder: Path, name: str) -> Base:
    """Make the base with this name in a folder."""
    before = dict(jobs.SIZES)
    jobs.SIZES.update(SIZES)
    try:
        return _made(folder, name)
    finally:
        jobs.SIZES.update(before)


def _made(folder: Path, name: str) -> Base:
    model = folder / "model"
    kinds = MAKERS[name](model)
    source = model / kinds.get("file", "")
    rows = jobs.data_folder(folder / "rows", source, pairs=bool(kinds.get("pairs")))
    for split in SIZES:
        table = pd.read_json(rows / f"{split}.jsonl", lines=True)
        columns: dict[str, list[Any]] = {str(k): list(table[k]) for k in table.columns}
        if len(set(map(str, columns.get("label", [0, 1])))) == 1:
            columns["label"] = [i % 2 for i in range(len(table))]  # one label tests nothing
        lists = any(isinstance(x[0], list) for x in columns.values())
        for ending in FORMATS:
            if not (lists and ending in ("csv", "tsv")):
                write_rows(folder / "data" / ending / f"{split}.{ending}", **columns)
    shutil.rmtree(rows)
    return Base(name, str(source.relative_to(folder)), bool(kinds.get("budget")))


def _bert(folder: Path) -> dict[str, Any]:
    jobs.model_folder(folder)
    return {"budget": True}


def _shards(folder: Path) -> dict[str, Any]:
    jobs.model_folder(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {x: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, x in enumerate(names)}
    for file in set(places.values()):
        save_file({k: weights[k] for k in names if places[k] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return {"budget": True}


def _bin(folder: Path) -> dict[str, Any]:
    jobs.model_folder(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return {"budget": True}


def _pt(folder: Path) -> dict[str, Any]:
    jobs.model_folder(folder)
    weights = load_file(folder / "model.safetensors")
    read = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    torch.save({"state_dict": weights, "config": read}, folder / "model.pt")
    (folder / "model.safetensors").unlink()
    return {"budget": True, "file": "model.pt"}


def _artifact(folder: Path) -> dict[str, Any]:
    jobs.model_folder(folder.parent / "given")
    data = jobs.data_folder(folder.parent / "given-data", folder.parent / "given")
    given = [str(folder.parent / "given"), "--data", str(data), "--out", str(folder), "-q"]
    passes = "prune{sparsity=0.1},slice"
    if main([*given, "--passes", passes]):
        raise RuntimeError("the sound artifact could not be made")
    for name in ("given", "given-data"):
        shutil.rmtree(folder.parent / name)
    return {}


def _family(name: str, task: str = "SequenceClassification", **changes: Any) -> Any:
    def made(folder: Path) -> dict[str, Any]:
        of = config(name, task, **TOKENS, **changes)
        write(folder, of, state(of))
        tiny_tokenizer(pad_id=int(of.get("pad_token_id") or 0)).save_pretrained(str(folder))
        return {}

    return made


def _pairs(folder: Path) -> dict[str, Any]:
    _family("bert")(folder)
    return {"pairs": True}


MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "bert": _bert,
    "bert-shards": _shards,
    "bert-bin": _bin,
    "bert-pt": _pt,
    "artifact": _artifact,
    "pairs": _pairs,
    "roberta": _family("roberta"),
    "distilbert": _family("distilbert"),
    "electra": _family("electra"),
    "mpnet": _family("mpnet"),
    "modernbert": _family("modernbert"),
    "one-score": _family("bert", id2label={"0": "LABEL_0"}),
    "tokens": _family("bert", "TokenClassification"),
}
