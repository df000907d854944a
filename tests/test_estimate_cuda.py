"""What an estimate does for a GPU: sizes, names, CUDA's behavior, and its caching allocator."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.parallel import data_parallel, gather, parallel_apply, replicate, scatter

from labkit.devices.nvml import GpuMemory, GpuProcess, MemoryAnswer
from labkit.errors import DeviceMissingError, UsageError
from labkit.memory.balance import read
from labkit.memory.estimate.allocator import CachingAllocator
from labkit.memory.estimate.cuda import CONTEXT_BYTES
from labkit.memory.estimate.model import Target, find_target
from labkit.memory.estimate.play import estimate_memory
from labkit.memory.track.model import Storage
from tests.fakes.models import MODELS, OPTIMIZERS, make_training, run_twice
from tests.fakes.record import Record

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("24 GiB", Target("24 GiB", "cuda", 24 * GIB)),
        ("24gb", Target("24gb", "cuda", 24 * 10**9)),
        ("1.5 MiB", Target("1.5 MiB", "cuda", 3 * MIB // 2)),
        (GIB, Target("1.0 GiB", "cuda", GIB)),
        ("H100", Target("H100", "cuda", 81_559 * MIB)),
        ("nvidia a100-80gb", Target("A100 80GB", "cuda", 81_920 * MIB)),
        ("rtx4090", Target("RTX 4090", "cuda", 24_564 * MIB)),
        (None, Target("cpu", "cpu")),
    ],
)
def test_what_a_step_is_to_fit(device, expected):
    assert find_target(device) == expected


@pytest.mark.parametrize(
    ("device", "near"),
    [("A100", "A100 40GB"), ("RTX 4091", "RTX 4090"), ("24 apples", "24 GiB"), ("", "24 GiB")],
)
def test_a_device_that_nobody_knows(device, near):
    with pytest.raises(UsageError, match="unknown device") as caught:
        find_target(device)
    assert caught.value.fix == f'--device "{near}"'


@pytest.mark.parametrize(
    ("device", "fix", "cause"),
    [
        ("24", "24 GiB", "a size in bytes"),
        ("24.5", "24.5 GiB", "a size in bytes"),
        ("80", "80 GiB", "a size in bytes"),
        ("24G", "24 GiB", "nothing of bytes"),
        ("24 gi", "24 GiB", "nothing of bytes"),
        ("512m", "512 MiB", "nothing of bytes"),
    ],
)
def test_a_size_without_its_unit_is_not_guessed(device, fix, cause):
    with pytest.raises(UsageError, match="has no unit") as caught:
        find_target(device)
    assert caught.value.fix == f'--device "{fix}"'
    assert cause in caught.value.cause


def test_a_number_that_is_a_size_in_bytes_or_of_a_gpu():
    assert find_target(str(24 * 2**30)) == find_target(24 * 2**30)
    with pytest.raises(UsageError) as caught:
        find_target("4090")
    assert caught.value.fix == '--device "RTX 4090"'


def test_this_machines_cpu_has_what_it_may_use():
    target = find_target("cpu")
    assert target.kind == "cpu"
    assert target.capacity_bytes > 0


def test_a_gpu_that_is_not_here_is_missing(monkeypatch):
    monkeypatch.setattr(read, "read_gpu_memory", lambda: MemoryAnswer(()))
    with pytest.raises(DeviceMissingError, match="cuda:0 is not on this machine"):
        find_target("cuda")


def test_a_gpu_of_this_machine_is_found_by_torchs_name(monkeypatch):
    held = read.AllocatorFacts("cuda:0", "0a1b", "NVIDIA L4", 0, 0)
    gpu = GpuMemory(
        nvml_index=0,
        uuid="GPU-0a1b",
        name="NVIDIA L4",
        total_bytes=23_034 * MIB,
        free_bytes=20_000 * MIB,
        reserved_bytes=500 * MIB,
        processes=(GpuProcess(99, 2_534 * MIB),),
    )
    monkeypatch.setattr(read, "read_gpu_memory", lambda: MemoryAnswer((gpu,)))
    monkeypatch.setattr(read, "read_allocators", lambda: (held,))
    monkeypatch.setattr(read, "sees_host_ids", lambda: True)
    target = find_target("cuda")
    assert target == Target("cuda:0 (NVIDIA L4)", "cuda", 22_534 * MIB, 2_534 * MIB)


def test_each_tensor_is_rounded_up_to_what_the_allocator_gives_out():
    estimate = estimate_memory(lambda: [torch.ones(1), torch.ones(200)], device="H100")
    assert estimate.peak_bytes == 512 + 1024
    assert estimate.reserved_bytes == 2 * MIB
    assert estimate.context_bytes == CONTEXT_BYTES
    assert estimate.least_bytes == estimate.peak_bytes + CONTEXT_BYTES[0]
    assert estimate.most_bytes == 2 * MIB + CONTEXT_BYTES[1]


def test_on_the_cpu_nothing_is_rounded_and_there_is_no_context():
    estimate = estimate_memory(lambda: torch.ones(1), device="cpu")
    assert (estimate.peak_bytes, estimate.reserved_bytes, estimate.context_bytes) == (4, None, None)
    assert estimate.least_bytes == estimate.most_bytes == 4


@pytest.mark.parametrize("device", ["H100", "cpu", None])
def test_code_for_cuda_is_played_on_the_cpu(device):
    def make_step(batch=2):
        model = nn.Linear(4, 4).to("cuda")
        where = torch.device("cuda:0")
        inputs = torch.ones(batch, 4, device=where).cuda()
        labels = torch.zeros(batch, 4).to(where, non_blocking=True)
        return lambda: functional.mse_loss(model(inputs), labels).backward()

    estimate = estimate_memory(make_step, device=device)
    assert estimate.obstacle is None
    assert estimate.kinds["gradients"] > 0


@pytest.mark.parametrize("move", [lambda one: one.to("cuda"), lambda one: one.cuda()])
def test_an_inference_for_cuda_counts_what_it_puts_there(move):
    def make_step():
        model = move(nn.Linear(100, 100, bias=False))
        return lambda: model(torch.ones(1, 100, device="cuda"))

    estimate = estimate_memory(make_step, inference=True)
    assert estimate.peak_bytes == 100 * 100 * 4 + 400 + 400
    assert estimate_memory(lambda: torch.ones(9, device="cuda"), inference=True).peak_bytes == 36


def test_what_stays_on_the_host_has_a_sum_of_its_own():
    def make_step(batch=64):
        images = torch.randn(50_000, 3, 224, 224)
        model = nn.Linear(3 * 224 * 224, 4, bias=False).to("cuda")
        return lambda: model(images[:batch].to("cuda").flatten(1)).mean().backward()

    estimate = estimate_memory(make_step, device="24 GiB")
    weights = 4 * 3 * 224 * 224 * 4  # made on the host, as by a real step
    assert (estimate.fits, estimate.host_bytes) == (True, 50_000 * 3 * 224 * 224 * 4 + weights)
    assert estimate.kinds["inputs"] == 64 * 3 * 224 * 224 * 4
    assert "tensors that stay on the host" in str(estimate)


def test_arguments_from_the_host_meet_what_the_step_puts_on_the_gpu():
    def train(model, inputs):
        model(inputs.to("cuda")).sum().backward()

    estimate = estimate_memory(train, nn.Linear(100, 100), torch.ones(5, 100), device="H100")
    assert estimate.kinds["parameters"] == 100 * 100 * 4 // 512 * 512 + 512 + 512


def test_devices_that_do_not_meet_are_the_steps_own_error():
    def make_step():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        return lambda: here + there

    with pytest.raises(UsageError, match=r"same device|different devices"):
        estimate_memory(make_step, device="H100")


def put_by_default():
    with torch.device("cuda"):
        return torch.tensor([1.0]) + torch.ones(1)


@pytest.mark.parametrize(
    "call",
    [
        torch.cuda.synchronize,
        lambda: torch.ones(3).pin_memory().to(0, non_blocking=True),
        lambda: torch.cuda.set_device(0),
        lambda: torch.cuda.Event(enable_timing=True).record(),
        lambda: torch.cuda.current_stream().wait_stream(torch.cuda.Stream()),
        lambda: torch.randn(3, generator=torch.Generator("cuda"), device="cuda"),
        lambda: torch.cuda.get_device_properties(0).name == "H100" or 1 / 0,
        lambda: torch.cuda.mem_get_info()[1] == 81_559 * MIB or 1 / 0,
        lambda: torch.cuda.is_available() or 1 / 0,
        lambda: torch.ones(3, device="cuda").is_cuda or 1 / 0,
        lambda: torch.tensor([1.0], device="cuda").get_device() == 0 or 1 / 0,
        lambda: torch.ones(3, device="cuda").new_tensor([1.0]).device.type == "cuda" or 1 / 0,
        lambda: torch.tensor([1.0], pin_memory=True).to("cuda"),
        lambda: torch.cuda.memory_stats(device=0)["allocated_bytes.all.peak"] > 0 or 1 / 0,
        lambda: torch.cuda.max_memory_allocated(device="cuda") > 0 or 1 / 0,
        lambda: torch.cuda.set_rng_state(torch.cuda.get_rng_state(device=0), device=0),
        lambda: torch.cuda.memory_summary(device=0) and torch.cuda.utilization(),
        put_by_default,
    ],
)
def test_what_a_script_asks_cuda_is_answered(call):
    available = torch.cuda.is_available()

    def make_step(batch=8):
        model = nn.Linear(8, 8).to("cuda")
        return lambda: (model(torch.randn(batch, 8, device="cuda")).sum().backward(), call())

    estimate = estimate_memory(make_step, device="H100")
    assert (estimate.obstacle, estimate.fits) == (None, True)
    assert torch.cuda.is_available() is available


@pytest.mark.parametrize(
    ("device", "inference", "threads", "each"),
    [("H100", False, 2, 32 * MIB), ("24 GiB", False, 2, 8_519_680), ("24 GiB", True, 1, 8_519_680)],
)
def test_cublas_keeps_a_workspace_for_each_thread(device, inference, threads, each):
    model, inputs = nn.Linear(8, 8), torch.ones(2, 8)
    step = model if inference else lambda net, given: net(given).sum().backward()
    arguments = (inputs,) if inference else (model, inputs)
    estimate = estimate_memory(step, *arguments, device=device, inference=inference)
    assert estimate.workspace_bytes == threads * each
    assert "workspaces of cuBLAS" in str(estimate)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks_on_a_gpu_are_a_lower_bound(layer):
    def make_step(batch=2):
        model = layer(8, 8).cuda()
        return lambda: model(torch.ones(5, batch, 8, device="cuda"))[0].sum().backward()

    assert estimate_memory(make_step, device="H100").obstacle.operator.startswith("cuDNN")


def test_where_the_weights_alone_are_too_much_no_batch_is_tried():
    tried = []

    def make_step(batch=64):
        model = nn.Linear(2**15, 2**15).cuda()
        return lambda: model(torch.ones(batch, 2**15, device="cuda")).sum().backward()

    estimate = estimate_memory(make_step, device="6 GiB", say=tried.append)
    assert (estimate.fits, estimate.largest_batch, tried) == (False, 0, [])


def drop(batch=64):
    values = torch.ones(batch, 1024, requires_grad=True)
    return lambda: functional.dropout(values, 0.1).sum().backward()


def test_dropout_keeps_a_mask_of_one_byte_an_element():
    on_cuda, on_cpu = estimate_memory(drop, device="H100"), estimate_memory(drop)
    assert on_cuda.peak_bytes < on_cpu.peak_bytes
    size = 64 * 1024
    # The values, what drops out, and the mask; the values' gradient comes when that has gone.
    assert on_cuda.kinds["activations"] <= 4 * size + size + 4 * size + 2048


def test_dropout_that_drops_nothing_is_left_alone():
    def make_step():
        values = torch.ones(100, requires_grad=True)
        return lambda: functional.dropout(values, 0.5, training=False).sum().backward()

    assert estimate_memory(make_step, device="H100").obstacle is None


def attend(batch=2, **named):
    query = torch.ones(batch, 4, 512, 32, requires_grad=True)
    return lambda: (
        functional.scaled_dot_product_attention(query, query, query, **named).sum().backward()
    )


def test_attention_with_dropout_does_not_keep_its_weights():
    weights = 2 * 4 * 512 * 512 * 4
    on_cuda = estimate_memory(lambda: attend(dropout_p=0.1), device="H100")
    on_cpu = estimate_memory(lambda: attend(dropout_p=0.1))
    assert on_cuda.peak_bytes < weights < on_cpu.peak_bytes


def test_attention_with_a_mask_and_dropout_does_not_keep_its_weights():
    weights = 2 * 4 * 512 * 512 * 4
    mask = torch.ones(512, 512, dtype=torch.bool)
    masked = estimate_memory(lambda: attend(attn_mask=mask, dropout_p=0.1), device="H100")
    assert (masked.obstacle, masked.peak_bytes < weights) == (None, True)


def test_an_optimizer_works_on_all_parameters_at_once():
    def make_step():
        model = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(8)))
        optimizer = torch.optim.Adam(model.parameters())

        def step():
            model(torch.ones(1, 100)).sum().backward()
            optimizer.step()

        return step

    weights = 8 * 100 * 100 * 4
    on_cuda, on_cpu = estimate_memory(make_step, device="H100"), estimate_memory(make_step)
    assert on_cuda.kinds["optimizer"] >= 3 * weights
    assert on_cpu.kinds["optimizer"] < 3 * weights


def update_one_by_one(foreach, optimizer=torch.optim.Adam, **options):
    """The bytes of an optimizer's state and temporaries with this choice."""

    def make_step():
        model = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(8)))
        updates = optimizer(model.parameters(), foreach=foreach, **options)

        def step():
            model(torch.ones(1, 100)).sum().backward()
            updates.step()
            assert updates.param_groups[0]["foreach"] is foreach

        return step

    return estimate_memory(make_step, device="H100").kinds["optimizer"]


