"""Fine-tune a pretrained encoder on a task, as the given model of a study.

    python bench/fine_tune.py BASE --data DIR --out MODEL [--epochs 3]

`BASE` is a Hugging Face folder. `labels.json` in the data folder has the names of the classes.
The script holds out a twentieth of the training rows to choose the best checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.data.rows import read_rows
from prumux.optimizer.data.tokenize import Batch, Encoded, batches, encode
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.context import Context
from prumux.passes.training.data_parallel import ALONE, DataParallel
from prumux.passes.training.loop import TrainingSchedule, train

BATCH = 64


@dataclass(eq=False)
class FineTuner:
    """Trains a Hugging Face classifier on labels. Embedding tables are not trained."""

    module: Any
    held_out: Encoded
    lr: float
    device: str
    slots: int = 1

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        return [{"params": trained, "lr": self.lr}]

    def loss(self, batch: Batch, progress: float, parallel: DataParallel = ALONE) -> Tensor:
        """Cross-entropy; for regression, squared error."""
        del progress, parallel  # training is on one device
        labels = torch.as_tensor(batch.labels).to(self.device)
        if labels.is_floating_point():
            labels = labels.float()
        inputs = {k: torch.as_tensor(v).to(self.device) for k, v in batch.inputs().items()}
        found: Tensor = self.module(**inputs, labels=labels).loss
        return found

    def validation_loss(self) -> float:
        """Mean loss on the held-out rows."""
        self.module.eval()
        with torch.no_grad(), autocast(self.device):
            losses = [
                float(self.loss(b, 1.0)) * len(b.rows) for b in batches(self.held_out, BATCH)
            ]
        self.module.train()
        return sum(losses) / len(self.held_out)


def main() -> None:
    """Train, save the model, and print its accuracy on the validation rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--tokens", action="store_true", help="token classification: every word has a label"
    )
    parser.add_argument(
        "--score", action="store_true", help="one score a row, without labels.json"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(cpu_threads())
    tokenizer: Any = AutoTokenizer.from_pretrained(options.base)
    module = untrained(options)
    module.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    model = load_model(str(options.out))
    given = {x: read_rows(options.data, model.task, split=x) for x in ("train", "validation")}
    coded = {x: encode(y, tokenizer, model.encoder) for x, y in given.items()}
    rows = coded["train"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    held = len(rows) // 20
    module.to(options.device).train()
    learner = FineTuner(module, rows.take(order[:held]), options.lr, options.device)
    ctx = Context(
        fit=rows, workload=(), dense=model, device=options.device, progress=Progress(1)
    )
    length = TrainingSchedule(options.epochs, None, BATCH)
    facts = train(learner, rows.take(order[held:]), length, ctx, "fine-tune")
    module.to("cpu").eval().save_pretrained(options.out)
    say(json.dumps(facts))
    say(validation_score(options.out, coded["validation"]))


def untrained(options: argparse.Namespace) -> Any:
    """Load the base with a new head, and switch off gradients of the embedding tables."""
    names = ["score"]
    if not options.score:
        names = json.loads((options.data / "labels.json").read_text(encoding="utf-8"))[
            "labels"
        ]
    kinds = AutoModelForSequenceClassification, AutoModelForTokenClassification
    kind: Any = kinds[options.tokens]
    module: Any = kind.from_pretrained(
        options.base,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        problem_type=None if options.score else "single_label_classification",
    )
    for name, p in module.named_parameters():
        p.requires_grad = "embeddings" not in name
    return module


def validation_score(folder: Path, rows: Encoded) -> str:
    """Score a saved model by its task's usual metric; return a line of text."""
    model, labels = load_model(str(folder)), rows.labels
    assert labels is not None
    metric = model.task.metrics[0].name
    found = model.task.score(metric, predict(torch_run(model), rows, model.task), labels)
    return f"{metric} on {len(rows)} validation rows: {found:.4f}"


def say(text: str) -> None:
    """Print a line to stderr."""
    print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
