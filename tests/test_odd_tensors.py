"""Tensors that are not like others: lazy, fake, sharded, wrapped by torch.func, subclasses."""

from __future__ import annotations

import pytest

import labkit
from labkit.errors import UsageError
from labkit.memory.balance.read import count_cpu_tensors

torch = pytest.importorskip("torch")
nn = torch.nn


def run_once(model):
    """A forward and a backward pass on a batch of four."""
    model(torch.ones(4, 10)).sum().backward()


def test_the_balance_counts_the_tensors_beside_them():
    model = nn.LazyLinear(10)
    before = count_cpu_tensors()
    held = torch.ones(1000)
    assert count_cpu_tensors() - before == held.nbytes
    assert labkit.memory().balances[-1].this_process.allocated_bytes >= held.nbytes
    assert nn.parameter.is_lazy(model.weight)


def test_the_first_pass_within_a_block_makes_parameters_of_them():
    model = nn.LazyLinear(10, bias=False)
    with labkit.track_memory("cpu", kinds=True) as tracked:
        run_once(model)
    assert tracked.kinds["parameters"] == tracked.kinds["gradients"] == 400
    assert model.weight.grad is not None


def test_a_recording_has_what_they_allocate():
    model = nn.LazyLinear(10, bias=False)
    with labkit.record_allocations("cpu") as recorded:
        run_once(model)
    assert sum(group.held_bytes for group in recorded.history.devices[0].kept) == 800


def test_an_estimate_says_what_to_do_first():
    with pytest.raises(UsageError, match="has a lazy module, whose parameters") as caught:
        labkit.estimate_memory(run_once, nn.Sequential(nn.LazyLinear(10)))
    assert caught.value.fix.startswith("run the model once on a small batch")


class Jealous(torch.Tensor):
    """A tensor that lets nobody ask it anything."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        """Refuses."""
        raise TypeError("do not touch")


def test_no_code_of_a_tensors_own_runs_when_it_is_counted():
    before = count_cpu_tensors()
    held = torch.ones(1000).as_subclass(Jealous)
    assert count_cpu_tensors() - before == 4000
    del held


def test_a_fake_tensor_is_no_memory():
    from torch._subclasses import FakeTensorMode

    before = count_cpu_tensors()
    with FakeTensorMode():
        held = torch.ones(10**9)
    assert count_cpu_tensors() == before
    del held


def make_sharded():
    """A step of FSDP2 on one process, whose parameters are DTensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    inputs = torch.randn(4, 64)

    def step():
        optimizer.zero_grad()
        model(inputs).mean().backward()
        optimizer.step()

    return step


def make_two():
    """A step on a subclass that holds two tensors."""
    two = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    weight = nn.Parameter(two(torch.randn(64, 64), torch.randn(64, 64)))
    inputs = two(torch.randn(4, 64), torch.randn(4, 64))
    return lambda: (inputs @ weight).sum().backward()


def make_per_sample(transform):
    """A function of torch.func on a model of 10 inputs."""
    from torch import func

    model, inputs = nn.Linear(10, 1), torch.randn(400, 10)
    parameters = {name: held.detach() for name, held in model.named_parameters()}

    def loss(parameters, one):
        return func.functional_call(model, parameters, (one,)).sum()

    return {
        "per sample": lambda: func.vmap(func.grad(loss), (None, 0))(parameters, inputs),
        "vmap": lambda: func.vmap(model)(inputs),
        "jacrev": lambda: func.jacrev(model)(inputs[0]),
        "hessian": lambda: func.hessian(lambda one: model(one).square().sum())(inputs[0]),
    }[transform]


@pytest.fixture
def alone():
    """A process group of this process."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def check_step(step):
    """The step's categories; they, the recorder and the profiler agree within 5 % or 4 KiB."""
    step()
    with labkit.track_memory("cpu", tensors=True, kinds=True) as tracked:
        step()
    (parts,) = tracked.use.breakdowns
    with labkit.record_allocations("cpu") as recorded:
        step()
    assert (parts.trouble, recorded.history.notes) == (None, ())
    peak = recorded.history.devices[0].peak.live_bytes
    assert peak == pytest.approx(parts.peak_bytes, rel=0.05, abs=4096)
    assert parts.scratch_bytes <= max(4096, parts.peak_bytes * 0.05)
    return parts.categories


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*barrier.*")
def test_sharded_parameters_are_followed(alone):
    held = check_step(make_sharded())
    weights = 2 * (64 * 64 + 64) * 4
    assert held["optimizer"] == weights
    assert held["parameters"] >= weights
    assert held["gradients"] >= weights // 2


@pytest.mark.filterwarnings("ignore:.*barrier.*")
def test_a_mask_of_a_sharded_parameter_is_estimated(alone):
    from torch.distributed.fsdp import fully_shard

    def make_step():
        model = fully_shard(nn.Linear(64, 64, bias=False))
        return lambda: torch.zeros_like(model.weight, dtype=torch.int64)

    assert labkit.estimate_memory(make_step).peak_bytes >= 64 * 64 * (4 + 8)


@pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("transform", ["per sample", "vmap", "jacrev", "hessian"])
def test_models_inside_transforms_are_followed(transform):
    held = check_step(make_per_sample(transform))
    assert held["parameters"] >= 40


def test_a_subclass_of_two_tensors_is_followed():
    assert check_step(make_two())["parameters"] == 2 * 64 * 64 * 4


def test_what_cannot_be_followed_is_a_note_and_the_block_goes_on():
    class Broken(torch.Tensor):
        def untyped_storage(self):
            raise NotImplementedError("Cannot access storage of Broken")

    inputs = torch.ones(4, 10).as_subclass(Broken)
    model = nn.Linear(10, 10)
    with labkit.track_memory("cpu", kinds=True) as tracked:
        loss = model(inputs).sum()
        loss.backward()
    assert model.weight.grad is not None
    assert "Cannot access storage of Broken" in tracked.use.breakdowns[0].trouble
    assert "note: some tensors could not be followed" in repr(tracked)
    with labkit.record_allocations("cpu") as recorded:
        model(inputs)
    assert "could not be followed" in repr(recorded)


# An older torch gives them to no mode: there labkit says so, which test_track.py tests.
follows_them = pytest.mark.skipif(
    torch.__version__ < (2, 7), reason="torch 2.6 hides flex_attention and torch.export from modes"
)


@follows_them
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_higher_order_operator_runs_and_is_a_note():
    from torch.nn.attention.flex_attention import flex_attention

    parts = torch.randn(1, 2, 16, 8)
    with labkit.track_memory("cpu", kinds=True) as tracked:
        result = flex_attention(parts, parts, parts)
    assert result.shape == parts.shape
    assert "flex_attention is not counted" in tracked.use.breakdowns[0].trouble


@follows_them
def test_an_export_inside_of_a_block_works():
    with labkit.track_memory("cpu", kinds=True) as tracked:
        torch.export.export(nn.Linear(4, 4), (torch.ones(2, 4),))
    assert tracked.use.breakdowns[0].trouble is None


def test_backward_alone_has_its_gradients():
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    loss = model(torch.randn(64, 256)).sum()
    with labkit.track_memory("cpu", kinds=True) as tracked:
        loss.backward()
    weights = sum(one.nbytes for one in model.parameters())
    assert tracked.kinds["parameters"] == tracked.kinds["gradients"] == weights
