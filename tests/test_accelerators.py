"""AMD's, Intel's and Apple's GPUs, read from files as their drivers lay them out."""

from __future__ import annotations

import os

import pytest

from labkit.devices.detect import Accelerator, find_apple_gpu, read_accelerators
from labkit.host.cpu import CpuFacts

GIB = 2**30
NODES = "sys/class/kfd/kfd/topology/nodes"
CARD = "sys/class/drm/renderD{}/device"
# The processors are a node too, without shader units.
CPU_NODE = {f"{NODES}/0/properties": "cpu_cores_count 64\nsimd_count 0\n"}


def amd(node, minor, *, version=90402, cores=0):
    properties = (
        f"cpu_cores_count {cores}\nsimd_count 1216\ngfx_target_version {version}\n"
        f"drm_render_minor {minor}\nunique_id 0x1f\nname MI300X of a kind\n"
    )
    return {
        f"{NODES}/{node}/properties": properties,
        f"{CARD.format(minor)}/vendor": "0x1002\n",
        f"{CARD.format(minor)}/product_name": "AMD Instinct MI300X\n",
        f"{CARD.format(minor)}/mem_info_vram_total": f"{192 * GIB}\n",
    }


def plant(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


KFD = {"dev/kfd": ""}
INTEL = {f"{CARD.format(128)}/vendor": "0x8086\n", f"{CARD.format(128)}/device": "0xe20b\n"}
ASPEED = {f"{CARD.format(128)}/vendor": "0x1a03\n"}
MI300X = Accelerator("rocm", "AMD Instinct MI300X", 192 * GIB, "gfx942", False)
NO_KFD = "/dev/kfd does not exist: its driver is not loaded, or it was not passed to this container"
NO_NODE = NO_KFD.replace("/dev/kfd", "/dev/dri/renderD128")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        pytest.param({}, (), id="nothing"),
        pytest.param(ASPEED, (), id="a server's display chip"),
        pytest.param({**CPU_NODE, **KFD}, (), id="a processor alone"),
        pytest.param({**CPU_NODE, **amd(1, 128), **KFD}, (MI300X,), id="one of AMD"),
        pytest.param(
            {**amd(10, 129), **amd(9, 128, version=100300), **KFD},
            (MI300X._replace(architecture="gfx1030"), MI300X),
            id="two of AMD, in the order of their numbers",
        ),
        pytest.param(
            {**amd(1, 128, cores=24), **KFD},
            (MI300X._replace(unified=True, total_bytes=None),),
            id="on one chip with the processor",
        ),
        pytest.param(
            {**CPU_NODE, **amd(1, 128)}, (MI300X._replace(trouble=NO_KFD),), id="not passed on"
        ),
        pytest.param(
            {f"{CARD.format(128)}/vendor": "0x1002\n"},
            (Accelerator("rocm", "AMD GPU", trouble=NO_KFD),),
            id="AMD without its compute driver",
        ),
        pytest.param(
            {f"{NODES}/1/properties": "simd_count 8\n", **KFD},
            (Accelerator("rocm", "AMD GPU (unknown)", unified=False),),
            id="AMD that tells next to nothing",
        ),
        pytest.param(
            {**INTEL, "dev/dri/renderD128": ""},
            (Accelerator("xpu", "Intel GPU 0xe20b"),),
            id="Intel",
        ),
        pytest.param(
            INTEL, (Accelerator("xpu", "Intel GPU 0xe20b", trouble=NO_NODE),), id="Intel, no node"
        ),
    ],
)
def test_what_the_drivers_files_tell(tmp_path, files, found):
    assert read_accelerators(plant(tmp_path, files)) == found


def test_a_device_file_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (barred,) = read_accelerators(plant(tmp_path, {**amd(1, 128), **KFD}))
    assert barred.trouble == "this user may not open /dev/kfd: sudo usermod -aG render $USER"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Apple M3 Pro", (Accelerator("mps", "Apple M3 Pro GPU", 36 * GIB, unified=True),)),
        ("Intel(R) Core(TM) i7", ()),
        (None, ()),
    ],
)
def test_a_mac_has_a_gpu_where_its_chip_is_apples(name, found):
    assert find_apple_gpu(CpuFacts(name, total_bytes=36 * GIB)) == found
