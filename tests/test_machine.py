import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsat import machine


def tree(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A machine's /proc and /sys, as far as control groups go."""
    texts = {"proc/self/cgroup": cgroup} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n3:cpuset:/\n0::/\n"


@pytest.mark.parametrize(
    "cgroup, files, expected",
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),  # half a core is no device
        ("0::/\n", {"cpu.max": "30000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
        ("0::/user.slice/job\n", {"user.slice/job/cpu.max": "max 100000\n", "user.slice/cpu.max": "3000 1000\n"}, 3),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "400000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, 4),
        (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),  # a container's own mount
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, 64),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": "5\n"}, 64),
        ("0::/\n", {}, 64),
    ],
)
def test_cores_are_those_that_control_groups_leave(cgroup, files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert machine.cores(tree(tmp_path, cgroup, files)) == expected


def test_cores_are_those_that_the_process_is_bound_to():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("only Linux binds processes to cores")
    bind = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); "
    program = bind + "from jaxsat import machine; print(machine.cores())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "1\n"
    assert 1 <= machine.cores() <= os.cpu_count()


@pytest.mark.parametrize(
    "cgroup, files, expected",
    [
        ("0::/\n", {"memory.max": "1048576\n"}, 2**20),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "2097152\n"}, 2**21),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": "4194304\n"}, 2**22),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": "9223372036854771712\n"}, None),  # no limit
        ("0::/\n", {"memory.max": "max\n"}, None),
    ],
)
def test_memory_is_what_control_groups_leave(cgroup, files, expected, tmp_path):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory(tree(tmp_path, cgroup, files)) == (expected or whole)


def test_without_control_groups_the_machine_is_all_there_is(tmp_path):
    assert machine.memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.cores(tmp_path) >= 1


def test_chips_are_known_by_the_names_that_jax_has_for_them():
    assert machine.chip("TPU v5 lite") is machine.TPUS["v5e"] and machine.chip("TPU v5p") is machine.TPUS["v5p"]
    assert machine.chip("NVIDIA H200").flops == 989e12
    assert machine.chip("cpu") is None


def test_it_needs_no_jax():
    program = "import sys, jaxsat.machine; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
