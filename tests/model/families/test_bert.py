"""BERT and its variants against transformers."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoints import CONFIGS
from tests.helpers.family_checks import CHECKS, HEADS, Head, check_parity

SMALL = ("bert", "roberta", "distilbert", "electra")
"""One of each file; XLM-R and CamemBERT are RoBERTa to us."""


def small(name: str) -> dict[str, Any]:
    wide = {"dim": 24} if name == "distilbert" else {"hidden_size": 24}
    return CONFIGS[name] | wide


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_as_transformers(tmp_path: Path, name: str, head: Head) -> None:
    check_parity(tmp_path, name, head, 14, **small(name))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", SMALL)
def test_pruned_mixed_refitted(tmp_path: Path, name: str, check: Any) -> None:
    check(tmp_path, name, HEADS[len(name) % 2], **small(name))