def test_an_optimizer_that_has_chosen_is_left_its_choice():
    by_default, at_once = update_one_by_one(None), update_one_by_one(True)
    assert update_one_by_one(False) < by_default == at_once


def test_an_optimizer_whose_default_is_one_by_one_is_left_it():
    by_default = update_one_by_one(None, torch.optim.Adafactor)
    assert by_default == update_one_by_one(False, torch.optim.Adafactor)
    assert by_default < update_one_by_one(True, torch.optim.Adafactor)


def make_autocast(batch=64):
    """A linear layer and a norm, whose results are 4 bytes an element without autocast."""
    model = nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256), nn.Linear(256, 256))
    inputs = torch.ones(batch, 256)

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            first, normed, last = model[0](inputs), None, None
            normed = model[1](first)
            last = model[2](normed)
            loss = functional.mse_loss(last, torch.zeros_like(last))
        SEEN.append((first.dtype, normed.dtype, last.dtype, loss.dtype))
        loss.backward()

    return step


SEEN = Record()


def test_autocast_for_cuda_gives_its_types():
    SEEN.take()
    estimate = estimate_memory(make_autocast, device="H100")
    half, full = torch.bfloat16, torch.float32
    assert set(SEEN.take()) == {(half, full, half, full)}
    assert (estimate.notes, estimate.obstacle) == ((), None)


