"""`GPUS=`: what can be typed, and which of the host's GPUs it names."""

from __future__ import annotations

import pytest

from labkit.errors import DeviceMissingError, ExitCode, UsageError
from labkit.host.gpu import ALL_GPUS, Gpu, GpuFacts, GpuSelection, parse_gpus, select_gpus
from labkit.launch.compose import list_gpus
from labkit.launch.settings import Flavor

FIRST = Gpu("NVIDIA H200", 0, "GPU-aaaa-1111", (9, 0), False)
SECOND = Gpu("NVIDIA H200", 1, "GPU-aaaa-2222", (9, 0), False)
CUT = Gpu("NVIDIA A100-SXM4-80GB", 2, "GPU-cccc", (8, 0), True, ("MIG-1111", "MIG-2222"))
HOST = GpuFacts("580.65.06", (FIRST, SECOND, CUT))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ()),
        ("all", ("all",)),
        ("0", ("0",)),
        ("0,1", ("0", "1")),
        (" 1 , 0 ,", ("1", "0")),
        ("1,1", ("1",)),
        ("GPU-aaaa-1111,MIG-2222", ("GPU-aaaa-1111", "MIG-2222")),
    ],
)
def test_what_can_be_typed(text, words):
    assert parse_gpus(text) == words


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("cuda:0", "cuda:0"),
        ("0;1", "0;1"),
        ("-1", "-1"),
        ("all,0", "all"),
        ("gpu-aa", "gpu-aa"),
        (",", ""),
    ],
)
def test_what_names_no_gpu(text, word):
    with pytest.raises(UsageError) as caught:
        parse_gpus(text)
    assert caught.value.what == f"invalid GPUS={text}"
    assert caught.value.cause == (
        f"{word!r} is neither an index (0,1) nor a UUID (GPU-..., MIG-...), nor all"
    )
    assert caught.value.fix == "nvidia-smi -L   # lists both"


@pytest.mark.parametrize(
    ("asked", "gpus", "words"),
    [
        pytest.param((), (FIRST, SECOND, CUT), ALL_GPUS, id="left out"),
        pytest.param(ALL_GPUS, (FIRST, SECOND, CUT), ALL_GPUS, id="all"),
        pytest.param(("1",), (SECOND,), ("1",), id="an index"),
        pytest.param(("GPU-aaaa-2222",), (SECOND,), ("1",), id="a UUID, asked for by its index"),
        pytest.param(("GPU-aaaa-2",), (SECOND,), ("1",), id="the beginning of a UUID"),
        pytest.param(("1", "GPU-aaaa-2222"), (SECOND,), ("1",), id="the same twice"),
        pytest.param(("2",), (CUT,), ("2",), id="one that is cut, as a whole"),
        pytest.param(("MIG-2222", "0"), (CUT, FIRST), ("MIG-2222", "0"), id="a part and another"),
        pytest.param(("MIG-1111", "MIG-2222"), (CUT,), ("MIG-1111", "MIG-2222"), id="both parts"),
    ],
)
def test_the_gpus_that_were_asked_for(asked, gpus, words):
    assert select_gpus(asked, HOST) == GpuSelection(gpus, words)


@pytest.mark.parametrize("word", ["3", "GPU-dddd", "GPU-aaaa", "MIG-3333", "MIG-"])
def test_one_that_is_not_there_is_an_error_with_the_list(word):
    with pytest.raises(DeviceMissingError) as caught:
        select_gpus((word,), HOST)
    assert caught.value.exit_code == ExitCode.DEVICE_MISSING
    assert caught.value.what == f"this host has no GPU {word}"
    assert caught.value.cause == (
        "it has: 0 NVIDIA H200 (GPU-aaaa-1111); 1 NVIDIA H200 (GPU-aaaa-2222);"
        " 2 NVIDIA A100-SXM4-80GB (GPU-cccc); MIG-1111; MIG-2222"
    )
    assert caught.value.fix == "make up GPUS=0"


def test_a_host_that_lists_no_gpus_is_taken_at_the_word():
    assert select_gpus(("1",), GpuFacts("580.65.06")) == GpuSelection((), ("1",))


def test_what_a_build_leaves_out_is_asked_for_no_more():
    everything = GpuSelection((FIRST, SECOND), ALL_GPUS)
    assert everything.narrow((FIRST, SECOND)) == everything
    assert everything.narrow((SECOND,)) == GpuSelection((SECOND,), ("1",))


# The file that Compose reads them from


def reservation(**request):
    lab = {"deploy": {"resources": {"reservations": {"devices": [request]}}}}
    return {"services": {"cuda-chosen": lab, "test": lab}}


@pytest.mark.parametrize(
    ("client", "gpus", "way", "file"),
    [
        pytest.param(
            "docker",
            ("all",),
            "reservation",
            reservation(capabilities=["gpu"], count="all"),
            id="all",
        ),
        pytest.param(
            "docker",
            ("0", "MIG-1111"),
            "reservation",
            reservation(capabilities=["gpu"], device_ids=["0", "MIG-1111"]),
            id="some",
        ),
        pytest.param(
            "docker",
            ("0", "1"),
            "cdi",
            reservation(
                capabilities=["gpu"],
                driver="cdi",
                device_ids=["nvidia.com/gpu=0", "nvidia.com/gpu=1"],
            ),
            id="by CDI",
        ),
        pytest.param(
            "podman",
            ("all",),
            "cdi",
            {
                "services": {
                    "cuda-chosen": {"devices": ["nvidia.com/gpu=all"]},
                    "test": {"devices": ["nvidia.com/gpu=all"]},
                }
            },
            id="podman",
        ),
    ],
)
def test_the_gpus_as_compose_reads_them(client, gpus, way, file):
    assert list_gpus(client, Flavor("cuda", "cu130", gpus, way)) == file
