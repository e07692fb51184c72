"""Every key of every family's config.json with wrong values: a clean refusal or a clean load.

And files: not UTF-8, with a byte order mark, with two values of one name, nested deeply.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.cli.opt import main
from prumux.optimizer.model.families.registry import families
from prumux.optimizer.model.folder import read_json
from prumux.optimizer.model.source import build
from tests.helpers.checkpoints import config, state, write
from tests.helpers.factory import tiny_tokenizer

NESTED = "[" * 60 + "]" * 60
WRONG: dict[str, str] = {
    "text": '"768"',
    "empty": '""',
    "long": json.dumps("x" * 10_000),
    "surrogate": '"\\ud800"',
    "negative": "-1",
    "zero": "0",
    "half": "0.5",
    "null": "null",
    "true": "true",
    "list": "[1, 2]",
    "map": '{"a": 1}',
    "nan": "NaN",
    "infinite": "1e400",
    "huge": "1" * 40,
    "two to the 31": str(2**31),
    "nested": NESTED,
}
"""JSON texts; no key of a config takes all of them."""
EXTRA = {
    "hidden_act": "gelu",
    "activation": "gelu",
    "layer_norm_eps": 1e-12,
    "is_decoder": False,
    "problem_type": "single_label_classification",
    "num_labels": 2,
    "position_embedding_type": "absolute",
    "quantization_config": None,
    "embedding_size": None,
    "norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "rope_parameters": None,
    "local_attention": 8,
    "global_attn_every_n_layers": 3,
    "layer_types": None,
    "classifier_pooling": "cls",
    "hidden_activation": "gelu",
    "attention_bias": False,
    "relative_attention_num_buckets": 32,
    "sentence_transformers": None,
    "unknown_to_all": 5,
}
"""Keys that configs may have beside those of the tiny ones."""
SHAPES = ("config.json says", "config.json does not call for", "the checkpoint has no tensor")


def keys_of(family: str) -> list[str]:
    return sorted({*config(family), *EXTRA})


def outcome(folder: Path, weights: dict[str, Tensor]) -> str:
    """The message of a refusal, or "" for a model that was read and is whole."""
    try:
        build(read_json(folder / "config.json"), weights, None, "model").verify()
    except ModelError as error:
        said = error
    else:
        return ""
    assert said.exit_code == 2
    assert 1 <= len(str(said).splitlines()) <= 5
    assert len(str(said)) < 900
    return str(said)


@pytest.mark.parametrize("family", sorted(families()))
def test_a_wrong_value_of_any_key_is_named(family: str, tmp_path: Path) -> None:
    given = config(family)
    folder, weights = tmp_path, state(given)
    refused = loaded = 0
    for key in keys_of(family):
        for kind, text in WRONG.items():
            fields = {k: json.dumps(x) for k, x in given.items()} | {key: text}
            (folder / "config.json").write_text(
                "{" + ", ".join(f"{json.dumps(k)}: {x}" for k, x in fields.items()) + "}"
            )
            said = outcome(folder, weights)
            named = key in said or any(x in said for x in SHAPES)
            assert not said or named, f"{key} = {kind}: {said}"
            refused, loaded = refused + bool(said), loaded + (not said)
    assert refused > 100
    assert loaded > 20, "unknown keys do not matter"


@pytest.mark.parametrize("kind", WRONG)
def test_the_command_ends_with_exit_code_2(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "model", config())
    tiny_tokenizer().save_pretrained(str(folder))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"hidden_size": 12', f'"hidden_size": {WRONG[kind]}')
    )
    assert main([str(folder), "--data", str(tmp_path), "--budget", "2%"]) == 2
    said = capsys.readouterr().err
    assert "hidden_size" in said
    assert "Traceback" not in said


FILES: dict[str, tuple[bytes, str]] = {
    "not utf-8": (b'{"a": "\xff"}', "cannot be read: 'utf-8' codec can't decode"),
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}', "begins with a byte order mark"),
    "two values": (b'{"a": 1, "b": {"a": 1, "a": 2}}', "'a' has two values; keep one"),
    "deep": (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested too deeply"),
    "deeper": (b"[" * 100_000, "cannot be read"),
    "a long number": (b'{"a": ' + b"1" * 5000 + b"}", "cannot be read"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "lfs pull",
    ),
    "cut off": (b'{"a": [1, 2', "cannot be read"),
    "a list": (b"[]", "holds a JSON list"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_clean_json_is_named(kind: str, tmp_path: Path) -> None:
    content, says = FILES[kind]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_json(tmp_path / "config.json")
    assert says in str(caught.value)
    assert "config.json" in str(caught.value)


def test_one_value_written_twice_is_one_value(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": [1], "a": [1]}')
    assert read_json(tmp_path / "config.json") == {"a": [1]}


def test_values_that_do_not_fit_each_other() -> None:
    from tests.model.test_hf_checkpoint import refused

    assert "pad_token_id is 31, ids of a vocabulary of 31 are below 31" in refused(
        config(pad_token_id=31)
    )
    text = refused(config("roberta", max_position_embeddings=2))
    assert "max_position_embeddings is 2, positions begin at pad_token_id + 1 = 2" in text
    for method in ("gptq", "awq", "bitsandbytes"):
        text = refused(config(quantization_config={"quant_method": method, "bits": 4}))
        assert f"quantization_config says '{method}'" in text
        assert "as it was before" in text


def label_names(value: Any) -> str:
    from tests.model.test_hf_checkpoint import refused

    return refused(config(id2label=value))


def test_names_of_labels_are_texts() -> None:
    assert "id2label has the name None for 0" in label_names({"0": None, "1": "b"})
    assert "id2label has the name ['a'] for 0" in label_names({"0": ["a"], "1": "b"})
    assert "id2label has the name '\\ud800' for 1" in label_names({"0": "a", "1": "\ud800"})