def test_autocast_without_a_type_has_cudas_own():
    def make_step():
        layer = nn.Linear(8, 8)

        def step():
            with torch.amp.autocast("cuda"):
                assert layer(torch.ones(1, 8)).dtype is torch.float16

        return step

    assert estimate_memory(make_step, device="H100").obstacle is None
    assert estimate_memory(make_step, device="H100", inference=True).obstacle is None


def test_attention_under_autocast_takes_its_type():
    def make_step():
        query = torch.ones(2, 4, 16, 8, requires_grad=True)

        def step():
            with torch.autocast("cuda", dtype=torch.float16):
                attended = functional.scaled_dot_product_attention(query, query, query)
            assert attended.dtype is torch.float16
            attended.sum().backward()

        return step

    assert estimate_memory(make_step, device="H100").obstacle is None


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_for_the_cpu_autocast_for_cuda_is_as_it_is_there():
    SEEN.take()
    original = torch.amp.autocast_mode.autocast.__init__
    estimate = estimate_memory(make_autocast, device="cpu")
    assert estimate.notes == ()
    assert set(SEEN.take()) == {(torch.float32,) * 4}
    estimate_memory(make_autocast, device="H100")
    assert torch.amp.autocast_mode.autocast.__init__ is original


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_the_estimate_is_within_three_percent_of_the_gpus_peak(model, optimizer):
    batch = 96
    estimate = estimate_memory(make_training(model, optimizer), batch=batch, device="H100")
    make_step = make_training(model, optimizer, "cuda")
    run_twice(make_step, 2)  # what cuBLAS keeps for itself is there from then on
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_twice(make_step, batch)
    measured = torch.cuda.max_memory_allocated() - before
    assert abs(estimate.peak_bytes - measured) <= 0.03 * measured


