"""The head of a model: the head of a sentence embedding, or else the family's own head.

A sentence embedding pools the states of a row, then maps and normalises the result. With one
pool, the first linear map reads hidden dimensions, which can be pruned. Several pools are
concatenated, and their hidden dimensions are not pruned.
"""

from __future__ import annotations

from prumux.optimizer.model.axes import HIDDEN, Weight, fixed, linear
from prumux.optimizer.model.ops import Ops, Value
from prumux.optimizer.model.sizes import Encoder, HeadStep, SentenceHead

from .registry import family_of


def head_weights(e: Encoder) -> tuple[Weight, ...]:
    """The weights of a model's head."""
    if e.sentence is None:
        return family_of(e).head_weights(e)
    pools, found = len(e.sentence.pools), list[Weight]()
    into = HIDDEN if pools == 1 else fixed(pools * e.hidden)
    for i, step in enumerate(e.sentence.steps):
        if step.kind == "dense":
            found += linear(dense_name(i), fixed(step.out), into, bias=step.bias)
            into = fixed(step.out)
    return tuple(found)


def dense_name(step: int) -> str:
    """The prefix of the weights of the linear map at this step of the head."""
    return f"head.{step}.dense"


def head(ops: Ops, x: Value) -> Value:
    """Logits, or vectors of embedding models, from pooled states: [..., D] -> [..., C]."""
    sentence = ops.encoder.sentence
    if sentence is None:
        return family_of(ops.encoder).head(ops, x)
    for i, step in enumerate(sentence.steps):
        if step.kind == "normalize":
            x = ops.normalize(x)
            continue
        x = ops.linear(dense_name(i), x)
        if step.activation != "identity":
            x = ops.activation(step.activation, x)
    return x


def hidden_is_output(e: Encoder) -> bool:
    """True if hidden dimensions cannot be pruned because of the output.

    This is the case if the head has no linear map, or if pools are concatenated.
    """
    if e.sentence is None:
        return False
    mapped = any(x.kind == "dense" for x in e.sentence.steps)
    return not mapped or len(e.sentence.pools) > 1


def width(sentence: SentenceHead, hidden: int) -> int:
    """Number of entries of the head's output vector."""
    maps = [x.out for x in sentence.steps if x.kind == "dense"]
    return maps[-1] if maps else len(sentence.pools) * hidden


def shortened(sentence: SentenceHead, dimensions: int) -> SentenceHead:
    """The head that returns the first `dimensions` entries of the vector, normalised again.

    Kusupati et al. 2022, https://arxiv.org/abs/2205.13147. The entries are selected by a
    linear map, which sentence-transformers can read as `Dense`.
    """
    steps = list(sentence.steps)
    if steps and steps[-1].kind == "normalize":
        steps.pop()
    cut = HeadStep("dense", out=dimensions, bias=False)
    return SentenceHead(sentence.pools, (*steps, cut, HeadStep("normalize")))
