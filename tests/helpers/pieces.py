"""Tokenizers with pieces of several characters, trained on a few words, for each kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from string import ascii_lowercase
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from tests.helpers.family_tokenizers import UNIGRAM

PROSE = (
    "the film was a good film and the players played it well they were laughing and laughed "
    "nobody knew why the story ended so early but everybody liked the ending of the story "
    "naïve über straße 映画 movie unfilmable replaying walls walled waller wallet"
)
WORDS = PROSE.split()
TEXTS = [" ".join(WORDS[i : i + 6]) for i in range(0, len(WORDS), 3)] + [ascii_lowercase]
KINDS = (
    *("bert", "mpnet", "roberta", "modernbert", "suffixed"),
    *("xlm-roberta", "camembert", "deberta-v2", "albert", "bytes"),
)
_BERT = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@cache
def with_pieces(kind: str) -> Any:
    """A tokenizer of a family, or of a kind that no family has (`suffixed`, `bytes`)."""
    if kind in UNIGRAM:
        name, marks, end = UNIGRAM[kind]
        pieces = [(x, 0.0) for x in marks] + [*_scored(), *((x, 0.0) for x in end)]
        return getattr(transformers, name)(vocab=pieces)
    return _MAKERS[kind]()


def _bert() -> Any:
    return transformers.BertTokenizer(vocab=_numbered([*_BERT, *_word_pieces()]))


def _mpnet() -> Any:
    marks = ["<s>", "<pad>", "</s>", "[UNK]", *_word_pieces(), "<mask>"]
    return transformers.MPNetTokenizer(vocab=_numbered(marks))


def _roberta() -> Any:
    words = ["<s>", "<pad>", "</s>", "<unk>", *_pair_pieces(), "<mask>"]
    make: Any = transformers.RobertaTokenizer  # its hints know no pairs
    return make(vocab=_numbered(words), merges=_merges())


def _numbered(words: Iterable[str]) -> dict[str, int]:
    return {x: i for i, x in enumerate(dict.fromkeys(words))}


@cache
def _word_pieces() -> list[str]:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.normalizer = normalizers.BertNormalizer()
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=220))
    found = sorted(backend.get_vocab().items(), key=lambda x: x[1])
    letters = {x.removeprefix("##")[0] for x, _ in found}
    forms = [mark + x for x in sorted(letters) for mark in ("", "##")]
    return list(dict.fromkeys([*forms, *(x for x, _ in found)]))


@cache
def _pairs() -> dict[str, Any]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    found: dict[str, Any] = json.loads(backend.to_str())["model"]
    return found


def _pair_pieces() -> list[str]:
    return sorted(_pairs()["vocab"], key=_pairs()["vocab"].__getitem__)


def _merges() -> list[tuple[str, str]]:
    return [tuple(x) for x in _pairs()["merges"]]


def _byte_pairs() -> Any:
    """Byte-level pairs. The special tokens come after the pieces, as ModernBERT's do."""
    backend = Tokenizer(models.BPE(_pairs()["vocab"], _merges()))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _generic(backend, ["[CLS]", "[SEP]", "[UNK]", "[MASK]", "[PAD]"])


def _suffixed() -> Any:
    """Pairs of characters, with a mark at the end of a word."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=names, end_of_word_suffix="</w>"
    )
    backend.train_from_iterator(TEXTS, trainer)
    return _generic(backend, names)


@cache
def _scored() -> list[tuple[str, float]]:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>")
    trainer.special_tokens = ["<unk>"]
    backend.train_from_iterator(TEXTS, trainer)
    found = json.loads(backend.to_str())["model"]["vocab"]
    return [(x, score) for x, score in found if x != "<unk>"]


def _with_bytes() -> Any:
    """Unigram pieces, and a piece for each byte in place of unknown characters."""
    marks = [(x, 0.0) for x in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    spelt = [(f"<0x{i:02X}>", -30.0) for i in range(256)]
    backend = Tokenizer(models.Unigram([*marks, *spelt, *_scored()], 3, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return _generic(backend, [x for x, _ in marks])


def _generic(backend: Any, specials: list[str]) -> Any:
    """The tokenizer of a class that reads tokenizer.json as it is."""
    backend.add_special_tokens(specials)
    ends = [(x, backend.token_to_id(x)) for x in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


_MAKERS: Mapping[str, Callable[[], Any]] = {
    "bert": _bert,
    "mpnet": _mpnet,
    "roberta": _roberta,
    "modernbert": _byte_pairs,
    "suffixed": _suffixed,
    "bytes": _with_bytes,
}