def hold(serial, count):
    return Storage(serial, count, "cpu", "other")


@pytest.mark.parametrize(
    ("count", "allocated", "reserved"),
    [
        pytest.param(0, 0, 0, id="nothing"),
        pytest.param(1, 512, 2 * MIB, id="one byte"),
        pytest.param(MIB, MIB, 2 * MIB, id="the largest small one"),
        pytest.param(MIB + 1, MIB + 512, 20 * MIB, id="a middle one"),
        pytest.param(10 * MIB, 10 * MIB, 10 * MIB, id="a large one"),
        pytest.param(11 * MIB + 1, 12 * MIB, 12 * MIB, id="a rest too small to cut off"),
        pytest.param(21 * MIB // 2, 21 * MIB // 2, 12 * MIB, id="a rest that is cut off"),
    ],
)
def test_one_request(count, allocated, reserved):
    allocator = CachingAllocator()
    allocator.allocate(hold(1, count))
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved)


def test_a_freed_block_is_used_again():
    allocator = CachingAllocator()
    for serial in range(5):
        one = hold(serial, 15 * MIB)
        allocator.allocate(one)
        allocator.free(one)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 16 * MIB)
    assert allocator.peak_allocated_bytes == 16 * MIB


def test_small_ones_share_a_segment():
    allocator = CachingAllocator()
    for serial in range(4):
        allocator.allocate(hold(serial, MIB // 2))
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(hold(9, 1))
    assert allocator.reserved_bytes == 4 * MIB


def test_neighbours_are_joined_when_they_are_free():
    allocator = CachingAllocator()
    parts = [hold(serial, 5 * MIB) for serial in range(4)]
    for one in parts:
        allocator.allocate(one)
    assert allocator.reserved_bytes == 20 * MIB
    for place in (0, 2, 1):
        allocator.free(parts[place])
    allocator.allocate(hold(9, 15 * MIB))
    assert allocator.reserved_bytes == 20 * MIB


def test_what_is_split_in_pieces_does_not_serve_a_large_one():
    allocator = CachingAllocator()
    parts = [hold(serial, 5 * MIB) for serial in range(4)]
    for one in parts:
        allocator.allocate(one)
    allocator.free(parts[0])
    allocator.free(parts[2])
    allocator.allocate(hold(9, 9 * MIB))
    assert allocator.reserved_bytes == 40 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken():
    allocator = CachingAllocator()
    large, small = hold(1, 40 * MIB), hold(2, 20 * MIB)
    for one in (large, small):
        allocator.allocate(one)
    for one in (large, small):
        allocator.free(one)
    allocator.allocate(hold(3, 20 * MIB))
    allocator.allocate(hold(4, 40 * MIB))
    assert allocator.reserved_bytes == 60 * MIB


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30 * MIB)), max_size=80))
def test_all_that_is_freed_is_joined_again(moves):
    allocator, held = CachingAllocator(), {}
    for serial, (place, count) in enumerate(moves):
        if place in held:
            allocator.free(held.pop(place))
        else:
            held[place] = hold(serial, count)
            allocator.allocate(held[place])
        assert allocator.allocated_bytes <= allocator.reserved_bytes
    for one in held.values():
        allocator.free(one)
    assert allocator.allocated_bytes == 0
    free = [size for pool in allocator._free.values() for size, _ in pool]
    assert sum(free) == allocator.reserved_bytes
    assert all(block.previous is block.following is None for block in allocator._by_number.values())


