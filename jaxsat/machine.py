"""What machines are: the cores and the memory that this process may use, and the chips that models train on.

Needs no JAX, so that what starts JAX, and what only launches, can read it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Chip:
    kinds: tuple[str, ...]  # as JAX names the device: its `device_kind`
    flops: float  # dense bf16 FLOP/s of a device, as its maker states


@dataclass(frozen=True)
class Tpu(Chip):
    gib: float  # that a program may use of a chip: what libtpu 0.0.42.1 says when one does not fit
    topologies: tuple[str, ...]  # of one slice, to 256 chips
    accelerator: str  # its name in the accelerator types of Google Cloud, v5litepod-256
    counted: int  # what these types count in a chip: TensorCores of v4 and v5p, chips of the others
    image: str  # of its VMs: cloud.google.com/tpu/docs/runtimes


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
# FLOP/s and accelerator types: cloud.google.com/tpu/docs, a page a generation.
TPUS = {
    "v4": Tpu(("TPU v4",), 275e12, 30.75, _CUBES, "v4", 2, "tpu-ubuntu2204-base"),
    "v5e": Tpu(("TPU v5 lite",), 197e12, 15.75, _FLAT, "v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": Tpu(("TPU v5", "TPU v5p"), 459e12, 95.74, _CUBES, "v5p", 2, "v2-alpha-tpuv5"),
    "v6e": Tpu(("TPU v6 lite",), 918e12, 31.25, _FLAT, "v6e", 1, "v2-alpha-tpuv6e"),
}
# FLOP/s without sparsity: NVIDIA's data sheets. Of their memory the driver tells.
_GPUS = (
    Chip(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312e12),
    Chip(("NVIDIA H100 80GB HBM3", "NVIDIA H200"), 989e12),
)


def chip(kind: str) -> Chip | None:
    """What is known of the device that JAX names so; None for all others."""
    return next((c for c in (*TPUS.values(), *_GPUS) if kind in c.kinds), None)


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may use, at least one: those it is bound to, within the quotas of its control groups, of
    which a part of a core does not count. `root`: where /proc and /sys are."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # no macOS
    quotas = []
    for group in _groups("cpu", root):
        second, first = _words(group / "cpu.max"), _words(group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
        quotas += [int(words[0]) / int(words[1]) for words in (first, second) if words and words[0].isdigit()]
    return max(1, int(min([bound, *quotas])))


def memory(root: Path = Path("/")) -> int:
    """Bytes that this process may use: the machine's, within the limits of its control groups."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", root):
        words = _words(group / "memory.max", group / "memory.limit_in_bytes")
        limits += [int(word) for word in words if word.isdigit()]
    return min(limits)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Directories of the control groups that the process is in, of version 1 and 2, each with those above it: any may
    set a limit, and in a container the outermost that is visible is its own."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = mount / path.strip("/")
        yield from (group, *(above for above in group.parents if above.is_relative_to(mount)))


def _words(*paths: Path) -> list[str]:
    """The words of the files that there are."""
    found = []
    for path in paths:
        try:
            found += path.read_text().split()
        except OSError:
            continue
    return found
