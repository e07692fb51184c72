"""Hugging Face checkpoints of the BERT family, as sizes and canonical weights.

One `Family` a naming scheme: how its config spells the sizes and how its tensors are called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.tasks import registry
from prumux.optimizer.tasks.task import Task

from .ir import Activation, Encoder, HeadKind, Layer, expected_shapes

Config = Mapping[str, Any]
LIMIT_LAYERS = 1000
"""Beyond this a config.json is taken for damaged, before anything of that size is made."""


@dataclass(frozen=True)
class Family:
    """One naming scheme: `prefix` of the encoder, and canonical name -> its name."""

    prefix: str
    sizes: Callable[[Config], Encoder]
    names: Mapping[str, str]
    """Canonical name without `.weight`/`.bias` -> Hugging Face name; `{i}` is the layer."""
    heads: Mapping[str, str]
    """The same for the classification head, outside the prefix."""
    head: HeadKind


_BERT_NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{i}.attention.query": "encoder.layer.{i}.attention.self.query",
    "layers.{i}.attention.key": "encoder.layer.{i}.attention.self.key",
    "layers.{i}.attention.value": "encoder.layer.{i}.attention.self.value",
    "layers.{i}.attention.output": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.attention.norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.ffn.down": "encoder.layer.{i}.output.dense",
    "layers.{i}.ffn.norm": "encoder.layer.{i}.output.LayerNorm",
}
_DISTIL_NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{i}.attention.query": "transformer.layer.{i}.attention.q_lin",
    "layers.{i}.attention.key": "transformer.layer.{i}.attention.k_lin",
    "layers.{i}.attention.value": "transformer.layer.{i}.attention.v_lin",
    "layers.{i}.attention.output": "transformer.layer.{i}.attention.out_lin",
    "layers.{i}.attention.norm": "transformer.layer.{i}.sa_layer_norm",
    "layers.{i}.ffn.up": "transformer.layer.{i}.ffn.lin1",
    "layers.{i}.ffn.down": "transformer.layer.{i}.ffn.lin2",
    "layers.{i}.ffn.norm": "transformer.layer.{i}.output_layer_norm",
}
_DENSE_OUT = {"head.dense": "classifier.dense", "head.output": "classifier.out_proj"}


def _bert_sizes(config: Config) -> Encoder:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(
            f"position_embedding_type '{config['position_embedding_type']}' is not supported, "
            "only 'absolute'"
        )
    embedding = _size(config, "embedding_size", default=hidden)
    layer = Layer(heads, _size(config, "intermediate_size"))
    return Encoder(
        vocab=_size(config, "vocab_size"),
        positions=_size(config, "max_position_embeddings"),
        token_types=_size(config, "type_vocab_size", default=0, least=0),
        embedding=embedding,
        hidden=hidden,
        head_dim=_head_dim(hidden, heads),
        layers=(layer,) * _size(config, "num_hidden_layers", most=LIMIT_LAYERS),
        labels=1,
        activation=_activation(config.get("hidden_act", "gelu")),
        norm_eps=_norm_eps(config.get("layer_norm_eps", 1e-12)),
        pad_id=_size(config, "pad_token_id", default=0, least=0),
        projected=embedding != hidden,
    )


def _roberta_sizes(config: Config) -> Encoder:
    return replace(
        _bert_sizes({"pad_token_id": 1, "layer_norm_eps": 1e-5} | dict(config)),
        positions_from="padding",
    )


def _distil_sizes(config: Config) -> Encoder:
    hidden, heads = _size(config, "dim"), _size(config, "n_heads")
    layer = Layer(heads, _size(config, "hidden_dim"))
    return Encoder(
        vocab=_size(config, "vocab_size"),
        positions=_size(config, "max_position_embeddings"),
        token_types=0,
        embedding=hidden,
        hidden=hidden,
        head_dim=_head_dim(hidden, heads),
        layers=(layer,) * _size(config, "n_layers", most=LIMIT_LAYERS),
        labels=1,
        activation=_activation(config.get("activation", "gelu")),
        pad_id=_size(config, "pad_token_id", default=0, least=0),
    )


_ROBERTA = Family("roberta", _roberta_sizes, _BERT_NAMES, _DENSE_OUT, "tanh")

FAMILIES: dict[str, Family] = {
    "bert": Family(
        "bert",
        _bert_sizes,
        _BERT_NAMES,
        {"head.dense": "bert.pooler.dense", "head.output": "classifier"},
        "tanh",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Family(
        "distilbert",
        _distil_sizes,
        _DISTIL_NAMES,
        {"head.dense": "pre_classifier", "head.output": "classifier"},
        "relu",
    ),
    "electra": Family(
        "electra",
        _bert_sizes,
        _BERT_NAMES | {"embeddings.project": "embeddings_project"},
        _DENSE_OUT,
        "gelu",
    ),
}


def read_config(config: Config) -> tuple[Family, Encoder, Task]:
    """Sizes and task of a Hugging Face config.

    Raises:
        ModelError: unsupported architecture or task, or a size that is missing or wrong.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise ModelError(
            f"model_type '{model_type}' is not supported\n"
            f"supported: {', '.join(FAMILIES)} (and prumux's own artifact folders)"
        )
    task = registry.from_config(config)
    head: HeadKind = family.head
    if task.pooling == "all":
        head, family = "linear", replace(family, heads={"head.output": "classifier"})
    encoder = replace(family.sizes(config), labels=len(task.labels), head=head)
    return family, encoder, task


