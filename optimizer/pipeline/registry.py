"""Find passes and targets by entry point, so that the core need not import them.

Other packages can add passes and targets in the entry-point groups `prumux.passes` and
`prumux.targets`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import TypeVar, cast

from prumux.optimizer.base.errors import MissingError, SpecError, UsageError

from .configurable import ConfigurableStep
from .language import Node, parse_one
from .lexer import did_you_mean, shorten
from .passes import Pass
from .target import Target

_S = TypeVar("_S", bound=ConfigurableStep)
_GROUPS = {"pass": "prumux.passes", "target": "prumux.targets"}
_BASES: dict[str, type[ConfigurableStep]] = {"pass": Pass, "target": Target}


def find_pass(name: str) -> type[Pass]:
    """Import the class of a pass by its name.

    Example: `find_pass("prune")(sparsity=0.6)`.

    Raises:
        SpecError: there is no such pass; the message lists the known ones.
        MissingError: the pass needs a library that is not installed.
    """
    return cast(type[Pass], _find(name, "pass"))


def find_target(name: str) -> type[Target]:
    """Import the class of a target by its name. Raises the same errors as `find_pass`."""
    return cast(type[Target], _find(name, "target"))


def all_passes() -> tuple[type[Pass], ...]:
    """Every installed pass, sorted by name."""
    return tuple(find_pass(name) for name in sorted(_entries("pass")))


def all_targets() -> tuple[type[Target], ...]:
    """Every installed target, sorted by name."""
    return tuple(find_target(name) for name in sorted(_entries("target")))


def pass_from(node: Node) -> Pass:
    """Build the pass of a node. Carets in a SpecError mark the node's place in the text."""
    return _located(node, find_pass).from_node(node)


def parse_target(text: str) -> Target:
    """Build a target from text such as `onnx{precision=int8}`.

    Raises:
        SpecError: the text is wrong, or there is no such target; carets mark the place.
    """
    node = parse_one(text)
    return _located(node, find_target).from_node(node)


def forget() -> None:
    """Clear the caches. This is needed if a package is installed while Python runs."""
    _entries.cache_clear()
    _load.cache_clear()


def _located(node: Node, find: Callable[[str], type[_S]]) -> type[_S]:
    try:
        return find(node.name)
    except SpecError as error:
        raise node.error(str(error)) from None


def _find(name: str, what: str) -> type[ConfigurableStep]:
    known = _entries(what)
    if name not in known:
        other = "target" if what == "pass" else "pass"
        hint = did_you_mean(name, known)
        if name in _entries(other):
            flag = "--target" if other == "target" else "--passes"
            hint = f"; it is a {other}: give it with {flag}"
        lines = textwrap.wrap(", ".join(sorted(known)) or "none", 80, max_lines=2)
        listed = "\n    ".join(lines)
        raise SpecError(f"no {what} is called '{shorten(name)}'{hint}\n  known: {listed}")
    found, base = _load(what, name), _BASES[what]
    if not (isinstance(found, type) and issubclass(found, base)) or found.name != name:
        raise UsageError(
            f"the entry point of {what} '{name}' is {known[name].value}, "
            f"which is no {base.__name__} of that name"
        )
    return found


@cache
def _entries(what: str) -> dict[str, metadata.EntryPoint]:
    found: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=_GROUPS[what]):
        first = found.setdefault(entry.name, entry)
        if first.value != entry.value:
            raise UsageError(
                f"two installed packages provide {what} '{entry.name}': "
                f"{first.value} and {entry.value}; uninstall one"
            )
    return found


@cache
def _load(what: str, name: str) -> object:
    entry = _entries(what)[name]
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        if entry.module == missing or entry.module.startswith(f"{missing}."):
            text = f"is registered but its module {missing} is gone; install its package again"
        else:
            library = missing.partition(".")[0]
            text = f"needs '{library}', which is not installed; run: pip install {library}"
        raise MissingError(f"{what} '{name}' {text}") from error
    except (ImportError, AttributeError) as error:
        raise MissingError(f"{what} '{name}' does not import: {error}") from error
