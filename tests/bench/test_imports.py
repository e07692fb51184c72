"""Every script in bench/ imports, so that none rots unseen."""

from __future__ import annotations

import pytest

from tests.helpers.scripts import BENCH, script


@pytest.mark.parametrize("name", sorted(x.stem for x in BENCH.glob("*.py")))
def test_bench_script_imports(name: str) -> None:
    assert callable(script(name).main)
