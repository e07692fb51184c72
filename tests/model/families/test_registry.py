"""Families of other packages: found by entry point, or refused with a reason."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from types import ModuleType
from typing import ClassVar

import pytest

from prumux.optimizer.base.errors import MissingError, ModelError, UsageError
from prumux.optimizer.model.families.bert import FAMILY, Bert
from prumux.optimizer.model.families.registry import find_family, model_types


class MyBert(Bert):
    model_types: ClassVar[tuple[str, ...]] = ("my-bert", "my-other-bert")


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Entry points given as "name=module:object" replace the installed ones."""
    toys = ModuleType("toys")
    toys.__dict__.update(MY_BERT=MyBert(), NO_FAMILY=MyBert)
    monkeypatch.setitem(sys.modules, "toys", toys)

    def replace(*lines: str) -> None:
        pairs = [x.split("=") for x in lines]
        points = metadata.EntryPoints(
            metadata.EntryPoint(name, value, "prumux.families") for name, value in pairs
        )
        monkeypatch.setattr(metadata, "entry_points", lambda group: points.select(group=group))
        find_family.cache_clear()

    yield replace
    find_family.cache_clear()


def test_a_family_of_another_package_is_found(install: Install) -> None:
    install("my-bert=toys:MY_BERT", "my-other-bert=toys:MY_BERT", "my-bert=toys:MY_BERT")
    assert isinstance(find_family("my-bert"), MyBert)
    assert find_family("my-other-bert") is find_family("my-bert")
    assert find_family("bert") is FAMILY
    assert model_types()[-2:] == ("my-bert", "my-other-bert")


def test_a_broken_package_affects_its_own_models_only(install: Install) -> None:
    install("broken=gone:FAMILY", "typo=toys:FAMILY")
    assert find_family("bert") is FAMILY
    with pytest.raises(
        MissingError, match=r"'broken' \(gone:FAMILY\) does not import: No mod"
    ):
        find_family("broken")
    with pytest.raises(MissingError, match=r"'typo' \(toys:FAMILY\) does not import"):
        find_family("typo")
    with pytest.raises(ModelError, match=r"supported: albert, bert, .*, broken, typo \(and"):
        find_family("gpt2")


@pytest.mark.parametrize("entry", ["my-bert=toys:NO_FAMILY", "your-bert=toys:MY_BERT"])
def test_an_entry_point_must_be_a_family_of_that_name(install: Install, entry: str) -> None:
    install(entry)
    name, value = entry.split("=")
    with pytest.raises(UsageError, match=f"family '{name}' is {value}, which is no Family"):
        find_family(name)


def test_two_providers_of_one_model_type_are_refused(install: Install) -> None:
    install("bert=toys:MY_BERT", "my-bert=toys:MY_BERT", "my-bert=toys:NO_FAMILY")
    with pytest.raises(UsageError, match=r"'bert' is provided by prumux and by toys:MY_BERT"):
        find_family("bert")
    with pytest.raises(UsageError, match="by toys:MY_BERT and by toys:NO_FAMILY; uninstall"):
        find_family("my-bert")
    assert find_family("roberta")
