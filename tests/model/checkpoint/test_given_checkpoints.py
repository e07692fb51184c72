"""Checkpoints that people have: each is read, or refused with its cause and cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import build, load_model
from tests.helpers.checkpoints import config, refused, same, state, write

State = dict[str, Tensor]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 268\n"


def prefixed(prefix: str, weights: State) -> State:
    return {f"{prefix}{k}": x for k, x in weights.items()}


def model_of(folder: Path, weights: Any, **changes: Any) -> Model:
    """The model of a `model.ckpt` with its config beside it."""
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    torch.save(weights, folder / "model.ckpt")
    return load_model(str(folder / "model.ckpt"))


LIGHTNING: dict[str, Callable[[State], Any]] = {
    "model": lambda w: lightning(prefixed("model.", w)),
    "net": lambda w: lightning(prefixed("net.", w)),
    "an attribute called bert": lambda w: lightning(prefixed("bert.", w)),
    "two levels": lambda w: lightning(prefixed("system.model.", w)),
    "compiled": lambda w: lightning(prefixed("model._orig_mod.", w)),
    "compiled with a prefix": lambda w: lightning(prefixed("_orig_mod.model.", w)),
    "strategy": lambda w: lightning(prefixed("_forward_module.model.", w)),
    "fsdp": lambda w: {k.replace(".", "._fsdp_wrapped_module.", 1): x for k, x in w.items()},
    "deepspeed": lambda w: {"module": prefixed("module.", w), "global_steps": 3},
    "another name": lambda w: {"epoch": 3, "my_network": w, "optim": {"state": {}}},
    "head elsewhere": lambda w: {
        k if k.startswith("classifier") else f"model.{k}": x for k, x in w.items()
    },
}


def lightning(weights: State) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": weights,
        "hyper_parameters": {"lr": 1e-5, "model_name": "bert-base-uncased"},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    }


@pytest.mark.parametrize("kind", LIGHTNING)
def test_wrappers_and_prefixes(kind: str, tmp_path: Path) -> None:
    found = model_of(tmp_path, LIGHTNING[kind](state(config())))
    assert same(found, build(config(), state(config()), None, "x"))
    assert found.remarks == ()


@pytest.mark.parametrize("prefix", ["", "model."])
def test_tensors_of_losses_and_metrics_are_ignored_with_a_note(
    prefix: str, tmp_path: Path
) -> None:
    others = {
        "loss_fn.weight": torch.tensor([1.0, 2.0]),
        "criterion.pos_weight": torch.ones(1),
        "train_acc.tp": torch.tensor([3]),
        "val_f1.confmat": torch.zeros(2, 2, dtype=torch.long),
    }
    found = model_of(tmp_path, lightning(prefixed(prefix, state(config())) | others))
    assert same(found, build(config(), state(config()), None, "x"))
    (line,) = found.remarks
    assert line.startswith("the architecture does not have 4 of the checkpoint's tensors, ig")
    assert "criterion.pos_weight, loss_fn.weight, train_acc.tp and 1 more" in line


def test_tensors_of_the_model_itself_are_not_ignored(tmp_path: Path) -> None:
    more = prefixed("model.", state(config(num_hidden_layers=3)))
    with pytest.raises(ModelError, match=r"16 tensors that config\.json does not"):
        model_of(tmp_path, lightning(more))


def test_two_models_in_one_file(tmp_path: Path) -> None:
    both = prefixed("student.", state(config())) | prefixed("teacher.", state(config()))
    with pytest.raises(ModelError) as caught:
        model_of(tmp_path, both)
    assert "holds 2 whole models, 'student.' and 'teacher.'" in str(caught.value)
    assert "removeprefix('student.')" in str(caught.value)
    plain = state(config())
    found = model_of(tmp_path, plain | prefixed("ema.", state(config(), seed=1)))
    assert same(found, build(config(), plain, None, "x"))
    assert "ignored" in found.remarks[0]


def test_a_head_that_is_missing_is_named(tmp_path: Path) -> None:
    base = {k: x for k, x in state(config()).items() if not k.startswith("classifier")}
    head = {"head.weight": torch.ones(2, 12), "head.bias": torch.ones(2)}
    with pytest.raises(ModelError, match=r"no tensor 'classifier\.weight'"):
        model_of(tmp_path, lightning(prefixed("model.", base) | head))


def test_an_object_in_a_checkpoint_is_named_and_not_made(tmp_path: Path) -> None:
    from argparse import Namespace

    with pytest.raises(ModelError) as caught:
        model_of(tmp_path, lightning(state(config())) | {"hyper_parameters": Namespace(lr=1)})
    assert "it was not executed\nit holds an object of the class argparse.Namespace" in str(
        caught.value
    )


LORA = {
    "lora": "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight",
    "in place": "bert.encoder.layer.0.attention.self.query.base_layer.weight",
    "head": "base_model.model.classifier.modules_to_save.default.weight",
    "lightning": "model.base_model.model.bert.classifier.lora_B.default.weight",
}


@pytest.mark.parametrize("kind", LORA)
def test_an_adapter_that_is_not_merged(kind: str, tmp_path: Path) -> None:
    write(tmp_path, config(), state(config()) | {LORA[kind]: torch.ones(2, 12)})
    text = refused(tmp_path)
    assert f"a PEFT adapter that is not merged ('{LORA[kind]:.80}')" in text
    assert "merge_and_unload()" in text


def test_folders_of_adapters(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert "holds a PEFT adapter (adapter_config.json), not a whole model" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config()))
    assert "adapter_model.safetensors is a PEFT adapter" in refused(tmp_path)
    assert "merge_and_unload()" in refused(tmp_path)


FORMATS = ("tf_model.h5", "flax_model.msgpack", "model.onnx", "zero_to_fp32.py")


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_other_formats(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    (tmp_path / name).write_bytes(b"x")
    text = refused(tmp_path)
    assert "has a config.json but no weights" in text
    assert f"{name} is " in text


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_pointers_of_git_lfs(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    (tmp_path / name).write_bytes(POINTER)
    text = refused(tmp_path)
    assert f"'{name}' is a Git LFS pointer" in text
    assert "lfs pull" in text


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "sentencepiece.bpe.model"])
def test_pointers_in_place_of_a_tokenizer(name: str, tmp_path: Path) -> None:
    (write(tmp_path, config()) / name).write_bytes(POINTER)
    assert f"'{name}' is a Git LFS pointer" in refused(tmp_path)


def test_shards_of_pickles(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    weights = list(state(config()).items())
    index: dict[str, str] = {}
    for i, part in enumerate((weights[::2], weights[1::2])):
        name = f"pytorch_model-{i + 1:05d}-of-00002.bin"
        torch.save(dict(part), tmp_path / name)
        index |= {k: name for k, _ in part}
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    found = load_model(str(tmp_path))
    assert same(found, build(config(), state(config()), None, "x"))
    assert found.remarks == ()
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    text = refused(tmp_path)
    assert "1 of 2 are missing, the first is 'pytorch_model-00002-of-00002.bin'" in text


def test_a_folder_of_the_trainer_names_its_checkpoints(tmp_path: Path) -> None:
    for step in (500, 1000, 1500):
        write(tmp_path / f"checkpoint-{step}", config())
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            (tmp_path / f"checkpoint-{step}" / name).write_bytes(b"x")
    text = refused(tmp_path)
    assert "has no config.json itself; its folders hold models" in text
    assert text.index("checkpoint-500") < text.index("checkpoint-1000")
    assert load_model(str(tmp_path / "checkpoint-500")).remarks == ()


def test_a_folder_with_several_files_of_weights(tmp_path: Path) -> None:
    write(tmp_path, config())
    (tmp_path / "model.fp16.safetensors").write_bytes(b"never read")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    (line,) = load_model(str(tmp_path)).remarks
    assert line == (
        "model.safetensors was read, model.fp16.safetensors, pytorch_model.bin was not"
    )
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").unlink()
    assert f"say '{tmp_path / 'model.fp16.safetensors'}'" in refused(tmp_path)


HEADS: tuple[tuple[str, str, str], ...] = (
    ("bert", "SequenceClassification", "text"),
    ("bert", "TokenClassification", "token"),
    ("roberta", "SequenceClassification", "text"),
    ("roberta", "TokenClassification", "token"),
    ("distilbert", "SequenceClassification", "text"),
    ("distilbert", "TokenClassification", "token"),
    ("electra", "TokenClassification", "token"),
)


@pytest.mark.parametrize("named", [None, ["XForMaskedLM"]])
@pytest.mark.parametrize(("family", "head", "kind"), HEADS)
def test_a_head_is_found_by_its_weights(
    family: str, head: str, kind: str, named: Any, tmp_path: Path
) -> None:
    weights = state(config(family, head))
    found = load_model(str(write(tmp_path, config(family, architectures=named), weights)))
    assert found.task.kind == f"{kind}-classification"
    (line,) = found.remarks
    assert f"the weights are those of {head}" in line


def test_weights_of_several_heads_are_asked_about(tmp_path: Path) -> None:
    of = config("modernbert", architectures=None)
    write(tmp_path, of, state(config("modernbert")))
    text = refused(tmp_path)
    assert "names no architectures, and the weights fit several heads" in text
    assert '["ModelForSequenceClassification"] or ["ModelForTokenClassification"]' in text
    chosen = of | {"architectures": ["ModelForTokenClassification"]}
    write(tmp_path, chosen, state(config("modernbert", "TokenClassification")))
    assert load_model(str(tmp_path)).task.kind == "token-classification"
