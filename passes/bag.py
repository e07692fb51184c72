"""`bag`: replace the whole model, all its layers, by a bag of embeddings.

Every piece w has a vector u(w). A hash h puts every pair of neighbouring pieces into a bucket,
and every bucket b has a vector v(b). Vectors are as wide as the logits. They are fitted so
that the logits z of n real tokens are close to the given model's logits:

    z = 1 / sqrt(n) sum_t (u(w_t) + v(h(w_{t-1}, w_t))) + c

Sizes and hash are in `optimizer/model/families/bag.py`, the loss in `bags/fitting.py`. Other
models of static embeddings are fastText (https://arxiv.org/abs/1607.01759) and model2vec
(https://github.com/MinishLab/model2vec).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.families.bag import NAME, bag_sizes
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.passes.bags.features import bag_features
from prumux.passes.bags.fitted_bag import FittedBag, aims_of, empty_bag
from prumux.passes.bags.fitting import Aims, fit
from prumux.passes.bags.teaching import Taught, ask

MOST_NUMBERS = 2**21
"""Largest number of entries of the table of pairs. So many classes mean fewer buckets."""


@dataclass(frozen=True)
class Bag(Pass):
    """Replace the model by a bag of embeddings, fitted to the dense model's logits.

    Example: `bag,cascade{to="pool-early" defer=0.3}`
    """

    name: ClassVar[str] = NAME
    last: ClassVar[str] = "leaves nothing that it could change"
    before_second: ClassVar[bool] = True
    pairs: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata={
            "help": "vectors for pairs of neighbouring pieces; auto = if they lower the loss "
            "on the select rows"
        },
    )
    buckets: int = field(
        default=2**17, metadata={"help": "vectors of pairs, at most; a hash chooses one"}
    )
    rows: int | None = field(
        default=None,
        metadata={
            "help": "rows that the dense model answers, by default about half a minute of "
            "one core; labels stand for the others"
        },
    )
    ridge: float = field(default=0.5, metadata={"help": "weight of the squared vectors"})
    steps: int = field(default=150, metadata={"help": "most steps of L-BFGS"})

    def __post_init__(self) -> None:
        for name, most in (("buckets", 2**22), ("rows", 2**31), ("steps", 10_000)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name} must be 1..{most}, not {value}")
        if self.ridge <= 0:
            raise ValueError(f"ridge must be above 0, not {self.ridge}")

    def sketch(self) -> Pass:
        """Return a pass that makes a bag of the same sizes, with vectors of zeros."""
        return _Sketch(**vars(self))

    def check_given(self, model: Model) -> None:
        """Refuse tasks without exactly one vector of logits per row."""
        task = model.task
        if task.ragged or model.encoder.sentence is not None or not model.encoder.pooled:
            raise PassError(
                "bag gives one answer a row, of a mean over its tokens\n"
                f"this is a {task.name} model: leave 'bag' out",
                exit_code=2,
            )

    def requires(self, model: Model) -> None:
        """Refuse tasks without one vector of logits per row, multiplexed and masked models."""
        self.check_given(model)
        if model.encoder.mux is not None or not model.masks.all_true:
            why = "mixes rows" if model.encoder.mux is not None else "has masks"
            raise PassError(
                f"bag replaces the whole model, and the one before it {why}\n"
                "let the pipeline begin with it: bag",
                exit_code=2,
            )

    def run(self, model: Model, ctx: Context) -> Model:
        """Return the bag of embeddings."""
        self._check_rows(ctx)
        rows = ctx.fit if ctx.train is None else ctx.train
        taught = ask(rows, self.rows, ctx)
        aims = aims_of(rows, taught, model)
        tried = {x: self._fitted(x, rows, taught, aims, ctx) for x in self._variants}
        losses = {x: bag.select_loss(ctx) for x, bag in tried.items()}
        paired = min(losses, key=lambda x: losses[x])
        notes: dict[str, Any] = {
            "taught_rows": len(taught.rows),
            "taught_pieces": len(taught.pieces),
            "labelled_rows": len(aims.labelled),
            "vectors": len(tried[paired].features.used),
            "pairs": paired,
            "select_loss": {"pairs" if x else "pieces": loss for x, loss in losses.items()},
        }
        return tried[paired].model(model, notes)

    def _fitted(
        self, paired: bool, rows: Encoded, taught: Taught, aims: Aims, ctx: Context
    ) -> FittedBag:
        sizes = self._sizes(ctx.dense, paired)
        features = bag_features(rows, sizes, taught.pieces)
        with ctx.progress.task(f"fitting {len(features.used)} vectors", self.steps) as tick:
            found = fit(features.matrix, sizes.labels, aims, self.ridge, self.steps, tick)
        return FittedBag(sizes, features, found)

    @property
    def _variants(self) -> tuple[bool, ...]:
        """The variants to fit, in order: True = with vectors of pairs, False = without."""
        return {"auto": (False, True), "on": (True,), "off": (False,)}[self.pairs]

    def _sizes(self, model: Model, paired: bool) -> Encoder:
        labels = model.encoder.labels
        buckets = min(self.buckets, max(1, MOST_NUMBERS // labels)) if paired else 0
        return bag_sizes(model.encoder, labels, buckets)

    def _check_rows(self, ctx: Context) -> None:
        if ctx.fit.groups is not None or ctx.fit.layout is not None:
            raise PassError(
                "bag knows no queries: it compares no two texts\nleave 'bag' out",
                exit_code=2,
            )


@dataclass(frozen=True)
class _Sketch(Bag):
    """Make an unfitted bag of the same sizes, with vectors of pairs unless `pairs` is off."""

    def run(self, model: Model, ctx: Context) -> Model:
        """Return a bag of zeros."""
        return empty_bag(model, self._sizes(model, self.pairs != "off"))
