"""An optimised model on disk comes back bit by bit, or is refused with a reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from prumux.optimizer.base.errors import ModelError, VerifyError
from prumux.optimizer.model.artifact import (
    from_config,
    load_artifact,
    save_artifact,
    to_config,
)
from prumux.optimizer.model.folder import digest
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import build, load_model
from prumux.passes.slice import slice_model
from tests.helpers.checkpoints import config, state, write
from tests.helpers.factory import Family, Kind, multiplexed, random_batch, random_model
from tests.helpers.masking import logits, masked, random_masks

FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)


def tiny(family: Family = "bert", task: Kind = "text-classification", **fields: Any) -> Model:
    return random_model(family, heads=(3, 0, 3), ffn=(5, 6, 0), hidden=12, task=task, **fields)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_is_exact(tmp_path: Path, family: Family, task: Kind) -> None:
    model = tiny(family, task, labels=3, pool_early=task == "text-classification")
    model = slice_model(replace(model, masks=random_masks(model.encoder, seed=2)))
    model = multiplexed(model, n=2, at=1)
    save_artifact(model, tmp_path)
    found = load_artifact(tmp_path)
    assert found.encoder == model.encoder
    assert found.task == model.task
    assert found.source["origin"] == model.source["digest"], (
        "the receipt of where it came from"
    )
    assert found.source["digest"] == digest(found.weights, found.task, found.encoder)
    assert found.weights.keys() == model.weights.keys()
    assert all(torch.equal(found.weights[k], x) for k, x in model.weights.items())
    assert found.masks.all_true
    batch = random_batch(model)
    assert torch.equal(logits(found, batch), logits(model, batch))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "prumux"
    assert written["heads_per_layer"] == [x.heads for x in model.encoder.layers]
    assert from_config(to_config(model)) == (model.encoder, model.task)


def test_what_a_folder_held_is_replaced(tmp_path: Path) -> None:
    save_artifact(tiny(seed=1), tmp_path / "a" / "b")
    save_artifact(tiny(seed=2), tmp_path / "a" / "b")
    found = load_model(str(tmp_path / "a" / "b")).weights["head.output.weight"]
    assert torch.equal(found, tiny(seed=2).weights["head.output.weight"])


def test_pending_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="masks are pending; add 'slice' to the pipeline"):
        save_artifact(masked(tiny(), seed=1), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_that_share_storage_are_saved(tmp_path: Path) -> None:
    flat = torch.cat([x.flatten() for x in state(config()).values()])
    sizes = [x.numel() for x in state(config()).values()]
    views = {
        name: part.view(x.shape)
        for (name, x), part in zip(
            state(config()).items(), torch.split(flat, sizes), strict=True
        )
    }
    model = build(config(), views, None, "x")
    save_artifact(model, tmp_path)
    found = load_artifact(tmp_path).weights
    assert all(torch.equal(found[k], x) for k, x in model.weights.items())


def edit(**changes: Any) -> Callable[[Path], None]:
    """Change fields of config.json; a dotted name changes its encoder."""

    def apply(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            place = found["encoder"] if name in found["encoder"] else found
            place[name] = value
            if value is None:
                del place[name]
        (folder / "config.json").write_text(json.dumps(found))

    return apply


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def poison(folder: Path) -> None:
    weights = dict(tiny().weights)
    weights["head.output.bias"] = torch.tensor([0.0, float("inf")])
    broken = replace(tiny(), weights=weights)
    save_artifact(broken, folder)


def as_float8(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["head.output.bias"] = weights["head.output.bias"].to(torch.float8_e4m3fn)
    save_file(weights, file)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda x: (x / "config.json").unlink(), "is not a model folder"),
    "bad config": (
        lambda x: (x / "config.json").write_text("{"),
        "config.json cannot be read",
    ),
    "no weights": (lambda x: (x / "model.safetensors").unlink(), "cannot be read"),
    "truncated": (truncate, "model.safetensors' cannot be read"),
    "float8": (as_float8, "weight 'head.output.bias' has type float8_e4m3fn"),
    "not finite": (poison, "weight 'head.output.bias' holds values that are not finite"),
    "newer": (edit(prumux_format=3), "prumux_format is 3, this prumux reads 1 and 2"),
    "no encoder": (edit(encoder=None), "config.json is not one that prumux wrote"),
    "encoder": (edit(encoder=[1]), "config.json is not one that prumux wrote"),
    "no size": (edit(hidden=None), "config.json is not one that prumux wrote"),
    "a text": (edit(hidden="12"), "hidden is '12'"),
    "a flag": (edit(vocab=True), "vocab is True"),
    "negative": (edit(positions=-1), "positions is -1"),
    "absurd": (edit(vocab=10**12), "vocab is 1000000000000"),
    "head": (edit(head="maxout"), "head is 'maxout'"),
    "eps": (edit(norm_eps="small"), "norm_eps is 'small'"),
    "pool": (edit(pool_early=1), "pool_early is 1"),
    "layers": (edit(heads_per_layer=[3, 0]), "config.json is not one that prumux wrote"),
    "minus": (edit(heads_per_layer=[3, 0, -1]), "a layer of -1 heads and 0 FFN units"),
    "huge": (edit(ffn_per_layer=[10**12, 6, 0]), "a layer of 3 heads and 1000000000000 FFN"),
    "infinite": (edit(ffn_per_layer=[float("inf"), 6, 0]), "not one that prumux wrote"),
    "labels": (edit(id2label={"0": "a"}), "1 names of 2 labels\nwrite the folder again"),
    "more labels": (edit(id2label={"0": "a", "1": "b", "2": "c"}), "3 names of 2 labels"),
    "same labels": (edit(id2label={"0": "a", "1": "a"}), "labels 0 and 1 are both 'a'"),
    "no label": (edit(id2label={"0": "a", "2": "b"}), "'1' is missing"),
    "label is a number": (edit(id2label={"0": "a", "1": 7}), "label 1 is 7, not a text"),
    "no format": (edit(prumux_format=None), "prumux_format is missing, this prumux reads 1"),
    "mux": (edit(mux={"m": 2}), "config.json is not one that prumux wrote"),
    "mux slots": (edit(mux={"n": 1}), "n is 1"),
    "mux layer": (edit(mux={"n": 2, "at": 3}), "rows mixed at 3 of 3 layers"),
    "mux keys": (edit(mux={"n": 2, "variant": "odd"}), "variant is 'odd'"),
    "source": (edit(source="x"), "source is a str, not an object"),
    "architecture": (edit(architectures=["Bert"]), "architectures is ['Bert']"),
    "shape": (
        edit(ffn_per_layer=[4, 6, 0]),
        "is damaged: weight 'layers.0.ffn.up.weight' has",
    ),
    "missing": (edit(heads_per_layer=[3, 1, 3]), "missing: layers.1.attention.key.bias"),
    "extra": (edit(heads_per_layer=[3, 0, 0]), "extra: layers.2.attention.key.bias"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_named(tmp_path: Path, name: str) -> None:
    damage, says = DAMAGE[name]
    save_artifact(tiny(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_artifact(tmp_path)
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_masks_of_a_loaded_model_are_full(tmp_path: Path) -> None:
    save_artifact(tiny(), tmp_path)
    model = load_artifact(tmp_path)
    assert Masks.full(model.encoder).sizes(model.encoder) == model.encoder
    assert model.stage == "dense"


WITH_FACTS = ("modernbert", "deberta-v2", "nomic_bert", "eurobert")
"""Families that keep facts of their own in the artifact's config.json."""


@pytest.mark.parametrize("wrong", [None, "x", [1.5], -1, True, 1e300])
@pytest.mark.parametrize("family", WITH_FACTS)
def test_damaged_facts_of_a_family_are_named(family: str, wrong: Any, tmp_path: Path) -> None:
    of = config(family)
    save_artifact(load_model(str(write(tmp_path / "given", of))), tmp_path / "made")
    path = tmp_path / "made" / "config.json"
    whole = json.loads(path.read_text())
    for name in whole["encoder"]["constants"]:
        facts = {k: x for k, x in whole["encoder"]["constants"].items() if k != name}
        if wrong is not None:
            facts[name] = wrong
        path.write_text(
            json.dumps({**whole, "encoder": {**whole["encoder"], "constants": facts}})
        )
        said = ""
        try:  # true in place of false may stand, where no weight follows from it
            model = load_artifact(tmp_path / "made")
            logits(model, random_batch(model))
        except ModelError as error:
            said = str(error)
        assert len(said.splitlines()) <= 5
        assert said or wrong is not None
