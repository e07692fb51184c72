"""Optimised models as Hugging Face models, for Auto classes, pipelines and trainers.

The import of this module registers the models with the Auto classes. After `import prumux`,
this import happens when it is needed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from prumux.optimizer.base.errors import ModelError, UsageError
from prumux.optimizer.tasks.losses import hugging_face_loss, position_loss
from prumux.optimizer.tasks.registry import kind_of

from .artifact import STAGES, from_config, second_of
from .cascade import answer
from .forward import taken_apart
from .module import EncoderForward, attach
from .prumux_config import PrumuxConfig
from .row_groups import filled
from .sizes import Encoder
from .torch_ops import Factors, TorchOps
from .weights import expected_shapes

__all__ = [
    "PrumuxConfig",
    "PrumuxEmbeddingModel",
    "PrumuxForQuestionAnswering",
    "PrumuxForSequenceClassification",
    "PrumuxForTokenClassification",
    "PrumuxModel",
]

INITIAL_STD = 0.02


class _AnyTypeOps(TorchOps):
    """`TorchOps` that also runs in half precision."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """See `TorchOps.attend`."""
        if bias.dtype != q.dtype:
            # The lowest float32 would become -inf, and a row without real tokens would become
            # nan.
            bias = bias.clamp(min=torch.finfo(q.dtype).min).to(q.dtype)
        return super().attend(q, k, v, bias)


class _Stage(EncoderForward, nn.Module):
    """The second stage of a cascade."""

    reading = _AnyTypeOps

    def __init__(self, sizes: Encoder) -> None:
        super().__init__()
        self.sizes, self.alive = sizes, sizes.branches()
        self.factors = Factors((), (), None)
        shapes = expected_shapes(sizes)
        attach(self, {name: torch.empty(shape) for name, shape in shapes.items()})


class PrumuxModel(EncoderForward, PreTrainedModel):  # type: ignore[no-untyped-call]
    """Base class of the models below. Parameters have the names that the artifact uses."""

    config_class = PrumuxConfig
    main_input_name = "input_ids"
    reading = _AnyTypeOps
    class_ending: ClassVar[str]
    """`Task.head` of the tasks that the class supports."""

    def __init__(self, config: PrumuxConfig) -> None:
        """Create uninitialised weights with the sizes of the config.

        Raises:
            ModelError: the config has no sizes, or the sizes of another task.
        """
        PreTrainedModel.__init__(self, config)
        self.sizes = _sizes(config, self.class_ending)
        shapes = expected_shapes(self.sizes)
        attach(self, {name: torch.empty(shape) for name, shape in shapes.items()})
        self.second: _Stage | None = None
        if config.second is not None:
            sizes, self.rule = second_of(config.to_dict()["second"])
            self.second = _Stage(sizes)
        self.requires_grad_(True)
        self.alive = self.sizes.branches()
        self.factors = Factors((), (), None)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """See `PreTrainedModel.from_pretrained`. Missing weights are an error here.

        Raises:
            ModelError: weights are missing, or there are unexpected ones.
        """
        wanted = kwargs.pop("output_loading_info", False)
        load: Any = super().from_pretrained  # its type annotation lacks loading info
        model, info = load(*args, output_loading_info=True, **kwargs)
        missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or extra:
            raise ModelError(
                "the weights do not fit config.json\n"
                f"missing: {_two(missing)}; left over: {_two(extra)}\n"
                "the folder is damaged or mixed up: write it again with prumux-opt"
            )
        return (model, info) if wanted else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """See `PreTrainedModel.save_pretrained`. A folder with an engine is refused.

        The engine would keep its old weights.

        Raises:
            UsageError: the folder contains an engine.
        """
        folder = Path(save_directory)
        files = ("model.onnx", "model.plan", "model.rtx.plan")
        places = ("", *(f"{x}/" for x in STAGES))
        engines = [
            y for x in places for y in (f"{x}{z}" for z in files) if (folder / y).exists()
        ]
        if engines:
            raise UsageError(
                f"'{folder}' holds {engines[0]}, which would keep the old weights\n"
                "save into another folder: model.save_pretrained('new-folder')"
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> Tensor:
        """Logits [B, C] or [B, T, C]. Without a mask, every token is real.

        A multiplexed model mixes n neighbouring rows. A short last group is filled with its
        own rows, and the answers of a repeated row are averaged.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, n = len(input_ids), self.sizes.slots
        if n == 1:
            return self._answers(input_ids, mask, token_type_ids)
        index = torch.as_tensor(filled(rows, n), device=input_ids.device)
        types = None if token_type_ids is None else token_type_ids[index]
        found = self._answers(input_ids[index], mask[index], types)
        copies = torch.bincount(index, minlength=rows).to(found)
        total = found.new_zeros(rows, *found.shape[1:]).index_add(0, index, found)
        return total / copies.view(-1, *(1 for _ in found.shape[1:]))

    def _answers(self, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
        """Logits of whole groups of rows. A second stage answers the deferred rows."""
        first = partial(EncoderForward.forward, self)
        if self.second is None:
            return first(ids, mask, types)
        threshold, most = self.rule["threshold"], self.rule["max_share"]
        return answer(first, self.second, threshold, most, ids, mask, types)

    def keyed(self, output: Any, return_dict: bool | None) -> Any:
        """The output as an object, or as a tuple if `return_dict` is False."""
        asked = self.config.return_dict if return_dict is None else return_dict
        return output if asked else output.to_tuple()

    def _init_weights(self, module: nn.Module) -> None:
        # Hugging Face calls this hook, and makes these functions skip loaded weights.
        for name, weight in module.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(weight)
            elif weight.dim() == 1:
                nn.init.ones_(weight)
            else:
                nn.init.normal_(weight, std=INITIAL_STD)


class PrumuxForSequenceClassification(PrumuxModel):  # type: ignore[no-untyped-call]
    """An optimised model for text classification, regression or ranking."""

    class_ending = "ForSequenceClassification"

    def forward(  # type: ignore[override]  # Hugging Face's signature, not the mixin's
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """A `SequenceClassifierOutput`, or a tuple.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 1 = real token; all real if left out.
            token_type_ids: int64 [B, T]; ignored if the model has no token types.
            labels: int64 [B]; float [B] for regression; float [B, C] for several labels per
                row.
            return_dict: False = a tuple `([loss,] logits)`.
        """
        logits = self.logits(input_ids, attention_mask, token_type_ids)
        loss, problem = None, self.config.problem_type
        if labels is not None:
            loss = hugging_face_loss(logits, labels, problem)
        return self.keyed(SequenceClassifierOutput(loss=loss, logits=logits), return_dict)


class PrumuxForTokenClassification(PrumuxModel):  # type: ignore[no-untyped-call]
    """An optimised model for token classification."""

    class_ending = "ForTokenClassification"

    def forward(  # type: ignore[override]  # Hugging Face's signature, not the mixin's
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """A `TokenClassifierOutput`, or a tuple.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 1 = real token; all real if left out.
            token_type_ids: int64 [B, T]; ignored if the model has no token types.
            labels: int64 [B, T]; -100 = not scored.
            return_dict: False = a tuple `([loss,] logits)`.
        """
        logits = self.logits(input_ids, attention_mask, token_type_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return self.keyed(TokenClassifierOutput(loss=loss, logits=logits), return_dict)


class PrumuxForQuestionAnswering(PrumuxModel):  # type: ignore[no-untyped-call]
    """An optimised model that finds the answer to a question in a context."""

    class_ending = "ForQuestionAnswering"

    def forward(  # type: ignore[override]  # noqa: PLR0917 - Hugging Face's signature
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """A `QuestionAnsweringModelOutput`, or a tuple.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 1 = real token; all real if left out.
            token_type_ids: int64 [B, T]; ignored if the model has no token types.
            start_positions: index of the answer's first token, int64 [B]; T or more = not
                scored.
            end_positions: index of the answer's last token, in the same form.
            return_dict: False = a tuple `([loss,] start_logits, end_logits)`.
        """
        logits = self.logits(input_ids, attention_mask, token_type_ids)
        start, end = (x.contiguous() for x in logits.unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            pairs = ((start, start_positions), (end, end_positions))
            loss = torch.stack([position_loss(x, aim) for x, aim in pairs]).mean()
        found = QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)
        return self.keyed(found, return_dict)


class PrumuxEmbeddingModel(PrumuxModel):  # type: ignore[no-untyped-call]
    """The encoder of an optimised embedding model. sentence-transformers pools its states."""

    class_ending = "EmbeddingModel"

    def forward(  # Hugging Face's signature, not the mixin's
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> Any:
        """A `BaseModelOutput` with the states [B, T, D], or a tuple.

        With `pool-early`, only the first position is computed: [B, 1, D].

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 1 = real token; all real if left out.
            token_type_ids: int64 [B, T]; ignored if the model has no token types.
            return_dict: False = a tuple `(last_hidden_state,)`.
            ignored: arguments for other encoders, such as `output_hidden_states`.
        """
        del ignored
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ops = self.ops(input_ids, mask, token_type_ids)
        x = ops.embed()
        for _, x in self.states(ops, x):  # noqa: B007, B020 - the last one is used
            pass
        found = BaseModelOutput(last_hidden_state=taken_apart(ops, x))
        return self.keyed(found, return_dict)


def _sizes(config: PrumuxConfig, head: str) -> Encoder:
    if config.encoder is None:
        raise ModelError(
            "this PrumuxConfig has no sizes; load one: AutoConfig.from_pretrained('folder')"
        )
    described = config.to_dict() | {
        "architectures": config.architectures or [f"Prumux{head}"],
        "id2label": {str(i): name for i, name in (config.id2label or {}).items()},
    }
    encoder, task = from_config(described)
    if task.head != head:
        raise ModelError(
            f"this is a {task.kind} model, not a {kind_of(head)} one: use {task.auto_class()}"
        )
    return encoder


def _two(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if names[2:] else "")


AutoModel.register(PrumuxConfig, PrumuxEmbeddingModel, exist_ok=True)
AutoModelForQuestionAnswering.register(PrumuxConfig, PrumuxForQuestionAnswering, exist_ok=True)
AutoModelForSequenceClassification.register(
    PrumuxConfig, PrumuxForSequenceClassification, exist_ok=True
)
AutoModelForTokenClassification.register(
    PrumuxConfig, PrumuxForTokenClassification, exist_ok=True
)
