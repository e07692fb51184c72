"""`trim-vocabulary`: its text, its place, what it refuses, the rows and ids that it keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prumux.optimizer.base.errors import DataError, GateError, PassError, SpecError
from prumux.optimizer.data.predict import torch_run
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import Encoded, batches, encode
from prumux.optimizer.model.artifact import load_artifact, save_artifact
from prumux.optimizer.model.families.bag import bag_sizes
from prumux.optimizer.model.families.registry import model_types
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from prumux.optimizer.model.vocabulary.trim import trimmed_model
from prumux.optimizer.pipeline.own_rows import check_pieces, other_pieces, own_rows
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.passes.bags.fitted_bag import empty_bag
from tests.helpers.checkpoints import config, state, write
from tests.helpers.datafiles import write as write_rows
from tests.helpers.factory import make_context, random_model, tiny_tokenizer
from tests.helpers.family_tokenizers import UNIGRAM
from tests.helpers.pieces import TEXTS, with_pieces

KIND = {
    **dict.fromkeys(("bert", "electra", "distilbert", "nomic_bert"), "bert"),
    **dict.fromkeys(("modernbert", "eurobert"), "modernbert"),
    **{x: x for x in ("mpnet", "roberta", *UNIGRAM)},
    "gte": "xlm-roberta",
}
"""The kind of tokenizer of each family."""
FIT, OTHER = tuple(TEXTS[:3] * 4), tuple(TEXTS[3:])


def given_model(folder: Path, family: str = "bert", **changes: Any) -> Model:
    """A random checkpoint of a family, with a tokenizer that has pieces of several letters."""
    tokenizer = with_pieces(KIND[family])
    pad = tokenizer.pad_token_id
    of = config(family, vocab_size=len(tokenizer), pad_token_id=pad, **changes)
    write(folder, of, state(of))
    tokenizer.save_pretrained(str(folder))
    return load_model(str(folder))


def coded(model: Model, texts: tuple[str, ...]) -> Encoded:
    assert model.tokenizer is not None
    return encode(Rows(texts), model.tokenizer, model.encoder)


def trimmed(model: Model, options: str = "{margin=0}") -> tuple[Model, Encoded, Encoded]:
    """The trimmed model with its fit rows and the others, under the given ids."""
    fit, other = coded(model, FIT), coded(model, OTHER)
    ctx = make_context(model, *batches(fit, 8), fit=fit, select=other)
    return Pipeline.parse(f"trim-vocabulary{options}").run(model, ctx), fit, other


def answers(model: Model, rows: Encoded) -> torch.Tensor:
    """Logits of rows one by one, so that no padding can hide a fault."""
    run = torch_run(model)
    found = [run(b.inputs())[0] for b in batches(rows, 1, by_length=False)]
    return torch.as_tensor(np.array(found))


@pytest.mark.parametrize("family", sorted(KIND))
def test_texts_of_kept_pieces_have_equal_answers(family: str, tmp_path: Path) -> None:
    assert family in model_types()
    model = given_model(tmp_path / "given", family)
    made, fit, other = trimmed(model)
    assert made.encoder.vocab < model.encoder.vocab
    assert made.encoder.vocab == len(made.kept_pieces or ())
    assert other_pieces(fit, made) == 0
    assert 0 < other_pieces(other, made) <= 1
    assert torch.equal(answers(model, fit), answers(made, own_rows(fit, made)))
    save_artifact(made, tmp_path / "saved")
    read = load_artifact(tmp_path / "saved")
    assert read.tokenizer is not None
    assert made.tokenizer is not None
    assert read.encoder == made.encoder
    assert read.encoder.pad_id == read.tokenizer.pad_token_id
    assert read.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    again = encode(Rows(FIT), read.tokenizer, read.encoder)
    assert torch.equal(answers(read, again), answers(model, fit))


def test_positions_that_follow_the_padding_stay(tmp_path: Path) -> None:
    made, _, _ = trimmed(given_model(tmp_path, "roberta"))
    assert made.encoder.pad_id == 1
    assert (made.kept_pieces or ())[:2] == (0, 1)


def test_padding_that_would_move_positions_is_refused(tmp_path: Path) -> None:
    tokenizer = with_pieces("modernbert")
    of = config("roberta", vocab_size=len(tokenizer), pad_token_id=3)
    write(tmp_path, of, state(of))
    tokenizer.save_pretrained(str(tmp_path))
    model = load_model(str(tmp_path))
    made, _, _ = trimmed(model)  # all ids below the padding's are kept
    assert made.encoder.pad_id == 3


def test_ids_of_the_config_are_renumbered(tmp_path: Path) -> None:
    whole = with_pieces("modernbert")
    model = given_model(tmp_path, "modernbert", cls_token_id=whole.cls_token_id)
    made, _, _ = trimmed(model)
    assert made.tokenizer is not None
    assert made.tokenizer.cls_token_id != whole.cls_token_id
    assert made.kept_config["cls_token_id"] == made.tokenizer.cls_token_id


def test_a_margin_and_texts_of_a_file_keep_more(tmp_path: Path) -> None:
    model = given_model(tmp_path / "given")
    file = write_rows(tmp_path / "more.jsonl", text=[*OTHER])
    least, _, other = trimmed(model)
    some, _, _ = trimmed(model, "{margin=0.2}")
    more, _, _ = trimmed(model, f'{{margin=0 text="{file}"}}')
    assert set(least.kept_pieces or ()) < set(some.kept_pieces or ())
    assert set(least.kept_pieces or ()) < set(more.kept_pieces or ())
    assert other_pieces(other, more) == 0 < other_pieces(other, least)
    receipt = least.history[-1].notes
    assert receipt["pieces_before"] == len(model.tokenizer or ())
    assert receipt["pieces"] == least.encoder.vocab
    assert receipt["table_bytes"] == 4 * 12 * least.encoder.vocab


def test_where_every_piece_is_kept_nothing_changes(tmp_path: Path) -> None:
    model = given_model(tmp_path)
    made, _, _ = trimmed(model, "{margin=100}")
    kept = set(made.kept_pieces or range(len(model.tokenizer or ())))
    assert len(kept) >= len(model.tokenizer or ()) - 1  # all but [unused0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("margin=-1", "margin must be in [0, 100], not -1"),
        ("margin=101", "margin must be in [0, 100], not 101"),
        ("margn=1", "did you mean 'margin'?"),
    ],
)
def test_bad_options_are_underlined(options: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse(f"slice,trim-vocabulary{{{options}}}")
    assert said in str(caught.value)


def test_no_second_model_of_a_cascade_loses_pieces() -> None:
    with pytest.raises(SpecError, match=r"'trim-vocabulary.*' cannot be: the second model"):
        Pipeline.parse('slice,cascade{to="trim-vocabulary"}')


def test_print_and_parse_are_inverse() -> None:
    text = 'trim-vocabulary{margin=0.3 text="a b.jsonl"}'
    pipeline = Pipeline.parse(text)
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert pipeline.passes[0].input_files == (Path("a b.jsonl"),)
    assert pipeline.passes[0].sketch() is None


@pytest.mark.parametrize("after", ["slice", "cascade", "trim-vocabulary", "distill{epochs=1}"])
def test_it_comes_last(after: str, tmp_path: Path) -> None:
    model = given_model(tmp_path)
    pipeline = Pipeline.parse(f"trim-vocabulary,{after}")
    with pytest.raises(PassError, match="which changes the ids of all tokens") as caught:
        pipeline.run(model, make_context(model))
    assert caught.value.exit_code == 2
    assert "put 'trim-vocabulary' last" in str(caught.value)


def test_models_that_cannot_lose_pieces_are_refused(tmp_path: Path) -> None:
    model = given_model(tmp_path)
    (trim,) = Pipeline.parse("trim-vocabulary").passes
    trim.check_given(model)
    for tokenizer, said in (
        (None, "the model has no tokenizer"),
        (tiny_tokenizer(), "no piece for '##0', '##1', '##2', '##3', '##4' and 5 more alone"),
    ):
        with pytest.raises(PassError, match=said) as caught:
            trim.check_given(replace(model, tokenizer=tokenizer))
        assert caught.value.exit_code == 2


def test_a_tokenizer_that_splits_kept_pieces_otherwise_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = given_model(tmp_path)
    made, fit, _ = trimmed(model)
    (trim,) = Pipeline.parse("trim-vocabulary").passes
    ctx = make_context(model, fit=fit)
    trim.ensures(model, made, ctx)
    where = "prumux.optimizer.pipeline.own_rows.own_rows"
    less, unknown = (
        own_rows(coded(model, x), made)
        for x in (tuple(x[:-3] for x in FIT), tuple(f"{x} ☃" for x in FIT))
    )
    monkeypatch.setattr(where, lambda *_: less)
    with pytest.raises(GateError, match="row 1 has kept pieces only"):
        trim.ensures(model, made, ctx)
    monkeypatch.setattr(where, lambda *_: unknown)
    some = replace(made, kept_pieces=(*(made.kept_pieces or ())[:-1], 10**6))
    with pytest.raises(GateError, match="row 1 has 1 more unknown pieces"):
        trim.ensures(model, some, ctx)


def test_words_that_no_longer_fit_are_refused(tmp_path: Path) -> None:
    model = given_model(tmp_path, architectures=["XForTokenClassification"])
    words = tuple(("laughing",) * 9 for _ in range(8))
    assert model.tokenizer is not None
    fit = encode(Rows((), words=(("a", "film"),) * 8), model.tokenizer, model.encoder)
    other = encode(Rows((), words=words), model.tokenizer, model.encoder)
    ctx = make_context(model, fit=fit, select=other)
    with pytest.raises(
        PassError, match=r"row 1 has 9 words in .* tokens; with fewer"
    ) as caught:
        Pipeline.parse("trim-vocabulary{margin=0}").run(model, ctx)
    assert caught.value.exit_code == DataError.exit_code


def _of_abcd(kind: str) -> Any:
    """A tokenizer that splits `abcd` into `ab cd`, and without `cd` into `a bc d`."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    scores = {"a": -3.0, "b": -3.0, "c": -3.0, "d": -3.0, "ab": -1.0, "bc": -0.5, "cd": -1.0}
    pieces = [*((x, 0.0) for x in marks), *scores.items()]
    merges = [("c", "d"), ("b", "c"), ("a", "b")]
    vocab = {x: i for i, (x, _) in enumerate(pieces)}
    pairs, unigram = models.BPE(vocab, merges, unk_token="[UNK]"), models.Unigram(pieces, 1)
    backend = Tokenizer(pairs if kind == "BPE" else unigram)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(x, vocab[x]) for x in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    make: Any = PreTrainedTokenizerFast
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), marks, strict=True))
    return make(tokenizer_object=backend, **named)


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_a_word_of_which_the_tail_is_cut_off_may_be_split_in_another_way(kind: str) -> None:
    model = replace(random_model(vocab=11, positions=4), tokenizer=_of_abcd(kind))
    rows = coded(model, ("ab abcd",))
    assert model.tokenizer is not None
    kept = [x for x in range(11) if x != model.tokenizer.get_vocab()["cd"]]
    made = trimmed_model(model, kept)
    assert set(rows.ids.values.tolist()) <= set(kept)
    assert other_pieces(rows, made) == 1
    check_pieces(rows, made, 1)
    # Rows that are not cut are still checked: as if `ab` had come out of `abcd`.
    roomy = replace(made, encoder=replace(made.encoder, positions=40))
    with pytest.raises(GateError, match="row 1 has kept pieces only, 4 of them, and 6 others"):
        check_pieces(rows, roomy, 1)


@pytest.mark.parametrize("name", ["text", "sentence"])
def test_half_a_character_in_the_file_of_more_texts_is_refused(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "more.jsonl"
    file.write_text(f'{{"{name}": "walls"}}\n{{"{name}": "half \\ud83d"}}\n')
    with pytest.raises(PassError, match=f"row 2: '{name}' holds half a character"):
        trimmed(given_model(tmp_path / "given"), f'{{margin=0 text="{file}"}}')


@pytest.mark.parametrize("token_types", [0, 1, 2])
@pytest.mark.parametrize("buckets", [0, 7])
def test_a_bag_that_numbers_its_pieces_keeps_them(
    token_types: int, buckets: int, tmp_path: Path
) -> None:
    given = given_model(tmp_path / "given")
    sizes = bag_sizes(replace(given.encoder, token_types=token_types), 2, buckets)
    bag = empty_bag(given, sizes)
    found = Pipeline.parse("trim-vocabulary{margin=0}").passes[0]
    if not token_types and not buckets:
        found.check_given(bag)
        return
    with pytest.raises(PassError, match="gives other ids\ntrim the model that") as caught:
        found.check_given(bag)
    assert caught.value.exit_code == 2
