"""Cores and memory that a process may use, from files as Linux writes them."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ubp.io import machine

GB = 10**9


def root(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


VERSION_2 = {"proc/self/cgroup": "0::/shop/job"}
VERSION_1 = {"proc/self/cgroup": "4:cpu,cpuacct:/job\n5:memory:/job\n1:name=systemd:/"}
V1_MEMORY, V1_CPU = "sys/fs/cgroup/memory/job/memory", "sys/fs/cgroup/cpu/job/cpu"


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 10_240_000_000),
        (VERSION_2, 10_240_000_000),
        (
            VERSION_2
            | {
                "sys/fs/cgroup/shop/job/memory.max": "max",
                "sys/fs/cgroup/shop/memory.max": str(4 * GB),
                "sys/fs/cgroup/shop/memory.current": str(3 * GB),
                "sys/fs/cgroup/shop/memory.stat": f"anon {GB}\ninactive_file {2 * GB}",
                "sys/fs/cgroup/shop/job/memory.current": "1",
            },
            3 * GB,
        ),
        (VERSION_1 | {f"{V1_MEMORY}.limit_in_bytes": "9223372036854771712", f"{V1_MEMORY}.usage_in_bytes": "1"}, None),
        (
            VERSION_1
            | {
                f"{V1_MEMORY}.limit_in_bytes": str(2 * GB),
                f"{V1_MEMORY}.usage_in_bytes": str(GB),
                f"{V1_MEMORY}.stat": "inactive_file 7\ntotal_inactive_file 1000",
            },
            GB + 1000,
        ),
    ],
)
def test_free_memory(tmp_path, monkeypatch, files, wanted):
    available = SimpleNamespace(available=10_240_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    assert machine.free_memory(root(tmp_path, files)) == (wanted or 10_240_000_000)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 8),
        (VERSION_2 | {"sys/fs/cgroup/shop/job/cpu.max": "max 100000"}, 8),
        (VERSION_2 | {"sys/fs/cgroup/shop/job/cpu.max": "250000 100000"}, 2),
        (VERSION_2 | {"sys/fs/cgroup/shop/cpu.max": "50000 100000"}, 1),
        (VERSION_1 | {f"{V1_CPU}.cfs_quota_us": "-1", f"{V1_CPU}.cfs_period_us": "100000"}, 8),
        (VERSION_1 | {f"{V1_CPU}.cfs_quota_us": "300000", f"{V1_CPU}.cfs_period_us": "100000"}, 3),
    ],
)
def test_cores(tmp_path, monkeypatch, files, wanted):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _: list(range(8)), raising=False)
    # A group's folder may be there without the files of a controller that is off.
    (tmp_path / "sys/fs/cgroup/shop/job").mkdir(parents=True)
    assert machine.cores(root(tmp_path, files)) == wanted


def test_threads_are_what_the_environment_says_or_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.threads() == 3
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert machine.threads() == machine.cores()


def test_a_gpu_is_one_that_is_listed_and_not_hidden(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.has_gpu()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not machine.has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.has_gpu()
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert not machine.has_gpu()
    program.unlink()
    assert not machine.has_gpu()


def test_the_processors_name(tmp_path):
    files = {"proc/cpuinfo": "processor\t: 0\nmodel name\t: A Chip: two\n\nprocessor\t: 1\nmodel name\t: Another"}
    assert machine.processor(root(tmp_path, files)) == "A Chip: two"
    assert machine.processor(tmp_path / "none")  # whatever Python knows
