"""labkit's memory functions on torch's real CUDA allocator, by what torch itself counts."""

from __future__ import annotations

import shutil
import subprocess
import threading

import pytest

import labkit

MIB = 2**20
CONTEXT_MIB = 400


def new(mib, device="cuda:0"):
    import torch

    return torch.empty(mib * MIB, dtype=torch.uint8, device=device)


def list_spans(tracked):
    """Where, and how much was added and stayed, in MiB."""
    return [(one.where, one.added_bytes / MIB, one.change_bytes / MIB) for one in tracked.use.spans]


# ---- in pytest's own process


@pytest.mark.gpu
def test_the_balance_adds_up():
    import torch

    kept, gone = new(100), new(60)
    del gone
    balance = labkit.memory().balances[0]
    ours = balance.this_process
    assert ours.allocated_bytes == torch.cuda.memory_allocated() >= kept.nbytes
    assert ours.cached_bytes == torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    assert balance.torch_name == "cuda:0"


@pytest.mark.gpu
def test_nested_blocks_and_threads_each_have_their_peak():
    seen = {}

    def run():
        with labkit.track_memory("cuda") as seen["thread"]:
            new(8)

    with labkit.track_memory("cuda") as outer:
        new(64)
        with labkit.track_memory("cuda") as inner:
            kept = new(16)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert list_spans(outer) == [("cuda:0", 64, 16)]
    assert list_spans(inner) == [("cuda:0", 16, 16)]
    assert list_spans(seen["thread"]) == [("cuda:0", 8, 0)]
    assert kept.nbytes == 16 * MIB


@pytest.mark.gpu
def test_a_block_whose_stream_still_works_counts_until_then():
    import torch

    side = torch.cuda.Stream()
    with labkit.track_memory("cuda", synchronize=True) as tracked:
        with torch.cuda.stream(side):
            held = new(32)
        held.record_stream(torch.cuda.current_stream())
        del held
        kept = new(32)
    assert tracked.use.spans[0].added_bytes >= kept.nbytes


