"""The JSON file that describes a plan, beside the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prumux.export.graph.graph import input_names
from prumux.export.graph.graph_file import FILE
from prumux.optimizer.base.environment import versions
from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.base.store import file_digest
from prumux.optimizer.model.sizes import Encoder

from .library import PORTABLE, flavor_of, gpu, gpu_here
from .profiles import Profile

FACTS = ".json"
"""Suffix of the file, as in `model.plan.json`."""


def write_facts(
    encoder: Encoder,
    plan: Path,
    profiles: Sequence[Profile],
    about: Mapping[str, Any],
    capabilities: Sequence[str] = (),
) -> None:
    """Write a JSON file that describes a plan, beside the plan.

    Args:
        encoder: the model's sizes.
        plan: the plan. The graph from which it was built is beside it.
        profiles: the shapes for which the plan was built.
        about: further entries, such as the precision.
        capabilities: the compute capabilities of the plan; empty = the default.
    """
    import torch

    flavor, here = flavor_of(plan), gpu_here()
    chosen = ", ".join(f"{x[2:-1]}.{x[-1]}" for x in capabilities) or PORTABLE
    facts = {
        "engine": flavor.engine,
        "slots": encoder.slots,
        "inputs": list(input_names(encoder)),
        "profiles": [{"rows": x.rows, "tokens": x.tokens} for x in profiles],
        **about,
        "graph_sha256": file_digest(plan.with_name(FILE)),
        "plan_sha256": file_digest(plan),
        **({"built_for": f"compute capabilities {chosen}"} if flavor.portable else {}),
        "device": gpu() if here else "none",
        "compute_capability": list(torch.cuda.get_device_capability()) if here else None,
        "versions": {
            **versions(),
            "tensorrt": str(flavor.library().__version__),
            "cuda": str(torch.version.cuda),
        },
    }
    plan.with_name(plan.name + FACTS).write_text(
        json.dumps(facts, indent=2) + "\n", encoding="utf-8"
    )


def read_facts(plan: Path) -> dict[str, Any]:
    """Read the JSON file that describes a plan; empty if there is no file.

    Raises:
        ModelError: the file is damaged.
    """
    path = plan.with_name(plan.name + FACTS)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"'{path}' is no JSON: {error}; build the plan again") from error
    if not isinstance(found, dict) or not isinstance(found.get("slots", 1), int):
        raise ModelError(f"'{path}' does not describe a plan; build the plan again")
    return found
