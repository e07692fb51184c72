"""The MODEL argument: every form that is read, every fault that is named, nothing executed."""

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.checkpoint.tokenizer_files import read_tokenizer
from prumux.optimizer.model.folder import digest, read_json
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import build, load_model
from tests.helpers.checkpoints import config, refused, same, state, write

INDEX = "model.safetensors.index.json"


@pytest.fixture
def expected() -> Model:
    return build(config(), state(config()), None, "x")


def sharded(folder: Path) -> Path:
    from safetensors.torch import save_file

    weights = list(state(config()).items())
    parts = {"model-00001-of-00002.safetensors": weights[::2]}
    parts["model-00002-of-00002.safetensors"] = weights[1::2]
    for name, part in parts.items():
        save_file(dict(part), folder / name)
    where = {k: name for name, part in parts.items() for k, _ in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def with_config(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    return folder


def test_a_folder_with_safetensors(tmp_path: Path, expected: Model) -> None:
    found = load_model(str(write(tmp_path / "my-model", config())))
    assert same(found, expected)
    assert found.source["name"] == "my-model"
    assert found.source["model_type"] == "bert"
    assert found.source["digest"] == expected.source["digest"]
    assert found.tokenizer is None
    found.verify()


def test_a_folder_with_shards(tmp_path: Path, expected: Model) -> None:
    assert same(load_model(str(sharded(with_config(tmp_path)))), expected)


def test_a_folder_with_a_pickled_state_dict(tmp_path: Path, expected: Model) -> None:
    with_config(tmp_path)
    torch.save(OrderedDict(state(config())), tmp_path / "pytorch_model.bin")
    assert same(load_model(str(tmp_path)), expected)


def test_safetensors_come_first(tmp_path: Path, expected: Model) -> None:
    write(tmp_path, config())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert same(load_model(str(tmp_path)), expected)


WRAPPED: dict[str, Callable[[], Any]] = {
    "plain": lambda: state(config()),
    "module": lambda: {f"module.{k}": v for k, v in state(config()).items()},
    "config": lambda: {"config": config(), "model": state(config())},
    "flat config": lambda: {"config": config()} | state(config()),
    "training": lambda: {"state_dict": state(config()), "epoch": 3, "optimizer": {"lr": 0.1}},
    "half": lambda: {k: v.half() for k, v in state(config()).items()},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_a_model_pt(tmp_path: Path, expected: Model, form: str) -> None:
    torch.save(WRAPPED[form](), tmp_path / "model.pt")
    if "config" not in form:
        assert "no config.json lies beside it" in refused(tmp_path / "model.pt")
        with_config(tmp_path)
    found = load_model(str(tmp_path / "model.pt"))
    assert {x.dtype for x in found.weights.values()} == {torch.float32}
    assert same(found, expected) == (form != "half")


def test_a_single_safetensors_file(tmp_path: Path, expected: Model) -> None:
    write(tmp_path, config())
    assert same(load_model(str(tmp_path / "model.safetensors")), expected)


def test_an_artifact_folder(tmp_path: Path, expected: Model) -> None:
    save_artifact(expected, tmp_path)
    found = load_model(str(tmp_path))
    assert same(found, expected)
    assert found.encoder == expected.encoder


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_not_executed(
    tmp_path: Path, name: str, zipped: bool
) -> None:
    trap, folder = tmp_path / "was-executed", with_config(tmp_path)
    content = {"model": Attack(trap), **state(config())}
    torch.save(content, folder / name, _use_new_zipfile_serialization=zipped)
    text = refused(folder / name if name == "model.pt" else folder)
    assert "is a pickled object, not a state dict; it was not executed" in text
    assert "torch.save(model.state_dict(), 'model.pt')" in text
    (folder / name).write_bytes(pickle.dumps(Attack(trap)))
    refused(folder / name if name == "model.pt" else folder)
    assert not trap.exists()
    pickle.loads((folder / name).read_bytes())
    assert trap.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), with_config(tmp_path) / "model.pt")
    assert "it was not executed" in refused(tmp_path / "model.pt")


def test_damaged_bytes_are_named_and_never_a_traceback(tmp_path: Path) -> None:
    """Truncated, flipped and empty files of both kinds."""
    write(with_config(tmp_path), config())
    torch.save(state(config()), tmp_path / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        whole = (tmp_path / name).read_bytes()
        for size in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:size])
            text = refused(tmp_path / name)
            assert f"'{name}' is " in text
        random = torch.Generator().manual_seed(0)
        for _ in range(60):
            broken = bytearray(whole)
            for at in torch.randint(0, 600, (3,), generator=random).tolist():
                broken[at] ^= 0x55
            (tmp_path / name).write_bytes(broken)
            with suppress(ModelError):  # some flips only change a weight
                load_model(str(tmp_path / name))


def test_things_that_are_no_model(tmp_path: Path) -> None:
    assert "no file or folder" in refused(tmp_path / "nothing.pt")
    assert "a hub id" in refused(tmp_path / "nothing.pt")
    text = refused(tmp_path)
    assert f"'{tmp_path}' is not a model folder: it has no config.json" in text
    text = refused(with_config(tmp_path))
    assert "has a config.json but no weights" in text
    assert "model.safetensors, model.safetensors.index.json, pytorch_model.bin" in text
    assert "cannot be a path" in refused("~no-such-user/model")
    assert "cannot be a path" in refused("x" * 5000)
    assert "no file or folder" in refused("a b c")