@pytest.mark.gpu
def test_a_capture_is_measured_and_not_spoiled():
    import torch

    static = torch.zeros(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with labkit.sample_memory(0.01) as sampler:
        with torch.cuda.graph(graph):
            result = static * 2
            sampler.take_sample()
            balance = labkit.memory().balances[0]
            with labkit.track_memory("cuda") as tracked:
                held = new(200)
        graph.replay()
        torch.cuda.synchronize()
    assert sampler.trouble is None
    assert balance.this_process.allocated_bytes is not None
    assert list_spans(tracked) == [("cuda:0", 200, 200)]
    assert (held.nbytes, result.tolist()) == (200 * MIB, [0.0] * 1000)


@pytest.mark.gpu
def test_a_pool_of_ones_own_is_counted():
    import torch

    pool = torch.cuda.MemPool()
    with labkit.track_memory("cuda") as tracked, torch.cuda.use_mem_pool(pool):
        held = new(30)
    assert list_spans(tracked) == [("cuda:0", 30, 30)]
    assert held.nbytes == 30 * MIB


@pytest.mark.gpu
def test_categories_are_those_of_the_training():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(100, 300), torch.nn.Linear(300, 10)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    inputs = torch.randn(64, 100, device="cuda")
    with labkit.track_memory(kinds=True, lines=3) as tracked:
        for _ in range(2):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    parameters = sum(one.nbytes for one in model.parameters())
    assert tracked.kinds["parameters"] == tracked.kinds["gradients"] == parameters
    assert tracked.kinds["optimizer"] >= 2 * parameters


# ---- on hosts of their own


@pytest.mark.simulated
def test_each_gpu_has_its_own_figures_and_the_current_one_is_first(two_a100):
    script = """
    a = new(10)
    with labkit.track_memory("cuda") as both:
        held = new(10); kept = new(20, "cuda:1"); del held
    with torch.cuda.device(1), labkit.track_memory() as current:
        new(4, "cuda")
    with labkit.track_memory("cuda:1") as other:
        new(4, "cuda:0")
    with labkit.record_allocations() as recorded:
        keep = new(5), new(7, "cuda:1")
    def spans(one):
        return [(s.where, s.added_bytes // MIB, s.change_bytes // MIB) for s in one.use.spans]
    balances = labkit.memory().balances[:2]
    print(json.dumps({
        "both": spans(both), "current": current.use.spans[0].where, "other": spans(other),
        "recorded": [(d.device, d.end.fragmentation.live_bytes // MIB)
                     for d in recorded.history.devices],
        "contexts": [one.this_process.context_bytes // MIB for one in balances],
        "unaccounted": [one.unaccounted_bytes for one in balances],
    }))
    """
    answer = two_a100.run_script(script).json()
    assert answer["both"] == [["cuda:0", 10, 0], ["cuda:1", 20, 20]]
    assert answer["current"] == "cuda:1"
    assert answer["other"] == [["cuda:1", 0, 0]]
    assert answer["recorded"] == [["cuda:0", 15], ["cuda:1", 27]]
    assert answer["contexts"] == [CONTEXT_MIB] * 2
    assert answer["unaccounted"] == [0, 0]


@pytest.mark.simulated
def test_the_status_bar_tells_allocator_kernel_and_device_apart(two_a100):
    script = """
    from labkit.jupyter.usage import Answers
    before = Answers(kernel=False).answer("panel")["parts"]
    started = torch.cuda.is_initialized()
    held, gone = new(300, "cuda:1"), new(100, "cuda:1")
    del gone
    say(before, started, Answers(kernel=True).answer("panel")["parts"])
    """
    before, started, after = two_a100.run_script(script).json()
    assert (len(before), started) == (1, False)
    assert after == [
        *("cuda:1 of 2 800.0 MiB of 4.0 GiB", "kernel 800.0 MiB"),
        *("tensors 300.0 MiB, cached 100.0 MiB", "others 0 B"),
    ]


@pytest.mark.simulated
def test_reading_starts_no_cuda(two_a100):
    script = """
    labkit.memory()
    with labkit.sample_memory(0.02): time.sleep(0.05)
    started = torch.cuda.is_initialized()
    with labkit.track_memory("cuda") as tracked: held = new(1)
    say(started, tracked.peak_bytes)
    """
    assert two_a100.run_script(script).json() == [False, MIB]


@pytest.mark.simulated
def test_other_processes_are_others(a100):
    script = "say(first().other_processes_bytes, first().unaccounted_bytes)"
    with a100.other_process(1000) as other:
        shown = a100.run_labkit("memory", "--json").json()
        assert a100.run_script("held = new(1)\n" + script).json() == [1400 * MIB, 0]
    [gpu] = [one for one in shown["devices"] if one["kind"] == "cuda"]
    assert [one["pid"] for one in gpu["processes"]] == [other.pid]
    assert a100.run_script("held = new(1)\n" + script).json() == [0, 0]


@pytest.mark.simulated
def test_a_container_that_did_not_start_cuda_calls_others_memory_others(a100):
    # Process ids of a container are not NVML's: what is not ours by CUDA's own word is others'.
    script = """
    import labkit.memory.balance.read as read
    read.sees_host_ids = lambda **_: False
    before = first()
    torch._C._cuda_hasPrimaryContext(0)
    say(before.other_processes_bytes, before.unaccounted_bytes)
    """
    with a100.other_process(1000):
        others, unaccounted = a100.run_script(script).json()
    assert (others, unaccounted) == (1400 * MIB, 0)


SETTINGS = {
    "default": {},
    "expandable segments": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
    "the driver's pool": {"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"},
    "no splits of large blocks": {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"},
    "powers of two": {"PYTORCH_ALLOC_CONF": "roundup_power2_divisions:4"},
    "a fraction": {"PYTORCH_ALLOC_CONF": "per_process_memory_fraction:0.5"},
}


@pytest.mark.simulated
@pytest.mark.parametrize("variables", SETTINGS.values(), ids=SETTINGS)
def test_figures_are_torchs_with_every_setting_of_the_allocator(a100, variables):
    script = """
    kept = new(100); gone = new(60); del gone
    ours = first().this_process
    counted = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    with labkit.track_memory("cuda") as tracked:
        held = new(64); del held; small = new(16)
    with labkit.sample_memory(0.02) as sampler: time.sleep(0.1)
    peak = torch.cuda.max_memory_allocated() - counted[0]
    print(json.dumps({
        "ours": [ours.allocated_bytes, ours.allocated_bytes + ours.cached_bytes],
        "counted": counted, "trouble": sampler.trouble,
        "peak": [tracked.use.spans[0].added_bytes, peak], "left": first().unaccounted_bytes,
    }))
    """
    answer = a100.run_script(script, **variables).json()
    assert answer["ours"] == list(answer["counted"])
    assert answer["peak"][0] == answer["peak"][1]
    assert answer["trouble"] is None
    assert answer["left"] == 0


@pytest.mark.simulated
def test_a_pluggable_allocator_leaves_its_figures_unknown(a100, tmp_path):
    if not shutil.which("gcc"):
        pytest.skip("needs gcc, to compile an allocator")
    source = """
    #include <stddef.h>
    int cudaMalloc(void **, size_t); int cudaFree(void *);
    void *take(size_t n, int device, void *s) { void *p = 0; cudaMalloc(&p, n); return p; }
    void give(void *p, size_t n, int device, void *s) { cudaFree(p); }
    """
    (tmp_path / "plug.c").write_text(source)
    library = tmp_path / "plug.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-w", "-o", library, tmp_path / "plug.c"], check=True
    )
    script = """
    from torch.cuda.memory import CUDAPluggableAllocator, change_current_allocator
    change_current_allocator(CUDAPluggableAllocator(sys.argv[1], "take", "give"))
    held = new(100)
    balance = first()
    with labkit.sample_memory(0.02) as sampler: time.sleep(0.1)
    estimate = labkit.estimate_memory(
        torch.nn.Linear(10, 10), torch.ones(2, 10), inference=True, device="cuda:0")
    used = [one for one in sampler.samples.devices if one.name == "cuda:0"][0].find_peak("used")
    say(balance.used_bytes // MIB, balance.this_process.allocated_bytes,
                      bool(used), estimate.fits)
    """
    answer = a100.run_script(script, str(library)).json()
    assert answer == [CONTEXT_MIB + 100, None, True, True]


