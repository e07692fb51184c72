"""Smaller vocabularies: the same pieces for kept ones, any text, all ids renumbered."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.vocabulary.kinds import BytePairs, Unigram, WordPiece
from prumux.optimizer.model.vocabulary.trimmed import (
    backend_json,
    fixed_ids,
    kept_ids,
    renumbered_config,
    trimmable,
    trimmed_tokenizer,
)
from tests.helpers.pieces import KINDS, TEXTS, WORDS, with_pieces

CALM = settings(max_examples=25, deadline=None, derandomize=True)
SPOKEN = st.lists(st.sampled_from([*WORDS, "wall", "ending!", "fil", "a"]), max_size=6)
ANY = st.one_of(st.text(max_size=20), SPOKEN.map(" ".join), SPOKEN.map("".join))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.backend_tokenizer.encode(text).ids
    return found


def trimmed_on(tokenizer: Any, texts: list[str], margin: float = 0) -> tuple[Any, list[int]]:
    used = {i for text in texts for i in ids_of(tokenizer, text)}
    kept = kept_ids(tokenizer, used, margin)
    return trimmed_tokenizer(tokenizer, tuple(kept)), kept


def compared(kind: str, used: list[str], texts: list[str], margin: float) -> None:
    """Both facts of `kinds.py`, on texts that were used and on others."""
    whole = with_pieces(kind)
    small, kept = trimmed_on(whole, used, margin)
    there, unknown = set(kept), whole.unk_token_id
    for text in [*used, *texts]:
        one, two = ids_of(whole, text), [kept[i] for i in ids_of(small, text)]
        if text in used or there.issuperset(one):
            assert one == two, text
        assert two.count(unknown) <= one.count(unknown), text


@pytest.mark.parametrize("kind", KINDS)
@CALM
@given(used=st.lists(ANY, max_size=4), texts=st.lists(ANY, max_size=8),
       margin=st.sampled_from([0, 0.1, 0.5, 3]))  # fmt: skip
def test_kept_pieces_stay_and_no_text_is_lost(
    kind: str, used: list[str], texts: list[str], margin: float
) -> None:
    compared(kind, used, texts, margin)


@pytest.mark.parametrize("kind", KINDS)
def test_most_texts_of_kept_pieces_are_no_used_ones(kind: str) -> None:
    """The property above is not empty: it compares many texts, and many lose a piece."""
    whole = with_pieces(kind)
    small, kept = trimmed_on(whole, TEXTS[:4])
    drawn = random.Random(0)
    texts = [" ".join(drawn.choices(WORDS, k=3)) for _ in range(200)]
    equal = [set(kept).issuperset(ids_of(whole, x)) for x in texts]
    assert 10 < sum(equal) < 190
    assert small.vocab_size < 0.95 * len(whole.get_vocab())


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_is_renumbered(kind: str, tmp_path: Path) -> None:
    whole = with_pieces(kind)
    small, kept = trimmed_on(whole, TEXTS[:2])
    assert sorted(small.get_vocab().values()) == list(range(len(kept)))
    names = {i: x for x, i in whole.get_vocab().items()}
    assert small.convert_ids_to_tokens(range(len(kept))) == [names[i] for i in kept]
    for mark in ("pad", "unk", "cls", "sep", "mask", "bos", "eos"):
        before, after = (getattr(x, f"{mark}_token_id") for x in (whole, small))
        assert after == (None if before is None else kept.index(before))
    assert fixed_ids(small) == {kept.index(i) for i in fixed_ids(whole)}
    pair = small.backend_tokenizer.encode(TEXTS[0], TEXTS[1])
    assert [kept[i] for i in pair.ids] == whole.backend_tokenizer.encode(*TEXTS[:2]).ids
    small.save_pretrained(str(tmp_path))
    read = AutoTokenizer.from_pretrained(str(tmp_path))
    assert read.get_vocab() == small.get_vocab()
    for text in [*TEXTS, "movies 映 ẞ?"]:
        assert ids_of(read, text) == ids_of(small, text)
    assert type(read) is type(whole)


def test_margin_keeps_the_unused_pieces_of_the_lowest_ids() -> None:
    whole = with_pieces("bert")
    used = set(ids_of(whole, "the film"))
    least, some = (set(kept_ids(whole, used, x)) for x in (0, 2))
    pieces = backend_json(whole)["model"]["vocab"]
    spare = sorted(i for x, i in pieces.items() if i not in least and x != "[unused0]")
    assert some - least == set(spare[: 2 * len(used)])
    assert pieces["[unused0]"] not in kept_ids(whole, used, 100)


def test_pairs_keep_all_that_merges_into_a_piece() -> None:
    model = {
        "vocab": {x: i for i, x in enumerate(["a", "b", "c", "ab", "bc", "abc", "cb"])},
        "merges": [["a", "b"], "b c", ["ab", "c"], ["c", "b"]],
    }
    pairs = BytePairs(model, ())
    assert set(pairs.smallest()) == {0, 1, 2}
    assert pairs.with_parts([5]) == {0, 1, 2, 3, 5}
    cut = pairs.cut({0: 0, 1: 1, 2: 2, 3: 3, 5: 4})
    assert cut["merges"] == [["a", "b"], ["ab", "c"]]
    assert cut["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}


def test_unigram_keeps_the_cost_of_an_unknown_character() -> None:
    pieces = [["<unk>", 0.0], ["a", -2.0], ["aa", -9.0], ["aaa", -3.0], ["b", -4.0]]
    pieces += [
        ["<0x41>", -1.0],
        ["twice", -1.0],
        ["twice", -2.0],
        *([x, -1.0] for x in "twice"),
    ]
    found = set(Unigram({"vocab": pieces, "unk_id": 0}, ()).smallest())
    assert found == {0, 1, 2, 4, 5, 6, 7, *range(8, 13)}


def test_word_pieces_may_not_lack_a_character() -> None:
    vocab = {x: i for i, x in enumerate(["[UNK]", "a", "##a", "ab", "##ba", "[unused3]"])}
    model = {"vocab": vocab, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    assert WordPiece(model, ["[UNK]"]).lacking() == {"##b"}
    assert "no piece for '##b' alone" in WordPiece(model, ["[UNK]"]).fault()


def generic(backend: Any) -> Any:
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]")


def word_level() -> Any:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "film": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return generic(backend)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (
            word_level(),
            "its kind is WordLevel; pieces can go where it is WordPiece, BPE, Unigram",
        ),
        (
            generic(Tokenizer(models.WordPiece({"[UNK]": 0, "ab": 1}, unk_token="[UNK]"))),
            "no piece for '##b', 'a' alone, so texts with it might become unknown",
        ),
        (
            generic(Tokenizer(models.BPE({"[UNK]": 0, "a": 1}, [], dropout=0.1))),
            "its merges are drawn at random",
        ),
        (
            generic(Tokenizer(models.Unigram([("[UNK]", 0.0), ("ab", -1.0)], 0))),
            "no piece for 'a', 'b' alone",
        ),
    ],
)
def test_other_tokenizers_are_refused(tokenizer: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said.replace("[", r"\[")):
        trimmable(tokenizer)


def test_a_class_that_keeps_its_own_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = with_pieces("bert")
    where = "prumux.optimizer.model.vocabulary.trimmed.read_tokenizer"
    monkeypatch.setattr(where, lambda _: whole)
    kept = kept_ids(whole, [], 0)
    with pytest.raises(ModelError, match="BertTokenizer does not read a smaller vocabulary"):
        trimmed_tokenizer(whole, tuple(kept))


def test_keys_of_config_json() -> None:
    kept = [0, 2, 5, 7]
    config = {
        "bos_token_id": 2,
        "eos_token_id": [5, 7],
        "sep_token_id": 3,
        "mask_token_id": None,
    }
    found = renumbered_config(json.loads(json.dumps(config)) | {"name": 5}, kept)
    assert found == {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "mask_token_id": None,
        "name": 5,
    }
