"""Saves and loads an optimised model: `config.json` ("prumux") and `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import ModelError, VerifyError
from .ir import Encoder, Layer, Masks, Model, Mux, Task

FORMAT = 1
ARCHITECTURES = {
    "text-classification": "PrumuxForSequenceClassification",
    "token-classification": "PrumuxForTokenClassification",
}


def to_config(model: Model) -> dict[str, Any]:
    """What `config.json` holds; `from_config` is its inverse."""
    encoder = asdict(model.encoder)
    layers = encoder.pop("layers")
    problem = {"classification": "single_label_classification", "regression": "regression"}
    return {
        "model_type": "prumux",
        "architectures": [ARCHITECTURES[model.task.kind]],
        "prumux_format": FORMAT,
        "encoder": encoder,
        "heads_per_layer": [layer["heads"] for layer in layers],
        "ffn_per_layer": [layer["ffn"] for layer in layers],
        "mux": None if model.mux is None else asdict(model.mux),
        "problem_type": problem[model.task.problem],
        "id2label": {str(i): name for i, name in enumerate(model.task.labels)},
        "label2id": {name: i for i, name in enumerate(model.task.labels)},
        "pad_token_id": model.encoder.pad_id,
        "source": dict(model.source),
        "dtype": "float32",
    }


def from_config(config: Mapping[str, Any]) -> tuple[Encoder, Mux | None, Task]:
    """Sizes and task from `config.json`.

    Raises:
        ModelError: a field is missing or wrong, or the format is newer than this prumux.
    """
    if config.get("prumux_format") != FORMAT:
        raise ModelError(
            f"prumux_format is {config.get('prumux_format')!r}, this prumux reads {FORMAT}"
        )
    try:
        known = {f.name for f in fields(Encoder)} - {"layers"}
        sizes = {k: v for k, v in config["encoder"].items() if k in known}
        pairs = zip(config["heads_per_layer"], config["ffn_per_layer"], strict=True)
        encoder = Encoder(layers=tuple(Layer(int(h), int(f)) for h, f in pairs), **sizes)
        mux = None if config.get("mux") is None else Mux(**config["mux"])
        kind = next(k for k, v in ARCHITECTURES.items() if v in config["architectures"])
        labels = tuple(config["id2label"][str(i)] for i in range(encoder.labels))
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise ModelError(f"config.json is not one that prumux wrote: {error!r}") from error
    regression = config.get("problem_type") == "regression"
    task = Task(
        kind=kind,  # type: ignore[arg-type]
        problem="regression" if regression else "classification",
        labels=labels,
    )
    return encoder, mux, task


def save_artifact(model: Model, folder: Path) -> None:
    """Write config, weights and tokenizer. The model must hold no pending mask."""
    from safetensors.torch import save_file

    if model.stage != "dense":
        raise VerifyError("masks are pending; add 'slice' to the pipeline before saving")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_config(model), indent=2) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(str(folder))


def load_artifact(folder: Path) -> Model:
    """The model that `save_artifact` wrote. Strict about names and shapes.

    Raises:
        ModelError: files missing, damaged or not fitting each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .source import read_json, read_tokenizer

    config = read_json(folder / "config.json")
    encoder, mux, task = from_config(config)
    try:
        weights: dict[str, Tensor] = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{folder}/model.safetensors' cannot be read: {error}") from error
    model = Model(
        encoder=encoder,
        weights=weights,
        task=task,
        masks=Masks.full(encoder),
        mux=mux,
        tokenizer=read_tokenizer(folder),
        source=config.get("source", {}),
    )
    try:
        model.verify()
    except VerifyError as error:
        raise ModelError(f"'{folder}' is damaged: {error}") from error
    return model
