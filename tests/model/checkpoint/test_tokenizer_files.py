"""The tokenizer beside a model: its settings count, its faults are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import prumux
from prumux.optimizer.base.errors import DataError, MissingError, ModelError
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import encode
from prumux.optimizer.model.checkpoint import tokenizer_files
from prumux.optimizer.model.checkpoint.tokenizer_files import read_tokenizer, with_tokenizer
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from tests.helpers.checkpoints import config, write
from tests.helpers.factory import random_model, tiny_tokenizer
from tests.helpers.readme import write_artifact

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "Good"]


def folder_of(folder: Path, family: str = "bert", **changes: Any) -> Path:
    """A checkpoint with vocab.txt and a tokenizer_config.json of these values."""
    write(folder, config(family, vocab_size=101))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(json.dumps(changes))
    return folder


def small(
    folder: Path, task: str = "SequenceClassification", positions: int = 8, **settings: Any
) -> Model:
    """A model of few positions whose tokenizer has these settings."""
    write(folder, config(task=task, vocab_size=101, max_position_embeddings=positions))
    tiny_tokenizer().save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return load_model(str(folder))


def tokens(model: Model, rows: Rows) -> list[str]:
    coded = encode(rows, model.tokenizer, model.encoder)  # type: ignore[arg-type]
    found: Any = model.tokenizer.convert_ids_to_tokens(list(coded.ids[0]))  # type: ignore[union-attr]
    return list(found)


def test_texts_and_pairs_are_cut_at_the_tokenizers_side(tmp_path: Path) -> None:
    model = small(tmp_path, truncation_side="left")
    long = " ".join("abcdefghi")
    assert tokens(model, Rows((long,))) == ["[CLS]", *"defghi", "[SEP]"]
    pair = tokens(model, Rows((long,), (" ".join("xyz"),)))
    assert pair == ["[CLS]", *"hi", "[SEP]", *"xyz", "[SEP]"] or pair[0] == "[CLS]"
    theirs: Any = model.tokenizer
    assert pair == theirs.convert_ids_to_tokens(
        theirs([long], [" ".join("xyz")], truncation=True, max_length=8)["input_ids"][0]
    )
    assert model.tokenizer.truncation_side == "left"  # type: ignore[union-attr]


def test_words_are_cut_at_the_tokenizers_side(tmp_path: Path) -> None:
    """A word whose first sub-word is cut off has neither a label nor an answer."""
    model = small(tmp_path, "TokenClassification", truncation_side="left")
    words = ("good", "xyz", "film", "a", "b", "c", "d")
    coded = encode(
        Rows((), words=(words,), labels=(np.arange(7),)),
        model.tokenizer,  # type: ignore[arg-type]
        model.encoder,
    )
    assert tokens(model, Rows((), words=(words,)))[1:-1] == ["##z", "film", *"abcd"]
    assert isinstance(coded.labels, tuple)
    assert coded.labels[0].tolist() == [-100, -100, 2, 3, 4, 5, 6, -100]
    assert coded.scored is not None
    assert coded.scored[0].tolist() == [False, False, *[True] * 5, False]


def test_every_word_is_answered_whatever_the_side(tmp_path: Path) -> None:
    rows = [[*"abcdefghijklmnop", "xyz", "good"], ["good"]]
    found = []
    for side in ("left", "right"):
        folder = tmp_path / side
        model = small(folder / "given", "TokenClassification", 14, truncation_side=side)
        write_artifact(model, folder / "made")
        found.append(prumux.load(folder / "made").predict_logits(rows))
    for left, right in zip(*found, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    assert [len(x) for x in found[0]] == [18, 1]


def test_padding_on_the_left_becomes_padding_on_the_right(tmp_path: Path) -> None:
    model = small(tmp_path / "given", positions=14, padding_side="left")
    (line,) = model.remarks
    assert "padding_side is left; prumux pads on the right" in line
    write_artifact(model, tmp_path / "made")
    made: Any = read_tokenizer(tmp_path / "made")
    assert made.padding_side == "right"
    both = made(["a", "a b c"], padding=True)["attention_mask"]
    assert both[0] == [1, 1, 1, 0, 0]


def test_a_padding_token_is_found_or_asked_for(tmp_path: Path) -> None:
    model = load_model(str(folder_of(tmp_path / "a", pad_token=None)))
    assert model.tokenizer is not None
    assert model.tokenizer.pad_token == "[PAD]"
    tokenizer = tiny_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = backend["model"]["vocab"]
    vocab["[EMPTY]"] = vocab.pop("[PAD]")
    backend["added_tokens"] = [x for x in backend["added_tokens"] if x["content"] != "[PAD]"]
    (write(tmp_path / "b", config(vocab_size=101)) / "tokenizer.json").write_text(
        json.dumps(backend)
    )
    with pytest.raises(
        ModelError, match=r"pad_token is '\[PAD\]' with id 101, the model"
    ) as caught:
        load_model(str(tmp_path / "b"))
    assert "name a token of the vocabulary" in str(caught.value)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "b" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="has no pad_token, and its vocabulary no") as caught:
        load_model(str(tmp_path / "b"))
    assert 'add "pad_token" to tokenizer_config.json' in str(caught.value)


def test_do_lower_case_counts(tmp_path: Path) -> None:
    for lower, ids in ((True, [2, 5, 3]), (False, [2, 7, 3])):
        tokenizer: Any = read_tokenizer(folder_of(tmp_path / str(lower), do_lower_case=lower))
        assert tokenizer("Good")["input_ids"] == ids


def test_no_limit_in_model_max_length_is_that_of_the_model(tmp_path: Path) -> None:
    for length in (10**30, 1e30, None, 10_000):
        model = load_model(str(folder_of(tmp_path, model_max_length=length)))
        assert len(tokens(model, Rows(("good " * 100,)))) == 20
    model = load_model(str(folder_of(tmp_path, model_max_length=7)))
    assert len(tokens(model, Rows(("good " * 100,)))) == 7


VALUES: dict[str, list[Any]] = {
    "model_max_length": ["512", -1, 0, True, [], float("nan")],
    "truncation_side": ["up", 5, [], {}],
    "padding_side": ["middle", 0, ["left"]],
    "model_input_names": ["input_ids", [], ["a"], [1], {}],
    "cls_token": [5, [], {"a": 1}, True],
    "pad_token": [0, {"content": 3}],
    "do_lower_case": ["yes", 1, []],
    "tokenizer_class": [5],
}
WRONG = [(key, value) for key, values in VALUES.items() for value in values]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_values_of_tokenizer_config_are_named(
    key: str, value: Any, tmp_path: Path
) -> None:
    folder_of(tmp_path, **{key: value})
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path))
    assert f"tokenizer_config.json: {key} is {value!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "vocab.json"])
@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"", b'{"a": 1, "a": 2}'])
def test_files_that_are_no_object_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (folder_of(tmp_path) / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_model(str(tmp_path))


def test_any_value_in_tokenizer_json_is_read_or_refused(tmp_path: Path) -> None:
    """Each value of the file in turn, at any depth, becomes one of another type."""
    folder = write(tmp_path, config(vocab_size=101))
    tiny_tokenizer().save_pretrained(str(folder))
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["vocab"] = dict(list(whole["model"]["vocab"].items())[:6])
    refused, others = 0, list[Any](["x", -1, None, [], {}, 1e30])
    for path in _paths(whole):
        for value in others:
            broken = json.loads(json.dumps(whole))
            at = broken
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = value
            (folder / "tokenizer.json").write_text(json.dumps(broken))
            try:
                read_tokenizer(folder)
            except ModelError:
                refused += 1
    assert refused > 100


def _paths(value: Any, *above: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        found.append((*above, key))
        if isinstance(inner, dict | list):
            found += _paths(inner, *above, key)
    return found


def test_a_sentencepiece_file_needs_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, config("xlm-roberta", vocab_size=101))
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"pieces")
    monkeypatch.setattr(tokenizer_files, "_installed", lambda module: "google" in module)
    with pytest.raises(MissingError) as caught:
        load_model(str(tmp_path))
    assert caught.value.exit_code == 5
    assert "is sentencepiece.bpe.model only, which sentencepiece reads" in str(caught.value)
    assert "pip install sentencepiece, or write tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert"])
def test_a_sentencepiece_file_is_read(family: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "texts"
    text.write_text("\n".join(f"a charming film number {i}" for i in range(99)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "m"),
        vocab_size=40,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    folder = write(tmp_path / "given", config(family, vocab_size=101))
    (tmp_path / "m.model").rename(folder / "sentencepiece.bpe.model")
    found = tokens(load_model(str(folder)), Rows(("a charming film",)))
    assert found[1:-1] == pieces.encode("a charming film", out_type=str)


WRONG_FILES = {"spiece.model": "camembert", "vocab.txt": "roberta", "vocab.json": "bert"}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_that_the_class_does_not_read_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else transformers makes a tokenizer of a handful of tokens, without a word."""
    write(tmp_path, config(WRONG_FILES[name], vocab_size=101))
    (tmp_path / name).write_text(json.dumps({"a": 0}))
    monkeypatch.setattr(tokenizer_files, "_installed", lambda module: True)
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path))
    assert f"holds {name}; its tokenizer, " in str(caught.value)
    assert "correct tokenizer_class in tokenizer_config.json" in str(caught.value)


