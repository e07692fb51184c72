"""`trim-vocabulary`: drop pieces that the training texts never use, with their table rows.

The token table is most of the file of a multilingual encoder: 250 037 rows of 384 numbers are
82 % of multilingual-e5-small. A text without dropped pieces has the same pieces and the same
answer as before. Any other text is split into smaller pieces, and never gets more unknown
pieces. `optimizer/model/vocabulary/kinds.py` shows this for each kind of tokenizer.

Pieces are chosen from training texts only. The new tokenizer tokenises the select and certify
rows again. So the certified loss is the loss on new texts, which may contain dropped pieces.

Abdaoui et al. 2020 (https://arxiv.org/abs/2010.05609) made smaller versions of multilingual
BERT in this way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from prumux.optimizer.base.errors import ModelError, PassError
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.vocabulary.trim import (
    looks_up_by_number,
    needed_ids,
    trimmed_model,
)
from prumux.optimizer.model.vocabulary.trimmed import kept_ids, trimmable
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.own_rows import check_pieces
from prumux.optimizer.pipeline.passes import Pass

from .training.plain_text import texts_of, token_ids


@dataclass(frozen=True)
class TrimVocabulary(Pass):
    """Drop pieces that the training texts never use, with their rows of the token table.

    This pass comes last in a pipeline, because it changes the ids of all tokens.

    Example: `trim-vocabulary{margin=0.1}`
    """

    name: ClassVar[str] = "trim-vocabulary"
    last: ClassVar[str] = "changes the ids of all tokens"
    margin: float = field(
        default=0.1,
        metadata={
            "help": "unused pieces to keep for each used one, lowest ids first, in [0, 100]"
        },
    )
    text: str | None = field(
        default=None,
        metadata={"help": "a file with more texts: parquet, jsonl, csv or tsv, column `text`"},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 100:
            raise ValueError(f"margin must be in [0, 100], not {self.margin}")

    @property
    def input_files(self) -> tuple[Path, ...]:
        """The file of `text`."""
        return () if self.text is None else (Path(self.text),)

    def sketch(self) -> Pass | None:
        """Return None: layers keep their shapes."""
        return None

    def check_given(self, model: Model) -> None:
        """Refuse question answering, and tokenizers from which no piece can be dropped."""
        if model.task.finds_spans:
            raise PassError(
                "contexts are cut into windows of the given pieces\n"
                f"this is a {model.task.name} model: leave '{self.name}' out",
                exit_code=2,
            )
        if looks_up_by_number(model):
            raise PassError(
                "the model looks up vectors by numbers that it makes of ids, and "
                f"'{self.name}' gives other ids\ntrim the model that it was made from, then "
                "make it again of the result",
                exit_code=2,
            )
        if model.tokenizer is None:
            raise PassError("the model has no tokenizer, so no piece may go", exit_code=2)
        try:
            trimmable(model.tokenizer)
        except ModelError as error:
            raise PassError(
                f"no piece of this tokenizer may go: {error}\nleave '{self.name}' out",
                exit_code=2,
            ) from error

    def requires(self, model: Model) -> None:
        """Refuse the same models as `check_given`."""
        self.check_given(model)

    def run(self, model: Model, ctx: Context) -> Model:
        """Return the model with a smaller token table and a smaller tokenizer."""
        tokenizer = model.tokenizer
        assert tokenizer is not None
        rows = ctx.fit if ctx.train is None else ctx.train
        used = set(np.unique(rows.ids.values).tolist())
        if self.text is not None:
            for ids in token_ids(texts_of(self.text), tokenizer):
                used.update(ids)
        pieces = set(tokenizer.get_vocab().values())
        needed = needed_ids(model) & pieces
        kept = kept_ids(tokenizer, used | needed, self.margin)
        if len(kept) == len(pieces):
            return model
        made = trimmed_model(model, kept)
        notes: dict[str, Any] = {
            "pieces_before": len(pieces),
            "pieces": len(kept),
            "used": len(used),
            "table_bytes_before": _table_bytes(model),
            "table_bytes": _table_bytes(made),
        }
        return replace(made, notes=notes)

    def ensures(self, before: Model, after: Model, ctx: Context) -> None:
        """Check fit and select texts.

        A text whose pieces are all kept must not change. No text may get more unknown pieces.
        """
        unknown = None if before.tokenizer is None else before.tokenizer.unk_token_id
        for rows in filter(None, (ctx.fit, ctx.select)):
            check_pieces(rows, after, unknown)


def _table_bytes(model: Model) -> int:
    """Size of the token table in float32."""
    return 4 * model.encoder.vocab * model.encoder.embedding
