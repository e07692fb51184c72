"""Finds the families: modules of this folder with a `FAMILY`, and entry points.

Other packages add a family by an entry point in the group `prumux.families`. The entry point's
name is the `model_type`, its value is the `Family` object. An entry point is imported only for
models of its `model_type`, so a broken package affects only its own models.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module, metadata

from prumux.optimizer.base.errors import MissingError, ModelError, UsageError
from prumux.optimizer.model.sizes import Encoder

from .bag import BAG
from .family import Family

GROUP = "prumux.families"


@cache
def families() -> dict[str, Family]:
    """The families of this folder, by `model_type`."""
    package = __name__.rpartition(".")[0]
    names = sorted(x.name for x in pkgutil.iter_modules(import_module(package).__path__))
    modules = [import_module(f"{package}.{name}") for name in names]
    found = [x.FAMILY for x in modules if hasattr(x, "FAMILY")]
    return {model_type: x for x in found for model_type in x.model_types}


def model_types() -> tuple[str, ...]:
    """Every supported `model_type`. No other package is imported."""
    added = sorted(metadata.entry_points(group=GROUP).names - families().keys())
    return (*families(), *added)


@cache
def find_family(model_type: str) -> Family:
    """The family of a `model_type`.

    Raises:
        ModelError: no family has this `model_type`. The message lists the supported ones.
        MissingError: the import of the entry point's module fails.
        UsageError: the entry point is not a family, or two packages provide it.
    """
    shipped = families().get(model_type)
    entries = metadata.entry_points(group=GROUP).select(name=model_type)
    added = {x.value: x for x in entries}
    providers = [*(["prumux"] if shipped else []), *sorted(added)]
    if len(providers) > 1:
        raise UsageError(
            f"model_type '{model_type}' is provided by {' and by '.join(providers)}; "
            "uninstall all packages but one"
        )
    if shipped:
        return shipped
    if not added:
        raise ModelError(
            f"model_type '{model_type:.40}' is not supported\n"
            f"supported: {', '.join(model_types())} (and prumux's own artifact folders)"
        )
    return _loaded(added[providers[0]])


def family_of(encoder: Encoder) -> Family:
    """The family of an encoder."""
    return find_family(encoder.family) if encoder.family not in BAG.model_types else BAG


def is_known(family: str) -> bool:
    """True if this family exists. Families that only passes make are included."""
    shipped = family in families() or family in BAG.model_types
    return shipped or family in model_types()


def _loaded(entry: metadata.EntryPoint) -> Family:
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise MissingError(
            f"the family '{entry.name}' ({entry.value}) does not import: {error}"
        ) from error
    if not isinstance(found, Family) or entry.name not in found.model_types:
        raise UsageError(
            f"the entry point of family '{entry.name}' is {entry.value}, "
            "which is no Family with that model_type"
        )
    return found
