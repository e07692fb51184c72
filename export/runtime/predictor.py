"""Runs an optimised model on texts; batching is hidden inside."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prumux.export.trt.engine import open_plan
from prumux.optimizer.base.environment import most_threads
from prumux.optimizer.base.errors import GateError, MissingError, ModelError, UsageError
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import Encoded, encode
from prumux.optimizer.model.artifact import from_config, load_artifact
from prumux.optimizer.model.ir import Encoder, Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.source import read_json, read_tokenizer
from prumux.optimizer.pipeline.target import Engine
from prumux.optimizer.tasks.labels import IGNORE
from prumux.optimizer.tasks.prediction import Answer
from prumux.optimizer.tasks.task import Task

from .engine_match import check_belongs
from .grouping import Direct, Job, Together
from .ort import CUDA, OrtEngine, gpu_providers
from .texts import owners_of, text_rows, word_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Floats = NDArray[np.float32]
Text = str | tuple[str, str] | Sequence[str]
"""A text; a pair of texts; for token tasks a list of words."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """A loaded model, made by `prumux.load`. One may serve many threads."""

    encoder: Encoder
    task: Task
    tokenizer: PreTrainedTokenizerBase
    runner: Direct | Together
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def engine(self) -> Engine:
        """What gives the logits."""
        return self.runner.engine

    def close(self) -> None:
        """End the thread that `max_wait_ms` started, once all is answered."""
        self.runner.close()

    def predict(
        self,
        texts: Iterable[Text],
        batch_size: int = 32,
        copies: int = 1,
        isolate: Hashable | Sequence[Hashable] = None,
    ) -> list[Answer]:
        """One prediction a text, in the order of the texts.

        A multiplexed model mixes rows of like length. A group that is not full is filled with
        its own rows, whose answers are averaged.

        For token tasks: one tuple a row, with one prediction a word. Rows that are longer than
        the model takes are cut into windows, so that every word gets one; longer texts are cut
        off, as in training.

        Args:
            texts: strings, or pairs of them; for token tasks lists of words.
            batch_size: rows in one run of the engine.
            copies: groups that each row takes part in, up to the number of rows that are
                mixed: slower by as much, and more exact, since the answers are averaged.
            isolate: whose texts these are, or a list (tuple, array, pandas Series) that says
                it of each text: texts of two owners are never mixed.

        Raises:
            UsageError: not such a list, or a number out of range.
            GateError: the engine's logits are not finite, as where fp16 overflows.
        """
        return self.task.answers(self.predict_logits(texts, batch_size, copies, isolate))

    def predict_logits(
        self,
        texts: Iterable[Text],
        batch_size: int = 32,
        copies: int = 1,
        isolate: Hashable | Sequence[Hashable] = None,
    ) -> Floats | list[Floats]:
        """Logits [N, C]; for token tasks a list with logits [words, C] of each row.

        Arguments and errors are those of `predict`.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"batch_size is {batch_size!r}: use a whole number, say 32")
        most = self.encoder.slots
        if isinstance(copies, bool) or not isinstance(copies, int) or not 1 <= copies <= most:
            raise UsageError(
                f"copies is {copies!r}: this model mixes {most} rows, use 1..{most}"
            )
        if self.task.reads_words:
            rows = word_rows(texts)
            return self._word_logits(
                rows, _Options(batch_size, copies, owners_of(isolate, rows))
            )
        coded = self._encode(text_rows(texts))
        options = _Options(batch_size, copies, owners_of(isolate, coded))
        logits = self._run(coded, options, range(len(coded)))
        return np.stack(logits) if logits else np.zeros((0, self.encoder.labels), np.float32)

    def _encode(self, rows: Rows) -> Encoded:
        with self._lock:  # a tokenizer holds its truncation as state
            return encode(rows, self.tokenizer, self.encoder)

    def _run(self, encoded: Encoded, options: _Options, texts: Iterable[int]) -> list[Floats]:
        """Logits of each row, padding removed, [C] or [T, C]; `texts`: where each is from."""
        owners = options.owners
        tenants = None if owners is None else tuple(owners[i] for i in texts)
        found = self.runner.run(Job(encoded, options.batch_size, options.copies, tenants))
        _check_finite(found, self.engine)
        return found

    def _word_logits(self, rows: Sequence[tuple[str, ...]], options: _Options) -> list[Floats]:
        """Logits [words, C] of each row."""
        found, seen = self._windows(rows, options, range(len(rows)))
        blank = [i for i, x in enumerate(seen) if not x.all()]
        if not blank:
            return found
        # Words such as '' or a zero-width space have no tokens. They are read as unknown ones.
        unknown = str(self.tokenizer.unk_token or "")
        filled = [
            tuple(w if s else unknown for w, s in zip(rows[i], seen[i], strict=True))
            for i in blank
        ]
        again, now_seen = self._windows(filled, options, blank)
        for i, logits, known in zip(blank, again, now_seen, strict=True):
            if not known.all():
                at = int(np.flatnonzero(~known)[0])
                raise UsageError(
                    f"row {i}: word {at} ({rows[i][at]!r}) has no tokens in this model's "
                    "vocabulary: remove it"
                )
            found[i][~seen[i]] = logits[~seen[i]]
        return found

    def _windows(
        self, rows: Sequence[tuple[str, ...]], options: _Options, texts: Sequence[int]
    ) -> tuple[list[Floats], list[NDArray[np.bool_]]]:
        """Per row logits [words, C], and which words have any; long rows take some rounds."""
        found = [np.zeros((len(row), self.encoder.labels), np.float32) for row in rows]
        seen = [np.zeros(len(row), np.bool_) for row in rows]
        pending = [(i, 0) for i, row in enumerate(rows) if row]
        while pending:
            words = tuple(rows[i][at : at + self.encoder.positions] for i, at in pending)
            # A word's own number as its label tells where its first token came to lie.
            numbers = tuple(np.arange(len(x)) for x in words)
            encoded = self._encode(Rows((), words=words, labels=numbers))
            logits = self._run(encoded, options, [texts[i] for i, _ in pending])
            left = []
            for j, (i, start) in enumerate(pending):
                places = np.asarray(encoded.labels[j])  # type: ignore[index]
                first = places != IGNORE
                here = start + places[first]
                found[i][here] = logits[j][first]
                seen[i][here] = True
                after = int(here[-1]) + 1 if len(here) else start + len(words[j])
                if after < len(rows[i]):
                    left.append((i, after))
            pending = left
        return found, seen


