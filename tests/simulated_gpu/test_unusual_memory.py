"""Memory as labkit shows it on simulated hosts, where torch's allocator or CUDA is not as usual."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.simulated_gpu.hosts import MIB

pytestmark = pytest.mark.simulated

START = """
import json, os, sys, torch, labkit
from labkit.jupyter.cells import explain_out_of_memory
from labkit.memory.oom.model import list_measures
MIB = 2**20
def new(mib):
    return torch.empty(mib * MIB, dtype=torch.uint8, device="cuda")
def explain(mib):
    try:
        new(mib)
    except torch.OutOfMemoryError as error:
        page = explain_out_of_memory(error, globals())
        return {"words": [one.words for one in list_measures(page)], "figures": page.failure,
                "unheld": page.unheld_bytes, "cache": page.cache, "page": repr(page)}
"""


def explain(host, script, **variables):
    """The page of the out-of-memory error that ``script`` runs into at its end."""
    answer = host.run_script(f"{START}\n{script}\nprint(json.dumps(page))", **variables)
    return json.loads(answer.stdout.splitlines()[-1])


def test_a_free_block_of_another_stream(a100):
    script = """
side = torch.cuda.Stream()
with torch.cuda.stream(side):
    whole = new(2500); del whole; small = new(100)
page = explain(1500)
"""
    page = explain(a100, script)
    assert "on its own stream" in page["words"][0]
    assert page["cache"][:2] == [0, 2400 * MIB]


def test_the_private_pool_of_a_cuda_graph(a100):
    script = """
x = new(50)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    big = new(2500); big.zero_(); y = x + 1
del big
page = explain(1500)
del graph
new(1500)  # what the page advises
"""
    page = explain(a100, script)
    assert "private pools" in page["words"][0]
    assert "(graph)" in page["words"][0]
    assert "free in private pools                  2.4 GiB" in page["page"]
    assert "tensors of this process              10" in page["page"]


def test_a_memory_fraction_beside_another_process(a100):
    script = """
torch.cuda.set_per_process_memory_fraction(0.3)
keep = new(700)
page = explain(700)
"""
    with a100.other_process(1000):
        page = explain(a100, script)
    assert page["words"][0].startswith("raise torch.cuda.set_per_process_memory_fraction")
    assert not any("other processes" in words for words in page["words"])


@pytest.mark.parametrize("expandable", ["False", "True"])
def test_memory_in_pieces(a100, expandable):
    script = """
held, gone = [], []
try:
    while True:
        held.append(new(11)); gone.append(new(8))
except torch.OutOfMemoryError:
    pass
gone.clear()
page = explain(400)
"""
    page = explain(a100, script, PYTORCH_ALLOC_CONF=f"expandable_segments:{expandable}")
    pieces = next(words for words in page["words"] if "smaller pieces" in words)
    advice = "allocate the largest tensors first" if expandable == "True" else "expandable_segments"
    assert advice in pieces
    assert page["unheld"] < 2 * MIB  # the allocator's rounding is not "saved for backward"


def test_cuda_malloc_async(a100):
    script = """
held = [new(500) for _ in range(6)]
page = explain(900)
try:
    labkit.record_allocations().__enter__()
except labkit.errors.LabkitError as error:
    page["refusal"] = error.fix
with labkit.track_memory("cuda") as tracked:
    del held[0]
page["change"] = tracked.change_bytes
"""
    page = explain(a100, script, PYTORCH_ALLOC_CONF="backend:cudaMallocAsync")
    assert page["figures"][:2] == ["cuda:0", 900 * MIB]
    assert "held[0]" in page["words"][0]
    assert "backend:native" in page["refusal"]
    assert page["change"] == -500 * MIB


CUSTOM = """
import torch, labkit
allocator = torch.cuda.memory.CUDAPluggableAllocator("LIBRARY", "take", "give")
torch.cuda.memory.change_current_allocator(allocator)
held = torch.empty(100 * 2**20, dtype=torch.uint8, device="cuda")
gpu = labkit.memory().balances[0]
assert gpu.this_process.parts == (None, None, None), gpu
assert gpu.this_process.used_bytes == 500 * 2**20, gpu
with labkit.track_memory() as tracked:
    pass
