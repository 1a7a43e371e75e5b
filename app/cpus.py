"""The CPUs: how many this process may use, by affinity and the container's quota, and what they can compute."""

import math
import os
from pathlib import Path
from typing import Final

_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_CPUINFO: Final = Path("/proc/cpuinfo")
# Linux's names of the instructions that add up products of 8 bits in 32 bits.
_WIDE_SUMS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def usable_cpus() -> int:
    """Return the number of CPUs that this process may keep busy; at least 1.

    `os.cpu_count` tells what the machine has. In a container with ``--cpus=2`` on a machine of
    64 it would start 64 threads, which then throttle each other.
    """
    quota = cgroup_cpus()
    affine = _affine_cpus()
    return max(1, affine if quota is None else min(affine, math.ceil(quota)))


def cgroup_cpus(root: Path = _CGROUP_ROOT, own: Path = _OWN_CGROUP) -> float | None:
    """Return the smallest cgroup v2 CPU quota above this process, in CPUs; None if there is none.

    Args:
        root: Where the cgroup v2 file system is mounted.
        own: The file that names this process's own group.
    """
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if path is None:
        return None
    group = root / path.lstrip("/")
    quotas = [_quota(folder / "cpu.max") for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def saturates_8_bits(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether this is an x86 processor that adds up products of 8 bits in 16, where large sums are cut off.

    Without VNNI or AMX it has one instruction for that, ``pmaddubsw``, which saturates.

    Args:
        cpuinfo: Linux's description of the processors; without one, the answer is no.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return flags is not None and not _WIDE_SUMS & set(flags)


def _affine_cpus() -> int:
    process_cpu_count = getattr(os, "process_cpu_count", None)  # from Python 3.13 on
    if process_cpu_count is not None:
        return int(process_cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(file: Path) -> float | None:
    """Read ``cpu.max``: ``max 100000`` or ``<microseconds> <period>``."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
