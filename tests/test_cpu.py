"""The processor as fake /proc and /sys folders tell it: containers, Arm boards, nothing at all."""

from __future__ import annotations

import pytest

from labkit.host.cpu import (
    CgroupLimits,
    CpuFacts,
    count_allowed_cores,
    detect_cpu,
    read_limits,
    read_linux_cpu,
    read_macos_cpu,
)
from labkit.process import CommandResult

GIB = 2**30

X86_CORE = """processor\t: {number}
model name\t: AMD EPYC 9654
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_bf16 amx_tile

"""
ARM_CORE = """processor\t: {number}
BogoMIPS\t: 2000.00
Features\t: fp asimd asimdhp asimddp sve bf16 i8mm
CPU implementer\t: {implementer}
CPU part\t: {part}

"""


def plant(root, files):
    """Writes the files below a root, as a kernel would show them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def make_x86(threads=4, cores=2):
    return "".join(X86_CORE.format(number=n, core=n % cores) for n in range(threads))


def test_an_x86_machine_is_read_in_full(tmp_path):
    root = plant(
        tmp_path,
        {"proc/cpuinfo": make_x86(), "proc/meminfo": "MemTotal:   16777216 kB\nMemFree: 1 kB\n"},
    )
    assert read_linux_cpu(root, 4) == CpuFacts(
        name="AMD EPYC 9654",
        physical_cores=2,
        logical_cores=4,
        usable_cores=4,
        total_bytes=16 * GIB,
        limit_bytes=None,
        vector_extensions=("SSE4.2", "AVX", "AVX2", "AVX512F", "AVX512_BF16", "AMX_TILE"),
    )


def test_two_sockets_with_equal_core_ids_are_two_cores(tmp_path):
    first = X86_CORE.format(number=0, core=0)
    second = X86_CORE.format(number=1, core=0).replace("physical id\t: 0", "physical id\t: 1")
    assert read_linux_cpu(plant(tmp_path, {"proc/cpuinfo": first + second}), 2).physical_cores == 2


def test_an_arm_server_is_named_by_its_numbers(tmp_path):
    core = ARM_CORE.format(number=0, implementer="0x41", part="0xd4f")
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = plant(
        tmp_path,
        {
            "proc/cpuinfo": core + core.replace("processor\t: 0", "processor\t: 1"),
            siblings.format(0): "0\n",
            siblings.format(1): "1\n",
        },
    )
    cpu = read_linux_cpu(root, 2)
    assert cpu.name == "Arm Neoverse V2"
    assert cpu.vector_extensions == ("NEON", "FP16", "DOTPROD", "BF16", "I8MM", "SVE")
    assert (cpu.logical_cores, cpu.physical_cores) == (2, 2)


@pytest.mark.parametrize(
    ("board", "name"), [("Some Board Rev 1\0", "Some Board Rev 1"), ("", None)], ids=["board", "no"]
)
def test_an_unknown_arm_core_takes_the_boards_name(tmp_path, board, name):
    core = ARM_CORE.format(number=0, implementer="0x99", part="0x1")
    root = plant(tmp_path, {"proc/cpuinfo": core, "proc/device-tree/model": board})
    assert read_linux_cpu(root, 1).name == name


def test_a_machine_that_tells_nothing_is_unknown_throughout(tmp_path):
    assert read_linux_cpu(tmp_path, None) == CpuFacts()


CGROUPS = [
    pytest.param(
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        },
        CgroupLimits(1.5, 2 * GIB),
        id="v2 in a container",
    ),
    pytest.param(
        {
            "proc/self/cgroup": "0::/user.slice/run.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/run.scope/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/user.slice/run.scope/memory.max": f"{GIB}\n",
        },
        CgroupLimits(2.0, GIB),
        id="v2 with a tighter parent",
    ),
    pytest.param(
        {
            "proc/self/cgroup": "0::/docker/abc\n",
            "sys/fs/cgroup/cpu.max": "100000 100000\n",
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
        },
        CgroupLimits(1.0, GIB),
        id="v2 whose path is the host's",
    ),
    pytest.param(
        {
            "proc/self/cgroup": "0::/../other\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
        CgroupLimits(),
        id="v2 without limits",
    ),
    pytest.param(
        {
            "proc/self/cgroup": "9:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        CgroupLimits(0.5, 4 * GIB),
        id="v1 in a container",
    ),
    pytest.param(
        {
            "proc/self/cgroup": "9:memory:/\n3:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        CgroupLimits(),
        id="v1 without limits",
    ),
    pytest.param({}, CgroupLimits(), id="no cgroups"),
]


@pytest.mark.parametrize(("files", "limits"), CGROUPS)
def test_cgroup_limits(tmp_path, files, limits):
    assert read_limits(plant(tmp_path, files)) == limits


def make_limited(root, quota, memory_bytes):
    return plant(
        root,
        {
            "proc/cpuinfo": make_x86(),
            "proc/meminfo": "MemTotal: 4194304 kB\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": f"{quota} 100000\n",
            "sys/fs/cgroup/memory.max": f"{memory_bytes}\n",
        },
    )


@pytest.mark.parametrize(
    ("quota", "allowed", "usable"),
    [(150000, 4, 1.5), (800000, 3, 3), (800000, None, 8), ("max", 2, 2), ("max", None, None)],
)
def test_the_tighter_of_quota_and_affinity_counts(tmp_path, quota, allowed, usable):
    assert read_linux_cpu(make_limited(tmp_path, quota, "max"), allowed).usable_cores == usable


@pytest.mark.parametrize(
    ("memory_bytes", "limit"), [(GIB, GIB), (4 * GIB, None), (64 * GIB, None), ("max", None)]
)
def test_a_memory_limit_that_is_not_below_the_total_is_none(tmp_path, memory_bytes, limit):
    cpu = read_linux_cpu(make_limited(tmp_path, "max", memory_bytes), 4)
    assert (cpu.total_bytes, cpu.limit_bytes) == (4 * GIB, limit)


SYSCTL = """machdep.cpu.brand_string: Apple M3 Max
hw.physicalcpu: 14
hw.logicalcpu: 14
hw.memsize: 38654705664
hw.optional.neon: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_SME: 0
"""


def test_macos_tells_through_sysctl_whatever_its_exit_code():
    def run(arguments, *, timeout_seconds):
        assert arguments[0] == "sysctl"
        return CommandResult(tuple(arguments), 1, SYSCTL, "unknown oid 'hw.optional.avx2_0'")

    assert read_macos_cpu(run) == CpuFacts(
        name="Apple M3 Max",
        physical_cores=14,
        logical_cores=14,
        usable_cores=14,
        total_bytes=36 * GIB,
        vector_extensions=("NEON", "BF16"),
    )


def test_macos_without_sysctl_is_unknown():
    def run(arguments, *, timeout_seconds):
        return CommandResult(tuple(arguments), None, missing=True)

    assert read_macos_cpu(run) == CpuFacts()


def test_this_machine_can_be_read():
    cpu = detect_cpu()
    assert cpu.total_bytes is not None
    assert cpu.total_bytes > 2**28
    assert cpu.usable_cores is not None
    assert 0 < cpu.usable_cores <= (count_allowed_cores() or 0)
