"""Tokenizers of the classes that families come with, over single letters."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import transformers
from tokenizers.pre_tokenizers import ByteLevel

from tests.helpers.factory import tiny_tokenizer

VOCAB = 300
"""No tokenizer here has more tokens."""
_LETTERS = [*ascii_lowercase, *("##" + x for x in ascii_lowercase)]
_MARKS = ["<s>", "<pad>", "</s>", "<unk>"]


def family_tokenizer(model_type: str) -> Any:
    """The tokenizer that transformers makes for a family; for ModernBERT a plain one."""
    if model_type in ("bert", "electra", "distilbert"):
        name = "DistilBertTokenizer" if model_type == "distilbert" else "BertTokenizer"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS]
        return getattr(transformers, name)(vocab=_numbered(words))
    if model_type == "mpnet":
        words = [*_MARKS, "[UNK]", "<mask>", *_LETTERS]
        return transformers.MPNetTokenizer(vocab=_numbered(words))
    if model_type == "roberta":
        words = [*_MARKS, "<mask>", *sorted(ByteLevel.alphabet())]
        return transformers.RobertaTokenizer(vocab=_numbered(words), merges=[])
    if model_type in ("xlm-roberta", "camembert"):
        pieces = [(x, 0.0) for x in _MARKS] + [(x, -3.0) for x in ("▁", *ascii_lowercase)]
        name = "CamembertTokenizer" if model_type == "camembert" else "XLMRobertaTokenizer"
        return getattr(transformers, name)(vocab=[*pieces, ("<mask>", 0.0)])
    return tiny_tokenizer()


def _numbered(words: list[str]) -> dict[str, int]:
    return {x: i for i, x in enumerate(words)}
