"""What every family must keep: call `check_parity` and `CHECKS` with a small config.

A test of a new family is a handful of lines; see tests/model/families.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from prumux.export.graph.graph import build
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.artifact import load_artifact, save_artifact
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.passes.slice import slice_model
from tests.helpers.factory import make_context, random_batch
from tests.helpers.masking import logits, random_masks, worst

Head = Literal["SequenceClassification", "TokenClassification"]
HEADS: tuple[Head, ...] = ("SequenceClassification", "TokenClassification")
WHOLE = os.environ.get("PRUMUX_MATRIX") == "1"


def pooled(*kinds: str) -> list[tuple[Head, str]]:
    """Each head with each `classifier_pooling`; a head of tokens pools nothing and has one.

    `make matrix` has all of them.
    """
    pairs: list[tuple[Head, str]] = [(head, x) for head in HEADS for x in kinds]
    return [x for x in pairs if WHOLE or x[0] == HEADS[0] or x[1] == kinds[0]]


def given(
    folder: Path, model_type: str, head: Head, *, spread: float = 0.2, **config: Any
) -> tuple[Any, Model]:
    """A model of transformers with random weights, and ours of the same checkpoint.

    `spread` is the standard deviation that is added to transformers' own small weights.
    """
    import transformers

    made = transformers.AutoConfig.for_model(model_type, num_labels=3, **config)
    torch.manual_seed(0)
    module = getattr(transformers, f"AutoModelFor{head}").from_config(made).eval()
    with torch.no_grad():
        for name, p in module.named_parameters():  # so that logits differ visibly
            p.copy_(p + spread * torch.randn_like(p) if p.dim() > 1 else p)
            if name.endswith("norm.bias") or name.endswith("Norm.bias"):
                p.add_(0.1 * torch.randn_like(p))
    module.save_pretrained(folder)
    return module, load_model(str(folder))


def theirs(module: Any, batch: Batch, model: Model) -> Tensor:
    """Transformers' logits of the rows, for token tasks of the real positions."""
    inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
    with torch.no_grad():
        found: Tensor = module(**inputs).logits
    return found if model.encoder.pooled else found[inputs["attention_mask"] > 0]


def onnx_logits(model: Model, batch: Batch, **options: Any) -> Tensor:
    """ONNX Runtime's logits, as `logits` gives torch's."""
    engine = OrtEngine(build(model, **options).SerializeToString(), threads=1)
    found = torch.as_tensor(engine.run(batch.inputs()))
    return found if model.encoder.pooled else found[torch.as_tensor(batch.attention_mask) > 0]


def check_parity(
    folder: Path,
    model_type: str,
    head: Head,
    length: int,
    *,
    spread: float = 0.2,
    **config: Any,
) -> None:
    """Our logits are transformers', in torch and in ONNX Runtime, with padding."""
    module, model = given(folder, model_type, head, spread=spread, **config)
    batch = random_batch(model, rows=6, length=length)
    wanted = theirs(module, batch, model)
    assert float(wanted.std()) > 0.05
    assert worst(logits(model, batch), wanted) < 1e-4
    assert worst(onnx_logits(model, batch), wanted) < 1e-4
    early = replace(
        model, encoder=replace(model.encoder, pool_early=model.encoder.reads_first)
    )
    assert worst(logits(early, batch), wanted) < 1e-4
    assert worst(onnx_logits(early, batch), wanted) < 1e-4


def check_pruned(folder: Path, model_type: str, head: Head, **config: Any) -> None:
    """Masked is sliced is exported is stored, hidden dimensions cut as well."""
    _, model = given(folder, model_type, head, **config)
    batch = random_batch(model, rows=6)
    for seed in range(3):
        masked = replace(model, masks=random_masks(model.encoder, seed))
        sliced = slice_model(masked)
        wanted = logits(masked, batch)
        assert worst(logits(sliced, batch), wanted) < 1e-4
        assert worst(onnx_logits(sliced, batch), wanted) < 1e-4
        sliced.verify()
        save_artifact(sliced, folder / f"sliced-{seed}")
        stored = load_artifact(folder / f"sliced-{seed}")
        assert worst(logits(stored, batch), logits(sliced, batch)) == 0


def check_mixed(folder: Path, model_type: str, head: Head, **config: Any) -> None:
    """Mixed rows are the same in torch and ONNX; copies side by side pass through alike."""
    _, model = given(folder, model_type, head, **config)
    ctx = make_context(model)
    batch = random_batch(model, rows=6)
    for text in (
        "mux{n=2}",
        "mux{n=3 at=1}",
        "pool-early,mux{n=2 at=1}",
        "mux{n=2 units=apart}",
    ):
        mixed = Pipeline.parse(text).run(model, ctx)
        mixed.verify()
        assert worst(onnx_logits(mixed, batch), logits(mixed, batch)) < 1e-4, text
    low = onnx_logits(model, batch, precision="fp16")
    assert worst(low, logits(model, batch)) < 0.05


def check_refitted(folder: Path, model_type: str, head: Head, **config: Any) -> None:
    """The quick pipeline and a step of training run, and refitting brings answers nearer."""
    _, model = given(folder, model_type, head, **config)
    batch = random_batch(model, rows=32)
    ctx = make_context(model, batch)
    wanted = logits(model, batch)
    cut = Pipeline.parse("pool-early,prune{sparsity=0.4},slice").run(model, ctx)
    refitted = Pipeline.parse("reconstruct").run(cut, ctx)
    assert worst(logits(refitted, batch), wanted) < worst(logits(cut, batch), wanted)
    trained = Pipeline.parse("distill{epochs=1}").run(cut, ctx)
    assert worst(logits(trained, batch), logits(cut, batch)) > 0
    marked = Pipeline.parse("prune{sparsity=0.4 by=second-order}").run(model, ctx)
    assert not marked.masks.all_true


def check_ragged(folder: Path, model_type: str, head: Head, **config: Any) -> None:
    """Without padding in products, norms and residuals the logits are the same."""
    _, model = given(folder, model_type, head, **config)
    early = replace(model.encoder, pool_early=model.encoder.reads_first)
    ctx = make_context(model)
    shapes = [model, replace(model, encoder=early)]
    shapes += [Pipeline.parse(x).run(model, ctx) for x in ("mux{n=2}", "mux{n=3 at=1}")]
    for x in shapes:
        batch = random_batch(x, rows=6)
        padded, ragged = (onnx_logits(x, batch, ragged=on) for on in (False, True))
        assert worst(ragged, padded) < 1e-5, x.encoder
    low = onnx_logits(model, batch, precision="fp16", ragged=True)
    assert worst(low, logits(model, batch)) < 0.05


CHECKS = (check_pruned, check_mixed, check_refitted, check_ragged)
