"""Finds the families: every module of this folder that has a `FAMILY`."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.sizes import Encoder

from .family import Family


@cache
def families() -> dict[str, Family]:
    """Every family by the `model_type`s of its configs."""
    package = __name__.rpartition(".")[0]
    names = sorted(x.name for x in pkgutil.iter_modules(import_module(package).__path__))
    modules = [import_module(f"{package}.{name}") for name in names]
    found = [x.FAMILY for x in modules if hasattr(x, "FAMILY")]
    return {model_type: x for x in found for model_type in x.model_types}


def find_family(model_type: str) -> Family:
    """The family of a `model_type`.

    Raises:
        ModelError: there is none; lists those that there are.
    """
    found = families().get(model_type)
    if found is None:
        raise ModelError(
            f"model_type '{model_type:.40}' is not supported\n"
            f"supported: {', '.join(families())} (and prumux's own artifact folders)"
        )
    return found


def family_of(encoder: Encoder) -> Family:
    """The family that an encoder belongs to."""
    return find_family(encoder.family)