@pytest.mark.simulated
def test_a_forked_child_reports_itself(a100):
    script = """
    held = new(100)
    if os.fork():
        os.wait(); sys.exit()
    ours = first().this_process
    with labkit.track_memory() as tracked: block = bytearray(5 * MIB)
    with labkit.record_allocations() as recorded: kept = torch.zeros(MIB)
    say(ours.allocated_bytes, [s.where for s in tracked.use.spans],
                      [one.device for one in recorded.history.devices])
    os._exit(0)
    """
    allocated, spans, recorded = a100.run_script(script).json()
    assert allocated == 0
    assert "cuda:0" not in spans
    assert recorded == ["cpu"]


@pytest.mark.simulated
def test_after_an_error_that_stays_memory_is_still_read(a100):
    script = """
    from tests.simulated_gpu.hosts import break_cuda
    held = new(30)
    used = first().used_bytes
    break_cuda()
    after = first()
    with labkit.track_memory() as tracked: pass
    say(used, after.used_bytes, after.name)
    os._exit(0)
    """
    before, after, name = a100.run_script(script).json()
    assert (before, name) == (after, "NVIDIA A100-SXM4-40GB")


@pytest.mark.simulated
def test_a_recording_is_what_the_allocator_counted_in_graphs_and_pools(a100):
    script = """
    pool = torch.cuda.MemPool(); side = torch.cuda.Stream()
    static = torch.zeros(1000, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with labkit.record_allocations() as recorded:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph): result = static * 2; inside = new(50)
        with torch.cuda.use_mem_pool(pool): held = new(30)
        del held; graph.replay()
        waiting = new(40); waiting.record_stream(side)
        with torch.cuda.stream(side): waiting.add_(1)
        del waiting; kept = new(40)
    device, stats = recorded.history.devices[0], torch.cuda.memory_stats()
    say(
        [device.peak.live_bytes, stats["requested_bytes.all.peak"]],
        [device.highest_reserved_bytes, torch.cuda.max_memory_reserved()],
        [device.end.reserved_bytes, torch.cuda.memory_reserved()],
    )
    """
    for variables in ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}):
        for replayed, counted in a100.run_script(script, **variables).json():
            assert replayed == counted


@pytest.mark.simulated
def test_what_the_drivers_pool_cannot_record_is_said_with_a_next_command(a100):
    script = """
    try:
        with labkit.record_allocations() as recorded: kept = new(1)
    except Exception as error: say(type(error).__name__, str(error), error.fix)
    """
    kind, _, fix = a100.run_script(script, PYTORCH_ALLOC_CONF="backend:cudaMallocAsync").json()
    assert (kind, bool(fix)) == ("LabkitError", True)


@pytest.mark.simulated
def test_lines_of_compiled_code_are_the_users_whatever_the_cache_folder(a100, tmp_path):
    script = """
    @torch.compile
    def wave(x): return (x.sin() + 1).cos() * x
    x = torch.randn(2**20, device="cuda")
    wave(x)
    with labkit.record_allocations() as recorded: y = wave(x)
    places = [group.place for group in recorded.history.devices[0].kept]
    # The simulation computes the graph in a package of its own.
    say(*[(one.via or one.frame).function for one in places])
    """
    functions = a100.run_script(script, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)).json()
    assert set(functions) <= {"wave", "<module>"}


@pytest.mark.simulated
def test_what_the_peak_is_of_adds_up_to_the_allocators(a100):
    script = """
    model = torch.nn.Linear(100, 50, bias=False, device="cuda")
    unused = new(4)
    with labkit.track_memory(kinds=True) as tracked:
        model(torch.ones(4, 100, device="cuda")).sum().backward()
    parts = tracked.use.breakdowns[0]
    say(parts.peak_bytes, parts.unused_bytes, parts.scratch_bytes, tracked.peak_bytes)
    """
    *parts, peak = a100.run_script(script).json()
    assert sum(parts) == peak
    assert parts[1] >= 4 * MIB
    assert parts[2] >= 8 * MIB  # cuBLAS's workspace
