"""The meaning of label values, from `--labels`, the data's class names or the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.tasks.labels import ClassId, Fail, class_of, first_names, integer


@dataclass(frozen=True)
class LabelMap:
    """The option `--labels READ=MEANT`.

    READ is a value in the data, or the class that this value would have without the option.
    MEANT is one of the model's classes.
    """

    pairs: Mapping[str, str]
    names: tuple[str, ...]
    """The model's classes."""

    @property
    def ids(self) -> dict[str, int]:
        """The class id of each value, by the value's folded text.

        Raises:
            UsageError: the model does not have the class.
        """
        found = {}
        for read, meant in self.pairs.items():
            target = class_of(meant, self.names)
            if target is None:
                raise UsageError(
                    f"--labels {read}={meant}: the model has no class '{meant}'\n"
                    f"its classes are: {first_names(self.names)}"
                )
            found[folded(read)] = target
        return found


class Resolved(NamedTuple):
    """A label column after `--labels` and the data's class names were applied."""

    values: Sequence[Any]
    used: frozenset[str]
    """Folded keys of `--labels` that occur in the column."""
    notes: tuple[str, ...]


def folded(value: Any) -> str:
    """The same text for all spellings of a value: 0, 0.0 and '0' all give '0'."""
    number = integer(value)
    return str(value).strip().casefold() if number is None else str(number)


def resolved(
    values: Sequence[Any], classes: Sequence[str], chosen: LabelMap, fail: Fail
) -> Resolved:
    """Give integer labels the data's class names, then apply `--labels`.

    Args:
        values: the column, or all tags of all rows.
        classes: the data's own class names by integer label; empty = the data has none.
        chosen: `--labels`, with the model's classes.
        fail: raises the error for a value without a meaning.
    """
    values = _numbers(values, classes)
    named, notes = _by_name(values, classes, chosen)
    if not chosen.pairs:
        return Resolved(named, frozenset(), notes)
    ids, used = chosen.ids, set()
    out: list[Any] = []
    for i, (raw, value) in enumerate(zip(values, named, strict=True)):
        if raw is None or (integer(raw) in (-1, -100) and folded(raw) not in ids):
            out.append(raw)
            continue
        target = class_of(value, chosen.names)
        keys = [folded(raw), folded(_class_name(raw, classes))]
        keys += [] if target is None else [folded(chosen.names[target])]
        key = next((k for k in keys if k in ids), None)
        if key is None and target is None:
            shown = ", ".join(chosen.names[:8])
            fail(
                i, f"label {raw!r:.60} is neither in --labels nor one of the model's: {shown}"
            )
        used |= set() if key is None else {key}
        unmapped = target if integer(value) is None else value
        out.append(unmapped if key is None else ClassId(ids[key]))
    told = ", ".join(f"'{k}' = '{chosen.names[v]}'" for k, v in ids.items())
    return Resolved(out, frozenset(used), (*notes, f"labels as --labels says: {told}"))


def resolved_tags(
    values: Sequence[Any],
    classes: Sequence[str],
    chosen: LabelMap,
    fail: Fail,
) -> Resolved:
    """Do the same as `resolved` for a list of tags in each row."""
    if not all(isinstance(x, list) for x in values):
        return Resolved(values, frozenset(), ())  # `Task.read_labels` refuses the row
    row_of = [i for i, tags in enumerate(values) for _ in tags]

    def fail_at(at: int | None, text: str) -> NoReturn:
        fail(None if at is None else row_of[at], text)

    found = resolved([x for tags in values for x in tags], classes, chosen, fail_at)
    rest = iter(found.values)
    return found._replace(values=[[next(rest) for _ in tags] for tags in values])


def _numbers(values: Sequence[Any], classes: Sequence[str]) -> Sequence[Any]:
    """Turn texts such as '1' into numbers, if the data names its classes.

    The reason is csv, which stores all values as text. If a class name is itself a number,
    all texts stay texts.
    """
    if not classes or any(integer(x) is not None for x in classes):
        return values
    numbers = [integer(x) if isinstance(x, str) else None for x in values]
    return [x if n is None else n for x, n in zip(values, numbers, strict=True)]


def _by_name(
    values: Sequence[Any], classes: Sequence[str], chosen: LabelMap
) -> tuple[Sequence[Any], tuple[str, ...]]:
    """Replace integer labels by the model's class ids, if it has all of the data's classes."""
    if not classes or any(isinstance(x, str) for x in values):
        return values, ()
    model = [x.casefold() for x in chosen.names]
    data = [x.casefold() for x in classes]
    if not set(data) <= set(model):
        if chosen.pairs:
            return values, ()
        return values, (
            f"labels by number: the data's {_numbered(classes)} are taken for the model's "
            f"{_numbered(chosen.names)}; if that is wrong: --labels {classes[0]}=NAME ...",
        )
    settled = [_class_id(x, classes, chosen.names) for x in values]
    if data == model[: len(data)]:
        return settled, ()
    note = (
        f"labels by name: the data has {_numbered(classes)}, "
        f"the model {_numbered(chosen.names)}"
    )
    return settled, (note,)


def _class_id(value: Any, classes: Sequence[str], names: Sequence[str]) -> Any:
    """The model's id for a class of the data. Other values are returned unchanged."""
    name = _class_name(value, classes)
    target = None if name is value else class_of(name, names)
    return name if target is None else ClassId(target)


def _class_name(value: Any, classes: Sequence[str]) -> Any:
    known = (
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes)
    )
    return classes[value] if known else value


def _numbered(names: Sequence[str]) -> str:
    shown = ", ".join(f"{i} = {x}" for i, x in enumerate(names[:4]))
    return shown + (", ..." if names[4:] else "")


def unused(chosen: Mapping[str, str], used: Sequence[frozenset[str]]) -> list[str]:
    """Keys of `--labels` that occur in no split."""
    seen = frozenset[str]().union(*used)
    return [k for k in map(str, chosen) if folded(k) not in seen]