assert "cuda:0: not measured" in repr(tracked), tracked
with labkit.sample_memory() as sampler:
    pass
measured = sampler.samples.find_device("cuda:0").points
assert measured["used"][-1].high and measured["allocated"][-1].high is None, sampler
try:
    labkit.record_allocations("cuda").__enter__()
except labkit.errors.LabkitError as error:
    assert "CUDAPluggableAllocator" in error.fix
layer = torch.nn.Linear(10, 10)
assert labkit.estimate_memory(layer, torch.ones(2, 10), inference=True, device="cuda:0").fits
"""
SOURCE = """
#include <stddef.h>
int cudaMalloc(void **, size_t); int cudaFree(void *);
void *take(size_t size, int device, void *stream)
{ void *at = 0; cudaMalloc(&at, size); return at; }
void give(void *at, size_t size, int device, void *stream) { cudaFree(at); }
"""


def test_a_custom_allocator(a100, tmp_path):
    source, library = tmp_path / "own.c", tmp_path / "own.so"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    a100.run_script(CUSTOM.replace("LIBRARY", str(library)))


def test_after_an_error_that_lasts(a100):
    script = """
import os, torch, labkit
from tests.simulated_gpu.hosts import break_cuda
held = torch.empty(30 * 2**20, dtype=torch.uint8, device="cuda")
with labkit.track_memory(kinds=True) as tracked, labkit.record_allocations() as recorded:
    break_cuda()
with labkit.track_memory() as later:
    pass
gpu = labkit.memory().balances[0]
assert gpu.this_process.allocated_bytes == 30 * 2**20, gpu
assert tracked.use.spans and later.use.spans
with labkit.sample_memory() as sampler:
    pass
assert sampler.trouble is None, sampler
os._exit(0)
"""
    a100.run_script(script)


def test_a_forked_child(a100):
    script = """
import os, torch, labkit
held = torch.ones(1000, device="cuda")
child = os.fork()
if child == 0:
    with labkit.record_allocations() as recorded:
        torch.zeros(1000)
    (device,) = recorded.history.devices
    gpu = labkit.memory().balances[0]
    ok = (device.device, device.peak.live_bytes) == ("cpu", 4000)
    os._exit(0 if ok and not gpu.this_process.known_bytes else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    a100.run_script(script)


def test_in_a_container_others_are_others_until_cuda_starts(a100):
    script = """
import json
import labkit.memory.balance.read as read
read.sees_host_ids = lambda: False
import labkit, torch
def look():
    return [read.may_use_cuda(), labkit.memory().balances[0].other_processes_bytes]
seen = [look()]
torch.cuda.is_available()
seen.append(look())
held = torch.ones(1, device="cuda")
print(json.dumps([*seen, look()]))
"""
    with a100.other_process(1000):
        seen = a100.run_script(script).json()
    assert seen == [[False, 1400 * MIB], [False, 1400 * MIB], [None, None]]


def test_lines_of_compiled_code_whatever_its_cache_folder(a100, tmp_path):
    script = """
import torch, labkit
@torch.compile
def f(x):
    return (x.sin() + 1).cos() * x
x = torch.randn(2**20, device="cuda")
f(x)
with labkit.record_allocations() as recorded:
    y = f(x)
places = [group.place for group in recorded.history.devices[0].kept]
# The simulation computes the graph in a package of its own.
assert all((one.via or one.frame).function in ("f", "<module>") for one in places), recorded
"""
    a100.run_script(script, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))


def test_what_the_peak_is_of_adds_up_to_the_allocators(two_a100):
    script = """
import torch, labkit
model = torch.nn.Linear(100, 50, bias=False, device="cuda")
unused = torch.ones(2**20, device="cuda")
with labkit.track_memory(kinds=True) as tracked:
    model(torch.ones(4, 100, device="cuda")).sum().backward()
parts = tracked.use.breakdowns[0]
span = tracked.use.find_span("cuda:0")
assert parts.peak_bytes + parts.unused_bytes + parts.scratch_bytes == span.peak_bytes, tracked
assert parts.unused_bytes >= unused.nbytes, tracked
assert parts.scratch_bytes >= 8 * 2**20, tracked  # cuBLAS's workspace
"""
    two_a100.run_script(script)
