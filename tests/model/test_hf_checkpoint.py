"""Hugging Face configs and tensor names: what is read, what is refused, in which words."""

from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.families.config_fields import activation
from prumux.optimizer.model.families.registry import families
from prumux.optimizer.model.hf_checkpoint import read_config, read_weights
from prumux.optimizer.model.sizes import Layer
from prumux.optimizer.model.torch_ops import ACTIVATIONS
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.tasks.multilabel import MultiLabel
from prumux.optimizer.tasks.registry import from_config
from tests.helpers.checkpoints import CONFIGS, config, state


def read(of: dict[str, Any], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    family, encoder, _ = read_config(of)
    return read_weights(family, encoder, weights)


def refused(of: dict[str, Any], weights: dict[str, torch.Tensor] | None = None) -> str:
    """The message with which a config, or a config with weights, is refused."""
    given = state(config()) if weights is None else weights
    with pytest.raises(ModelError) as caught:
        read(of, given)
    text = str(caught.value)
    assert len(text.splitlines()) <= 5
    assert len(text) < 600
    assert caught.value.exit_code == 2
    return text


def test_every_family_has_a_checkpoint_here() -> None:
    assert CONFIGS.keys() <= families().keys()


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_sizes(name: str, task: str) -> None:
    of = config(name, task)
    family, encoder, found = read_config(of)
    assert encoder.layers == (Layer(3, 10),) * 2
    assert (encoder.hidden, encoder.head_dim, encoder.labels) == (12, 4, 2)
    assert encoder.embedding == (6 if name == "electra" else 12)
    assert encoder.projected == (name == "electra")
    assert encoder.positions_from == (
        "padding" if name in ("roberta", "xlm-roberta", "camembert") else "index"
    )
    assert (
        encoder.pooled == (task == "SequenceClassification") == found.kind.startswith("text")
    )
    assert found.labels == ("bad", "good")
    theirs = state(of)
    ours = read_weights(family, encoder, theirs)
    assert ours.keys() == expected_shapes(encoder).keys()
    assert sorted(map(torch.sum, ours.values())) == sorted(map(torch.sum, theirs.values()))


def test_names_that_wrappers_and_old_checkpoints_give() -> None:
    family, encoder, _ = read_config(config())
    plain = state(config())
    expected = read_weights(family, encoder, plain)
    spellings = {
        "ddp": {f"module.{k}": v for k, v in plain.items()},
        "compiled": {f"_orig_mod.module.{k}": v for k, v in plain.items()},
        "tensorflow": {
            k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v
            for k, v in plain.items()
        },
        "buffers": plain | {"bert.embeddings.position_ids": torch.arange(20)[None]},
    }
    for named in spellings.values():
        found = read_weights(family, encoder, named)
        assert all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_float32(dtype: torch.dtype) -> None:
    family, encoder, _ = read_config(config())
    theirs = {k: v.to(dtype) for k, v in state(config()).items()}
    found = read_weights(family, encoder, theirs)
    assert {x.dtype for x in found.values()} == {torch.float32}
    name = "embeddings.word.weight"
    assert torch.equal(found[name], theirs["bert.embeddings.word_embeddings.weight"].float())


def test_a_task_is_read_from_the_config() -> None:
    assert from_config(config(num_labels=1, id2label=None)).problem == "regression"
    assert from_config(config(id2label={"0": "x"}, problem_type="regression")).labels == ("x",)
    assert from_config(config(id2label=None)).labels == ("LABEL_0", "LABEL_1")
    assert from_config(config(id2label={0: "a", 1: "b"})).labels == ("a", "b")
    one = from_config(config(task="TokenClassification", num_labels=1, id2label=None))
    assert (one.kind, one.problem) == ("token-classification", "classification")
    assert from_config(config(architectures=None)).kind == "text-classification"


def test_an_unsupported_architecture_lists_what_is_supported() -> None:
    text = refused(config(model_type="gpt2"))
    assert "model_type 'gpt2' is not supported" in text
    listed = text.split("supported: ")[1].split(" (and")[0].split(", ")
    assert set(listed) == families().keys() >= CONFIGS.keys()
    assert "model_type 'None'" in refused(config(model_type=None))


def test_a_model_without_a_classification_head() -> None:
    text = refused(config(architectures=["BertForMaskedLM"]))
    assert "architecture 'BertForMaskedLM' has no classification head" in text
    assert "AutoModelForSequenceClassification" in text
    base = {k: v for k, v in state(config()).items() if not k.startswith("classifier")}
    text = refused(config(), base)
    assert "no tensor 'classifier.weight'" in text
    assert "fine-tuned classifier" in text


def test_a_model_with_several_labels_a_row() -> None:
    of = config(problem_type="multi_label_classification", thresholds=[0.3, 0.6])
    assert read_config(of)[2] == MultiLabel(("bad", "good"), (0.3, 0.6))
    text = refused(of | {"thresholds": [0.3]})
    assert "thresholds holds 1 numbers, the model has 2 labels" in text


WRONG_SIZES: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": None}, "hidden_size is missing, it must be a whole number from 1"),
    ({"hidden_size": -12}, "hidden_size is -12"),
    ({"hidden_size": "12"}, "hidden_size is '12'"),
    ({"hidden_size": True}, "hidden_size is True"),
    ({"hidden_size": 12.0}, "hidden_size is 12.0"),
    ({"hidden_size": 10**20}, "hidden_size is 100000000000000000000"),
    ({"hidden_size": 13}, "hidden size 13 does not divide into 3 heads"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    ({"intermediate_size": []}, "intermediate_size is []"),
    ({"vocab_size": {}}, "vocab_size is {}"),
    ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
    ({"type_vocab_size": -2}, "type_vocab_size is -2"),
    ({"type_vocab_size": "two"}, "type_vocab_size is 'two'"),
    ({"embedding_size": "x"}, "embedding_size is 'x'"),
    ({"pad_token_id": [0]}, "pad_token_id is [0]"),
    ({"layer_norm_eps": "tiny"}, "layer_norm_eps is 'tiny', it must be between 0 and 1"),
    ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
    (
        {"hidden_act": "mish"},
        "'mish' is not supported; supported: gelu, gelu_tanh, quick_gelu, relu, silu",
    ),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    ({"id2label": {"0": "a", "1": "a"}}, "labels 0 and 1 are both 'a'\ngive every label"),
    ({"id2label": {"x": "a", "1": "b"}}, "id2label names 'x', ids are 0, 1, 2"),
    ({"id2label": ["a", "b"]}, "id2label is a list, not a map of names"),
    ({"id2label": 3}, "id2label is a int"),
    ({"id2label": {"1": "a", "2": "b"}}, "2 labels, but none with id 0; it has 1, 2\nnumber"),
    ({"id2label": {"0": "a", "2": "b"}}, "none with id 1; it has 0, 2\nnumber the labels"),
    ({"is_decoder": True}, "is_decoder is true: a position then attends to earlier ones only"),
    ({"problem_type": "regression"}, "'regression' is not supported yet with 2 labels"),
    ({"id2label": None, "num_labels": 10**9}, "num_labels is 1000000000"),
    ({"id2label": None, "num_labels": "two"}, "num_labels is 'two'"),
    ({"architectures": 5}, "architecture '5' has no classification head"),
    ({"architectures": {"a": 1}}, "has no classification head"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG_SIZES)
def test_wrong_sizes_are_named(changes: dict[str, Any], says: str) -> None:
    assert says in refused(config(**changes))


def test_wrong_sizes_of_distilbert_are_named() -> None:
    assert "n_layers is 100000" in refused(config("distilbert", n_layers=100_000))
    assert "dim is missing" in refused(config("distilbert", dim=None))
    assert "pad_token_id is -1" in refused(config("distilbert", pad_token_id=-1))


def test_absurd_sizes_allocate_nothing() -> None:
    """A billion dimensions would be eight exabytes: only the shapes may be compared."""
    text = refused(config(hidden_size=10**9, num_attention_heads=1, intermediate_size=10**9))
    assert "has shape (31, 12), config.json says (31, 1000000000)" in text


def test_tensors_that_do_not_fit() -> None:
    good = state(config())
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    text = refused(config(), good | {name: torch.zeros(9, 12)})
    assert f"tensor '{name}' has shape (9, 12), config.json says (10, 12)" in text
    faults = {
        "holds values that are not finite": torch.full((10, 12), float("nan")),
        "has type int64: save it in float32": torch.zeros(10, 12, dtype=torch.long),
        "has type float8_e4m3fn": torch.zeros(10, 12).to(torch.float8_e4m3fn),
        "has type complex64": torch.zeros(10, 12, dtype=torch.complex64),
    }
    for fault, broken in faults.items():
        assert f"tensor '{name}' {fault}" in refused(config(), good | {name: broken})
    three = good | {"classifier.weight": torch.zeros(3, 12)}
    assert "says (2, 12)\nname the 3 classes in config.json: id2label" in refused(
        config(), three
    )
    text = refused(config(), good | {"bert.encoder.layer.2.output.dense.bias": torch.ones(12)})
    assert (
        "1 tensors that config.json does not call for, the first is 'bert.encoder.la" in text
    )


@pytest.mark.parametrize(
    "name",
    [
        "gelu",
        "gelu_accurate",
        "gelu_fast",
        "gelu_new",
        "gelu_python",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
        "quick_gelu",
        "relu",
        "silu",
        "swish",
    ],
)
def test_activations_are_those_of_transformers(name: str) -> None:
    x = torch.linspace(-12, 12, 4001)
    ours = ACTIVATIONS[activation(name)](x)
    torch.testing.assert_close(ours, ACT2FN[name](x), atol=2e-6, rtol=1e-6)