@dataclass(frozen=True)
class _Options:
    """How a call wants its rows to be run."""

    batch_size: int
    copies: int
    owners: tuple[Hashable, ...] | None
    """Per text."""


class TorchEngine:
    """The torch module as an engine, for where ONNX Runtime is not installed."""

    def __init__(self, model: Model) -> None:
        self._module = EncoderModule(model).eval()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Floats:
        """Logits, float32 [B, C] or [B, T, C]."""
        return run(self._module, inputs)

    def describe(self) -> Mapping[str, str]:
        """What a measurement must state."""
        import torch

        return {
            "engine": "torch",
            "version": str(torch.__version__),
            "device": "cpu",
            "threads": str(torch.get_num_threads()),
            "precision": "fp32",
        }


DEVICES = ("auto", "cpu", "cuda")
MOST_WAIT_MS = 60_000


def load(
    folder: str | Path,
    threads: int | None = None,
    max_wait_ms: float | None = None,
    device: str = "auto",
) -> Predictor:
    """Load what `prumux-opt` wrote.

    Runs `model.plan` if that and TensorRT are there, else `model.onnx` if that and ONNX
    Runtime are, else the torch module, which computes in float32.

    Args:
        folder: the artifact folder.
        threads: CPU threads of one run in ONNX Runtime, its own choice when left out. The
            torch module uses as many as torch is set to.
        max_wait_ms: wait so long for texts of other threads, to run, and mix, them together:
            worth it where many callers bring few texts each. Left out, each call runs alone.
        device: where ONNX Runtime runs: `cpu`, `cuda`, or `auto`, a GPU if it can use one and
            the graph is not int8, which is for CPUs.

    Raises:
        UsageError: `threads` is below 1, `max_wait_ms` below 0, or `device` none of these.
        MissingError: ONNX Runtime cannot use a GPU that was asked for.
        ModelError: not an artifact folder, or a damaged one.
    """
    _check_numbers(threads, max_wait_ms)
    if device not in DEVICES:
        raise UsageError(f"device is {device!r}: use one of {', '.join(DEVICES)}")
    if not isinstance(folder, str | Path) or not str(folder).strip():
        raise UsageError(f"the folder is {folder!r}: write, say, prumux.load('my-prumux')")
    try:
        path = Path(folder).expanduser()
        unfinished = (path / ".resume" / "final").exists() and path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"'{folder!s:.80}' cannot be a folder: {error}"[:300]) from error
    if unfinished:
        raise ModelError(f"'{path}' is not finished; repeat its prumux-opt with --resume")
    config = _config(path)
    encoder, task = from_config(config, path / "config.json")
    tokenizer = read_tokenizer(path)
    if tokenizer is None:
        raise ModelError(
            f"'{path}' has no tokenizer\n"
            "copy tokenizer.json and tokenizer_config.json of the source model into it"
        )
    engine, slots = _engine(path, threads or 0, device), encoder.slots
    check_belongs(engine, encoder, config, path)
    if max_wait_ms is None:
        return Predictor(encoder, task, tokenizer, Direct(engine, slots))
    return Predictor(encoder, task, tokenizer, Together(engine, slots, max_wait_ms))


