"""Hugging Face's own ways of loading, saving and training an optimised model."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    pipeline,
)
from transformers.utils import logging as hf_logging

import prumux
from prumux.optimizer.base.errors import ModelError, UsageError
from prumux.optimizer.model.artifact import load_artifact, save_artifact, to_config
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.prumux_model import (
    PrumuxConfig,
    PrumuxForSequenceClassification,
    PrumuxForTokenClassification,
)
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.tasks.regression import Regression
from tests.helpers.factory import Family, Kind, random_batch, random_model, tiny_tokenizer

AUTO: dict[Kind, Any] = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Hugging Face's log, made audible to pytest."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.WARNING)
    hf_logging.enable_propagation()
    yield caplog
    hf_logging.disable_propagation()
    hf_logging.set_verbosity(level)


def make_model(family: Family = "bert", **fields: Any) -> Model:
    model = random_model(family, heads=(6, 0, 12), ffn=(64, 64, 0), **fields)
    return replace(model, tokenizer=tiny_tokenizer(pad_id=model.encoder.pad_id))


def tensors(model: Model) -> dict[str, torch.Tensor]:
    inputs = random_batch(model).inputs()
    return {name: torch.from_numpy(value) for name, value in inputs.items()}


@pytest.fixture
def model() -> Model:
    return make_model()


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    save_artifact(model, tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.mark.parametrize("task", AUTO)
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_auto_classes(
    family: Family, task: Kind, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    model = make_model(family, task=task, labels=3)
    save_artifact(model, tmp_path)
    found, info = AUTO[task].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert type(found).__module__ == "prumux.optimizer.model.prumux_model"
    assert not found.training
    shapes = {name: tuple(x.shape) for name, x in found.state_dict().items()}
    assert shapes == expected_shapes(model.encoder)
    assert all(torch.equal(x, model.weights[name]) for name, x in found.state_dict().items())
    assert found.config.num_labels == 3
    with torch.inference_mode():
        logits = found(**tensors(model)).logits.numpy()
    expected = run(EncoderModule(model), random_batch(model).inputs())
    np.testing.assert_array_equal(logits, expected)
    assert log.records == []


def test_config_and_tokenizer(folder: Path, model: Model) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, PrumuxConfig)
    assert config.num_labels == 2
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.heads_per_layer == [6, 0, 12]
    assert config.pad_token_id == model.encoder.pad_id
    assert AutoTokenizer.from_pretrained(folder)("good film")["input_ids"] == [2, 4, 6, 3]
    assert PrumuxConfig(**to_config(model)).encoder == config.encoder
    assert PrumuxConfig(num_labels=5).num_labels == 5
    assert PrumuxConfig(id2label={0: "a"}, problem_type="regression").num_labels == 1


def test_pipelines(
    folder: Path, model: Model, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    found: Any = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    (scores,) = found(["good film"])
    expected = prumux.load(folder).predict(["good film"])[0]
    assert isinstance(expected, prumux.Prediction)
    by_label = {x["label"]: x["score"] for x in scores}
    assert by_label == pytest.approx(dict(expected.scores), abs=1e-4)
    save_artifact(make_model(task="token-classification"), tmp_path)
    tagger: Any = pipeline("token-classification", model=str(tmp_path), device="cpu")
    tags = tagger("good film")
    assert [x["word"] for x in tags] == ["good", "film"]
    assert log.records == []


@pytest.mark.parametrize("task", AUTO)
def test_round_trip(task: Kind, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    model = make_model(task=task)
    save_artifact(model, tmp_path / "first")
    AUTO[task].from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    AutoTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    again = AUTO[task].from_pretrained(tmp_path / "second")
    assert all(torch.equal(x, model.weights[name]) for name, x in again.state_dict().items())
    read = load_artifact(tmp_path / "second")
    assert (read.encoder, read.task) == (model.encoder, model.task)
    assert read.source["origin"] == model.source["digest"]
    assert len(prumux.load(tmp_path / "second").predict([])) == 0
    first, second = (
        json.loads((tmp_path / x / "config.json").read_text()) for x in ("first", "second")
    )
    assert first.items() <= second.items()
    assert log.records == []


def test_a_new_head(folder: Path, tmp_path: Path) -> None:
    found = AutoModelForSequenceClassification.from_pretrained(
        folder, id2label={i: f"x{i}" for i in range(5)}, ignore_mismatched_sizes=True
    )
    assert found.get_parameter("head.output.weight").shape == (5, 48)
    assert 0.01 < float(found.get_parameter("head.output.weight").detach().std()) < 0.03
    assert not found.get_parameter("head.output.bias").any()
    found.save_pretrained(tmp_path)
    assert load_artifact(tmp_path).task.labels == ("x0", "x1", "x2", "x3", "x4")


def test_from_config_makes_usual_random_weights(folder: Path) -> None:
    auto: Any = AutoModelForSequenceClassification
    found = auto.from_config(AutoConfig.from_pretrained(folder))
    assert 0.015 < float(found.get_parameter("embeddings.word.weight").detach().std()) < 0.025
    assert bool((found.get_parameter("layers.0.attention.norm.weight") == 1).all())


def test_what_may_be_left_out(folder: Path, model: Model) -> None:
    found = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = tensors(model)["input_ids"]
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    full = found(ids, attention_mask=ones, token_type_ids=zeros)
    assert torch.equal(found(ids).logits, full.logits)
    assert full.loss is None
    (logits,) = found(ids, return_dict=False)
    assert torch.equal(logits, full.logits)
    loss, _ = found(ids, labels=torch.zeros(5, dtype=torch.long), return_dict=False)
    assert loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(folder: Path, model: Model, dtype: torch.dtype) -> None:
    full = AutoModelForSequenceClassification.from_pretrained(folder)
    half = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    inputs = tensors(model)
    inputs["attention_mask"][1] = 0
    with torch.inference_mode():
        found = half(**inputs).logits
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), full(**inputs).logits, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("regression", torch.tensor([0.5, 1.0, 2.0, 0.0, 0.1])),
        (None, torch.tensor([0.5, 1.0, 2.0, 0.0, 0.1])),
        ("single_label_classification", torch.tensor([0, 1, 2, 1, 0])),
        (None, torch.tensor([0, 1, 2, 1, 0])),
        ("multi_label_classification", torch.eye(5)[:, :3]),
        (None, torch.eye(5)[:, :3]),
        ("regression", torch.ones(5, 3)),
    ],
)
def test_loss_as_in_hugging_face(problem: str | None, labels: torch.Tensor) -> None:
    count = 1 if labels.dtype == torch.float and labels.dim() == 1 else 3
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    make: Any = BertConfig  # its type knows of no `num_labels`
    config = make(**sizes, num_labels=count, problem_type=problem, vocab_size=101)
    theirs = BertForSequenceClassification(config).train(False)
    described = to_config(make_model(labels=count)) | {"problem_type": problem}
    ours = PrumuxForSequenceClassification(PrumuxConfig(**described))
    logits = torch.randn(5, count, generator=torch.Generator().manual_seed(0))
    ids = torch.ones(5, 2, dtype=torch.long)
    for module, name in ((theirs, "classifier"), (ours, "head.output")):
        module.get_submodule(name).register_forward_hook(lambda *_: logits)
    ours.logits = lambda *_: logits  # type: ignore[method-assign]
    expected, found = theirs(ids, labels=labels).loss, ours(ids, labels=labels).loss
    torch.testing.assert_close(found, expected)


def test_trains(tmp_path: Path) -> None:
    model = make_model(task="token-classification", labels=3)
    save_artifact(model, tmp_path)
    found = AutoModelForTokenClassification.from_pretrained(tmp_path).train()
    assert all(x.requires_grad for x in found.parameters())
    inputs = tensors(model)
    labels = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"] % 3, -100)
    losses = []
    for _ in range(8):
        output = found(**inputs, labels=labels)
        flat = torch.nn.functional.cross_entropy(
            output.logits[labels != -100], labels[labels != -100]
        )
        torch.testing.assert_close(output.loss, flat)
        output.loss.backward()
        with torch.no_grad():
            for weight in found.parameters():
                weight.sub_(0.05 * weight.grad)
        found.zero_grad()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] - 0.1
    same = {n for n, x in found.named_parameters() if torch.equal(x, model.weights[n])}
    # Softmax does not see a key's bias.
    assert all(name.endswith("key.bias") for name in same)


def test_the_wrong_auto_class(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"a text-cl.*: use AutoModelForSequenceClassification"
    ):
        AutoModelForTokenClassification.from_pretrained(folder)
    save_artifact(make_model(task="token-classification"), tmp_path)
    with pytest.raises(ModelError, match=r"a token-cl.*: use AutoModelForTokenClassification"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_configs_that_describe_no_model(model: Model) -> None:
    with pytest.raises(ModelError, match=r"no sizes; load one: AutoConfig.from_pretrained\("):
        PrumuxForTokenClassification(PrumuxConfig())


def test_damaged_weights_are_an_error(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["head.extra"] = weights.pop("head.output.bias")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"missing: head.output.bias; left over: head.extra\nthe"
    ):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.onnx", "second/model.rtx.plan"])
def test_an_engine_is_not_left_with_old_weights(folder: Path, name: str) -> None:
    found = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(UsageError, match=rf"holds {name}, .* old weights\nsave into another"):
        found.save_pretrained(folder)


def test_regression_config(tmp_path: Path) -> None:
    task = Regression(("score",))
    save_artifact(replace(make_model(labels=1), task=task), tmp_path)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (found.config.problem_type, found.config.id2label) == ("regression", {0: "score"})


HOOK = "any(type(x).__module__.startswith('prumux') for x in sys.meta_path)"
USE = """
from transformers import AutoConfig, AutoModelForSequenceClassification as Auto
assert type(AutoConfig.from_pretrained(FOLDER)).__name__ == 'PrumuxConfig'
assert type(Auto.from_pretrained(FOLDER)).__name__ == 'PrumuxForSequenceClassification'
"""


def python(code: str, folder: Path) -> None:
    """Run code in a fresh interpreter that takes warnings for errors."""
    code = f"import sys; FOLDER = {str(folder)!r}\n{code}"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        f"import prumux\nassert {HOOK}\n{USE}",
        f"import transformers.models.auto.modeling_auto, prumux\nassert not {HOOK}\n{USE}",
        f"import prumux, transformers.modeling_utils\n{USE}",
        "import prumux; from transformers import AutoTokenizer as Auto, pipeline\n"
        "assert Auto.from_pretrained(FOLDER)('good')['input_ids'] == [2, 4, 3]\n"
        "assert pipeline('text-classification', FOLDER)('good')[0]['label'][:5] == 'LABEL'",
    ],
    ids=["first", "last", "inside-out", "tokenizer-first"],
)
def test_import_orders(code: str, folder: Path) -> None:
    python(f"{code}\nassert not {HOOK}", folder)


def test_the_hook_is_installed_once_and_survives_a_failed_import(folder: Path) -> None:
    code = f"""
import threading, prumux
from prumux.optimizer.model import autoclass
for _ in range(3): autoclass.install()
assert sum(type(x) is autoclass._Finder for x in sys.meta_path) == 1
sys.modules['huggingface_hub'] = None
try: import transformers.models.auto.configuration_auto
except ImportError: pass
else: raise SystemExit('no import error')
assert {HOOK}
for name in list(sys.modules):
    if name.partition('.')[0] in ('transformers', 'huggingface_hub'): del sys.modules[name]
import importlib.util
assert importlib.util.find_spec(autoclass.AUTO_CONFIG).origin.endswith('.py')
import transformers.models.auto.configuration_auto as module
assert type(module.__loader__) is type(module.__spec__.loader) is type(autoclass.__loader__)
assert not {HOOK}
before = list(sys.meta_path); autoclass.install(); assert sys.meta_path == before
"""
    python(code + USE, folder)


def test_log_fixture_hears(log: pytest.LogCaptureFixture) -> None:
    logging.getLogger("transformers.any").warning("heard")
    assert [x.message for x in log.records] == ["heard"]