NO_STATE: dict[str, tuple[Any, str]] = {
    "list": ([torch.ones(2)], "'model.pt' holds a list, not a state dict"),
    "tensor": (torch.ones(2), "'model.pt' holds a Tensor, not a state dict"),
    "empty": ({}, "does not hold a state dict (it is empty)"),
    "text": ({"a": "b"}, "does not hold a state dict ('a' is a str)"),
    "number": ({1: torch.ones(2)}, "does not hold a state dict ('1' is a Tensor)"),
    "config": ({"config": [1], "a": torch.ones(1)}, "'config' in 'model.pt' is a list"),
}


@pytest.mark.parametrize("form", NO_STATE)
def test_a_file_without_a_state_dict(tmp_path: Path, form: str) -> None:
    content, says = NO_STATE[form]
    torch.save(content, with_config(tmp_path) / "model.pt")
    assert says in refused(tmp_path / "model.pt")


NO_CONFIG: dict[str, tuple[bytes, str]] = {
    "text": (b"not json", "config.json cannot be read: Expecting value"),
    "list": (b"[1, 2]", "config.json holds a JSON list, not an object"),
    "bytes": (b"\xff\xfe\x00", "config.json cannot be read"),
    "deep": (b"[" * 100_000, "config.json cannot be read"),
    "empty": (b"", "config.json cannot be read"),
    "missing": (b'{"model_type": "bert"}', "vocab_size"),
    "none": (b"{}", "model_type 'None' is not supported"),
}


@pytest.mark.parametrize("form", NO_CONFIG)
def test_a_config_that_is_none(tmp_path: Path, form: str) -> None:
    content, says = NO_CONFIG[form]
    (write(tmp_path, config()) / "config.json").write_bytes(content)
    text = refused(tmp_path)
    assert says in text or "hidden_size is missing" in text


def test_what_the_frontend_refuses_is_passed_on(tmp_path: Path) -> None:
    weights = state(config())
    write(tmp_path, config(hidden_size=10**9, num_attention_heads=1), weights)
    assert "config.json says (31, 1000000000)" in refused(tmp_path)
    base = {k: v for k, v in weights.items() if not k.startswith("classifier")}
    write(tmp_path, config(), base)
    assert "no tensor 'classifier.weight'" in refused(tmp_path)
    broken = weights | {"classifier.bias": torch.tensor([0.0, float("nan")])}
    write(tmp_path, config(), broken)
    assert "'classifier.bias' holds values that are not finite" in refused(tmp_path)


INDICES: dict[str, tuple[Any, str]] = {
    "above": ({"weight_map": {"a": "../secret.safetensors"}}, "outside its folder: '../sec"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "outside its folder: '/etc/passwd'"),
    "dots": ({"weight_map": {"a": ".."}}, "outside its folder: '..'"),
    "list": ({"weight_map": ["a"]}, "has no 'weight_map' of tensor names"),
    "number": ({"weight_map": {"a": 3}}, "has no 'weight_map' of tensor names"),
    "none": ({}, "has no 'weight_map'"),
    "gone": ({"weight_map": {"a": "b.safetensors"}}, f"'{INDEX}' is damaged"),
}


@pytest.mark.parametrize("form", INDICES)
def test_an_index_that_leads_nowhere(tmp_path: Path, form: str) -> None:
    content, says = INDICES[form]
    write(tmp_path, config())
    (tmp_path / "model.safetensors").rename(tmp_path.parent / "secret.safetensors")
    (tmp_path / INDEX).write_text(json.dumps(content))
    assert says in refused(tmp_path)


def test_a_hub_id_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(name: str, **options: Any) -> str:
        raise OSError(f"no route to {name}\n" + "details\n" * 50)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    text = refused("some/model")
    assert "no folder 'some/model' here, and the hub could not give it: no route" in text
    assert "check the name, or give a local folder" in text


def test_a_hub_id_is_downloaded_with_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Model
) -> None:
    import fnmatch

    import huggingface_hub

    folder = sharded(with_config(tmp_path))
    asked: list[str] = []

    def give(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(name)
        for file in folder.iterdir():
            assert any(fnmatch.fnmatch(file.name, x) for x in allow_patterns), file.name
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    assert same(load_model("some/model"), expected)
    assert asked == ["some/model"]


def test_a_digest_covers_all_that_makes_the_model(expected: Model) -> None:
    weights, task, encoder = expected.weights, expected.task, expected.encoder
    digests = {
        digest(weights, task, encoder),
        digest(weights, task),
        build(config(hidden_act="relu"), state(config()), None, "x").source["digest"],
        build(config(num_attention_heads=6), state(config()), None, "x").source["digest"],
        build(config(), state(config(), seed=1), None, "x").source["digest"],
    }
    assert len(digests) == 5
    assert expected.source["digest"] == digest(weights, task, encoder)


def test_a_tokenizer_that_is_damaged_is_named(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None
    (write(tmp_path, config()) / "tokenizer.json").write_text("{}")
    assert f"the tokenizer in '{tmp_path}' cannot be loaded" in refused(tmp_path)


def test_a_tokenizer_is_read_with_its_model(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]
    (write(tmp_path, config()) / "vocab.txt").write_text("\n".join(words))
    tokenizer = load_model(str(tmp_path)).tokenizer
    assert tokenizer is not None
    assert tokenizer("good film")["input_ids"] == [2, 5, 6, 3]


def test_read_json_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no x\.json"):
        read_json(tmp_path / "x.json")
