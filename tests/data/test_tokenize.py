"""Tokenising and batching, with a small tokenizer made here."""

import logging
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.data import encodings
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import (
    Encoded,
    batches,
    encode,
)
from prumux.optimizer.model.sizes import Encoder, Layer
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.tokens import Tokens

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["good", "bad", "film", "play", "##ing", "##er"]
TASK = Classification(("no", "yes"))
TAGS = Tokens(("O", "B-X"))
ENCODER = Encoder(
    vocab=10, positions=16, token_types=2, embedding=8, hidden=8, head_dim=4,
    layers=(Layer(2, 8),), labels=2,
)  # fmt: skip


def make_tokenizer() -> Any:
    vocab = {x: i for i, x in enumerate(SPECIALS + WORDS)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    make: Any = PreTrainedTokenizerFast  # untyped
    return make(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip


def fail(row: int | None, text: str) -> NoReturn:
    raise DataError(f"row {row}: {text}")


def test_single_text() -> None:
    rows = Rows(("good film", "bad playing", ""), labels=np.array([1, 0, 1]))
    found = encode(rows, make_tokenizer(), ENCODER)
    assert found.ids.tolist() == [[2, 4, 6, 3], [2, 5, 7, 8, 3], [2, 3]]
    assert found.types is not None
    assert found.types.tolist() == [[0] * 4, [0] * 5, [0] * 2]
    assert found.lengths.tolist() == [4, 5, 2]
    assert found.labels is rows.labels
    assert found.scored is None


def test_pairs_and_no_token_types() -> None:
    rows = Rows(("good",), ("bad film",))
    found = encode(rows, make_tokenizer(), ENCODER)
    assert found.ids.tolist() == [[2, 4, 3, 5, 6, 3]]
    assert found.types is not None
    assert found.types.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert encode(rows, make_tokenizer(), replace(ENCODER, token_types=0)).types is None


def test_words_carry_their_label_on_the_first_subword() -> None:
    rows = Rows(
        (),
        words=(("good", "playing", "film"), ("bad",)),
        labels=(np.array([0, 1, 0]), np.array([1])),
    )
    found = encode(rows, make_tokenizer(), ENCODER)
    assert found.ids[0].tolist() == [2, 4, 7, 8, 6, 3]
    assert isinstance(found.labels, tuple)
    assert [x.tolist() for x in found.labels] == [[-100, 0, 1, -100, 0, -100], [-100, 1, -100]]
    short = encode(rows, make_tokenizer(), ENCODER, max_length=4)
    assert isinstance(short.labels, tuple)
    assert short.labels[0].tolist() == [-100, 0, 1, -100]
    bare = encode(replace(rows, labels=None), make_tokenizer(), ENCODER)
    assert bare.labels is None
    assert bare.scored is not None
    assert bare.scored[0].tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize(
    ("encoder", "model_max_length", "expected"),
    [
        (ENCODER, 10**30, 16),
        (ENCODER, 12, 12),
        (replace(ENCODER, positions_from="padding", pad_id=1), 10**30, 14),
    ],
)
def test_default_length(encoder: Encoder, model_max_length: int, expected: int) -> None:
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = model_max_length
    found = encode(Rows(("good " * 50,)), tokenizer, encoder)
    assert found.lengths.tolist() == [expected]


def test_silent_and_leaves_the_tokenizer_as_it_was(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=20)
    before = tokenizer.backend_tokenizer.to_str()
    with caplog.at_level(logging.DEBUG):
        encode(Rows(("good " * 600,), ("bad " * 600,)), tokenizer, ENCODER)
    assert caplog.records == []
    assert capsys.readouterr() == ("", "")
    assert tokenizer.backend_tokenizer.to_str() == before
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.no_padding()
    before = tokenizer.backend_tokenizer.to_str()
    assert encode(Rows(("good " * 9,)), tokenizer, ENCODER).lengths.tolist() == [11]
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("form", ["texts", "pairs", "words"])
def test_parts_change_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tuple("good " * (i % 4 + 1) + "film" for i in range(9))
    words = tuple(tuple(x.split()) for x in texts)
    rows = Rows(
        texts,
        texts[::-1] if form == "pairs" else None,
        words if form == "words" else None,
        tuple(np.zeros(len(x), np.int64) for x in words) if form == "words" else None,
    )
    whole = encode(rows, make_tokenizer(), ENCODER)
    monkeypatch.setattr(encodings, "PART_CHARACTERS", 20)
    calls: list[int] = []
    encoded = encodings._encoded

    def counted(part: list[Any], *args: Any, **options: Any) -> list[Any]:
        calls.append(len(part))
        return encoded(part, *args, **options)

    monkeypatch.setattr(encodings, "_encoded", counted)
    parts = encode(rows, make_tokenizer(), ENCODER)
    assert len(calls) > 3
    assert sum(calls) == 9
    assert parts.ids.tolist() == whole.ids.tolist()
    assert parts.types is not None
    assert whole.types is not None
    assert parts.types.tolist() == whole.types.tolist()
    for mine, theirs in zip(parts.labels or (), whole.labels or (), strict=True):
        assert np.array_equal(mine, theirs)


def test_no_rows() -> None:
    assert len(encode(Rows(()), make_tokenizer(), ENCODER)) == 0


def test_errors() -> None:
    rows, tokenizer = Rows(("good film",)), make_tokenizer()
    with pytest.raises(UsageError, match=r"length 17 is over the model's 16 .*: --length 16"):
        encode(rows, tokenizer, ENCODER, max_length=17)
    with pytest.raises(
        UsageError, match=r"length 2 leaves no room .* 2 special .*--length 16"
    ):
        encode(rows, tokenizer, ENCODER, max_length=2)
    with pytest.raises(UsageError, match=r"length 2 .*: the model has 2 positions, give one"):
        encode(rows, tokenizer, replace(ENCODER, positions=2))
    tokenizer.model_max_length = 2
    with pytest.raises(UsageError, match=r"length 2 .*: write model_max_length 16 into tok"):
        encode(rows, tokenizer, ENCODER)
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match=r"ids up to 6, .* vocabulary of size 6: they do not"):
        encode(rows, tokenizer, replace(ENCODER, vocab=6))
    with pytest.raises(
        DataError, match="type ids up to 1, the model has token types of size 1"
    ):
        encode(Rows(("a",), ("b",)), tokenizer, replace(ENCODER, token_types=1))


def encoded() -> Encoded:
    ids = Ragged.of([(2, 4, 4, 3), (2, 3), (2, 4, 3), (2, 5, 3)])
    types = Ragged.of((0,) * len(x) for x in ids)
    return Encoded(ids, types, np.array([0, 1, 0, 1]), pad_id=9)


def test_take() -> None:
    found = encoded().take([2, 0])
    assert found.ids.tolist() == [[2, 4, 3], [2, 4, 4, 3]]
    assert isinstance(found.labels, np.ndarray)
    assert found.labels.tolist() == [0, 0]
    words = Encoded(
        found.ids, None, (np.array([1]), np.array([2])), 0, (np.ones(1, bool),) * 2
    )
    assert isinstance(words.take([1]).labels, tuple)
    assert len(words.take([1]).scored or ()) == 1


def test_batches_by_length() -> None:
    first, second = batches(encoded(), 3)
    assert first.rows.tolist() == [1, 2, 3]  # like lengths keep their order
    assert first.input_ids.tolist() == [[2, 3, 9], [2, 4, 3], [2, 5, 3]]
    assert first.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert first.labels is not None
    assert first.labels.tolist() == [1, 0, 1]
    assert second.input_ids.shape == (1, 4)
    assert list(first.inputs()) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(x.dtype == np.int64 for x in first.inputs().values())


def test_batches_in_order_of_one_length() -> None:
    found = batches(replace(encoded(), types=None), 2, by_length=False, pad_to=6)
    assert [b.rows.tolist() for b in found] == [[0, 1], [2, 3]]
    assert [b.input_ids.shape for b in found] == [(2, 6), (2, 6)]
    assert list(found[0].inputs()) == ["input_ids", "attention_mask"]


def test_batches_pad_position_labels() -> None:
    labels = tuple(np.full(len(x), 1) for x in encoded().ids)
    (found,) = batches(replace(encoded(), labels=labels), 4, by_length=False)
    assert found.labels is not None
    assert found.labels[1].tolist() == [1, 1, -100, -100]
    assert batches(replace(encoded(), labels=None), 4)[0].labels is None
    assert batches(encoded().take([]), 4) == []


def test_batch_errors() -> None:
    with pytest.raises(
        UsageError, match="a batch of 0 rows is not possible: use, say, --batch"
    ):
        batches(encoded(), 0)
    with pytest.raises(
        UsageError, match="a row has 4 tokens, more than the fixed length 3: use"
    ):
        batches(encoded(), 2, pad_to=3)


@pytest.mark.parametrize(
    "single",
    ["$A:1 [SEP]:0 [CLS]:2", "[CLS]:2 $A [SEP]", "[CLS] $A:1 [SEP]", "[CLS] $A [SEP]"],
)
@pytest.mark.parametrize("texts", [("play", "playing good"), ("", ""), ("", "good")])
def test_token_types_are_those_of_the_tokenizer(single: str, texts: tuple[str, ...]) -> None:
    tokenizer = make_tokenizer()
    backend = tokenizer.backend_tokenizer
    specials = [(x, backend.token_to_id(x)) for x in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=specials
    )
    encoder = replace(ENCODER, token_types=3)
    expected = [x.type_ids for x in backend.encode_batch(list(texts))]
    found = encode(Rows(texts), tokenizer, encoder).types
    assert found is not None
    assert found.tolist() == expected
    pairs = encode(Rows(texts, texts), tokenizer, encoder).types
    assert pairs is not None
    assert pairs.tolist() == [
        x.type_ids for x in backend.encode_batch(list(zip(texts, texts, strict=True)))
    ]
