"""Reads a model's tokenizer. Its files are checked before transformers reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prumux.optimizer.base import git_lfs
from prumux.optimizer.base.errors import MissingError, ModelError
from prumux.optimizer.model.folder import read_json
from prumux.optimizer.model.model import Model

from .token_types import fold_types, gives_types

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECES = ("sentencepiece.bpe.model", "spiece.model", "sentencepiece.model", "spm.model")
"""Names of sentencepiece files."""
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", *PIECES)
_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")
_TOKENS = ("pad_token", "cls_token", "sep_token", "unk_token", "bos_token", "eos_token")
_SIDES = ("left", "right")
_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space")
_PADS = ("[PAD]", "<pad>", "<PAD>")
_TRIAL = ("A first text.", "")
SPARE_IDS = 1_000_000
"""The largest total number of unused ids below the largest id."""


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a model's folder; None if there is no tokenizer file.

    No remote code is run.

    Raises:
        ModelError: the tokenizer files cannot be used.
        MissingError: a package that is needed to read the only tokenizer file is missing.
    """
    there = [name for name in VOCABULARIES if (folder / name).exists()]
    if not there:
        return None
    _check_files(folder)
    _check_packages(folder, there)
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        if tokenizer.is_fast:  # some faults appear only with the first text
            tokenizer(list(_TRIAL), list(_TRIAL))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is not an Exception
        first = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise ModelError(f"the tokenizer in '{folder}' cannot be loaded: {first}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer in '{folder}' has no fast version (tokenizer.json)")
    _check_was_read(tokenizer, there, folder)
    result: PreTrainedTokenizerBase = tokenizer
    return result


def with_tokenizer(model: Model, tokenizer: PreTrainedTokenizerBase | None) -> Model:
    """Combine a given model and its tokenizer, and adapt them to each other.

    - If the tokenizer returns no token types, they are removed from the model.
    - The tokenizer is set to pad on the right, because the head would read padding on the
      left.
    - A missing padding token is set if the vocabulary has a usual one.

    Raises:
        ModelError: there is no padding token, or its id is outside of the model's vocabulary.
    """
    if tokenizer is None:
        return model
    fitted = model if gives_types(tokenizer) else fold_types(model)
    remarks = list(model.remarks)
    if tokenizer.padding_side != "right":
        tokenizer.padding_side = "right"
        remarks.append(
            "tokenizer_config.json: padding_side is left; prumux pads on the right, because "
            "the head would read padding: answers are those of each text alone"
        )
    if tokenizer.num_special_tokens_to_add(False) == 0 and model.encoder.reads_first:
        remarks.append(
            "the tokenizer adds no special tokens, so the head reads a text's first token"
        )
    if tokenizer.pad_token is None:
        known = tokenizer.get_vocab()
        name = next((x for x in _PADS if x in known), None)
        if name is None:
            raise ModelError(
                "the tokenizer has no pad_token, and its vocabulary no [PAD] or <pad>\n"
                'add "pad_token" to tokenizer_config.json, with a token of the vocabulary'
            )
        tokenizer.pad_token = name
    pad: Any = tokenizer.pad_token_id
    if pad >= model.encoder.vocab:
        raise ModelError(
            f"the tokenizer's pad_token is {tokenizer.pad_token!r:.40} with id {pad}, the "
            f"model has a vocabulary of {model.encoder.vocab}\n"
            "name a token of the vocabulary as pad_token in tokenizer_config.json"
        )
    return replace(fitted, tokenizer=tokenizer, remarks=tuple(remarks))


def _check_files(folder: Path) -> None:
    """Refuse files that are not JSON or text, and values that break transformers."""
    for name in (*VOCABULARIES, "merges.txt", *_JSON):
        if git_lfs.is_pointer(folder / name):
            raise ModelError(git_lfs.cure(folder / name))
    for name in ("vocab.txt", "merges.txt"):
        if (folder / name).exists():
            try:
                (folder / name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"{folder / name} cannot be read: {error}") from error
    for name in _JSON:
        if (folder / name).exists():
            values = read_json(folder / name)
            _check_ids(values, name, folder / name)
            if name == "tokenizer_config.json":
                _check_config(values, folder / name)


def _check_ids(values: Mapping[str, Any], name: str, path: Path) -> None:
    """Refuse ids far above the number of tokens: memory is allocated up to the largest id."""
    found = list(_ids(values, name))
    most = len(found) + SPARE_IDS
    for token, number in found:
        if isinstance(number, int) and not 0 <= number < most:
            raise ModelError(
                f"{path}: the id of {token!r:.60} is {number}; with {len(found)} tokens here, "
                f"it must be in 0..{most - 1}"
            )


def _ids(values: Mapping[str, Any], name: str) -> Iterator[tuple[str, object]]:
    """Each token of a file with its id. Parts in an unusual form are skipped."""
    model, decoder = values.get("model"), values.get("added_tokens_decoder")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    for tokens in (values if name == "vocab.json" else None, vocabulary):
        if isinstance(tokens, Mapping):
            yield from tokens.items()
    added = values.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, Mapping):
            yield str(entry.get("content")), entry.get("id")
    for text, token in decoder.items() if isinstance(decoder, Mapping) else ():
        yield str(token), int(text) if text.isdecimal() else None


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    rules = {
        "model_max_length": (_is_length, "a number of tokens from 1 on"),
        "padding_side": (lambda x: x in _SIDES, "left or right"),
        "truncation_side": (lambda x: x in _SIDES, "left or right"),
        "model_input_names": (_is_names, "a list of names with input_ids"),
        "tokenizer_class": (lambda x: isinstance(x, str), "the name of a class"),
        **dict.fromkeys(_TOKENS, (_is_token, "a text or an object with content")),
        **{x: (lambda x: isinstance(x, bool), "true or false") for x in _FLAGS},
    }
    for key, (right, what) in rules.items():
        value = config.get(key)
        if value is not None and not right(value):
            raise ModelError(f"{path}: {key} is {value!r:.60}, it must be {what}")


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def _is_names(value: object) -> bool:
    names = isinstance(value, list) and all(isinstance(x, str) for x in value)
    return names and "input_ids" in value  # type: ignore[operator]


def _is_token(value: object) -> bool:
    content = value.get("content") if isinstance(value, Mapping) else value
    return isinstance(content, str)


def _check_packages(folder: Path, there: list[str]) -> None:
    """Check that the packages for sentencepiece files are installed.

    The message of transformers would name another package.
    """
    if any(name in there for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        return
    packages = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    missing = [name for name, module in packages.items() if not _installed(module)]
    if missing:
        raise MissingError(
            f"the tokenizer in '{folder}' is {there[0]} only, which {missing[0]} reads\n"
            f"pip install {' '.join(missing)}, or write tokenizer.json into the folder: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _check_was_read(
    tokenizer: PreTrainedTokenizerBase, there: list[str], folder: Path
) -> None:
    """Refuse a tokenizer class that reads none of the files: it would have few tokens."""
    reads = set(tokenizer.vocab_files_names.values()) | {"tokenizer.json"}
    if not reads & set(there):
        raise ModelError(
            f"'{folder}' holds {there[0]}; its tokenizer, {type(tokenizer).__name__}, reads "
            f"{' or '.join(sorted(reads))}\n"
            "correct tokenizer_class in tokenizer_config.json, or the name of the file"
        )
