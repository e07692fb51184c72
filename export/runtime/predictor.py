"""Predictions for texts: `prumux.load` opens an artifact folder and returns a `Predictor`.

model = prumux.load("my-model-prumux")
model.predict(["a charming journey"])  # [Prediction(label='positive', score=0.99, ...)]
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import GateError, ModelError, UsageError
from prumux.optimizer.base.processors import cpu_threads, most_threads
from prumux.optimizer.data.encodings import Side
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import Encoded, encode
from prumux.optimizer.model.artifact import from_config
from prumux.optimizer.model.checkpoint.tokenizer_files import read_tokenizer
from prumux.optimizer.model.row_groups import RowLogits, batch_rows
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.pipeline.target import Engine
from prumux.optimizer.tasks.prediction import Answer
from prumux.optimizer.tasks.task import Task

from .artifact_engine import artifact_path, open_artifact_engine, read_config
from .chunks import CHUNK_ROWS, answer_chunks
from .engine_match import check_belongs
from .grouping import BatchingRunner, DirectRunner, PredictionJob
from .predict_arguments import owners_of, question_rows, text_rows, word_rows
from .word_windows import WordWindows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Floats = NDArray[np.float32]
Text = str | tuple[str, str] | Sequence[str]
"""A text, a pair of texts, or for token tasks a list of words."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """A loaded model, made by `prumux.load`. Many threads may share it.

    A predictor can be pickled, for `multiprocessing` or Ray. The pickle contains the folder
    and the options of `load`. The receiving process loads the folder again, so the folder must
    exist there under the same path.
    """

    encoder: Encoder
    task: Task
    tokenizer: PreTrainedTokenizerBase
    runner: DirectRunner | BatchingRunner
    reload: Callable[[], Predictor] | None = field(default=None, repr=False)
    """The call of `load` that makes this predictor again."""
    overlap: bool = False
    """True = tokenise texts while the engine runs. This needs cores that the engine leaves
    free."""
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __reduce__(self) -> tuple[Callable[[], Predictor], tuple[()]]:
        """Pickle the call of `load`.

        Raises:
            UsageError: `load` did not make this predictor.
        """
        if self.reload is None:
            raise UsageError(
                "this Predictor cannot be pickled: it was not made by prumux.load\n"
                "use prumux.load(folder)"
            )
        return self.reload, ()

    @property
    def engine(self) -> Engine:
        """The engine that computes the logits."""
        return self.runner.engine

    def close(self) -> None:
        """Answer all waiting calls, then end the thread that `max_wait_ms` started."""
        self.runner.close()

    def predict(
        self,
        texts: Iterable[Text],
        batch_size: int = 32,
        copies: int = 1,
        isolate: Hashable | Sequence[Hashable] = None,
    ) -> list[Answer]:
        """Predict one label, or one value, for each text, in the order of the texts.

        Texts may come in any order: they run in chunks of similar length. A multiplexed model
        runs n rows of similar length in one forward pass. A group of fewer than n rows is
        filled with rows of the same group, and the logits of a repeated row are averaged.

        For token tasks the result has one tuple for each row, with one prediction for each
        word. Rows of words longer than the model's maximum are split into windows, so that
        every word gets a prediction. Longer texts are truncated, as in training.

        For question answering a text is a pair of a question and its context, of any length.
        The result has one `TextSpan` for each pair: answer, score, start and end.

        Args:
            texts: strings, or pairs of strings; for token tasks lists of words.
            batch_size: number of rows in one run of the engine.
            copies: number of groups in which each row runs, from 1 to n. A row's logits are
                averaged over its groups. This takes `copies` times as long, and makes logits
                depend less on the other rows of a group.
            isolate: the owner of all texts, or a list (tuple, array, pandas Series) with the
                owner of each text. Texts of two owners never share a forward pass.

        Raises:
            UsageError: `texts` has another type, or a number is out of range.
            GateError: logits are nan or infinite, for instance because fp16 overflows.

        Example:
            >>> model.predict(["a charming journey"])  # doctest: +SKIP
            [Prediction(label='positive', score=0.99, scores={...})]
        """
        if self.task.finds_spans:
            _check_counts(batch_size, copies, self.encoder.slots)
            pairs = question_rows(texts)
            return self._spans(pairs, _Options(batch_size, copies, owners_of(isolate, pairs)))
        return self.task.answers(self.predict_logits(texts, batch_size, copies, isolate))

    def _spans(self, rows: Rows, options: _Options) -> list[Answer]:
        """Answer questions. Contexts run in windows, and many questions run in chunks."""
        found: list[Answer] = []
        for start in range(0, len(rows), CHUNK_ROWS):
            some = rows.take(range(start, min(start + CHUNK_ROWS, len(rows))))
            coded = self._encode(replace(some, stride=self.task.shared_tokens))
            assert coded.layout is not None
            assert coded.layout.windows is not None
            texts = (start + coded.layout.windows.question).tolist()
            found += self.task.span_answers([*self._run(coded, options, texts)], coded.layout)
        return found

    def predict_logits(
        self,
        texts: Iterable[Text],
        batch_size: int = 32,
        copies: int = 1,
        isolate: Hashable | Sequence[Hashable] = None,
    ) -> Floats | list[Floats]:
        """Compute logits, float32 [N, C]; for token tasks a list of [words, C] for each row.

        Arguments and errors are those of `predict`.
        """
        most = self.encoder.slots
        _check_counts(batch_size, copies, most)
        if self.task.finds_spans:
            self.task.answers([])  # raises: logits are of windows
        if self.task.reads_words:
            words = word_rows(texts)
            return self._word_logits(
                words, _Options(batch_size, copies, owners_of(isolate, words))
            )
        rows = text_rows(texts)
        options = _Options(batch_size, copies, owners_of(isolate, rows))
        run = partial(self._run, options=options, texts=range(len(rows)))
        if options.owners is None:
            multiple = batch_rows(batch_size, most)
            logits = answer_chunks(rows, multiple, self._encode, run, overlap=self.overlap)
        else:  # not in chunks: more texts of an owner fill more groups
            logits = run(self._encode(rows))
        return np.asarray(logits).reshape(len(rows), self.encoder.labels)

    def encode(
        self,
        texts: Iterable[str],
        batch_size: int = 32,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Floats:
        """Compute the vectors of texts, float32 [N, D], in the order of the texts.

        Args:
            texts: strings.
            batch_size: number of texts in one run of the engine.
            prompt_name: name of the model's prompt to put before each text. By default the
                model's default prompt, if it has one.
            prompt: the text of a prompt, in place of a name.

        Raises:
            UsageError: the model gives no vectors or has no such prompt, or `texts` is not a
                list of strings.
            GateError: values are nan or infinite.

        Example:
            >>> model.encode(["a charming journey"]).shape  # doctest: +SKIP
            (1, 384)
        """
        if self.encoder.sentence is None:
            raise UsageError(
                f"this model does {self.task.name} and gives no vectors: call predict"
            )
        rows = text_rows(texts, "encode")
        if rows.text_b is not None:
            raise UsageError("encode takes single texts: encode(['one text', 'another'])")
        before = self.task.prompt(prompt_name) if prompt is None else prompt
        logits = self._text_logits(Rows(tuple(before + x for x in rows.text_a)), batch_size)
        return np.asarray(logits, dtype=np.float32)

    def _text_logits(self, rows: Rows, batch_size: int) -> Floats:
        _check_batch(batch_size)
        coded = self._encode(rows)
        found = self._run(coded, _Options(batch_size, 1, None), range(len(coded)))
        return np.asarray(found).reshape(len(coded), self.encoder.labels)

    def _encode(self, rows: Rows) -> Encoded:
        # Rows of words run in windows that begin at the first word: cut them on the right.
        side: Side | None = None if rows.words is None else "right"
        with self._lock:  # truncation is a state of the tokenizer
            return encode(rows, self.tokenizer, self.encoder, side=side)

    def _run(self, encoded: Encoded, options: _Options, texts: Iterable[int]) -> RowLogits:
        """Compute the logits of each row without padding, [N, C] or a list of [T, C].

        `texts` has the index of each row's text. The index gives the row's owner.
        """
        owners = options.owners
        tenants = None if owners is None else tuple(owners[i] for i in texts)
        found = self.runner.run(
            PredictionJob(encoded, options.batch_size, options.copies, tenants)
        )
        _check_finite(found, self.engine)
        return found

    def _word_logits(self, rows: list[tuple[str, ...]], options: _Options) -> list[Floats]:
        """Logits [words, C] of each row."""

        def run(some: Rows, texts: Sequence[int]) -> tuple[Encoded, RowLogits]:
            encoded = self._encode(some)
            return encoded, self._run(encoded, options, texts)

        unknown = str(self.tokenizer.unk_token or "")
        windows = WordWindows(run, self.encoder.positions, self.encoder.labels, unknown)
        return windows.logits(rows)


@dataclass(frozen=True)
class _Options:
    """Options of one call of `predict`."""

    batch_size: int
    copies: int
    owners: tuple[Hashable, ...] | None
    """One owner for each text; None = all texts may share forward passes."""


DEVICES = ("auto", "cpu", "cuda")
MOST_WAIT_MS = 60_000


def load(
    folder: str | Path,
    threads: int | None = None,
    max_wait_ms: float | None = None,
    device: str = "auto",
) -> Predictor:
    """Load an artifact folder that `prumux-opt` wrote.

    The predictor uses the first engine that can run here: `model.plan` in TensorRT,
    `model.onnx` in ONNX Runtime, or the torch module in float32.

    Args:
        folder: the artifact folder.
        threads: CPU threads of one run in ONNX Runtime. The default is one for each processor
            that this process may use, at most `OMP_NUM_THREADS`. The torch module uses
            torch's own setting.
        max_wait_ms: milliseconds for which a call waits for calls of other threads, to run
            their texts together. This is faster if many threads pass few texts each. By
            default each call runs alone.
        device: the device of ONNX Runtime: `cpu`, `cuda`, or `auto` (a GPU if ONNX Runtime can
            use one and the graph is not int8).

    Raises:
        UsageError: `threads`, `max_wait_ms` or `device` is out of range.
        MissingError: `device` is `cuda`, and ONNX Runtime cannot use a GPU.
        ModelError: the folder is not an artifact folder, or a file in it is damaged.

    Example:
        >>> model = prumux.load("my-model-prumux", threads=1)  # doctest: +SKIP
        >>> model.predict(["dull", "a charming journey"])  # doctest: +SKIP
    """
    _check_numbers(threads, max_wait_ms)
    if device not in DEVICES:
        raise UsageError(f"device is {device!r}: use one of {', '.join(DEVICES)}")
    path = artifact_path(folder)
    config = read_config(path)
    encoder, task = from_config(config, path / "config.json")
    tokenizer = read_tokenizer(path)
    if tokenizer is None:
        raise ModelError(
            f"'{path}' has no tokenizer\n"
            "copy tokenizer.json and tokenizer_config.json of the source model into it"
        )
    engine, slots = open_artifact_engine(path, threads or cpu_threads(), device), encoder.slots
    check_belongs(engine, encoder, config, path)
    runner: DirectRunner | BatchingRunner = DirectRunner(engine, slots)
    if max_wait_ms is not None:
        runner = BatchingRunner(engine, slots, max_wait_ms)
    reload = partial(load, path.absolute(), threads, max_wait_ms, device)
    return Predictor(encoder, task, tokenizer, runner, reload, leaves_cores(engine, threads))


def leaves_cores(engine: Engine, threads: int | None) -> bool:
    """True if the engine runs on a GPU, or leaves some of the processors free."""
    on_cpu = engine.describe().get("device", "cpu") == "cpu"
    return not on_cpu or (threads or cpu_threads()) < cpu_threads()


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


def _check_batch(size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UsageError(f"batch_size is {size!r}: use a whole number, say 32")


def _check_counts(size: Any, copies: Any, most: int) -> None:
    """Check the batch size, and the number of copies: 1 to `most`, the rows of a group."""
    _check_batch(size)
    if isinstance(copies, bool) or not isinstance(copies, int) or not 1 <= copies <= most:
        raise UsageError(f"copies is {copies!r}: this model mixes {most} rows, use 1..{most}")


def _check_finite(logits: RowLogits, engine: Engine) -> None:
    """Refuse logits that are nan or infinite: their labels would mean nothing.

    Raises:
        GateError: the message has the number of rows and the precision.
    """
    if isinstance(logits, np.ndarray):
        broken = int((~np.isfinite(logits)).any(-1).sum())
    else:
        broken = sum(not np.isfinite(x).all() for x in logits)
    if broken:
        precision = engine.describe().get("precision", "fp32")
        raise GateError(
            f"the engine's logits of {broken} of {len(logits)} rows are not finite "
            f"(precision={precision})\n"
            "numbers overflow in this model; make it again with --target "
            "'onnx{precision=fp32}'"
        )
