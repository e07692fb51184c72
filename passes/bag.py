"""`bag`: a bag of embeddings in place of the model, which leaves no layer.

The vectors of pieces and of pairs of neighbouring pieces are as wide as the logits, and are
fitted so that their sum gives the dense model's logits:

    z = 1 / sqrt(n) sum_t (u(w_t) + v(h(w_{t-1}, w_t))) + c

Sizes and hash are in `optimizer/model/families/bag.py`, the loss in `bags/fitting.py`. Other
models of static embeddings are fastText (https://arxiv.org/abs/1607.01759) and model2vec
(https://github.com/MinishLab/model2vec).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.families.bag import NAME, bag_sizes, pieces_of
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.passes.bags.features import Features, bag_features
from prumux.passes.bags.fitting import Aims, Fitted, fit
from prumux.passes.bags.teaching import Taught, ask, dense_logits

MOST_NUMBERS = 2**21
"""Tables of pairs hold at most so many numbers: with many classes they have fewer buckets."""
TEMPERATURE = 2.0
"""Of the distillation, see `Task.logit_loss`."""


@dataclass(frozen=True)
class Bag(Pass):
    """Replace the model by a bag of embeddings, fitted to the dense model's logits.

    Example: `bag,cascade{to="pool-early" defer=0.3}`
    """

    name: ClassVar[str] = NAME
    last_shape: ClassVar[bool] = True
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
        """The same sizes, with vectors of zeros."""
        return _Sketch(**vars(self))

    def check_given(self, model: Model) -> None:
        """Refuse tasks that have not one vector of logits a row."""
        task = model.task
        if task.ragged or model.encoder.sentence is not None or not model.encoder.pooled:
            raise PassError(
                "bag gives one answer a row, of a mean over its tokens\n"
                f"this is a {task.name} model: leave 'bag' out",
                exit_code=2,
            )

    def requires(self, model: Model) -> None:
        """Refuse other tasks, and models that other passes have made."""
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
        aims = _aims(rows, taught, model)
        tried = {}
        for paired in self._variants:
            sizes = self._sizes(model, paired)
            features = bag_features(rows, sizes, taught.pieces)
            title = f"fitting {features.matrix.shape[1]} vectors"
            with ctx.progress.task(title, self.steps) as tick:
                found = fit(features.matrix, sizes.labels, aims, self.ridge, self.steps, tick)
            loss = self._select_loss(features, sizes, found, ctx)
            tried[paired] = loss, sizes, features, found
        paired = min(tried, key=lambda x: tried[x][0])
        _, sizes, features, found = tried[paired]
        notes: dict[str, Any] = {
            "taught_rows": len(taught.rows),
            "taught_pieces": len(taught.pieces),
            "labelled_rows": len(aims.labelled),
            "vectors": len(features.used),
            "pairs": paired,
            "select_loss": {"pairs" if k else "pieces": x[0] for k, x in tried.items()},
        }
        return _model(model, sizes, _weights(sizes, features.used, found), notes)

    @property
    def _variants(self) -> tuple[bool, ...]:
        """Whether pairs have vectors, in the order in which it is tried."""
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

    def _select_loss(
        self, features: Features, sizes: Encoder, found: Fitted, ctx: Context
    ) -> float:
        """Loss on the select rows against labels, or without them against the teacher."""
        if len(self._variants) == 1:
            return 0.0
        rows = ctx.select or ctx.fit
        logits = found.logits(features.of(rows, sizes).matrix)
        if rows.labels is not None:
            return float(ctx.dense.task.label_loss(logits, _tensor(rows.labels))[0])

        def make() -> dict[str, Tensor]:
            return {"logits": dense_logits(rows, ctx)}

        aim = ctx.cached("bag-teacher", (ctx.dense, rows), make)["logits"]
        return float(ctx.dense.task.logit_loss(logits, aim, 1.0))


@dataclass(frozen=True)
class _Sketch(Bag):
    """Has the sizes of the bag with pairs, and fits nothing."""

    def run(self, model: Model, ctx: Context) -> Model:
        """Return a bag of zeros."""
        sizes = self._sizes(model, self.pairs != "off")
        shapes = expected_shapes(sizes).items()
        return _model(model, sizes, {name: torch.zeros(shape) for name, shape in shapes}, {})


def _aims(rows: Encoded, taught: Taught, model: Model) -> Aims:
    """The dense model's logits for what it was asked, and labels of the other rows."""
    others = torch.full((len(rows),), rows.labels is not None)
    others[taught.rows] = False
    labels = torch.zeros(0) if rows.labels is None else _tensor(rows.labels)[others]
    alone = len(rows) + torch.arange(len(taught.pieces))
    return Aims(
        task=model.task,
        rows=len(taught.rows) + len(alone) + len(labels),
        taught=torch.cat([taught.rows, alone]),
        logits=torch.cat([taught.logits, taught.piece_logits]),
        labelled=others.nonzero()[:, 0],
        labels=labels,
        temperature=TEMPERATURE,
    )


def _tensor(labels: Any) -> Tensor:
    return torch.as_tensor(np.asarray(labels))


def _weights(sizes: Encoder, used: NDArray[np.int64], found: Fitted) -> dict[str, Tensor]:
    """The bag's weights; vectors that no row uses are 0."""
    pieces = pieces_of(sizes)
    total = pieces + int(sizes.number("buckets"))
    table = torch.zeros(total, sizes.hidden)
    table[torch.from_numpy(used)] = torch.from_numpy(found.vectors)
    weights = {
        "embeddings.piece.weight": table[:pieces].clone(),
        "embeddings.pair.weight": table[pieces:].clone(),
        "head.output.weight": torch.eye(sizes.labels),
        "head.output.bias": torch.from_numpy(found.shift),
    }
    return {name: weights[name] for name in expected_shapes(sizes)}


def _model(
    model: Model, sizes: Encoder, weights: dict[str, Tensor], notes: dict[str, Any]
) -> Model:
    return replace(
        model,
        encoder=sizes,
        weights=weights,
        masks=Masks.full(sizes),
        kept_hidden=None,
        notes=notes,
    )
