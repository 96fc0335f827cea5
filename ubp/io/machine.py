"""What of the machine this process may use: cores, memory, GPUs; a container's limits included."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

_ROOT = Path("/")
_NO_LIMIT = 2**60  # version 1 of control groups says "none" by a number near 2^63


def cores(root: Path = _ROOT) -> int:
    """CPU cores: those of the process's affinity, or fewer where its control group has a quota.

    Args:
        root: where ``sys`` and ``proc`` are, for tests.
    """
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # not on macOS
    usable = len(affinity()) if affinity else psutil.cpu_count() or 1
    quotas = []
    for group in _groups(root, "cpu"):
        if (newer := _text(group / "cpu.max")) is not None:
            quota, period = newer.split()
        else:
            quota, period = (_text(group / f"cpu.cfs_{name}_us") or "max" for name in ("quota", "period"))
        if quota not in ("max", "-1"):
            quotas.append(int(quota) / int(period))
    return max(1, int(min([usable, *quotas])))


def threads() -> int:
    """How many threads to begin where nobody says: ``OMP_NUM_THREADS``, or one a core."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else cores()


def processor(root: Path = _ROOT) -> str:
    """What the processor is called: of another one the last bits may differ.

    Args:
        root: where ``proc`` is, for tests.
    """
    lines = (_text(root / "proc" / "cpuinfo") or "").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def free_memory(root: Path = _ROOT) -> int:
    """Bytes that can be had without swapping, within the limits of the process's control group.

    Args:
        root: where ``sys`` and ``proc`` are, for tests.
    """
    limits = [int(psutil.virtual_memory().available)]
    for group in _groups(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _text(group / limit_name), _text(group / used_name)
            if limit is None or used is None or limit == "max" or int(limit) >= _NO_LIMIT:
                continue
            # Cached files count as used, but make room when it is needed.
            statistics = dict(line.split() for line in (_text(group / "memory.stat") or "").splitlines())
            cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
            limits.append(int(limit) - int(used) + cached)
    return max(0, min(limits))


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU that ``CUDA_VISIBLE_DEVICES`` does not hide; torch need not be imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        listed = subprocess.run(  # noqa: S603
            [program, "--list-gpus"], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):  # a driver that does not answer is of no use to the commands either
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the process's control group and those above it: a limit of any of them holds."""
    for line in (_text(root / "proc" / "self" / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            top = root / "sys" / "fs" / "cgroup"
        elif controller in controllers.split(","):
            top = root / "sys" / "fs" / "cgroup" / controller
        else:
            continue
        group = top / path.lstrip("/")
        # In a container the path may be the one outside it, which is not there.
        yield from (folder for folder in [group, *group.parents] if folder.is_relative_to(top) and folder.is_dir())


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
