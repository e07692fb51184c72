"""Random damage to bytes, texts and JSON trees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

LONG = "long " * 20_000


DEEP = "3000 lists in each other"
"""Placeholder for 3000 nested lists: Python cannot write such a list as JSON."""


def dumps(tree: Any) -> str:
    """Write JSON, with real nested lists in place of `DEEP`."""
    return json.dumps(tree).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)


ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        0.5,
        -0.0,
        1e-300,
        1e308,
        2**31,
        2**63,
        2**70,
        10**400,
    ),
    *(float("nan"), float("inf"), "", " ", "0", "1.5", "x", "None", "true", "\x00", "\ud800"),
    *("../../etc/passwd", "ünïcödé 字", "<script>", "{{7*7}}", "owner/name--file.Class", LONG),
    *([], [None], [[]], [0, 1], ["a", "b"], {}, {"a": 1}, {"": None}, {"0": "a", "1": "a"}),
)


def odd(random: Random, was: Any = None) -> Any:
    """Choose an unexpected value, or a value similar to `was`."""
    if isinstance(was, bool) or was is None or random.random() < 0.6:
        return DEEP if random.random() < 0.02 else random.choice(ODD)
    if isinstance(was, int):
        return random.choice(
            [was + 1, was - 1, -was, 2 * was, was * 1000, float(was), str(was)]
        )
    if isinstance(was, float):
        return random.choice([-was, was * 1e30, int(was), str(was)])
    if isinstance(was, str):
        return random.choice([was + "x", was[:-1], was.upper(), f" {was} ", [was]])
    return random.choice([str(was), [was], {"x": was}])


def shown(value: Any) -> str:
    """Show a value in one short line of ASCII."""
    text = ascii(value) if not isinstance(value, list) or len(value) < 9 else "a long list"
    return text if len(text) < 60 else f"{text[:50]}... ({len(text)} characters)"


def damage(random: Random, data: bytes) -> tuple[bytes, str]:
    """Damage bytes in one way; also return a description."""
    size, kind = len(data), random.choice(DAMAGES)
    at = random.randrange(size + 1)
    if random.random() < 0.5:  # damage to headers has more effect than damage to contents
        at = min(at, random.randrange(64))
    width = random.choice([1, 1, 2, 8, 100, max(1, size // 2)])
    noise = random.randbytes(width)
    made = {
        "cut": data[:at],
        "empty": b"",
        "bits": bytes(x ^ (1 << random.randrange(8)) for x in data[at : at + width]),
        "noise": noise[: size - at],
        "insert": noise,
        "delete": b"",
        "zeros": bytes(len(data[at : at + width])),
        "ones": b"\xff" * len(data[at : at + width]),
        "double": data,
        "swap": data[at + width : at + 2 * width] + data[at : at + width],
    }[kind]
    if kind in ("cut", "empty"):
        return made, f"{kind} at {at} of {size}"
    if kind == "double":
        return data + made, "twice the file"
    end = at if kind == "insert" else at + (2 * width if kind == "swap" else width)
    return data[:at] + made + data[end:], f"{kind}, {width} bytes at {at} of {size}"


DAMAGES = (
    "cut",
    "empty",
    "bits",
    "bits",
    "noise",
    "insert",
    "delete",
    "zeros",
    "ones",
    "double",
    "swap",
)


def damage_file(random: Random, path: Path) -> str:
    """Damage the bytes of a file."""
    data, said = damage(random, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {said}"


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all nodes below the root of a JSON tree, up to 300 per parent."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items)[:300]:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """Return the node at a path."""
    for key in path:
        tree = tree[key]
    return tree


def change_tree(random: Random, tree: Any, extra: tuple[str, ...] = ()) -> tuple[Any, str]:
    """Change one node of a JSON tree: its value or key, or drop it, copy one or add a key.

    Half of the choices are among the children of the root.
    """
    paths = list(places(tree))
    top = [x for x in paths if len(x) == 1]
    if not paths or random.random() < 0.02:
        value = odd(random)
        return value, f"all is {shown(value)}"
    path = random.choice(top if random.random() < 0.5 else paths)
    parent, key, name = at(tree, path[:-1]), path[-1], ".".join(map(str, path))
    kind = random.choice(("value", "value", "value", "drop", "rename", "new", "copy"))
    if kind == "drop":
        del parent[key]
        return tree, f"no {name}"
    if kind == "copy":
        parent[key] = json.loads(json.dumps(at(tree, random.choice(paths))))
        return tree, f"{name} is a copy of another value: {shown(parent[key])}"
    if isinstance(parent, dict) and kind == "rename":
        new = random.choice(
            [f"{key} ", str(key).upper(), f"_{key}", "", str(odd(random))[:99]]
        )
        parent[new] = parent.pop(key)
        return tree, f"{name} is called {shown(new)}"
    if isinstance(parent, dict) and kind == "new" and extra:
        key = random.choice(extra)
        name = ".".join(map(str, (*path[:-1], key)))
    parent[key] = odd(random, parent.get(key) if isinstance(parent, dict) else parent[key])
    return tree, f"{name} = {shown(parent[key])}"


def change_json(random: Random, path: Path, extra: tuple[str, ...] = ()) -> str:
    """Change one node of a JSON file, or its text."""
    text = path.read_text(encoding="utf-8")
    if random.random() < 0.15:
        return damage_file(random, path)
    if random.random() < 0.1:
        return change_encoding(random, path)
    tree, said = change_tree(random, json.loads(text), extra)
    path.write_text(dumps(tree), encoding="utf-8", errors="surrogatepass")
    return f"{path.name}: {said}"


def change_encoding(random: Random, path: Path) -> str:
    """Write a text in another encoding, or with other line ends or an invalid character."""
    text = path.read_text(encoding="utf-8")
    kind = random.choice(
        ("utf-16", "utf-32", "utf-8-sig", "latin-1", "nul", "cr", "lines", "surrogate")
    )
    where = random.randrange(len(text) + 1)
    if kind == "nul":
        data = (text[:where] + "\x00" + text[where:]).encode()
    elif kind == "cr":
        data = text.replace("\n", "\r").encode()
    elif kind == "lines":
        data = (text[:where] + "\u2028\x0b\x85" + text[where:]).encode()
    elif kind == "surrogate":
        data = text[:where].encode() + b"\xed\xa0\x80" + text[where:].encode()
    elif kind == "latin-1":
        data = text[:where].encode() + "é".encode("latin-1") + text[where:].encode()
    else:
        data = text.encode(kind)
    path.write_bytes(data)
    return f"{path.name}: {kind}"
