"""Reads and writes folders of sentence-transformers: modules.json and the files that it names.

`modules.json` lists modules in order: the transformer, the pooling, then linear maps and
normalisations. https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.families.sentence import dense_name
from prumux.optimizer.model.folder import read_json
from prumux.optimizer.model.hf_checkpoint import HEAD
from prumux.optimizer.model.sizes import HeadActivation, HeadStep, Pool, SentenceHead
from prumux.optimizer.tasks.registry import task_types

from .weight_files import find_weights, read_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
LENGTHS = "sentence_bert_config.json"
POOLS: dict[str, Pool] = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
"""sentence-transformers' names of pools, in the order in which the pools are concatenated."""
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
ACTIVATIONS: dict[HeadActivation, str] = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "silu": "torch.nn.modules.activation.SiLU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
}
MOST_LENGTH = 2**24


@dataclass(frozen=True, eq=False)
class SentenceFiles:
    """The parts of a sentence-transformers folder."""

    transformer: Path
    """The folder of the transformer's config, weights and tokenizer."""
    head: SentenceHead
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """The weights of the head's linear maps, under prumux's names."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Prompts and similarity, in the form that `SentenceEmbedding.of_config` reads."""
    max_length: int | None = None
    lower_case: bool = False
    """True if texts are converted to lower case before they are tokenised."""


def pooled_by(pooling: str, folder: Path) -> SentenceFiles:
    """The parts for a plain encoder with the user's pooling, say `mean` or `cls+mean`.

    Raises:
        ModelError: the pooling is unknown.
    """
    names = pooling.split("+")
    wrong = [x for x in names if x not in POOLS]
    if wrong or len(set(names)) < len(names):
        raise ModelError(
            f"--pooling {pooling:.60}: choose of {', '.join(POOLS)}, each once\n"
            "write, say, --pooling mean, or several side by side: --pooling cls+mean"
        )
    return SentenceFiles(folder, SentenceHead(tuple(POOLS[x] for x in names)))


def read_sentence_files(folder: Path) -> SentenceFiles | None:
    """The parts of a sentence-transformers folder; None if there is no modules.json.

    Raises:
        ModelError: a module is unknown or missing, or has options that are not supported.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = _modules(folder / MODULES)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {
        *("Dense", "Normalize", "Dropout"),
    }:
        raise ModelError(
            f"{folder / MODULES} lists {', '.join(kinds)[:200]}; prumux reads Transformer, "
            "Pooling, then Dense, Normalize and Dropout in any order"
        )
    steps: list[HeadStep] = []
    weights: dict[str, Tensor] = {}
    for kind, path in modules[2:]:
        if kind == "Dense":
            step, tensors = _dense(_inside(folder, path))
            weights |= {f"{dense_name(len(steps))}.{k}": v for k, v in tensors.items()}
            steps.append(step)
        elif kind == "Normalize":
            steps.append(HeadStep("normalize"))
    prompts = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    pools = _pools(_inside(folder, modules[1][1]) / "config.json", prompts)
    transformer = _inside(folder, modules[0][1])
    lengths = {}
    if (transformer / LENGTHS).is_file():
        lengths = read_json(transformer / LENGTHS)
    return SentenceFiles(
        transformer,
        SentenceHead(pools, tuple(steps)),
        weights,
        _task(prompts),
        _max_length(lengths, transformer / LENGTHS),
        bool(lengths.get("do_lower_case")),
    )


def with_sentence(config: Mapping[str, Any], sentence: SentenceFiles) -> dict[str, Any]:
    """A transformer's config, extended by the head, prompts and similarity of its folder."""
    task = next(x for x in task_types() if not x.found_by_head)
    head = {HEAD: sentence.head, "architectures": [task.head]}
    return {**config, **head, "sentence_embedding": dict(sentence.task)}


def limit_tokens(tokenizer: PreTrainedTokenizerBase, sentence: SentenceFiles) -> None:
    """Set the tokenizer to truncate texts at the same length as sentence-transformers.

    Raises:
        ModelError: sentence-transformers converts texts to lower case, but the tokenizer does
            not.
    """
    if sentence.max_length is not None:
        limit = min(sentence.max_length, tokenizer.model_max_length)
        tokenizer.model_max_length = int(limit)
    normal = tokenizer.backend_tokenizer.normalizer
    lowers = normal is not None and normal.normalize_str("AB") == normal.normalize_str("ab")
    if sentence.lower_case and not lowers:
        raise ModelError(
            f"{LENGTHS}: do_lower_case is true, and the tokenizer tells cases apart\n"
            "save it with do_lower_case in tokenizer_config.json"
        )


