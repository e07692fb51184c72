"""Numbers and other values of a report as text."""

from __future__ import annotations

from collections.abc import Mapping

TIMES = "\N{MULTIPLICATION SIGN}"


def points(share: float) -> str:
    """A share in points: 0.01 gives `1.00`."""
    return f"{100 * share:.2f}"


def millions(number: float) -> str:
    """A count in millions, or bytes in MB."""
    return f"{number / 1e6:.2f}"


def percent(part: float, whole: float) -> str:
    """A part of a whole in percent; "" if the whole is 0."""
    return f"{part / whole:.0%}" if whole else ""


def duration(seconds: float) -> str:
    """Seconds as text, such as 0.03 s, 12 s or 27 min 22 s."""
    if seconds < 0.001:
        return "<1 ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{n} {unit}" for n, unit in parts if n)


def plain(value: object) -> str:
    """Any value of a report on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {plain(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) or "none"
    return str(value)


def machine_name(facts: Mapping[str, str]) -> str:
    """The name of a machine: its GPU, if it has one, and its processor."""
    parts = (facts.get("gpu", ""), facts.get("cpu", ""))
    return ", ".join(x for x in parts if x) or "an unknown machine"