def read_weights(
    family: Family, encoder: Encoder, found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Canonical float32 weights out of a Hugging Face state dict, strict on names and shapes.

    Raises:
        ModelError: a tensor is missing, left over, of the wrong shape or not finite.
    """
    found = {_modern(_unwrap(name)): tensor for name, tensor in found.items()}
    weights: dict[str, Tensor] = {}
    used = set()
    for name, shape in expected_shapes(encoder).items():
        theirs = hf_name(family, name)
        if theirs not in found:
            raise ModelError(
                f"the checkpoint has no tensor '{theirs}' (it holds {len(found)} tensors)\n"
                f"prumux needs a fine-tuned classifier, head included, of model type that "
                "config.json names"
            )
        tensor = found[theirs]
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"tensor '{theirs}' has shape {tuple(tensor.shape)}, config.json says {shape}"
            )
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ModelError(f"tensor '{theirs}' holds values that are not finite floats")
        weights[name] = tensor.detach().to("cpu").float().contiguous()
        used.add(theirs)
    left = sorted(n for n in found.keys() - used if not _ignorable(n))
    if left:
        raise ModelError(
            f"the checkpoint holds {len(left)} tensors that config.json does not call for, "
            f"the first is '{left[0]}'"
        )
    return weights


def hf_name(family: Family, name: str) -> str:
    """The Hugging Face name of a canonical weight."""
    stem, _, kind = name.rpartition(".")
    if stem in family.heads:
        return f"{family.heads[stem]}.{kind}"
    layer = re.match(r"layers\.(\d+)\.", stem)
    pattern = re.sub(r"layers\.\d+\.", "layers.{i}.", stem)
    theirs = family.names[pattern].replace("{i}", layer[1] if layer else "")
    return f"{family.prefix}.{theirs}.{kind}"


def _unwrap(name: str) -> str:
    """Names as saved from DistributedDataParallel or torch.compile."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def _modern(name: str) -> str:
    """TensorFlow-era LayerNorm spelling."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", _gamma, name)


def _gamma(match: re.Match[str]) -> str:
    return "LayerNorm.weight" if match[1] == "gamma" else "LayerNorm.bias"


def _ignorable(name: str) -> bool:
    """Buffers, and heads of other tasks that Hugging Face also drops."""
    return name.endswith((".position_ids", ".token_type_ids")) or ".pooler." in name


def _size(
    config: Config, key: str, *, default: int | None = None, least: int = 1, most: int = 2**31
) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        shown = "missing" if value is None else repr(value)[:40]
        raise ModelError(
            f"config.json: {key} is {shown}, it must be a whole number from {least} to {most}"
        )
    return value


def _norm_eps(value: object) -> float:
    if not isinstance(value, float | int) or not 0 < value < 1:
        raise ModelError(
            f"config.json: layer_norm_eps is {value!r}, it must be between 0 and 1"
        )
    return float(value)


def _head_dim(hidden: int, heads: int) -> int:
    if hidden % heads:
        raise ModelError(f"hidden size {hidden} does not divide into {heads} heads")
    return hidden // heads


def _activation(name: object) -> Activation:
    spelt = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
    known = spelt.get(str(name), str(name))
    if known not in get_args(Activation):
        supported = ", ".join(get_args(Activation))
        raise ModelError(f"activation '{name}' is not supported; supported: {supported}")
    return known  # type: ignore[return-value]
