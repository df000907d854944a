"""The tracer of storages: each byte once, by what it is for and by the line it is from."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from labkit.errors import LabkitError
from labkit.memory.track import storages
from labkit.memory.track.model import sum_categories, sum_lines
from labkit.memory.track.storages import StorageTracer, list_parts
from labkit.memory.track.tracker import track_memory
from tests.fakes.models import MODELS, OPTIMIZERS, make_training, run_twice

CASES = [(model, optimizer) for model in MODELS for optimizer in OPTIMIZERS]


def list_categories(tracer):
    """Bytes by category at the peak on the CPU, without the categories that hold nothing."""
    sums = sum_categories(tracer.levels["cpu"].list_at_peak())
    return {kind: held for kind, held in sums.items() if held}


def measure_by_profiler(run):
    """The peak and the end of the CPU's tensors in a block, as torch's profiler counts them."""
    with track_memory("cpu", tensors=True) as tracked:
        run()
    span = tracked.use.find_span("tensors")
    return span.peak_bytes, span.after_bytes


def test_a_tensor_is_counted_while_it_lives():
    with StorageTracer() as tracer:
        held = torch.zeros(1000)
        gone = torch.zeros(500)
        del gone
        torch.zeros(1)
    level = tracer.levels["cpu"]
    assert (level.peak_bytes, level.now_bytes, level.before_bytes) == (6000, 4000, 0)
    assert held.nbytes == 4000


def test_views_and_slices_take_nothing():
    with StorageTracer() as tracer:
        held = torch.zeros(100)
        views = [held[10:], held.view(10, 10).T, held.detach(), held.unsqueeze(0)]
    assert tracer.levels["cpu"].peak_bytes == 400
    assert len(views) == 4


def test_a_view_of_an_earlier_tensor_is_not_a_new_one():
    earlier = torch.zeros(100)
    with StorageTracer() as tracer:
        views = earlier.view(10, 10).T[1:]
        again = views.contiguous()
    level = tracer.levels["cpu"]
    assert (level.before_bytes, level.peak_bytes) == (400, 400 + again.nbytes)


def test_an_earlier_tensor_that_is_freed_within_is_counted_out():
    earlier = torch.zeros(100)
    with StorageTracer() as tracer:
        double = earlier * 2
        del earlier
    level = tracer.levels["cpu"]
    assert (level.before_bytes, level.peak_bytes, level.now_bytes) == (400, 800, double.nbytes)


def test_a_storage_that_is_resized_counts_anew():
    with StorageTracer() as tracer:
        grows = torch.zeros(10)
        grows.resize_(1000)
    assert tracer.levels["cpu"].now_bytes == 4000


def test_a_tensor_made_of_numbers_is_new():
    with StorageTracer() as tracer:
        held = torch.tensor([1.0, 2.0])
    assert (tracer.levels["cpu"].before_bytes, tracer.levels["cpu"].now_bytes) == (0, held.nbytes)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_the_parts_of_a_sparse_tensor_are_counted():
    with StorageTracer() as tracer:
        sparse = torch.eye(100).to_sparse()
        compressed = torch.eye(50).to_sparse_csr()
    held = sparse._indices().nbytes + sparse._values().nbytes
    parts = (compressed.crow_indices(), compressed.col_indices(), compressed.values())
    held += sum(part.nbytes for part in parts)
    gc.collect()
    assert tracer.levels["cpu"].now_bytes >= held


@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer"), CASES)
def test_the_peak_is_the_profilers(model, optimizer):
    make_step = make_training(model, optimizer)
    run_twice(make_step, 4)
    peak, after = measure_by_profiler(lambda: run_twice(make_step, 4))
    with StorageTracer() as tracer:
        run_twice(make_step, 4)
    level = tracer.levels["cpu"]
    # The profiler sees what an operator takes within itself too: a few hundred bytes here.
    assert 0 <= peak - level.peak_bytes <= 2048
    assert level.now_bytes == after == 0


# Torch's own fake mode cannot copy an encoder's layers: test_estimate.py has that.
@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer"), [one for one in CASES if one[0] != "encoder"])
def test_fake_tensors_give_the_very_same_kinds(model, optimizer):
    make_step = make_training(model, optimizer)
    with StorageTracer() as real:
        run_twice(make_step, 4)
    with FakeTensorMode(), StorageTracer() as fake:
        run_twice(make_step, 4)
    assert list_categories(fake) == list_categories(real)


def test_a_training_step_split_by_what_it_is_for():
    model, inputs = nn.Linear(100, 50), torch.randn(8, 100)
    optimizer = torch.optim.Adam(model.parameters())
    with StorageTracer() as tracer:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=False)
            model(inputs).sum().backward()
            optimizer.step()
    weights = (100 * 50 + 50) * 4
    kinds = list_categories(tracer)
    assert kinds["parameters"] == weights
    assert kinds["gradients"] == weights
    assert kinds["inputs"] == inputs.nbytes
    # Two averages, two counters of steps, and what the step takes meanwhile.
    assert kinds["optimizer"] >= 2 * weights + 8
    assert sum(kinds.values()) == tracer.levels["cpu"].peak_bytes


def test_buffers_are_counted_with_the_parameters():
    norm = nn.BatchNorm1d(10)
    with StorageTracer() as tracer:
        norm(torch.randn(4, 10))
    buffers = sum(one.nbytes for one in (*norm.parameters(), *norm.buffers()))
    assert list_categories(tracer)["parameters"] == buffers


def test_parameters_that_change_their_type_stay_parameters():
    with StorageTracer() as tracer:
        layer = nn.Linear(100, 100, bias=False).bfloat16()
        inputs = torch.ones(1, 100, dtype=torch.bfloat16)
        layer(inputs).sum().backward()
    held = tracer.levels["cpu"]._live.values()
    assert sum(one.bytes for one in held if one.category == "parameters") == 20_000
    assert sum(one.bytes for one in held if one.category == "gradients") == 20_000


def test_a_leaf_of_ones_own_counts_as_a_parameter_and_its_gradient_too():
    weight = torch.randn(10, 10, requires_grad=True)
    with StorageTracer() as tracer:
        (torch.ones(3, 10) @ weight).sum().backward()
        torch.zeros(1000)
    kinds = list_categories(tracer)
    assert (kinds["parameters"], kinds["gradients"]) == (400, 400)


def test_loading_a_checkpoint_is_no_input():
    layer, saved = nn.Linear(10, 10, bias=False), torch.ones(10, 10)
    with StorageTracer() as tracer, torch.no_grad():
        layer.weight.copy_(saved)
    assert list_categories(tracer) == {"parameters": 400, "other": 400}


def test_targets_are_inputs_where_the_loss_reads_them():
    model, targets = nn.Linear(4, 2), torch.zeros(3, 2)
    with StorageTracer() as tracer:
        nn.functional.mse_loss(model(torch.ones(3, 4)), targets)
    assert list_categories(tracer)["inputs"] == 3 * 4 * 4 + targets.nbytes


def test_each_line_has_what_it_allocated_and_its_own_part_of_backward():
    weight = torch.randn(100, 100, requires_grad=True)

    def forward():
        hidden = (weight @ weight).tanh()
        return (hidden * 2).sum()

    with StorageTracer() as tracer:
        forward().backward()
    backward = [one for one in tracer.levels["cpu"].list_at_peak() if one.backward]
    lines = {frame.source for one in backward for frame in one.frames}
    assert backward
    assert lines <= {"hidden = (weight @ weight).tanh()", "return (hidden * 2).sum()"}
    largest = sum_lines(tracer.levels["cpu"].list_at_peak())[0]
    assert largest.frame.source == "hidden = (weight @ weight).tanh()"


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self):
        self.events = []

    def allocate(self, storage):
        self.events.append(("allocate", storage.serial, storage.bytes, storage.before))
        self.frames = storage.frames

    def free(self, storage):
        self.events.append(("free", storage.serial, storage.bytes, storage.before))


def test_an_observer_is_told_of_every_storage_in_order():
    earlier, seen = torch.zeros(10), Recorder()
    with StorageTracer(seen, depth=8):
        made = earlier + 1
        del made
        torch.zeros(5)
    assert seen.events == [
        ("allocate", 1, 40, True),
        ("allocate", 2, 40, False),
        ("free", 2, 40, False),
        ("allocate", 3, 20, False),
        ("free", 3, 20, False),
    ]
    assert seen.frames[0].source == "torch.zeros(5)"
    assert len(seen.frames) > 1


def test_no_hook_is_left_behind():
    model = nn.Linear(2, 2)
    hooks = nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks
    before = [dict(one) for one in hooks]
    with pytest.raises(ZeroDivisionError), StorageTracer():
        model(torch.ones(1, 2)).sum().backward()
        raise ZeroDivisionError
    assert [dict(one) for one in hooks] == before
    assert not model.weight._post_accumulate_grad_hooks
    assert StorageTracer._open == []


def test_a_tracer_traces_once():
    tracer = StorageTracer()
    with tracer:
        pass
    with pytest.raises(LabkitError, match="already traced"), tracer:
        pass


def test_another_thread_is_refused_and_its_tensors_are_not_counted():
    caught = []

    def work():
        torch.zeros(1000)
        try:
            with StorageTracer():
                pass
        except LabkitError as error:
            caught.append(error.what)

    with StorageTracer() as tracer:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
    assert "two threads" in caught[0]
    assert tracer.levels == {}


def test_tracers_nest():
    with StorageTracer() as outer:
        first = torch.zeros(10)
        with StorageTracer() as inner:
            second = first + 1
    assert outer.levels["cpu"].peak_bytes == 80
    assert inner.levels["cpu"].before_bytes == 40
    assert inner.levels["cpu"].peak_bytes == 40 + second.nbytes


def test_tracers_that_overlap_each_have_their_own():
    first, second = StorageTracer(), StorageTracer()
    first.__enter__()
    held = [torch.zeros(10)]
    second.__enter__()
    held.append(torch.zeros(20))
    first.__exit__(None, None, None)
    held.append(torch.zeros(30))
    second.__exit__(None, None, None)
    held.append(torch.zeros(40))
    assert first.levels["cpu"].peak_bytes == 120
    assert second.levels["cpu"].peak_bytes == 200


@pytest.mark.gpu
def test_cuda_tensors_have_a_level_of_their_own():
    with StorageTracer() as tracer:
        held = torch.zeros(1000, device="cuda")
        back = held.cpu()
    assert tracer.levels["cuda:0"].peak_bytes == held.nbytes
    assert tracer.levels["cpu"].peak_bytes == back.nbytes


@pytest.mark.parametrize(
    "call",
    [
        lambda net, one: torch.func.vmap(net)(one),
        lambda net, one: torch.func.jacrev(net)(one[0]),
        lambda net, one: torch.func.grad(lambda given: net(given).sum())(one),
    ],
    ids=["vmap", "jacrev", "grad"],
)
def test_modules_inside_function_transforms_are_counted(call):
    net, inputs = nn.Linear(8, 2), torch.ones(4, 8)
    with StorageTracer() as tracer:
        call(net, inputs)
    kinds = sum_categories(tracer.levels["cpu"].list_at_peak())
    assert kinds["parameters"] >= (8 * 2 + 2) * 4


def test_the_local_part_of_a_distributed_tensor_is_counted():
    class Mesh:
        """What a tensor names beside its parts."""

    class Distributed(torch.Tensor):
        @staticmethod
        def __new__(cls, local):
            return torch.Tensor._make_wrapper_subclass(cls, local.shape, dtype=local.dtype)

        def __init__(self, local):
            self._local_tensor, self.device_mesh = local, Mesh()

        def __tensor_flatten__(self):
            return ["_local_tensor", "device_mesh"], None

        @classmethod
        def __torch_dispatch__(cls, function, types, arguments=(), named=None):
            raise NotImplementedError(function)

    local = torch.ones(3)
    assert [id(one) for one in list_parts(Distributed(local))] == [id(local)]


def test_leaves_that_are_gone_are_not_watched_for_ever_and_others_stay_watched(monkeypatch):
    monkeypatch.setattr(storages, "LEAST_PRUNED", 10)
    kept = torch.ones(7, requires_grad=True)
    with StorageTracer() as tracer:
        (kept * 2).sum().backward()
        for _ in range(100):
            (torch.ones(3, requires_grad=True) * 2).sum().backward()
        watched = len(tracer._watch._watched)
        kept.grad = None
        (kept * 2).sum().backward()
        live = tracer.levels["cpu"]._live.values()
        found = sorted(one.category for one in live if one.bytes == 28)
    assert watched < 30
    assert found == ["gradients", "parameters"]
    assert not kept._post_accumulate_grad_hooks
