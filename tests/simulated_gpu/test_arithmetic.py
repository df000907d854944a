"""The simulated GPU itself: operators give the values of the CPU, and kernels are launched."""

from __future__ import annotations

import copy

import pytest

from tests.simulated_gpu.build import write_stubs
from tests.simulated_gpu.hosts import count_launches

pytestmark = pytest.mark.simulated


def assert_close(found, expected, tolerance=1e-4):
    import torch

    torch.testing.assert_close(found.cpu(), expected, atol=tolerance, rtol=tolerance)


def find_differences(model, inputs):
    """The model's result and gradients on both devices, asserted to be the same."""
    import torch

    on_gpu = copy.deepcopy(model).cuda()
    for one, data in ((model, inputs), (on_gpu, inputs.cuda())):
        result = one(data)
        (result[0] if isinstance(result, tuple) else result).square().sum().backward()
    for mine, theirs in zip(on_gpu.parameters(), model.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad, 1e-3)
    with torch.no_grad():
        first, second = on_gpu(inputs.cuda()), model(inputs)
    assert_close(*((first[0], second[0]) if isinstance(first, tuple) else (first, second)))


def list_models():
    from torch import nn

    return {
        "MLP": (nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16)), (4, 8)),
        "convolution": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (2, 3, 8, 8)),
        "LSTM": (nn.LSTM(8, 16, 2), (5, 3, 8)),
        "GRU": (nn.GRU(8, 16), (5, 3, 8)),
        "encoder": (
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True),
            (2, 8, 32),
        ),
    }


@pytest.mark.parametrize("name", ["MLP", "convolution", "LSTM", "GRU", "encoder"])
def test_models_train_as_on_the_cpu(name):
    import torch

    torch.manual_seed(0)
    model, shape = list_models()[name]
    before = count_launches()
    find_differences(model, torch.randn(shape))
    assert count_launches() > before


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=["plain", "causal"])
def test_attention_has_its_values_and_gradients(options):
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    query = torch.randn(2, 4, 16, 32, requires_grad=True)
    moved = query.detach().cuda().requires_grad_()
    for one in (query, moved):
        attend(one, one, one, **options).square().sum().backward()
    assert_close(moved.grad, query.grad)


def test_results_whose_size_depends_on_values():
    import torch

    values = torch.tensor([3, 0, 1, 3])
    moved = values.cuda()
    assert torch.nonzero(moved).tolist() == torch.nonzero(values).tolist()
    assert moved.unique().tolist() == [0, 1, 3]
    assert moved[moved > 1].tolist() == [3, 3]
    assert_close(torch.linalg.inv(torch.eye(3).cuda() * 2), torch.eye(3) / 2)
    assert_close(
        torch.bmm(torch.ones(2, 3, 1).cuda(), torch.ones(2, 1, 2).cuda()), torch.ones(2, 3, 2)
    )


def test_a_graph_computes_at_each_launch():
    import torch

    inputs = torch.zeros(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = inputs * 2 + 1
    inputs.fill_(3)
    graph.replay()
    assert results.tolist() == [7.0] * 4


def test_tf32_is_rounded_only_where_it_is_allowed():
    import torch

    left, right = torch.rand(64, 64), torch.rand(64, 64)
    exact = left.double() @ right.double()

    def measure_error():
        return ((left.cuda() @ right.cuda()).cpu().double() - exact).abs().max().item()

    plain = measure_error()
    torch.set_float32_matmul_precision("high")
    try:
        assert measure_error() > 10 * plain
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")  # torch's own compiler
def test_a_compiled_function_has_its_values_and_inductors_rounding():
    import torch

    def wave(inputs):
        return torch.sigmoid(inputs) * torch.tanh(inputs) + torch.exp(-inputs * inputs)

    inputs = torch.randn(4096, device="cuda").bfloat16()
    exact = wave(inputs.double())
    eager = (wave(inputs).double() - exact).abs().mean()
    compiled = (torch.compile(wave)(inputs).double() - exact).abs().mean()
    assert 0 < compiled < eager


def test_a_stub_says_what_it_was_built_to_say():
    source = write_stubs(["cudaIpcGetMemHandle", "not-a-name"], 801)
    assert "STUB(cudaIpcGetMemHandle)" in source
    assert "return 801" in source
    assert "not-a-name" not in source
