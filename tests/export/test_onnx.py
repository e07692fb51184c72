"""The ONNX target: the graph, its parity with Hugging Face and torch, and what is kept."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from prumux.export.graph import fusion as fuse_module
from prumux.export.graph import graph_file as graphfile
from prumux.export.graph.graph import build, input_names
from prumux.export.graph.graph_file import save, verify
from prumux.export.onnx import Onnx
from prumux.export.runtime import fusion_choice
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.errors import (
    GateError,
    MissingError,
    SpecError,
    UsageError,
    VerifyError,
)
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.source import build as build_model
from prumux.optimizer.pipeline.language import parse_one
from prumux.optimizer.timing.interleave import Timing
from tests.helpers.factory import Family, make_context, overflowing, random_batch, random_model

SIZES = {"vocab_size": 101, "max_position_embeddings": 40, "pad_token_id": 0}
BERT = SIZES | {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT | {"pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": SIZES | {"dim": 48, "n_layers": 4, "n_heads": 12, "hidden_dim": 64},
    "electra": BERT | {"embedding_size": 24},
}
ENDINGS = {"text": "SequenceClassification", "token": "TokenClassification"}


def hugging_face(family: str, task: str, labels: int = 3) -> tuple[torch.nn.Module, Model]:
    """A random Hugging Face classifier, and the same as a `Model`."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers import AutoModelForTokenClassification as Tokens

    config = AutoConfig.for_model(family, num_labels=labels, **CONFIGS[family])
    kind: Any = Tokens if task == "token" else AutoModelForSequenceClassification
    module = kind.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            norm = name.endswith("orm.weight") or name.endswith("layer_norm.weight")
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator) + float(norm))
    described = config.to_dict() | {"architectures": [type(module).__name__]}
    described["id2label"] = {str(k): v for k, v in described["id2label"].items()}
    return module, build_model(described, module.state_dict(), None, "x")


def opened(proto: onnx.ModelProto) -> OrtEngine:
    return OrtEngine(proto.SerializeToString(), threads=1)


