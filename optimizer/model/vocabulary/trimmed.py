"""Removes pieces from a tokenizer. The remaining pieces get new ids in the old order."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.checkpoint.tokenizer_files import read_tokenizer

from .kinds import KINDS, Vocabulary, vocabulary_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONFIG, _TOKENIZER = "tokenizer_config.json", "tokenizer.json"


def backend_json(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of a tokenizer's tokenizer.json."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


def json_bytes(tokenizer: PreTrainedTokenizerBase) -> int:
    """Size of a tokenizer's tokenizer.json in bytes."""
    return len(tokenizer.backend_tokenizer.to_str().encode())


def trimmable(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The vocabulary of a tokenizer, if pieces can be removed from it.

    Raises:
        ModelError: no piece can be removed. The message states the reason.
    """
    backend = backend_json(tokenizer)
    found = vocabulary_of(backend)
    if found is None:
        kind = str(backend["model"].get("type"))
        raise ModelError(
            f"its kind is {kind:.40}; pieces can go where it is {', '.join(KINDS)}"
        )
    if fault := found.fault():
        raise ModelError(fault)
    return found


def fixed_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of special tokens and of other added tokens."""
    added = backend_json(tokenizer).get("added_tokens") or ()
    return {int(x["id"]) for x in added} | set(tokenizer.all_special_ids)


def kept_ids(
    tokenizer: PreTrainedTokenizerBase, used: Collection[int], margin: float
) -> list[int]:
    """The ids to keep, in order.

    These are the used ids, special tokens, single characters, a margin of unused ids, and all
    parts from which these pieces are merged.

    Args:
        tokenizer: a tokenizer that `trimmable` accepts.
        used: ids of pieces that occur in texts.
        margin: number of unused pieces to keep per used piece. The lowest ids are kept.
    """
    vocabulary = trimmable(tokenizer)
    kept = vocabulary.with_parts({*used, *fixed_ids(tokenizer), *vocabulary.smallest()})
    spare = [i for i, _ in vocabulary.ordinary if i not in kept]
    extra = spare[: round(margin * len(set(used)))]
    return sorted(vocabulary.with_parts({*kept, *extra}))


@lru_cache(maxsize=2)
def trimmed_tokenizer(
    tokenizer: PreTrainedTokenizerBase, kept: tuple[int, ...]
) -> PreTrainedTokenizerBase:
    """The tokenizer with only the pieces `kept`. The piece `kept[i]` gets the id i.

    The new tokenizer is written to a folder and read back, so this checks the tokenizer that a
    user will load.

    Raises:
        ModelError: transformers reads other pieces or ids.
    """
    new = {old: i for i, old in enumerate(kept)}
    backend = backend_json(tokenizer)
    vocabulary = trimmable(tokenizer)
    backend["model"] = vocabulary.cut(new)
    backend["added_tokens"] = [
        {**x, "id": new[int(x["id"])]} for x in backend.get("added_tokens") or ()
    ]
    backend["post_processor"] = _renumbered(backend.get("post_processor"), new)
    backend["padding"] = None  # contains an id; transformers sets it in each call
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(name)
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        for file in folder.iterdir():
            file.unlink()
        if "added_tokens_decoder" in config:
            decoder = config["added_tokens_decoder"].items()
            config["added_tokens_decoder"] = {str(new[int(i)]): x for i, x in decoder}
        (folder / _CONFIG).write_text(json.dumps(config), encoding="utf-8")
        (folder / _TOKENIZER).write_text(json.dumps(backend), encoding="utf-8")
        made = read_tokenizer(folder)
    assert made is not None
    _check(tokenizer, made, new)
    return made


def _renumbered(processor: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with new ids: a template, BERT's, RoBERTa's, or a sequence of these."""
    if not isinstance(processor, dict):
        return processor
    found = dict(processor)
    if "processors" in found:
        found["processors"] = [_renumbered(x, new) for x in found["processors"]]
    if isinstance(found.get("special_tokens"), dict):
        found["special_tokens"] = {
            name: {**x, "ids": [new[int(i)] for i in x["ids"]]}
            for name, x in found["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if name in found:
            text, number = found[name]
            found[name] = [text, new[int(number)]]
    return found


def _check(
    before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, new: Mapping[int, int]
) -> None:
    expected = {x: new[i] for x, i in before.get_vocab().items() if i in new}
    found = after.get_vocab()
    wrong = [x for x in {**expected, **found} if expected.get(x) != found.get(x)]
    if wrong:
        x = wrong[0]
        raise ModelError(
            f"{type(after).__name__} does not read a smaller vocabulary: the id of {x!r:.40} "
            f"is {found.get(x)}, it should be {expected.get(x)}"
        )


def renumbered_config(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Keys of config.json with new ids. Keys of removed tokens are dropped."""
    new = {old: i for i, old in enumerate(kept)}
    found: dict[str, Any] = {}
    for name, value in config.items():
        if not name.endswith("_token_id") or value is None:
            found[name] = value
        elif isinstance(value, list) and all(x in new for x in value):
            found[name] = [new[x] for x in value]
        elif isinstance(value, int) and value in new:
            found[name] = new[value]
    return found
