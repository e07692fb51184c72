"""GTE against transformers, with random weights. What it refuses: see test_nomic_bert.py."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.family_checks import CHECKS, HEADS, Head, check_parity
from tests.model.families.test_nomic_bert import TINY as NOMIC

MODEL_TYPE = "gte"
TINY: dict[str, Any] = NOMIC | {"type_vocab_size": 0, "pad_token_id": 1}
"""As in gte-base-en-v1.5."""


@pytest.mark.parametrize("types", [0, 1])
@pytest.mark.parametrize("length", [5, 560])
def test_the_same_as_transformers(tmp_path: Path, length: int, types: int) -> None:
    for head in HEADS:
        given = TINY | {"type_vocab_size": types}
        check_parity(tmp_path / head, MODEL_TYPE, head, length, **given)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("head", HEADS)
def test_pruned_mixed_refitted(tmp_path: Path, head: Head, check: Any) -> None:
    check(tmp_path, MODEL_TYPE, head, **TINY)