@pytest.mark.parametrize("task", ENDINGS)
@pytest.mark.parametrize("family", CONFIGS)
def test_hugging_face_torch_and_onnx_agree(family: str, task: str) -> None:
    module, model = hugging_face(family, task)
    assert model.encoder.layers[0].heads == 12
    inputs = random_batch(model, rows=6).inputs()
    with torch.inference_mode():
        theirs = module(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.numpy()
    ours = run(EncoderModule(model), inputs)
    plain = build(model)
    verify(plain)
    real = inputs["attention_mask"] != 0 if task == "token" else slice(None)
    assert np.ptp(theirs[real]) > 0.1
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4)
    np.testing.assert_allclose(opened(plain).run(inputs)[real], theirs[real], atol=1e-4)
    for attention in (False, True):
        fused = fuse_module.fuse(plain, attention)
        assert fuse_module.counts(fused).get("Attention", 0) == 4 * attention
        np.testing.assert_allclose(opened(fused).run(inputs)[real], theirs[real], atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("opset", [17, 18, 20, 23])
def test_any_batch_and_length(family: Family, opset: int) -> None:
    model = random_model(family, heads=(6, 0, 12, 9), ffn=(64, 64, 0, 64))
    plain = build(model, opset)
    verify(plain)
    assert plain.opset_import[0].version == opset
    session, module = opened(plain), EncoderModule(model)
    for rows, length in ((1, 1), (1, 7), (3, 1), (4, 30)):
        inputs = random_batch(model, rows, length).inputs()
        found = session.run(inputs)
        assert found.shape == (rows, 2)
        np.testing.assert_allclose(found, run(module, inputs), atol=1e-4)


def test_the_graph_says_what_it_takes() -> None:
    plain = build(random_model("bert", labels=3))
    assert [x.name for x in plain.graph.input] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    for value in plain.graph.input:
        axes = [x.dim_param for x in value.type.tensor_type.shape.dim]
        assert axes == ["batch_size", "sequence_length"]
    (logits,) = plain.graph.output
    dims = logits.type.tensor_type.shape.dim
    assert (logits.name, dims[0].dim_param, dims[1].dim_value) == ("logits", "batch_size", 3)
    assert input_names(random_model("distilbert").encoder) == ("input_ids", "attention_mask")
    names = {node.name for node in plain.graph.node}
    assert {"layers.3.attention.query", "layers.0.ffn.up", "head.dense"} <= names
    assert {node.domain for node in plain.graph.node} == {""}
    assert not {node.op_type for node in plain.graph.node} & {"If", "Loop", "NonZero"}


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (build(random_model(heads=(4, 3))) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


@pytest.mark.parametrize("heads", [(6, 4), (6, 0), (0, 4), (0, 0)])
@pytest.mark.parametrize("family", ["bert", "electra"])
def test_early_pooling_gives_the_same_logits(family: Family, heads: tuple[int, ...]) -> None:
    full = random_model(family, heads)
    early = random_model(family, heads, pool_early=True)
    inputs = random_batch(full).inputs()
    found = opened(build(early)).run(inputs)
    np.testing.assert_allclose(found, run(EncoderModule(early), inputs), atol=1e-4)
    np.testing.assert_allclose(found, opened(build(full)).run(inputs), atol=1e-4)


@pytest.mark.parametrize("head", ["tanh", "relu", "gelu", "linear"])
def test_every_head(head: str) -> None:
    model = random_model(heads=(4,), head=head, labels=3)
    inputs = random_batch(model).inputs()
    logits = run(EncoderModule(model), inputs)
    np.testing.assert_allclose(opened(build(model)).run(inputs), logits, atol=1e-4)


def test_pending_masks_are_refused() -> None:
    model = random_model(heads=(4, 3))
    model.masks.ffn[1][5:] = False
    with pytest.raises(VerifyError, match="still carries masks") as caught:
        build(model)
    assert "ffn=64,64} would become" in str(caught.value)
    assert "`slice`" in str(caught.value)


def test_a_broken_graph_is_refused() -> None:
    broken = build(random_model(heads=(4,)))
    broken.graph.node[-1].input[0] = "nowhere"
    with pytest.raises(VerifyError, match="not valid ONNX"):
        verify(broken)


def test_weights_over_the_limit_get_their_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(heads=(4, 3))
    with monkeypatch.context() as patch:
        patch.setattr(graphfile, "INLINE_LIMIT_BYTES", 1000)
        emitted = Onnx(fusion="none").emit(model, make_context(model), tmp_path)
    assert emitted.files == ("model.onnx", "model.onnx_data")
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.onnx_data"]  # noqa: PTH208
    inputs = random_batch(model).inputs()
    logits = run(EncoderModule(model), inputs)
    found = Onnx().engine(tmp_path, 1).run(inputs)
    np.testing.assert_allclose(found, logits, atol=1e-4)
    assert save(build(model), tmp_path) == ("model.onnx",)
    assert sorted(os.listdir(tmp_path)) == ["model.onnx"]  # noqa: PTH208


@pytest.mark.parametrize("fusion", ["auto", "none", "basic", "all"])
def test_emit_checks_and_writes(fusion: Any, tmp_path: Path) -> None:
    model = random_model(heads=(6, 0, 12, 9), ffn=(64, 64, 0, 64))
    context = make_context(model, random_batch(model), random_batch(model, 3, 5, seed=1))
    emitted = Onnx(fusion=fusion).emit(model, context, tmp_path / "new")
    assert emitted.files == ("model.onnx",)
    assert os.listdir(tmp_path / "new") == ["model.onnx"]  # noqa: PTH208
    notes = emitted.notes
    tried = {"auto": ["none", "basic", "all"], "none": ["none"]}.get(fusion, ["none", fusion])
    assert list(notes["parity"]) == tried
    assert all(0 < x < 1e-4 for x in notes["parity"].values())
    assert list(notes["workload_ms"]) == (tried if fusion == "auto" else [])
    assert notes["kept"] in tried
    assert (notes["rows"], notes["dropped"]) == (8, {})
    if fusion == "all":
        assert notes["fused"]["Attention"] == 3
    found = Onnx().engine(tmp_path / "new", threads=1)
    inputs = context.workload[0].inputs()
    logits = run(EncoderModule(model), inputs)
    np.testing.assert_allclose(found.run(inputs), logits, atol=1e-4)


def corrupt(proto: onnx.ModelProto | Path, attention: bool) -> onnx.ModelProto:
    """As the real tool, but one weight is off."""
    fused = REAL_FUSE(proto, attention)
    bias = next(x for x in fused.graph.initializer if x.name == "head.output.bias")
    bias.raw_data = (onnx.numpy_helper.to_array(bias) + np.float32(0.01)).tobytes()
    return fused


REAL_FUSE = fuse_module.fuse


def test_a_corrupted_fusion_is_dropped_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse_module, "fuse", corrupt)
    model = random_model(heads=(4, 3))
    notes = Onnx().emit(model, make_context(model), tmp_path / "a").notes
    assert notes["kept"] == "none"
    assert list(notes["dropped"]) == ["basic", "all"]
    assert "differ by up to 0.01, the limit is 0.0001" in notes["dropped"]["all"]
    with pytest.raises(GateError, match=r"fusion=all.*differ by up to 0\.01"):
        Onnx(fusion="all").emit(model, make_context(model), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_block_that_is_not_fused_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse_module, "fuse", lambda proto, attention: REAL_FUSE(proto, False))
    model = random_model(heads=(4, 3))
    notes = Onnx().emit(model, make_context(model), tmp_path).notes
    assert list(notes["dropped"]) == ["all"]
    with pytest.raises(GateError, match="0 of 2 attention blocks were fused") as caught:
        Onnx(fusion="all").emit(model, make_context(model), tmp_path)
    assert "onnx{fusion=auto}" in str(caught.value)


def test_a_tool_that_crashes_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(proto: object, attention: bool) -> onnx.ModelProto:
        raise AssertionError

    monkeypatch.setattr(fuse_module, "fuse", crash)
    model = random_model(heads=(4,))
    notes = Onnx().emit(model, make_context(model), tmp_path).notes
    assert notes["dropped"] == {"basic": "AssertionError", "all": "AssertionError"}
    with pytest.raises(GateError, match="fusion=basic failed: AssertionError"):
        Onnx(fusion="basic").emit(model, make_context(model), tmp_path)


@pytest.mark.parametrize(
    ("ms", "kept"),
    [
        ((10.0, 9.9, 9.85), "none"),
        ((10.0, 9.7, 9.6), "basic"),
        ((10.0, 9.9, 9.7), "all"),
        ((10.0, 9.0, 8.0), "all"),
    ],
)
def test_a_fusion_must_pay(
    ms: tuple[float, ...], kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(
        runs: list[Any], rounds: int = 5, warmup: int = 1, **_: Any
    ) -> tuple[Timing, ...]:
        return tuple(Timing((x,)) for x in ms[: len(runs)])

    monkeypatch.setattr(fusion_choice, "interleave", timed)
    model = random_model(heads=(4, 3))
    assert Onnx().emit(model, make_context(model), tmp_path).notes["kept"] == kept


def test_a_fusion_that_wins_only_now_and_then_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(
        runs: list[Any], rounds: int = 5, warmup: int = 1, **_: Any
    ) -> tuple[Timing, ...]:
        fused = (8.0, 8.0, 8.0, 12.0, 12.0)
        return (Timing((10.0,) * 5), Timing(fused), Timing(fused))[: len(runs)]

    monkeypatch.setattr(fusion_choice, "interleave", timed)
    model = random_model(heads=(4, 3))
    assert Onnx().emit(model, make_context(model), tmp_path).notes["kept"] == "none"


def test_the_plain_graph_must_agree_too(tmp_path: Path) -> None:
    model = random_model(heads=(4, 3))
    with pytest.raises(GateError, match=r"the limit is 1e-12 \(100.00% of 5 labels") as caught:
        Onnx(atol=1e-12).emit(model, make_context(model), tmp_path / "x")
    assert "ONNX Runtime (fusion=none) against the torch module" in str(caught.value)
    assert "onnx{atol=1e-0" in str(caught.value)
    assert "fewer fusions" not in str(caught.value)
    assert not (tmp_path / "x").exists()
    with pytest.raises(GateError, match=r"say onnx\{atol=\S+ precision=fp16\}$"):
        Onnx(atol=1e-12, precision="fp16").emit(model, make_context(model), tmp_path / "x")


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = overflowing(random_model(heads=(4, 3)))
    with pytest.raises(GateError, match="logits of 5 of 5 rows are not finite") as caught:
        Onnx(precision="fp16").emit(model, make_context(model), tmp_path / "x")
    assert str(caught.value).startswith("onnx{precision=fp16}: ")
    assert "fp16 ends at 65504: use onnx{precision=fp32}, or" in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_nothing_to_check_on(tmp_path: Path) -> None:
    from dataclasses import replace

    model = random_model(heads=(4,))
    with pytest.raises(UsageError, match="no workload to check the graph on"):
        Onnx().emit(model, replace(make_context(model), workload=()), tmp_path)


def test_the_text_form() -> None:
    assert str(Onnx()) == "onnx"
    assert str(Onnx(opset=18, fusion="all")) == "onnx{opset=18 fusion=all}"
    assert Onnx.from_node(parse_one("onnx{fusion=basic atol=1e-3}")) == Onnx(17, "basic", 1e-3)
    with pytest.raises(SpecError, match=r"opset must be 17\.\.23, not 16"):
        Onnx.from_node(parse_one("onnx{opset=16}"))
    with pytest.raises(SpecError, match="atol must be above 0, not 0"):
        Onnx.from_node(parse_one("onnx{atol=0}"))


def test_bf16_is_refused_where_there_are_no_kernels_for_it(tmp_path: Path) -> None:
    model = random_model(heads=(4,))
    target = Onnx(precision="bf16")
    with pytest.raises(MissingError, match="has no bf16 kernels for CPUs") as caught:
        target.emit(model, make_context(model), tmp_path)
    assert "use onnx{precision=fp16}, onnx{precision=fp32}, or" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert target.draft().emit(model, make_context(model), tmp_path).files == ("model.onnx",)
