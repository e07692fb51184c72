"""Saves and loads an optimised model: `config.json` ("prumux") and `model.safetensors`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from prumux.optimizer.base.errors import ModelError, VerifyError
from prumux.optimizer.base.store import owned
from prumux.optimizer.tasks.registry import from_own_config
from prumux.optimizer.tasks.task import Task

from .checkpoint.config_keys import kept_keys
from .checkpoint.tensor_names import values_fault
from .cost import count
from .families.registry import is_known
from .masks import Masks
from .model import Model, SecondStage, rule_text
from .sizes import (
    Constant,
    Encoder,
    HeadStep,
    Layer,
    Multiplexing,
    Pool,
    SentenceHead,
)

FORMAT = 2
"""The current format. Format 1 is from prumux 0.1.0, without families and pooling."""
STAGES = ("first", "second")
"""Folders of the two engines of a cascade, if each stage has an engine of its own."""
SECOND = "second."
"""Prefix of a second stage's weights. prumux versions without cascades refuse such names."""
LIMIT = 2**24
"""Upper bound of a model's sizes. Only a damaged file has larger ones."""
_LEAST = {"token_types": 0, "pad_id": 0, "n": 2, "at": 0, "demux": 0}
"""The smallest value of whole numbers by field name; 1 for all other fields."""


def to_config(model: Model) -> dict[str, Any]:
    """The content of `config.json`. `from_config` is the inverse."""
    second = {} if model.second is None else {"second": second_config(model.second)}
    return {
        **kept_keys(model.kept_config),
        "model_type": "prumux",
        "architectures": [model.task.own_class()],
        "prumux_format": FORMAT,
        **_sizes_config(model.encoder),
        **second,
        "problem_type": model.task.problem_type,
        **model.task.to_config(),
        "id2label": {str(i): name for i, name in enumerate(model.task.labels)},
        "label2id": {name: i for i, name in enumerate(model.task.labels)},
        "pad_token_id": model.encoder.pad_id,
        "source": dict(model.source),
        "dtype": "float32",
    }


def _sizes_config(encoder: Encoder) -> dict[str, Any]:
    """The sizes of one stage."""
    sizes = asdict(encoder)
    layers, mux = sizes.pop("layers"), sizes.pop("mux")
    sizes["constants"] = dict(encoder.constants)
    if encoder.sentence is None:
        del sizes["sentence"]
    return {
        "encoder": sizes,
        "heads_per_layer": [layer["heads"] for layer in layers],
        "ffn_per_layer": [layer["ffn"] for layer in layers],
        "mux": mux,
    }


def second_config(second: SecondStage) -> dict[str, Any]:
    """The second stage's sizes, and the rule that selects its rows."""
    return {
        **_sizes_config(second.model.encoder),
        "threshold": second.threshold,
        "share": second.share,
        "max_share": second.max_share,
    }


def from_config(
    config: Mapping[str, Any], where: str | Path = "config.json"
) -> tuple[Encoder, Task]:
    """Sizes and task from `config.json`. `where` is the file's name in messages.

    Raises:
        ModelError: a field is missing or wrong, or the format is newer than this prumux.
    """
    if config.get("prumux_format") not in (1, FORMAT):
        found = config.get("prumux_format", "missing")
        raise ModelError(
            f"{where}: prumux_format is {found}, this prumux reads 1 and {FORMAT}\n"
            "update prumux, or write the folder again with prumux-opt"
        )
    try:
        encoder = _sizes_of(config, config["prumux_format"] == 1)
        if config.get("second") is not None:
            second_of(config["second"])
        return encoder, from_own_config(config, encoder.labels)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ModelError(
            f"{where} is not one that prumux wrote: {why}\n"
            "write the folder again with prumux-opt"
        ) from error


def second_from_config(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], first: Model
) -> SecondStage | None:
    """The second stage of a cascade; None if the config has no second stage.

    Args:
        config: a config that `from_config` accepted.
        weights: the weights of the second stage, without their prefix.
        first: the first stage. Task, tokenizer and source are taken from it.
    """
    if config.get("second") is None:
        return None
    encoder, rule = second_of(config["second"])
    model = replace(
        first,
        encoder=encoder,
        weights=weights,
        masks=Masks.full(encoder),
        kept_hidden=None,
        history=(),
        second=None,
    )
    return SecondStage(model, **rule)


def second_text(config: Mapping[str, Any]) -> str:
    """The text form of a `SecondStage`; `none` if the config has no second stage."""
    if config.get("second") is None:
        return "none"
    encoder, rule = second_of(config["second"])
    return rule_text(encoder, rule["threshold"], rule["max_share"])


