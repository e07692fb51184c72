"""Converts Hugging Face checkpoints: a config to sizes, a state dict to prumux's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.tasks import registry
from prumux.optimizer.tasks.task import Task

from .checkpoint.tensor_names import named, values_fault
from .families.family import Config, Family, Part
from .families.registry import find_family
from .families.sentence import width
from .sizes import Encoder, Pool, Pooling, SentenceHead
from .weights import expected_shapes

HEAD = "prumux_sentence_head"
"""Key of a config that contains the head of a sentence embedding. The loader sets it."""


def read_config(config: Config) -> tuple[Family, Encoder, Task]:
    """Family, sizes and task of a Hugging Face config.

    Raises:
        ModelError: the architecture or task is not supported, or a size is missing or wrong.
    """
    family = find_family(str(config.get("model_type")))
    if config.get("is_decoder"):
        given = config["is_decoder"]
        raise ModelError(
            f"config.json: is_decoder is {str(given).lower():.20}: a position then attends to "
            "earlier ones only, prumux's attend to all\n"
            "if the model was trained as an encoder, remove is_decoder"
        )
    _refuse_quantized(config)
    task = registry.from_config(config)
    encoder = replace(family.sizes(config), labels=max(1, len(task.labels)))
    if encoder.pad_id >= encoder.vocab:
        raise ModelError(
            f"config.json: pad_token_id is {encoder.pad_id}, ids of a vocabulary of "
            f"{encoder.vocab} are below {encoder.vocab}: correct pad_token_id or vocab_size"
        )
    if encoder.most_tokens < 1:
        raise ModelError(
            f"config.json: max_position_embeddings is {encoder.positions}, positions begin "
            f"at pad_token_id + 1 = {encoder.pad_id + 1}: no position is left for a token"
        )
    if task.pooling == "all":
        encoder = family.for_every_position(encoder)
    head = config.get(HEAD)
    return family, encoder if head is None else with_head(encoder, head), task


def with_head(encoder: Encoder, head: SentenceHead) -> Encoder:
    """The sizes with the head of a sentence embedding instead of the family's head."""
    alone: dict[Pool, Pooling] = {"first": "first", "mean": "mean"}
    pooling = alone.get(head.pools[0], "several") if len(head.pools) == 1 else "several"
    labels = width(head, encoder.hidden)
    return replace(encoder, sentence=head, pooling=pooling, labels=labels, head="linear")


def read_weights(
    family: Family, encoder: Encoder, found: Mapping[str, Tensor], *, spans: bool = False
) -> dict[str, Tensor]:
    """The weights of `read_checkpoint`."""
    return read_checkpoint(family, encoder, found, spans=spans)[0]


def read_checkpoint(
    family: Family, encoder: Encoder, found: Mapping[str, Tensor], *, spans: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Canonical float32 weights from a Hugging Face state dict, and names of ignored tensors.

    Tensors of other modules, such as losses and metrics, are ignored, as in transformers.

    Args:
        family, encoder: from `read_config`.
        found: the state dict.
        spans: True if the model's task finds spans, see `Task.finds_spans`.

    Raises:
        ModelError: a tensor is missing, not finite or of the wrong shape, or a tensor of the
            model's own modules is unexpected.
    """
    expected = tensor_names(family, encoder, spans=spans)
    inside = named(found, expected)
    weights: dict[str, Tensor] = {}
    for name, shape in expected_shapes(encoder).items():
        tensor = _read(inside.tensors, hf_source(family, encoder, name, spans=spans), shape)
        weights[name] = tensor.detach().to("cpu").float().contiguous()
    own = {x.split(".")[0] for x in expected}
    left = sorted(n for n in inside.tensors.keys() - expected if not _ignorable(n))
    wrong = [x for x in left if x.split(".")[0] in own]
    if wrong:
        raise ModelError(
            f"the checkpoint holds {len(wrong)} tensors that config.json does not call for, "
            f"the first is '{wrong[0]}'"
        )
    return weights, (*left, *inside.others)


def tensor_names(family: Family, encoder: Encoder, *, spans: bool = False) -> set[str]:
    """Names of the tensors that a checkpoint must contain."""
    names = expected_shapes(encoder)
    return {hf_source(family, encoder, x, spans=spans).tensor for x in names}


def _refuse_quantized(config: Config) -> None:
    given = config.get("quantization_config")
    if given is None:
        return
    method = given.get("quant_method", "unknown") if isinstance(given, Mapping) else given
    raise ModelError(
        f"config.json: quantization_config says '{method!s:.40}': the weights are lowered "
        "already\ngive the model as it was before, in float32, float16 or bfloat16: "
        "prumux chooses the precision itself"
    )


def hf_source(family: Family, encoder: Encoder, name: str, *, spans: bool = False) -> Part:
    """The checkpoint's tensor, or part of a tensor, for a canonical weight."""
    stem, _, kind = name.rpartition(".")
    layer = re.match(r"layers\.(\d+)\.", stem)
    if encoder.sentence and stem.startswith("head."):
        return Part(name, 0, 1)
    if spans and stem == "head.output":
        return Part(f"{family.span_map}.{kind}", 0, 1)
    pattern = re.sub(r"layers\.\d+\.", "layers.{i}.", stem)
    theirs = family.names(encoder)[pattern]
    part = Part(theirs, 0, 1) if isinstance(theirs, str) else theirs
    tensor = part.tensor.replace("{i}", layer[1] if layer else "")
    if encoder.sentence:  # models without a head are saved without the encoder's prefix
        tensor = tensor.partition(".")[2]
    return replace(part, tensor=f"{tensor}.{kind}")


def _labels_cure(source: Part, tensor: Tensor, whole: tuple[int, ...]) -> str:
    """A line of advice if head and config.json differ in the number of classes; else ""."""
    if "classifier" not in source.tensor or tuple(tensor.shape[1:]) != whole[1:]:
        return ""
    return f"\nname the {len(tensor)} classes in config.json: id2label"


def _read(found: Mapping[str, Tensor], source: Part, shape: tuple[int, ...]) -> Tensor:
    """Read and check one weight."""
    if source.tensor not in found:
        raise ModelError(
            f"the checkpoint has no tensor '{source.tensor}' (it holds {len(found)} tensors)\n"
            "prumux needs a fine-tuned classifier, head included, of model type that "
            "config.json names"
        )
    tensor, whole = found[source.tensor], (source.of * shape[0], *shape[1:])
    if tuple(tensor.shape) != whole:
        raise ModelError(
            f"tensor '{source.tensor}' has shape {tuple(tensor.shape)}, "
            f"config.json says {whole}{_labels_cure(source, tensor, whole)}"
        )
    if fault := values_fault(tensor):
        raise ModelError(f"tensor '{source.tensor}' {fault}")
    return tensor[source.index * shape[0] :][: shape[0]] if source.of > 1 else tensor


def _ignorable(name: str) -> bool:
    """True for tensors that Hugging Face ignores, too: buffers, poolers, unused positions."""
    unused = (".position_ids", ".token_type_ids", ".position_embeddings.weight")
    return name.endswith(unused) or ".pooler." in name or name.startswith("pooler.")
