"""A sequence of passes: parsed from text, printed as text, and run on a model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Self

from prumux.optimizer.base.errors import LostError, PassError, PrumuxError
from prumux.optimizer.model.model import Applied, Model

from .context import Context
from .language import check_size, expand, parse
from .lexer import shorten
from .passes import Pass, TrainingLength
from .registry import pass_from

AfterPass = Callable[[int, Pass, Model, Model], None]
"""A callback that runs after each pass: after_pass(index, pass_, before, after).

`index` counts from 0."""


def _refusal(pass_: Pass, after: Pass) -> str:
    """The reason that `after` may not follow `pass_`; "" = it may."""
    allowed = pass_.before_second and after.second_stage is not None
    return "" if allowed else pass_.last


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes. `Pipeline.parse(str(p)) == p` if p has at least one pass.

    The empty pipeline leaves a model unchanged. Its text is "", which `parse` refuses.
    """

    passes: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a text without alternatives, such as `prune{sparsity=0.6},slice`.

        Raises:
            SpecError: the text is wrong, or has alternatives; carets mark the place.
            MissingError: a pass needs a library that is not installed.
        """
        nodes = parse(text)
        for node in nodes:
            for option in node.options:
                if (count := len(option.alternatives)) > 1:
                    raise node.error(
                        f"{node.name}: option '{shorten(option.name)}' has {count} "
                        "alternatives, so this is a search space\n"
                        "write one value, or search it: prumux-opt MODEL --passes TEXT "
                        "--budget 2%,\nor in Python Pipeline.space(text)",
                        option.span,
                    )
        return cls(tuple(pass_from(node) for node in nodes))

    @classmethod
    def space(cls, text: str) -> tuple[Self, ...]:
        """All distinct points of a search space. The first option varies slowest.

        Raises:
            SpecError: the text or one of the points is wrong, or there are more than
                `LIMIT_POINTS` points.
        """
        nodes = parse(text)
        check_size(nodes)
        alternatives = []
        for node in nodes:
            passes = (pass_from(point) for point in expand(node))
            # Two texts of the same value (1e-1|0.1) are one point.
            alternatives.append(list({str(x): x for x in passes}.values()))
        return tuple(cls(point) for point in product(*alternatives))

    @property
    def uncut(self) -> bool:
        """True if no pass cuts the last masks out. The result then cannot be exported."""
        masks = [p.masks for p in self.passes if p.masks != "keeps"]
        return masks[-1:] == ["adds"]

    @property
    def stages(self) -> tuple[Pipeline, ...]:
        """The pipelines of all models in the result: this one, then second stages."""
        seconds = (p.second_stage for p in self.passes)
        return (self, *(Pipeline(x) for x in seconds if x is not None))

    @property
    def training(self) -> TrainingLength | None:
        """Length of the training of all passes together; None = no pass trains."""
        found = [x.training for x in self.passes if x.training is not None]
        timed = [x.minutes for x in found if x.minutes is not None]
        if not found:
            return None
        minutes = sum(timed) if timed else None
        epochs = sum(x.epochs for x in found)
        return TrainingLength(minutes, epochs, max(x.augment for x in found))

    def check_order(self) -> None:
        """Refuse a pass that may not follow the one before it.

        Raises:
            PassError: the order is wrong; the message names both passes.
        """
        for pass_, after in pairwise(self.passes):
            why = _refusal(pass_, after)
            if not why:
                continue
            cure = f"put '{pass_.name}' last"
            if _refusal(after, pass_):
                other = "the other one" if after.name == pass_.name else f"'{after.name}'"
                cure += f", and leave {other} out"
            elif pass_.before_second:
                cure += ", or only 'cascade' after it"
            raise PassError(
                f"'{after.name}' stands after '{pass_.name}', which {why}\n{cure}",
                exit_code=2,
            )

    def then(self, *passes: Pass) -> Self:
        """This pipeline with more passes at its end."""
        return replace(self, passes=(*self.passes, *passes))

    def prefix(self, count: int) -> Self:
        """The pipeline of the first `count` passes."""
        return replace(self, passes=self.passes[:count])

    def __str__(self) -> str:
        return ",".join(str(x) for x in self.passes)

    def run(self, model: Model, ctx: Context, after_pass: AfterPass | None = None) -> Model:
        """Run all passes in order. The model is verified before the first and after each.

        Each pass adds a receipt to the result's history. Errors of `after_pass` are raised
        unchanged.

        Raises:
            VerifyError: the given model is damaged.
            PassError: a pass failed; the message names it. The exit code is the cause's.
            LostError: a training process died.
        """
        model.verify()
        self.check_order()
        if self.passes and model.second is not None:
            raise PassError(
                "the model is a cascade of two models, which no pass takes\n"
                "give the model that it was made from",
                exit_code=2,
            )
        model = replace(model, notes={})
        for index, pass_ in enumerate(self.passes):
            before = model
            try:
                model = _run_one(pass_, before, ctx)
            except LostError:
                raise
            except PrumuxError as error:
                message = f"{self._place(index)}: {error}"
                raise PassError(message, exit_code=error.exit_code) from error
            except Exception as error:
                error.add_note(f"prumux: {self._place(index)}")
                raise
            if after_pass is not None:
                after_pass(index, pass_, before, model)
        return model

    def _place(self, index: int) -> str:
        text = f"pass {index + 1} ({self.passes[index].name}) failed"
        done = str(Pipeline(self.passes[:index]))
        if len(done) > 80:
            done = "..." + done[-77:]
        return f"{text} after {done}" if done else text


def count_parameters(model: Model) -> int:
    """Number of elements of all weights, including the weights of a second stage."""
    second = 0 if model.second is None else count_parameters(model.second.model)
    return second + sum(tensor.numel() for tensor in model.weights.values())


def _run_one(pass_: Pass, before: Model, ctx: Context) -> Model:
    pass_.requires(before)
    start = time.perf_counter()
    after = pass_.run(before, ctx)
    seconds = time.perf_counter() - start
    after.verify()
    pass_.ensures(before, after, ctx)
    receipt = Applied(
        spec=str(pass_),
        seconds=seconds,
        parameters_before=count_parameters(before),
        parameters_after=count_parameters(after),
        notes=after.notes,
    )
    return replace(after, history=(*after.history, receipt), notes={})
