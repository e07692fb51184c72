"""The costs file: cost tables of the serving machine, for use on another machine.

`prumux-bench --measure-costs` writes the file, and `prumux-opt --costs` reads it. The reader
refuses implausible values, because the search would choose a wrong model by wrong estimates of
speed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.store import write_atomic
from prumux.optimizer.model.families.registry import find_family
from prumux.optimizer.model.sizes import Encoder, Layer
from prumux.optimizer.pipeline.costs import Block, Costs, CostTable, Curve, TargetCosts

from .cost_table import LIMIT

VERSION = 1
KIND = "prumux-costs"
MOST_BYTES = 16 << 20
MOST_MS = 1e9
"""The largest time that the reader accepts. NaN and infinity fail the comparison."""
BLOCKS = ("wide", "narrow")
CURVES = ("attention", "ffn")


def write_costs(
    path: Path,
    encoder: Encoder,
    *,
    serving: tuple[int, int],
    targets: Mapping[str, TargetCosts],
    machine: Mapping[str, str],
    about: Mapping[str, Any],
) -> None:
    """Write a costs file.

    Args:
        path: the file; an existing one is replaced.
        encoder: sizes of the given model.
        serving: number of rows in a batch, and of tokens in a row.
        targets: costs of each target, by `Target.timed_as`.
        machine: facts of the measured machine.
        about: command, commit, date and versions.
    """
    found = {
        "kind": KIND,
        "schema_version": VERSION,
        "machine": dict(machine),
        "serving": {"batch": serving[0], "length": serving[1]},
        "model": {**asdict(encoder), "mux": None},
        "targets": {name: _target_json(x) for name, x in targets.items()},
        **about,
    }
    text = json.dumps(found, indent=1, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())


def _target_json(costs: TargetCosts) -> dict[str, Any]:
    mixed = {str(n): asdict(x) for n, x in costs.mixed.items()}
    return {"engine": dict(costs.engine), "single": asdict(costs.single), "mixed": mixed}


def read_costs(path: Path) -> Costs:
    """Read a costs file.

    Raises:
        UsageError: the file is missing, damaged or of another version, or has a value that no
            measurement gives. The message names file and key.
    """
    data = _bytes(path)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        first = str(error).split("\n")[0][:100]
        raise _fault(path, "", f"is not JSON, or cut short: {first}") from error
    return _Reader(path).costs(values, hashlib.sha256(data).hexdigest())


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _fault(
                path, "", f"has over {MOST_BYTES >> 20} MiB, a costs file has few KiB"
            )
        return path.read_bytes()
    except OSError as error:
        why = (error.strerror or "no file").lower()
        raise _fault(path, "", f"cannot be read: {why}") from error
    except ValueError as error:  # the name is not valid for a file
        raise _fault(path, "", f"cannot be read: {error}") from error


def _fault(path: Path, key: str, text: str) -> UsageError:
    where = f"'{path}'" + (f": {key}" if key else "")
    return UsageError(
        f"{where} {text}\n"
        "measure costs on the serving machine: prumux-bench --measure-costs "
        f"{path.name or 'costs.json'} MODEL"
    )


class _Reader:
    """Checks the values of a costs file, key by key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fault(self, key: str, text: str) -> UsageError:
        return _fault(self.path, key, text)

    def costs(self, values: Any, digest: str) -> Costs:
        top = self.mapping(values, "")
        if top.get("kind") != KIND:
            raise self.fault("kind", f"is {_shown(top.get('kind'))}, it must be '{KIND}'")
        version = top.get("schema_version")
        if version != VERSION or isinstance(version, bool):
            raise self.fault(
                "schema_version",
                f"is {_shown(version)}, this prumux reads {VERSION}: use the same prumux on "
                "both machines",
            )
        serving = self.mapping(self.at(top, "serving"), "serving")
        encoder = self.encoder(self.mapping(self.at(top, "model"), "model"))
        length = self.whole(serving, "length", "serving", 1)
        if length > encoder.most_tokens:
            raise self.fault(
                "serving.length",
                f"is {length}, the model takes at most {encoder.most_tokens} tokens",
            )
        targets = self.mapping(self.at(top, "targets"), "targets")
        if not targets:
            raise self.fault("targets", "is empty: nothing was measured")
        return Costs(
            path=self.path,
            digest=digest,
            encoder=encoder,
            batch=self.whole(serving, "batch", "serving", 1),
            length=length,
            targets={k: self.target(x, f"targets.{k}", encoder) for k, x in targets.items()},
            machine=self.texts(self.at(top, "machine"), "machine"),
            date=str(top.get("date", "")),
        )

    def target(self, values: Any, key: str, encoder: Encoder) -> TargetCosts:
        held = self.mapping(values, key)
        mixed = {}
        for n, x in self.mapping(self.at(held, "mixed", key), f"{key}.mixed").items():
            if not (n.isdecimal() and n.isascii() and len(n) < 7) or int(n) < 2:
                raise self.fault(f"{key}.mixed.{n}", "is no number of rows from 2")
            mixed[int(n)] = self.table(x, f"{key}.mixed.{n}", encoder)
        return TargetCosts(
            single=self.table(self.at(held, "single", key), f"{key}.single", encoder),
            mixed=mixed,
            engine=self.texts(self.at(held, "engine", key), f"{key}.engine"),
        )

    def table(self, values: Any, key: str, encoder: Encoder) -> CostTable:
        held = self.mapping(values, key)
        most = encoder.layers[0]
        blocks = {}
        for block in BLOCKS:
            where = f"{key}.{block}"
            held_block = self.mapping(self.at(held, block, key), where)
            empty = block == "narrow" and not encoder.reads_first
            curves = [
                self.curve(self.at(held_block, x, where), f"{where}.{x}", 0 if empty else size)
                for x, size in zip(CURVES, (most.heads, most.ffn), strict=True)
            ]
            blocks[block] = Block(*curves)
        error = self.ms(held, "error", key)
        if error > LIMIT:
            raise self.fault(f"{key}.error", f"is {error:.3g}, at most {LIMIT:g} is used")
        return CostTable(
            dense_ms=self.ms(held, "dense_ms", key, above=True),
            base_ms=self.ms(held, "base_ms", key),
            wide=blocks["wide"],
            narrow=blocks["narrow"],
            narrow_from=len(encoder.layers),
            error=error,
        )

    def curve(self, values: Any, key: str, most: int) -> Curve:
        held = self.mapping(values, key)
        sizes, times = self.at(held, "sizes", key), self.at(held, "ms", key)
        for name, given in (("sizes", sizes), ("ms", times)):
            if not isinstance(given, list) or not given:
                raise self.fault(f"{key}.{name}", f"is {_shown(given)}, it must be a list")
        known = [self.number(x, f"{key}.sizes[{i}]") for i, x in enumerate(sizes)]
        found = [self.number(x, f"{key}.ms[{i}]") for i, x in enumerate(times)]
        if len(known) != len(found):
            raise self.fault(key, f"has {len(known)} sizes and {len(found)} ms")
        whole = all(isinstance(x, int) for x in sizes)
        if not whole or known[0] != 0 or not _rises(known, strictly=True):
            raise self.fault(f"{key}.sizes", f"is {_shown(sizes)}, sizes rise from 0")
        if found[0] != 0 or not _rises(found):
            raise self.fault(f"{key}.ms", f"is {_shown(times)}, times rise from 0")
        if known[-1] != most:
            raise self.fault(
                f"{key}.sizes", f"ends at {sizes[-1]}, a layer of the model has {most}"
            )
        return Curve(tuple(sizes), tuple(found))

    def encoder(self, values: Mapping[str, Any]) -> Encoder:
        known = {x.name for x in fields(Encoder)}
        for name in sorted(known ^ set(values)):
            raise self.fault(f"model.{name}", "is missing" if name in known else "is unknown")
        layers = self.layers(values["layers"])
        for name in ("vocab", "positions", "embedding", "hidden", "head_dim", "labels"):
            self.whole(values, name, "model", 1)
        for name in ("token_types", "pad_id"):
            self.whole(values, name, "model", 0)
        for name in ("family", "head", "activation", "pooling", "positions_from"):
            if not isinstance(values[name], str):
                raise self.fault(f"model.{name}", f"is {_shown(values[name])}, not a text")
        try:
            find_family(values["family"])
        except UsageError as error:
            raise self.fault("model.family", f"is {_shown(values['family'])}") from error
        for name in ("projected", "pool_early"):
            if not isinstance(values[name], bool):
                raise self.fault(f"model.{name}", f"is {_shown(values[name])}, not a bool")
        self.number(values["norm_eps"], "model.norm_eps")
        if values["mux"] is not None:
            raise self.fault("model.mux", "is no null: a model without mixing is measured")
        return Encoder(
            **{**values, "layers": layers, "constants": self.constants(values["constants"])}
        )

    def layers(self, values: Any) -> tuple[Layer, ...]:
        if not isinstance(values, list) or not values:
            raise self.fault("model.layers", f"is {_shown(values)}, it must be a list")
        made = []
        for i, x in enumerate(values):
            where = f"model.layers[{i}]"
            held = self.mapping(x, where)
            made.append(
                Layer(*(self.whole(held, name, where, 0) for name in ("heads", "ffn")))
            )
        if any(x != made[0] for x in made):
            raise self.fault("model.layers", "differ in size, a dense model is measured")
        return tuple(made)

    def constants(self, values: Any) -> tuple[tuple[str, Any], ...]:
        pairs = isinstance(values, list) and all(
            isinstance(x, list) and len(x) == 2 for x in values
        )
        if not pairs:
            raise self.fault("model.constants", f"is {_shown(values)}, not pairs")
        return tuple((str(k), tuple(v) if isinstance(v, list) else v) for k, v in values)

    def at(self, values: Mapping[str, Any], name: str, key: str = "") -> Any:
        if name not in values:
            raise self.fault(f"{key}.{name}" if key else name, "is missing")
        return values[name]

    def mapping(self, values: Any, key: str) -> Mapping[str, Any]:
        if not isinstance(values, dict):
            raise self.fault(key, f"is {_shown(values)}, it must be an object")
        return values

    def texts(self, values: Any, key: str) -> Mapping[str, str]:
        held = self.mapping(values, key)
        for name, x in held.items():
            if not isinstance(x, str):
                raise self.fault(f"{key}.{name}", f"is {_shown(x)}, it must be a text")
        return held

    def whole(self, values: Mapping[str, Any], name: str, key: str, least: int) -> int:
        found = self.at(values, name, key)
        if not isinstance(found, int) or isinstance(found, bool) or not least <= found < 2**31:
            raise self.fault(
                f"{key}.{name}", f"is {_shown(found)}, it must be a whole number from {least}"
            )
        return found

    def ms(
        self, values: Mapping[str, Any], name: str, key: str, *, above: bool = False
    ) -> float:
        found = self.number(self.at(values, name, key), f"{key}.{name}")
        if above and not found:
            raise self.fault(f"{key}.{name}", "is 0, it must be above 0")
        return found

    def number(self, value: Any, key: str) -> float:
        sound = isinstance(value, int | float) and not isinstance(value, bool)
        if not sound or not 0 <= value <= MOST_MS:
            raise self.fault(
                key, f"is {_shown(value)}, it must be a number from 0 to {MOST_MS:g}"
            )
        return float(value)


def _rises(values: Sequence[float], *, strictly: bool = False) -> bool:
    return all(a < b or (a == b and not strictly) for a, b in pairwise(values))


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
