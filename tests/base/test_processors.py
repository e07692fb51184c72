"""Threads keep to the affinity, to OMP_NUM_THREADS and to the quota of the container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prumux.optimizer.base import processors
from prumux.optimizer.base.processors import cpu_quota, cpu_threads, most_threads


@pytest.fixture(autouse=True)
def _eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processors, "cpu_quota", lambda: 1000.0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("", 8),
        ("3", 3),
        (" 2 ", 2),
        ("4,2,1", 4),
        ("64", 8),
        ("0", 8),
        ("-1", 8),
        ("many", 8),
        ("9" * 30, 8),
    ],
)
def test_omp_num_threads(text: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert cpu_threads() == threads
    assert most_threads() == 32, "an option may ask for more than the variable"


@pytest.mark.parametrize(("quota", "threads"), [(0.3, 1), (1.9, 1), (2.0, 2), (20.0, 8)])
def test_a_quota_is_rounded_down(
    quota: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "cpu_quota", lambda: quota)
    assert cpu_threads() == threads


def group(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/pod/box/app\n")
    root = group(tmp_path / "cgroup")
    assert cpu_quota(root, own) > 1000
    group(root / "pod/box/app", cpu__max="max 100000\n")
    assert cpu_quota(root, own) > 1000
    group(root / "pod", cpu__max="150000 50000\n")
    assert cpu_quota(root, own) == 3
    group(root / "pod/box/app", cpu__max="50000 100000\n")
    assert cpu_quota(root, own) == 0.5


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/docker/of/the/host\n")
    root = group(tmp_path / "cgroup", cpu__max="200000 100000\n")
    assert cpu_quota(root, own) == 2


def test_version_1(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:cpu,cpuacct:/job\n3:cpuset:/x\n1:name=systemd:/y\n")
    root = tmp_path / "cgroup"
    here = group(root / "cpu,cpuacct/job", cpu__cfs_quota_us="-1", cpu__cfs_period_us="1000")
    assert cpu_quota(root, own) > 1000
    group(here, cpu__cfs_quota_us="4000\n")
    assert cpu_quota(root, own) == 4


@pytest.mark.parametrize("text", ["", "max", "a b", "100000 0", "0 100000", "-5 10", "1 2 3"])
def test_what_is_no_quota_limits_nothing(text: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n\nnonsense\n")
    assert cpu_quota(group(tmp_path / "cgroup", cpu__max=text), own) > 1000


def test_no_groups_limit_nothing(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "none") > 1000
