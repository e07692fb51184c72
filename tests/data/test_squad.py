"""SQuAD's data: its files, bad rows, and windows of contexts, as transformers makes them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tokenizers import normalizers

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.data.encodings import context_index
from prumux.optimizer.data.files import find_files
from prumux.optimizer.data.layouts import window_sizes
from prumux.optimizer.data.rows import Rows, read_rows
from prumux.optimizer.data.splits import load_splits
from prumux.optimizer.data.tokenize import Encoded, collate, encode
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.model.source import load_model
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.labels import IGNORE
from prumux.optimizer.tasks.question_answering import QuestionAnswering
from prumux.optimizer.tasks.squad import NO_ANSWER, from_numbers
from tests.helpers.datafiles import text
from tests.helpers.factory import random_model, tiny_tokenizer
from tests.helpers.pieces import with_pieces
from tests.helpers.questions import model_folder, questions

TASK = QuestionAnswering(("start", "end"))
CONTEXT = "Ann met Bob in Paris."
BOB: dict[str, Any] = {"text": ["Bob"], "answer_start": [8]}
NONE: dict[str, Any] = {"text": [], "answer_start": []}


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    return text(path, "\n".join(json.dumps(x) for x in rows))


def row(**changes: Any) -> dict[str, Any]:
    return {"question": "Whom?", "context": CONTEXT, "answers": BOB} | changes


def nested(**changes: Any) -> dict[str, Any]:
    """A file of SQuAD with two articles and four questions."""
    found = {"id": "1", "question": "Whom?", "answers": [{"text": "Bob", "answer_start": 8}]}
    none = {"id": "2", "question": "Why?", "is_impossible": True, "answers": []}
    none["plausible_answers"] = [{"text": "Bob", "answer_start": 8}]
    paragraph = {"context": CONTEXT, "qas": [found, none]}
    article = {"title": "Ann", "paragraphs": [paragraph]} | changes
    return {"version": "v2.0", "data": [article, article]}


def answers(rows: Rows) -> list[list[tuple[int, int]]]:
    assert isinstance(rows.labels, tuple)
    return [[(x.start, x.end) for x in from_numbers(y)] for y in rows.labels]


# Files -------------------------------------------------------------------------------------


def test_a_hub_file_and_squads_own_file_are_the_same(tmp_path: Path) -> None:
    flat = [row(), row(question="Why?", answers=NONE)] * 2
    pd.DataFrame(flat).to_parquet(tmp_path / "a.parquet")
    files = [
        lines(tmp_path / "a.jsonl", *flat),
        tmp_path / "a.parquet",
        text(tmp_path / "a.json", json.dumps(nested())),
    ]
    found = [read_rows(x, TASK) for x in files]
    for rows in found:
        assert rows.text_a == ("Whom?", "Why?") * 2
        assert rows.text_b == (CONTEXT,) * 4
        assert answers(rows) == [[(8, 11)], [(-1, -1)]] * 2
        assert rows.stride == 0
    assert len({x.digest() for x in found}) == 1
    wide = read_rows(files[0], TASK.with_stride(9))
    assert wide.stride == 9
    assert wide.digest() != found[0].digest()
    assert wide.take([1]).stride == 9


def test_an_impossible_question_has_no_answer_whatever_stands_there(tmp_path: Path) -> None:
    given = nested()
    given["data"][0]["paragraphs"][0]["qas"][1]["answers"] = [
        {"text": "Bob", "answer_start": 8}
    ]
    file = text(tmp_path / "a.json", json.dumps(given))
    assert answers(read_rows(file, TASK))[1] == [(-1, -1)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (nested(paragraphs=3), r"data\[0\] has no list 'paragraphs'"),
        (nested(paragraphs=["x"]), r"data\[0\]\.paragraphs\[0\] is a str, not an object"),
        (nested(paragraphs=[{"context": "x"}]), r"paragraphs\[0\] has no list 'qas'"),
        (nested(paragraphs=[{"context": "x", "qas": [1]}]), r"qas\[0\] is a int"),
    ],
)
def test_a_file_of_another_form_is_refused(
    given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_rows(text(tmp_path / "a.json", json.dumps(given)), TASK)
    assert '"paragraphs": [{"context"' in str(caught.value)


def test_squads_own_file_names(tmp_path: Path) -> None:
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        text(tmp_path / name, json.dumps(nested()))
    found = {k: v[0].name for k, v in find_files(tmp_path).items()}
    assert found == {"train": "train-v2.0.json", "validation": "dev-v2.0.json"}


# Bad rows ----------------------------------------------------------------------------------


def test_rows_without_question_context_or_answers_are_skipped(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "a.jsonl", row(), row(question=" "), row(context=None), row(answers=None)
    )
    found = read_rows(file, TASK)
    assert len(found) == 1
    assert found.skipped == (
        f"rows are skipped: 2 without question or context ({file}, row 2), "
        f"1 without a label in 'answers' ({file}, row 4)"
    )
    with pytest.raises(DataError, match="all 2 rows are empty in 'question' or 'context'"):
        read_rows(lines(file, row(question=""), row(context="")), TASK)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            row(answers={"text": ["Bob"], "answer_start": [7]}),
            "row 2: column 'answers': 'Bob'",
        ),
        (row(answers={"text": ["Bob"], "answer_start": [99]}), "answer_start 99 of a context"),
        (row(answers="Bob"), "row 2: the answers are 'Bob', not .*: use jsonl"),
        (row(context=7), r"row 2: 'context' is 7 \(int\), not text"),
    ],
)
def test_bad_rows_are_refused_with_their_number(
    wrong: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        read_rows(lines(tmp_path / "a.jsonl", row(), wrong), TASK)


def test_columns_are_found_and_named(tmp_path: Path) -> None:
    other = {"q": "Whom?", "where": CONTEXT, "gold": BOB}
    file = lines(tmp_path / "a.jsonl", other)
    named = {"text_a": "q", "text_b": "where", "answers": "gold"}
    assert answers(read_rows(file, TASK, named)) == [[(8, 11)]]
    with pytest.raises(DataError, match="no text column"):
        read_rows(file, TASK)
    single = lines(tmp_path / "b.jsonl", {"text": "Whom?", "answers": BOB})
    with pytest.raises(DataError, match="'text' is the only text, question-answering reads a"):
        read_rows(single, TASK)
    # A classifier reads the two columns as a pair.
    pairs = [{"question": "a", "context": "b", "label": i} for i in (0, 1)]
    pair = read_rows(lines(tmp_path / "c.jsonl", *pairs), Classification(("no", "yes")))
    assert pair.text_b == ("b", "b")
    assert pair.stride is None


def test_without_answers_there_are_no_labels(tmp_path: Path) -> None:
    hidden = read_rows(lines(tmp_path / "a.jsonl", row(answers=NONE), row(answers=[])), TASK)
    assert hidden.labels is None
    assert hidden.unlabelled == "it has no labels (no question has an answer)"
    empty = read_rows(lines(tmp_path / "a.jsonl", row(answers=None)), TASK)
    assert empty.unlabelled == "it has no labels (its column 'answers' is empty)"


@pytest.mark.parametrize("lacking", [False, True])
def test_the_data_say_whether_answers_may_be_missing(lacking: bool, tmp_path: Path) -> None:
    for split, count in (("train", 40), ("validation", 20)):
        rows = [row(question=f"{split} {i}?") for i in range(count)]
        if lacking:
            rows[0]["answers"] = NONE
        lines(tmp_path / f"{split}.jsonl", *rows)
    splits = load_splits(str(tmp_path), None, None, None, None, TASK)
    assert isinstance(splits.task, QuestionAnswering)
    assert splits.task.may_lack_answers == lacking
    assert splits.certify.stride == 0


# Windows -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("model")
    return load_model(str(model_folder(folder, type_vocab_size=2))).encoder


def transformers_windows(tokenizer: Any, rows: Rows, length: int, stride: int) -> Any:
    """As transformers' example scripts tokenise SQuAD."""
    first = tokenizer.padding_side == "right"
    assert rows.text_b is not None
    texts = (rows.text_a, rows.text_b) if first else (rows.text_b, rows.text_a)
    return tokenizer(
        *(list(x) for x in texts),
        truncation="only_second" if first else "only_first",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("stride", [0, 5])
def test_windows_are_those_of_transformers(side: str, stride: int, encoder: Encoder) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    rows = questions(60, 0, stride)
    found = encode(rows, tokenizer, encoder)
    assert tokenizer.backend_tokenizer.truncation is None  # its own settings do not change
    expected = transformers_windows(tokenizer, rows, 40, stride or 13)
    assert [x.tolist() for x in found.ids] == expected["input_ids"]
    assert found.layout is not None
    windows = found.layout.windows
    assert windows is not None
    assert windows.question.tolist() == expected["overflow_to_sample_mapping"]
    assert [[tuple(y) for y in x.tolist()] for x in windows.spans] == expected[
        "offset_mapping"
    ]
    for i, tokens in enumerate(windows.tokens):
        inside = [x == context_index(tokenizer) for x in expected.sequence_ids(i)]
        assert (tokens[1:] != IGNORE).tolist() == inside[1:]
        assert tokens[0] == 0
    assert len(found) > found.scored_rows == 60


def labelled(context: str, start: int, end: int, stride: int = 0) -> Rows:
    value = {"text": [context[start:end]], "answer_start": [start]}
    labels = TASK.read_labels([value], [context], lambda i, x: pytest.fail(x))
    return Rows(("who",), (context,), labels=labels, stride=stride)


def target(found: Encoded, window: int) -> tuple[int, int]:
    tokens = np.maximum(found.texts().labels[window], 0)  # type: ignore[index]
    return int(np.flatnonzero(tokens & 1)[0]), int(np.flatnonzero(tokens & 2)[0])


def test_an_answer_that_a_window_cuts_is_whole_in_the_next_one(encoder: Encoder) -> None:
    context = " ".join("abcdefghijklmnopqrstuvwxyz" * 3)  # one token a letter
    length, stride = window_sizes(encoder.most_tokens, 0)
    room = length - 3 - 3  # special tokens, and three of the question
    start, end = 2 * (room - 4), 2 * (room + 5) - 1  # nine letters over the first window's end
    found = encode(labelled(context, start, end), tiny_tokenizer(), encoder)
    assert found.layout is not None
    assert found.layout.windows is not None
    assert found.scored_rows == 1
    windows = found.layout.windows
    assert len(windows.spans) == 1 + -(-(78 - room) // (room - stride))
    whole = [i for i in range(len(found)) if target(found, i) != (0, 0)]
    assert whole == [1]
    first, last = target(found, 1)
    spans = windows.spans[1]
    assert (spans[first, 0], spans[last, 1]) == (start, end)
    batch = collate(found.texts(), np.arange(len(found)))
    assert batch.labels is not None
    assert batch.labels.shape == batch.input_ids.shape
    taken = found.take([1])
    assert taken.layout is None
    assert taken.labels[0].tolist() == windows.tokens[1].tolist()  # type: ignore[index]


def test_unlabelled_questions_have_windows_without_targets(encoder: Encoder) -> None:
    found = encode(questions(3, 0), tiny_tokenizer(), encoder)
    assert found.labels is None
    labels = found.texts().labels
    assert isinstance(labels, tuple)
    assert {int(y) for x in labels for y in x} == {IGNORE, 0}


def test_a_long_question_is_cut_and_leaves_room_for_the_context(encoder: Encoder) -> None:
    rows = Rows(("a " * 100, "who"), ("b c d", "b " * 30), stride=0)
    found = encode(rows, tiny_tokenizer(), encoder)
    assert found.layout is not None
    assert found.layout.windows is not None
    most = 40 - 2 * 13 - 3
    assert found.ids[0].tolist().count(tiny_tokenizer().convert_tokens_to_ids("a")) == most
    assert found.layout.windows.question.tolist() == [0, *[1] * (len(found) - 1)]
    assert int(found.lengths.max()) <= 40
    assert from_numbers(TASK.arranged(_random(found), found.layout)[1])[0] != NO_ANSWER


def _random(found: Encoded) -> Any:
    random = np.random.default_rng(0)
    logits = [random.normal(size=(n, 2)) for n in found.lengths]
    assert found.layout is not None
    assert found.layout.windows is not None
    return TASK.predictions(logits, found.layout.windows.tokens)


def test_sizes_of_windows() -> None:
    assert window_sizes(512, 0) == (384, 128)
    assert window_sizes(8192, 64) == (384, 64)
    assert window_sizes(200, 0) == (200, 66)
    with pytest.raises(
        UsageError, match=r"--stride 129 is over a third of a window of 384 .*128"
    ):
        window_sizes(512, 129)


def test_too_few_positions_are_refused(encoder: Encoder) -> None:
    rows = questions(2, 0)
    with pytest.raises(UsageError, match=r"a window of 5 tokens, .* shares 1, has no room"):
        encode(rows, tiny_tokenizer(), encoder, max_length=5)


@pytest.mark.parametrize("stride", [0, 1, 13])
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "xlm-roberta", "albert"])
def test_a_question_is_cut_whatever_its_characters_become(kind: str, stride: int) -> None:
    tokenizer = copy.deepcopy(with_pieces(kind))
    sizes = {"positions": 40, "vocab": len(tokenizer), "pad_id": tokenizer.pad_token_id}
    encoder = random_model(**sizes).encoder
    # The first one becomes 18 characters, the second one 4 tokens of bytes.
    asked = ["\ufdfa" * 7, "\U0001f600" * 9, "a" * 40, "walls " * 30, "\u0301" * 50]
    for normal in (tokenizer.backend_tokenizer.normalizer, normalizers.NFKD()):
        if normal is not None:
            tokenizer.backend_tokenizer.normalizer = normal
        rows = Rows((*asked,), ("the film was " * 20,) * len(asked), stride=stride)
        coded = encode(rows, tokenizer, encoder)
        assert coded.lengths.max() <= 40
        windows = coded.layout and coded.layout.windows
        assert windows
        ends = np.array([x.max() for x in windows.spans])
        for question in range(len(asked)):  # the whole context is read
            assert ends[windows.question == question].max() >= len("the film was " * 20) - 1
