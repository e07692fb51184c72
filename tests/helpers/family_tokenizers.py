"""Tokenizers of the classes that families come with, over single letters."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from tests.helpers.factory import tiny_tokenizer

VOCAB = 300
"""No tokenizer here has more tokens."""
_LETTERS = [*ascii_lowercase, *("##" + x for x in ascii_lowercase)]
_MARKS = ["<s>", "<pad>", "</s>", "<unk>"]
UNIGRAM = {
    "xlm-roberta": ("XLMRobertaTokenizer", _MARKS, ["<mask>"]),
    "gte": ("XLMRobertaTokenizer", _MARKS, ["<mask>"]),
    "camembert": ("CamembertTokenizer", _MARKS, ["<mask>"]),
    "deberta-v2": ("DebertaV2Tokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], []),
    "albert": ("AlbertTokenizer", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], []),
}
"""Class, special tokens before the pieces, and after them."""


def family_tokenizer(model_type: str) -> Any:
    """The tokenizer that transformers makes for a family, or one of byte pairs."""
    if model_type in ("bert", "electra", "distilbert", "nomic_bert"):
        name = "DistilBertTokenizer" if model_type == "distilbert" else "BertTokenizer"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS]
        return getattr(transformers, name)(vocab=_numbered(words))
    if model_type == "mpnet":
        words = [*_MARKS, "[UNK]", "<mask>", *_LETTERS]
        return transformers.MPNetTokenizer(vocab=_numbered(words))
    if model_type == "roberta":
        words = [*_MARKS, "<mask>", *sorted(ByteLevel.alphabet())]
        return transformers.RobertaTokenizer(vocab=_numbered(words), merges=[])
    if model_type in UNIGRAM:
        name, marks, end = UNIGRAM[model_type]
        pieces = [(x, 0.0) for x in marks] + [(x, -3.0) for x in ("▁", *ascii_lowercase)]
        return getattr(transformers, name)(vocab=[*pieces, *((x, 0.0) for x in end)])
    if model_type in ("modernbert", "eurobert"):
        return _byte_pairs()
    return tiny_tokenizer()


def _byte_pairs() -> Any:
    """As ModernBERT's: byte-level pairs with BERT's special tokens, and no token types."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *sorted(ByteLevel.alphabet())]
    backend = Tokenizer(BPE(_numbered(words), [], unk_token="[UNK]"))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]", mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _numbered(words: list[str]) -> dict[str, int]:
    return {x: i for i, x in enumerate(words)}