def test_distances_are_differentiated_pair_by_pair():
    def make_step():
        values = torch.ones(100, 32, requires_grad=True)
        return lambda: torch.cdist(values, torch.ones(100, 32), p=1).sum().backward()

    pairs_bytes = 4 * 100 * 100 * 32
    assert pairs_bytes < estimate_memory(make_step, device="H100").peak_bytes < 1.2 * pairs_bytes
    assert estimate_memory(make_step).peak_bytes < pairs_bytes / 2


WHOLE = torch.ones(9, 64)
VIEWS = {
    "a part": WHOLE[1:],
    "a shape": WHOLE.view(64, 9).view(9, 64),
    "a transposed one": torch.ones(64, 9).t(),
    "of an array": torch.from_numpy(np.ones((9, 64), np.float32))[1:],
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_where_its_whole_is(name):
    view, model = VIEWS[name], nn.Linear(64, 64)
    own = torch.ones(view.shape)

    def step(model, inputs):
        model(inputs).sum().backward()

    expected = estimate_memory(step, model, own, device="H100")
    assert expected.host_bytes == 0
    for found in (
        estimate_memory(step, model, view, device="H100"),
        estimate_memory(lambda one: step(one, view), model, device="H100"),
    ):
        assert (found.obstacle, found.host_bytes) == (None, 0)


def test_a_view_on_the_host_stays_there_where_the_code_names_devices():
    def step(inputs):
        return inputs.to("cuda:0") * 2

    assert estimate_memory(step, WHOLE[1:], device="H100").host_bytes >= WHOLE[1:].nbytes


def test_data_parallel_on_one_gpu_is_its_module():
    def step(layer, inputs):
        torch.nn.DataParallel(layer)(inputs).sum().backward()

    def step_alone(layer, inputs):
        layer.cuda()(inputs.cuda()).sum().backward()

    given = torch.nn.Linear(512, 512), torch.randn(64, 512)
    found, alone = (estimate_memory(one, *given, device="24 GiB") for one in (step, step_alone))
    assert found.peak_bytes == alone.peak_bytes > 2_000_000 and found.obstacle is None


def apply_in_parallel(layer, inputs):
    return parallel_apply([layer], [(inputs,)])[0]


def apply_function(layer, inputs):
    return data_parallel(layer, inputs, device_ids=[0])


def scatter_alone(layer, inputs):
    return layer(scatter(inputs, [0])[0])


def name_accelerator(layer, inputs):
    device = torch.accelerator.current_accelerator()
    return layer.to(device)(inputs.to(device))


@pytest.mark.parametrize(
    "act", [apply_in_parallel, apply_function, scatter_alone, name_accelerator]
)
def test_a_part_of_data_parallel_on_one_gpu_is_the_module(act):
    def step(layer, inputs):
        act(layer.cuda(), inputs.cuda()).sum().backward()

    def step_alone(layer, inputs):
        layer.cuda()(inputs.cuda()).sum().backward()

    given = torch.nn.Linear(512, 512), torch.randn(64, 512)
    found, alone = (estimate_memory(one, *given, device="24 GiB") for one in (step, step_alone))
    assert found.peak_bytes == alone.peak_bytes > 2_000_000 and found.obstacle is None


def test_what_is_gathered_is_a_copy():
    def step(layer, inputs):
        replicas = replicate(layer.cuda(), [0])
        return gather(parallel_apply(replicas, scatter((inputs,), [0])), 0)

    given = torch.nn.Linear(512, 1024), torch.randn(64, 512)
    found = estimate_memory(step, *given, device="24 GiB", inference=True)
    assert found.peak_bytes - found.kinds["parameters"] == 2 * 4 * 64 * 1024


def test_two_modules_in_parallel_overlap():
    def step(layer, inputs):
        parallel_apply([layer, layer], [(one,) for one in inputs.chunk(2)])

    estimate = estimate_memory(step, torch.nn.Linear(64, 64), torch.randn(8, 64), device="24 GiB")
    assert "at the same time" in estimate.obstacle.reason


def test_torchs_accelerator_is_the_gpu():
    seen, accelerator = Record(), torch.accelerator

    def step(inputs):
        accelerator.synchronize()
        accelerator.empty_cache()
        accelerator.set_device_index(0)
        accelerator.set_stream(accelerator.current_stream())
        accelerator.reset_peak_memory_stats()
        with torch.Stream(device="cuda") as stream, accelerator.device_index(0):
            made = inputs * 2
            made.record_stream(stream)
        torch.Event(device="cuda").record()
        seen.append((accelerator.is_available(), accelerator.device_count()))
        seen.append(accelerator.memory_allocated())
        seen.append(accelerator.get_memory_info())
        return made

    found = estimate_memory(step, torch.ones(1000), device="24 GiB")
    assert found.peak_bytes == 8192 and found.obstacle is None
    capacity = 24 << 30
    assert seen.take()[:3] == [(True, 1), 8192, (capacity - 8192, capacity)]
