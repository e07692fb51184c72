"""ModernBERT, Warner et al. 2024, https://arxiv.org/abs/2412.13663

ModernBERT has a norm before each branch and before the head, and no biases. The FFN is gated:
its units are g(W x) * (V x). Positions are rotary. Layers with full attention and layers with
windowed attention have different rotary bases. This family was tested only with random
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.axes import (
    HIDDEN,
    Weight,
    fixed,
    linear,
    norm,
    table,
)
from prumux.optimizer.model.ops import Embeddings, Lookup, Ops, Rotary, Value
from prumux.optimizer.model.sizes import Branch, Encoder, Layer

from .config_fields import (
    activation,
    checked_base,
    head_dim,
    head_kind,
    layer_count,
    norm_eps,
    size,
)
from .family import Config, Family, Part
from .gated import gated_inner, gated_maps

NAMES: dict[str, str | Part] = {
    "embeddings.word": "model.embeddings.tok_embeddings",
    "embeddings.norm": "model.embeddings.norm",
    "layers.{i}.attention.query": Part("model.layers.{i}.attn.Wqkv", 0, 3),
    "layers.{i}.attention.key": Part("model.layers.{i}.attn.Wqkv", 1, 3),
    "layers.{i}.attention.value": Part("model.layers.{i}.attn.Wqkv", 2, 3),
    "layers.{i}.attention.output": "model.layers.{i}.attn.Wo",
    "layers.{i}.attention.norm": "model.layers.{i}.attn_norm",
    "layers.{i}.ffn.up": Part("model.layers.{i}.mlp.Wi", 0, 2),
    "layers.{i}.ffn.gate": Part("model.layers.{i}.mlp.Wi", 1, 2),
    "layers.{i}.ffn.down": "model.layers.{i}.mlp.Wo",
    "layers.{i}.ffn.norm": "model.layers.{i}.mlp_norm",
    "final.norm": "model.final_norm",
    "head.dense": "head.dense",
    "head.norm": "head.norm",
    "head.output": "classifier",
}
BASES = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
"""Default rotary bases of layers with full and with windowed attention."""


class ModernBert(Family):
    """ModernBERT: norms before branches, gated FFN, no biases, rotary and local attention."""

    model_types: ClassVar[tuple[str, ...]] = ("modernbert",)
    pre_norm: ClassVar[bool] = True
    norm_bias: ClassVar[bool] = False
    span_map: ClassVar[str] = "classifier"

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        biases = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
        for name in (*biases, "is_causal", "causal_mask"):
            if config.get(name):
                raise ModelError(
                    f"config.json: {name} is {config[name]!r:.60}, only false is supported"
                )
        hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
        layers = layer_count(config, "num_hidden_layers")
        bases = _bases(config)
        return Encoder(
            vocab=size(config, "vocab_size"),
            positions=size(config, "max_position_embeddings"),
            token_types=0,
            embedding=hidden,
            hidden=hidden,
            head_dim=head_dim(hidden, heads),
            layers=(Layer(heads, size(config, "intermediate_size")),) * layers,
            labels=1,
            head=head_kind(config, "classifier_activation", "gelu"),
            activation=activation(
                config.get("hidden_activation", "gelu"), "hidden_activation"
            ),
            norm_eps=norm_eps(config, "norm_eps", 1e-5),
            pad_id=size(config, "pad_token_id", default=0, least=0),
            pooling=_pooling(config),
            family=self.model_types[0],
            constants=(
                ("base_everywhere", bases["full_attention"]),
                ("base_in_window", bases["sliding_attention"]),
                ("local_layers", _local_layers(config, layers)),
                ("window", size(config, "local_attention", default=128) // 2),
            ),
        )

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        del e
        return NAMES

    def embeddings(self, e: Encoder) -> Embeddings:
        """Words and a norm. Positions enter as rotations in attention."""
        weights = table("embeddings.word", e.vocab, HIDDEN)
        weights += norm("embeddings.norm", HIDDEN, bias=False)
        return Embeddings((Lookup("embeddings.word", "ids"),), weights, "embeddings.norm")

    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """See `Family.branch_weights`."""
        return (*self.norm_weights(branch), *gated_maps(branch))

    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """See `Family.inner`."""
        e = ops.encoder
        layers: Any = e.constant("local_layers")
        local = branch.index in layers
        rotary = Rotary(e.number("base_in_window" if local else "base_everywhere"))
        window = int(e.number("window")) if local else None
        return gated_inner(ops, branch, x, rows, rotary, window)

    def has_norm(self, branch: Branch) -> bool:
        """True except for the first attention: the embeddings already end with a norm."""
        return branch != Branch(0, "attention")

    def for_every_position(self, e: Encoder) -> Encoder:
        """See `Family.for_every_position`. The same head is applied at every position."""
        return replace(e, pooling="all")

    def head_weights(self, e: Encoder) -> tuple[Weight, ...]:
        """A linear map, a norm, and the map to the labels, which alone has a bias."""
        dense = linear("head.dense", HIDDEN, HIDDEN, bias=False)
        dense += norm("head.norm", HIDDEN, bias=False)
        return dense + linear("head.output", fixed(e.labels), HIDDEN)

    def head(self, ops: Ops, x: Value) -> Value:
        """See `Family.head`."""
        x = ops.activation(ops.encoder.head, ops.linear("head.dense", x))
        return ops.linear("head.output", ops.norm("head.norm", x))


def _bases(config: Config) -> dict[str, float]:
    """Rotary bases, in the form of transformers 5 or of transformers 4."""
    old = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
    found = {}
    of_kinds = config.get("rope_parameters") or {}
    for kind, default in BASES.items():
        given = of_kinds.get(kind) or {} if isinstance(of_kinds, Mapping) else None
        if not isinstance(given, Mapping):
            raise ModelError(
                f"config.json: rope_parameters is {of_kinds!r:.60}, it must have an object of "
                f"{' and of '.join(BASES)}"
            )
        if given.get("rope_type", "default") != "default" or config.get("rope_scaling"):
            raise ModelError(
                f"config.json: only the default rope_type is supported, for {kind}"
            )
        base = given.get("rope_theta", config.get(old[kind])) or default
        found[kind] = checked_base(base, kind)
    return found


def _local_layers(config: Config, layers: int) -> tuple[int, ...]:
    """Indices of layers with windowed attention, by `layer_types` or by their interval."""
    every = size(config, "global_attn_every_n_layers", default=3)
    kinds = config.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention" for i in range(layers)
    ]
    if (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or any(not isinstance(x, str) or x not in BASES for x in kinds)
    ):
        raise ModelError(
            f"config.json: layer_types is {kinds!r:.60}, it must name {layers} layers "
            f"{' or '.join(BASES)}"
        )
    return tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")


def _pooling(config: Config) -> Any:
    kinds = {"cls": "first", "mean": "mean"}
    given = config.get("classifier_pooling", "cls")
    if not isinstance(given, str) or given not in kinds:
        raise ModelError(
            f"config.json: classifier_pooling is {given!r:.40}, it must be cls or mean"
        )
    return kinds[given]


FAMILY = ModernBert()