def test_a_tokenizer_without_special_tokens(tmp_path: Path) -> None:
    folder = write(tmp_path, config(vocab_size=101))
    tiny_tokenizer().save_pretrained(str(folder))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    model = load_model(str(folder))
    assert "adds no special tokens, so the head reads a text's first token" in model.remarks[0]
    assert tokens(model, Rows(("good film",))) == ["good", "film"]
    with pytest.raises(DataError, match="row 2 has no tokens, and the tokenizer adds no"):
        tokens(model, Rows(("good", "")))


def test_a_vocabulary_without_an_unknown_token(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[CLS]\n[SEP]\ngood")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*Missing \[UNK\]"):
        load_model(str(tmp_path))


def test_a_tokenizer_that_fails_on_a_row_is_an_error_of_the_data() -> None:
    words = Tokenizer(models.WordLevel({"good": 0, "[PAD]": 1}, unk_token="[UNK]"))
    broken: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, pad_token="[PAD]"
    )
    model = replace(random_model(heads=(4,)), tokenizer=None)
    with pytest.raises(DataError, match=r"the tokenizer fails on these rows: .*Missing .?UNK"):
        encode(Rows(("a",)), broken, model.encoder)


def test_a_model_without_a_tokenizer_stays_as_it_is() -> None:
    model = random_model(heads=(4,))
    assert with_tokenizer(model, None) is model


@pytest.mark.parametrize("number", [2**31, 2**63, -1])
def test_ids_far_beyond_the_vocabulary_are_refused(tmp_path: Path, number: int) -> None:
    """The Rust library allocates up to the largest id, and aborts the process if it cannot."""
    folder = folder_of(tmp_path)
    tiny_tokenizer().save_pretrained(str(folder))
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["model"]["vocab"]["good"] = number
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ModelError, match=rf"the id of 'good' is {number}; with \d+ tokens"):
        load_model(str(folder))