def _check_numbers(threads: Any, max_wait_ms: Any) -> None:
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= most_threads()):
        raise UsageError(
            f"threads is {threads!r}: use 1..{most_threads()}, four times the processors that "
            "may be used at most, or leave it out"
        )
    number = isinstance(max_wait_ms, int | float) and not isinstance(max_wait_ms, bool)
    if max_wait_ms is not None and not (number and 0 <= max_wait_ms <= MOST_WAIT_MS):
        raise UsageError(
            f"max_wait_ms is {max_wait_ms!r}: use 0..{MOST_WAIT_MS}, or leave it out"
        )


def _config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise ModelError(
            f"'{path}' {found}; prumux.load takes a folder that prumux-opt wrote\n"
            + (f"call prumux.load('{path.parent}')" if path.exists() else "check the path")
        )
    config = read_json(path / "config.json")
    if config.get("model_type") != "prumux":
        raise ModelError(
            f"'{path}' holds a '{config.get('model_type')}' model, not an optimised one\n"
            f"make one: prumux-opt {path} --budget 2%"
        )
    return config


def _engine(path: Path, threads: int, device: str) -> Engine:
    """The first that can run here: a plan needs TensorRT, and ONNX Runtime is an extra."""
    if (path / "model.plan").exists() and device != "cpu":
        with suppress(MissingError):
            return open_plan(path / "model.plan")
    if not (path / "model.onnx").exists():
        return TorchEngine(load_artifact(path))
    if device == "cuda":
        return OrtEngine(path / "model.onnx", threads, (CUDA,))
    try:
        engine = OrtEngine(path / "model.onnx", threads)
    except MissingError:
        return TorchEngine(load_artifact(path))
    providers = gpu_providers()
    if device == "cpu" or not providers or engine.describe()["precision"] == "int8":
        return engine
    return OrtEngine(path / "model.onnx", threads, providers)


def _check_finite(logits: Sequence[Floats], engine: Engine) -> None:
    """Logits that are nan or infinite answer nothing, though one of them is the largest."""
    broken = sum(not np.isfinite(x).all() for x in logits)
    if broken:
        precision = engine.describe().get("precision", "fp32")
        raise GateError(
            f"the engine's logits of {broken} of {len(logits)} rows are not finite "
            f"(precision={precision})\n"
            "numbers overflow in this model; make it again with --target "
            "'onnx{precision=fp32}'"
        )
