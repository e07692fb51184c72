"""Folders of sentence-transformers, and encoders without a head, become embedding models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModel

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import batches
from prumux.optimizer.model.artifact import load_artifact, save_artifact
from prumux.optimizer.model.checkpoint.sentence_files import (
    FLAGS,
    POOLS,
    read_sentence_files,
)
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.source import load_model
from tests.helpers import jobs
from tests.helpers.checkpoints import refused
from tests.helpers.embeddings import POOL_CONFIGS, encoder_folder, sentence_folder
from tests.helpers.factory import random_batch

FAMILIES = (
    *("bert", "roberta", "distilbert", "electra", "mpnet", "modernbert"),
    *("albert", "deberta-v2", "nomic_bert", "gte", "eurobert"),
)
SIZES = {"vocab_size": 101, "max_position_embeddings": 40}
OTHERS: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
DISTIL = {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 32}
TEXTS = ["abc def ghi", "xyz", "one two three four five six seven eight"]


def pooled(kind: str, states: Tensor, mask: Tensor) -> Tensor:
    """A pool as sentence-transformers defines it, row by row."""
    rows = [x[m.bool()] for x, m in zip(states, mask, strict=True)]
    place = [torch.arange(1.0, len(x) + 1)[:, None] for x in rows]
    found: dict[str, Callable[[int], Tensor]] = {
        "cls": lambda i: rows[i][0],
        "max": lambda i: rows[i].amax(0),
        "mean": lambda i: rows[i].mean(0),
        "mean_sqrt_len_tokens": lambda i: rows[i].sum(0) / len(rows[i]) ** 0.5,
        "weightedmean": lambda i: (rows[i] * place[i]).sum(0) / place[i].sum(),
        "lasttoken": lambda i: rows[i][-1],
    }
    return torch.stack([found[kind](i) for i in range(len(rows))])


def inputs_of(model: Model) -> tuple[dict[str, NDArray[Any]], Tensor]:
    """A batch of texts of unequal length, and its mask."""
    coded = jobs.coded_by(model, Rows(tuple(TEXTS)))
    inputs: dict[str, Any] = dict(batches(coded, 8)[0].inputs())
    return inputs, torch.as_tensor(inputs["attention_mask"])


def states_of(folder: Path, inputs: dict[str, NDArray[Any]]) -> Tensor:
    """The states of Hugging Face's own model."""
    module = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found: Tensor = module(**{k: torch.as_tensor(v) for k, v in inputs.items()})[0]
    return found