def _modules(path: Path) -> list[tuple[str, str]]:
    """Kind and path of every module, in order."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        ordered = sorted(given, key=lambda x: int(x["idx"]))
        found = [(str(x["type"]).rpartition(".")[2], str(x["path"])) for x in ordered]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path} is not as sentence-transformers writes it: {error}"[:300]
        ) from error
    if not found:
        raise ModelError(f"{path} lists no module")
    return found


def _inside(folder: Path, path: str) -> Path:
    if ".." in Path(path).parts or Path(path).is_absolute():
        raise ModelError(f"{folder / MODULES} names a path outside its folder: '{path[:80]}'")
    return folder / path


def _pools(path: Path, settings: Mapping[str, Any]) -> tuple[Pool, ...]:
    config = read_json(path)
    named = config.get("pooling_mode")
    if named is None:
        named = [name for name, flag in FLAGS.items() if config.get(flag)] or ["mean"]
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not names or any(x not in POOLS for x in names):
        raise ModelError(
            f"{path}: pooling_mode is {named!r:.60}, it must be of {', '.join(POOLS)}"
        )
    if config.get("include_prompt") is False and any((settings.get("prompts") or {}).values()):
        raise ModelError(
            f"{path}: include_prompt is false: prompts are not pooled, prumux pools every "
            "token\nset it to true, or remove the prompts"
        )
    return tuple(POOLS[x] for x in names)


def _dense(folder: Path) -> tuple[HeadStep, Mapping[str, Tensor]]:
    path = folder / "config.json"
    config = read_json(path)
    for key, plain in (("use_residual", False), ("module_input_name", "sentence_embedding")):
        if config.get(key, plain) != plain:
            raise ModelError(
                f"{path}: {key} is {config[key]!r:.60}, only {plain} is supported"
            )
    name = config.get("activation_function", ACTIVATIONS["tanh"])
    short = str(name).rpartition(".")[2]
    known = {x.rpartition(".")[2]: kind for kind, x in ACTIVATIONS.items()}
    if not str(name).startswith("torch.nn.") or short not in known:
        raise ModelError(
            f"{path}: activation_function is {name!r:.80}; prumux computes {', '.join(known)}"
        )
    out, bias = config.get("out_features"), config.get("bias", True)
    if type(out) is not int or not 1 <= out < MOST_LENGTH or not isinstance(bias, bool):
        raise ModelError(f"{path}: out_features is {out!r:.40}, bias is {bias!r:.40}")
    found = read_state(find_weights(folder)[0])
    wanted = ["weight", "bias"] if bias else ["weight"]
    tensors = {x: found.get(f"linear.{x}") for x in wanted}
    missing = [x for x, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if missing:
        raise ModelError(f"{folder} has no tensor 'linear.{missing[0]}'")
    return HeadStep("dense", out, bias, known[short]), tensors  # type: ignore[return-value]


def _task(settings: Mapping[str, Any]) -> dict[str, Any]:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, Mapping):
        raise ModelError(f"{SETTINGS}: prompts is a {type(prompts).__name__}, not an object")
    return {
        "prompts": dict(prompts),
        "default_prompt": settings.get("default_prompt_name"),
        "similarity": settings.get("similarity_fn_name"),
    }


def _max_length(lengths: Mapping[str, Any], path: Path) -> int | None:
    value = lengths.get("max_seq_length")
    if value is not None and (type(value) is not int or not 1 <= value < MOST_LENGTH):
        raise ModelError(f"{path}: max_seq_length is {value!r:.40}, it must be 1 or more")
    return value


def write_sentence_files(  # noqa: PLR0917 - one argument for each part of the files
    folder: Path,
    head: SentenceHead,
    hidden: int,
    weights: Mapping[str, Tensor],
    task: Mapping[str, Any],
    max_length: int,
) -> None:
    """Write the files that sentence-transformers reads in addition to the transformer's.

    Args:
        folder: the folder of the result, with the transformer's own files.
        head: pools and steps.
        hidden: width of the states.
        weights: weights of the whole model, under prumux's names.
        task: prompts and similarity, as in `SentenceFiles.task`.
        max_length: largest number of tokens in a text.
    """
    from safetensors.torch import save

    names = ["Transformer", "Pooling"]
    _write(folder / "1_Pooling" / "config.json", _pooling_config(head.pools, hidden))
    into = len(head.pools) * hidden
    for i, step in enumerate(head.steps):
        names.append("Dense" if step.kind == "dense" else "Normalize")
        inner = folder / f"{i + 2}_{names[-1]}"
        config: dict[str, Any] = {}
        if step.kind == "dense":
            config = {
                "in_features": into,
                "out_features": step.out,
                "bias": step.bias,
                "activation_function": ACTIVATIONS[step.activation],
            }
            into = step.out
        _write(inner / "config.json", config)
        if step.kind == "dense":
            prefix = f"{dense_name(i)}."
            kept = {
                f"linear.{k.removeprefix(prefix)}": v.clone().contiguous()
                for k, v in weights.items()
                if k.startswith(prefix)
            }
            (inner / "model.safetensors").write_bytes(save(kept, metadata={"format": "pt"}))
    _write(folder / MODULES, _listed(names))
    _write(folder / LENGTHS, {"max_seq_length": max_length, "do_lower_case": False})
    settings = {
        "__version__": {},
        "prompts": task["prompts"],
        "default_prompt_name": task["default_prompt"],
        "similarity_fn_name": task["similarity"],
    }
    _write(folder / SETTINGS, settings)


def _pooling_config(pools: Sequence[Pool], hidden: int) -> dict[str, Any]:
    theirs = {ours: name for name, ours in POOLS.items()}
    names = [theirs[x] for x in pools]
    shared = {"word_embedding_dimension": hidden, "include_prompt": True}
    if names == [x for x in POOLS if x in names]:
        return shared | {flag: name in names for name, flag in FLAGS.items()}
    return shared | {"pooling_mode": names}


def _listed(names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