def split_weights(
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the first and of the second stage, which are returned without prefix."""
    second = {k.removeprefix(SECOND): x for k, x in weights.items() if k.startswith(SECOND)}
    return {k: x for k, x in weights.items() if not k.startswith(SECOND)}, second


def second_of(config: Mapping[str, Any]) -> tuple[Encoder, dict[str, float]]:
    """Sizes of a second stage, and its threshold and shares, from a config's `second`.

    Raises:
        ValueError, LookupError, TypeError: the config is damaged.
    """
    rule = {name: config[name] for name in ("threshold", "share", "max_share")}
    for name, value in rule.items():
        most = math.inf if name == "threshold" else 1
        if not isinstance(value, float | int) or not 0 <= value <= most:
            raise ValueError(f"{name} of the second stage is {value!r:.40}")
    return _sizes_of(config), {name: float(value) for name, value in rule.items()}


def _sizes_of(config: Mapping[str, Any], first_format: bool = False) -> Encoder:
    """The sizes that `_sizes_config` wrote."""
    known = {f.name for f in fields(Encoder)} - {"layers", "mux"}
    sizes = {k: v for k, v in config["encoder"].items() if k in known}
    if first_format:
        sizes["pooling"] = "all" if sizes["head"] == "linear" else "first"
    sizes["sentence"] = _sentence(sizes.get("sentence"))
    sizes["constants"] = _constants(sizes.get("constants", {}))
    pairs = zip(config["heads_per_layer"], config["ffn_per_layer"], strict=True)
    layers = tuple(Layer(int(h), int(f)) for h, f in pairs)
    mux = None if config.get("mux") is None else Multiplexing(**config["mux"])
    encoder = Encoder(layers=layers, mux=mux, **sizes)
    _check_sizes(encoder)
    count(encoder, 1)  # checks each of the family's own constants
    return encoder


def _check_sizes(encoder: Encoder) -> None:
    """Check the type and range of every field. Weights are compared with the sizes later."""
    _check_fields(encoder)
    if not is_known(encoder.family):
        raise ValueError(f"family is {encoder.family!r:.40}, which is not installed here")
    wrong = [x for x in encoder.layers if not (0 <= x.heads < LIMIT and 0 <= x.ffn < LIMIT)]
    if wrong:
        raise ValueError(f"a layer of {wrong[0].heads} heads and {wrong[0].ffn} FFN units")
    if encoder.mux is not None:
        _check_fields(encoder.mux)
        if encoder.mux.at >= len(encoder.layers):
            raise ValueError(f"rows mixed at {encoder.mux.at} of {len(encoder.layers)} layers")


def _sentence(given: Mapping[str, Any] | None) -> SentenceHead | None:
    if given is None:
        return None
    steps = tuple(HeadStep(**x) for x in given["steps"])
    for step in steps:
        _check_fields(step)
    wrong = [x for x in given["pools"] if x not in get_args(Pool)]
    if wrong or not given["pools"]:
        raise ValueError(f"pools is {given['pools']!r:.60}")
    return SentenceHead(tuple(given["pools"]), steps)


def _constants(given: Mapping[str, Any]) -> tuple[tuple[str, Constant], ...]:
    """The family's own constants. Lists from JSON become tuples."""
    found = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    wrong = [
        k for k, v in found.items() if not isinstance(v, float | int | str | bool | tuple)
    ]
    if wrong:
        raise ValueError(f"constant {wrong[0]} is {found[wrong[0]]!r:.40}")
    return tuple(sorted(found.items()))


def _check_fields(sizes: Encoder | Multiplexing | HeadStep) -> None:
    hints = get_type_hints(type(sizes))
    for field in fields(sizes):
        value, hint = getattr(sizes, field.name), hints[field.name]
        if get_origin(hint) is Literal:
            good = value in get_args(hint)
        elif hint is int:
            good = type(value) is int and _LEAST.get(field.name, 1) <= value < LIMIT
        else:
            good = hint not in (float, bool) or type(value) is hint
        if not good:
            raise ValueError(f"{field.name} is {value!r}")


def save_artifact(model: Model, folder: Path) -> None:
    """Write config, weights and tokenizer.

    Raises:
        VerifyError: the model has masks that are not yet sliced.
    """
    from safetensors.torch import save

    if model.stage != "dense":
        raise VerifyError("masks are pending; add 'slice' to the pipeline before saving")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(to_config(model), indent=2) + "\n", encoding="utf-8"
    )
    # Copies: safetensors refuses tensors that share storage.
    second = {} if model.second is None else model.second.model.weights
    held = {**model.weights, **{f"{SECOND}{k}": v for k, v in second.items()}}
    copies = {k: v.clone(memory_format=torch.contiguous_format) for k, v in held.items()}
    # Written as bytes: files that safetensors writes are readable only by their owner.
    (folder / "model.safetensors").write_bytes(save(copies, metadata={"format": "pt"}))
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(str(folder))
    if model.encoder.sentence is not None:
        from .checkpoint.sentence_files import write_sentence_files

        head, hidden = model.encoder.sentence, model.encoder.hidden
        told = next(iter(model.task.to_config().values()))
        limit = getattr(model.tokenizer, "model_max_length", model.encoder.most_tokens)
        length = int(min(limit, model.encoder.most_tokens))
        write_sentence_files(folder, head, hidden, model.weights, told, length)


def load_artifact(folder: Path) -> Model:
    """Load a model that `save_artifact` wrote. Names and shapes must match exactly.

    Raises:
        ModelError: files are missing or damaged, or do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .checkpoint.tokenizer_files import read_tokenizer
    from .folder import digest, read_json

    config = read_json(folder / "config.json")
    encoder, task = from_config(config, folder / "config.json")
    source = config.get("source", {})
    if not isinstance(source, Mapping):
        raise ModelError(
            f"{folder / 'config.json'}: source is a {type(source).__name__}, not an object\n"
            "write the folder again with prumux-opt"
        )
    try:
        weights = owned(load_file(folder / "model.safetensors"))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{folder}/model.safetensors' cannot be read: {error}") from error
    for name, weight in weights.items():
        if fault := values_fault(weight):
            raise ModelError(f"'{folder}' is damaged: weight '{name}' {fault}")
    first, added = split_weights(weights)
    model = Model(
        encoder=encoder,
        weights=first,
        task=task,
        masks=Masks.full(encoder),
        tokenizer=read_tokenizer(folder),
        kept_config=kept_keys(config),
        source={
            "name": folder.name,
            "model_type": "prumux",
            "digest": digest(weights, task, encoder),
            "origin": str(source.get("origin", source.get("digest", ""))),
        },
    )
    model = replace(model, second=second_from_config(config, added, model))
    try:
        model.verify()
    except VerifyError as error:
        raise ModelError(f"'{folder}' is damaged: {error}") from error
    return model