@pytest.mark.parametrize("kind", FLAGS)
def test_every_pool(kind: str, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, POOL_CONFIGS[kind], ())
    model = load_model(str(folder))
    inputs, mask = inputs_of(model)
    found = run(EncoderModule(model).eval(), inputs)
    expected = pooled(kind, states_of(folder, inputs), mask)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (dict.fromkeys(FLAGS.values(), True), list(FLAGS)),
        ({"pooling_mode": ["mean", "cls"]}, ["mean", "cls"]),
        ({"pooling_mode": "weightedmean"}, ["weightedmean"]),
        ({}, ["mean"]),
    ],
)
def test_pools_stand_side_by_side(
    config: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    config = {"word_embedding_dimension": 24, **config}
    folder = sentence_folder(tmp_path, config, ("Dense", "Normalize", "Dense"))
    model = load_model(str(folder))
    inputs, mask = inputs_of(model)
    states = states_of(folder, inputs)
    x = torch.cat([pooled(kind, states, mask) for kind in names], -1)
    for i in (2, 4):
        weights = load_dense(folder / f"{i}_Dense")
        x = torch.tanh(x @ weights["linear.weight"].T + weights["linear.bias"])
        x = torch.nn.functional.normalize(x, dim=-1) if i == 2 else x
    assert model.encoder.labels == 14
    found = run(EncoderModule(model).eval(), inputs)
    assert found == pytest.approx(x.numpy(), abs=1e-5)


def load_dense(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_without_its_head(family: str, tmp_path: Path) -> None:
    """Random weights, saved as AutoModel saves them."""
    sizes = SIZES | (DISTIL if family == "distilbert" else OTHERS)
    if family == "electra":
        sizes |= {"embedding_size": 12}
    if family in ("modernbert", "eurobert"):
        sizes |= {"pad_token_id": 0, "attn_implementation": "eager"}
    torch.manual_seed(0)
    auto: Any = AutoModel
    module = auto.from_config(AutoConfig.for_model(family, **sizes)).eval()
    module.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "mean+lasttoken")
    inputs = random_batch(model, rows=5, length=12).inputs()
    given = {k: torch.as_tensor(v) for k, v in inputs.items()}
    with torch.no_grad():
        states = module(**given)[0]
    mask = given["attention_mask"]
    expected = torch.cat([pooled(x, states, mask) for x in ("mean", "lasttoken")], -1)
    found = run(EncoderModule(model).eval(), inputs)
    assert found == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_folder_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    modules = ("Dense", "Normalize")
    for name, config in (("a", POOL_CONFIGS["max"]), ("b", {"pooling_mode": ["mean", "cls"]})):
        pooling = {"word_embedding_dimension": 24, **config}
        given = load_model(
            str(sentence_folder(tmp_path / name, pooling, modules, settings)), dimensions=7
        )
        out = tmp_path / f"{name}-out"
        save_artifact(given, out)
        again = load_artifact(out)
        assert (again.encoder, again.task) == (given.encoder, given.task)
        assert again.kept_config == given.kept_config
        theirs = read_sentence_files(out)
        assert theirs is not None
        assert theirs.head == given.encoder.sentence
        assert theirs.max_length == 30
        assert theirs.task["prompts"] == {"query": "q: "}
        assert all(torch.equal(x, given.weights[k]) for k, x in theirs.weights.items())
        assert len(theirs.weights) == 3


def test_texts_are_cut_where_sentence_transformers_cuts_them(tmp_path: Path) -> None:
    model = load_model(str(sentence_folder(tmp_path)))
    long = jobs.coded_by(model, Rows(("abc " * 60,)))
    assert long.lengths.tolist() == [30]


@pytest.mark.parametrize("dimensions", [1, 7, 24])
@pytest.mark.parametrize("modules", [(), ("Normalize",)])
def test_the_first_dimensions_are_normalised(
    dimensions: int, modules: tuple[str, ...], tmp_path: Path
) -> None:
    folder = sentence_folder(tmp_path, None, modules)
    whole, cut = load_model(str(folder)), load_model(str(folder), dimensions=dimensions)
    inputs, _ = inputs_of(whole)
    x, y = (run(EncoderModule(m).eval(), inputs) for m in (whole, cut))
    if dimensions < 24:
        x = x[:, :dimensions] / np.linalg.norm(x[:, :dimensions], axis=1, keepdims=True)
        assert cut.source["digest"] != whole.source["digest"]
    assert y == pytest.approx(x, abs=1e-5)
    cut.verify()


def change(path: Path, **values: Any) -> int:
    found = json.loads(path.read_text())
    return path.write_text(json.dumps(found | values))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "module": (
        lambda x: (x / "modules.json").write_text(
            (x / "modules.json").read_text().replace("models.Normalize", "models.CNN")
        ),
        "lists Transformer, Pooling, Dense, CNN; prumux reads",
    ),
    "list": (lambda x: (x / "modules.json").write_text("{}"), "lists no module"),
    "json": (lambda x: (x / "modules.json").write_text("[1]"), "is not as sentence-trans"),
    "outside": (
        lambda x: (x / "modules.json").write_text(
            (x / "modules.json").read_text().replace("1_Pooling", "../other")
        ),
        "names a path outside its folder: '../other'",
    ),
    "pool": (
        lambda x: change(x / "1_Pooling" / "config.json", pooling_mode="median"),
        "pooling_mode is 'median', it must be of cls, max",
    ),
    "no pooling": (
        lambda x: (x / "1_Pooling" / "config.json").unlink(),
        "it has no config.json",
    ),
    "prompt": (
        lambda x: (
            change(x / "1_Pooling" / "config.json", include_prompt=False),
            change(x / "config_sentence_transformers.json", prompts={"query": "q: "}),
        ),
        "include_prompt is false",
    ),
    "prompts": (
        lambda x: change(x / "config_sentence_transformers.json", prompts=["q"]),
        "prompts is a list, not an object",
    ),
    "similarity": (
        lambda x: change(
            x / "config_sentence_transformers.json", similarity_fn_name="manhattan"
        ),
        "prumux ranks by cosine or dot",
    ),
    "activation": (
        lambda x: change(x / "2_Dense" / "config.json", activation_function="my.Own"),
        "activation_function is 'my.Own'; prumux computes Identity, Tanh",
    ),
    "residual": (
        lambda x: change(x / "2_Dense" / "config.json", use_residual=True),
        "use_residual is True",
    ),
    "size": (
        lambda x: change(x / "2_Dense" / "config.json", out_features="16"),
        "out_features is '16'",
    ),
    "other size": (
        lambda x: change(x / "2_Dense" / "config.json", out_features=15),
        r"'head.0.dense.weight' has shape \(16, 24\), config.json says \(15, 24\)",
    ),
    "dense weights": (
        lambda x: (x / "2_Dense" / "model.safetensors").unlink(),
        "has a config.json but no weights",
    ),
    "length": (
        lambda x: change(x / "sentence_bert_config.json", max_seq_length=0),
        "max_seq_length is 0, it must be 1 or more",
    ),
    "case": (
        lambda x: (
            change(x / "sentence_bert_config.json", do_lower_case=True),
            change(x / "tokenizer.json", normalizer=None),
        ),
        "do_lower_case is true, and the tokenizer tells cases apart",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_said(case: str, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, None, ("Dense", "Normalize"))
    damage, message = BAD[case]
    damage(folder)
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


def test_an_encoder_without_a_head_needs_a_pooling(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "plain")
    assert "for embeddings, say how its states are pooled: --pooling mean" in refused(folder)
    assert load_model(str(folder), "mean").encoder.labels == 24
    assert load_model(str(folder), "cls+max").encoder.labels == 48
    for wrong in ("median", "mean+mean", ""):
        with pytest.raises(ModelError, match="choose of cls, max, mean"):
            load_model(str(folder), wrong)
    assert set(POOLS) == set(FLAGS)


def test_a_pooling_is_for_encoders_alone(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "m")
    with pytest.raises(ModelError, match=r"modules.json says how its states are pooled"):
        load_model(str(folder), "mean")
    save_artifact(load_model(str(folder)), tmp_path / "out")
    with pytest.raises(ModelError, match="it is a result of prumux-opt"):
        load_model(str(tmp_path / "out"), "mean")
    with pytest.raises(ModelError, match="dimensions is 25, the model's vectors have 24"):
        load_model(str(folder), dimensions=25)
    classifier = jobs.model_folder(tmp_path / "c")
    with pytest.raises(ModelError, match="dimensions=8 is for embedding models"):
        load_model(str(classifier), dimensions=8)
