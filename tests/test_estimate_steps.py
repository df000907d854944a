"""Estimates of many kinds of steps, against what torch's profiler and CUDA's allocator measure."""

from __future__ import annotations

import functools
import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.utils import rnn

from labkit.errors import UsageError
from labkit.memory.estimate import measured, results, tracer
from labkit.memory.estimate.play import estimate_memory
from labkit.memory.track.tracker import track_memory
from tests.fakes.record import Record
from tests.fakes.steps import BATCH, STEPS, UPPER, estimate_in_states, measure_twice

# So large that what the allocator cannot cut off from a block, up to 1 MiB, is not much.
CUDA_BATCH = 64


def estimate_step(name, device, target, batch=BATCH):
    """The estimate of a step on a device, for a target."""

    def make_step(batch):
        return STEPS[name](device, batch)

    return estimate_memory(make_step, batch=batch, device=target)


def run_step(name, device, batch=BATCH):
    """Makes the step and takes it twice, as an estimate does."""
    torch.manual_seed(0)  # how many iterations L-BFGS takes depends on the numbers
    run = STEPS[name](device, batch)
    run()
    run()


def measure_cuda(name):
    """The peak of CUDA's allocator, without what cuBLAS keeps for itself."""
    run_step(name, "cuda", 2)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_step(name, "cuda", CUDA_BATCH)
    return torch.cuda.max_memory_allocated() - before


def judge(estimate, measured, tolerance):
    """Fails where the estimate is too far off without saying so, in the direction it is off."""
    off = (estimate.peak_bytes - measured) / measured
    # Where the process's history decides too, the estimate is a range.
    least = ((estimate.lowest_bytes or estimate.peak_bytes) - measured) / measured
    assert least <= tolerance or estimate.excess, f"{least:+.2%} and no upper bound"
    assert off >= -tolerance or estimate.obstacle, f"{off:+.2%} and no lower bound"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Warning. use_reentrant")
@pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")  # of torch.func.jvp
@pytest.mark.parametrize("name", STEPS)
def test_on_the_cpu_it_is_within_one_percent_of_the_profiler(name):
    estimate = estimate_step(name, "cpu", None)
    run_step(name, "cpu")
    gc.collect()
    with track_memory("cpu", tensors=True) as tracked:
        run_step(name, "cpu")
    judge(estimate, tracked.use.find_span("tensors").peak_bytes, 0.01)
    assert (estimate.excess is not None) is (name in UPPER)
    assert estimate.obstacle is None


REPEATED = ("gpt", "low_rank")


def mark_slow(names, fast):
    """All names as parameters: those that are not among ``fast`` take seconds."""
    return [one if one in fast else pytest.param(one, marks=pytest.mark.slow) for one in names]


@pytest.mark.parametrize("name", mark_slow(STEPS, REPEATED))
@pytest.mark.filterwarnings("ignore:Warning. use_reentrant")
@pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")  # of torch.func.jvp
def test_repeated_results_have_every_figure_of_computed_ones(name, monkeypatch):
    # For the CPU few: the profiler judges repeated results of every step there, above.
    for device, target in [("cuda", "H100"), ("cpu", None)][: 2 if name in REPEATED else 1]:
        repeated = estimate_step(name, device, target)
        with monkeypatch.context() as patch:
            patch.setattr(tracer, "find_recipe", lambda key: None)
            assert estimate_step(name, device, target) == repeated


def keep(key, taken, *, in_place=False):
    """Keeps a call whose result is its first argument."""
    call = SimpleNamespace(key=key, tensors=taken, in_place=in_place, selected=0)
    results.keep_recipe(call, taken[0], results.measure(taken), 0)


def test_which_of_two_equal_arguments_a_result_was_is_not_remembered():
    with FakeTensorMode():
        one, other = torch.empty(3), torch.empty(3)
        keep("equal", [one, one])
        keep("different", [one, other])
        keep("in place", [one, other, other], in_place=True)

    assert results.find_recipe("in place").parts == (results.Same(0),)
    assert results.find_recipe("equal") is None
    assert results.find_recipe("different").parts == (results.Same(0),)


def list_places(values):
    """Where the parts of each step of (batch, steps, width) values are, and how large they are."""
    parts = []
    for place in (0, 2, -1, 1):
        step = values[:, place]
        parts += [step, step.T, step[:, 3:], step.unsqueeze(1), *step.chunk(3, 1)]
        parts += [part.detach().view(-1) for part in step[1:].unbind()]
    parts += [values.narrow(1, 2, 2).select(2, place) for place in (-1, 4, 0)]
    parts += [values.as_strided((2, 2), (1, 3), place) for place in (1, 7)]
    return [(one.storage_offset(), one.shape, one.stride()) for one in parts]


def test_a_repeated_view_is_where_its_own_step_is():
    record = Record()

    def run():
        record.append(list_places(torch.empty(4, 5, 6)))
        record.append(list_places(torch.empty(9, 5, 6)[5:]))

    estimate_memory(run)
    found = record.take()
    whole, later = list_places(torch.empty(4, 5, 6)), list_places(torch.empty(9, 5, 6)[5:])
    assert len(found) >= 2 and found[:2] == [whole, later] == found[-2:]


def transpose(values):
    values.t_()


def replace_data(values):
    values.data = torch.empty(2, 7)


def point_elsewhere(values):
    values.set_(torch.empty(5, 5).untyped_storage(), 1, (3, 2), (2, 1))


@pytest.mark.parametrize("change", [transpose, replace_data, point_elsewhere])
def test_a_tensor_that_has_got_another_layout_gets_other_results(change):
    record = Record()

    def run():
        values = torch.empty(3, 4)
        before = (values * 2).shape
        change(values)
        record.append((before, (values * 2).shape, values[1].storage_offset()))

    estimate_memory(run)
    run()  # for real
    found = record.take()
    assert len(found) == 2 and found[0] == found[1]


def test_the_storage_that_a_tensor_gets_is_held():
    def run():
        values = torch.empty(1000)
        values * 2
        values.data = torch.empty(5000)
        return values * 2

    assert estimate_memory(run).peak_bytes == 4 * (5000 + 5000)


def test_a_repeated_constant_has_its_own_value_and_storage():
    def run():
        counts = [torch.tensor(float(one)) for one in (100, 2000, 30)]
        return [torch.empty(int(one)) for one in counts]

    # A constant is made, and then becomes a fake one.
    assert estimate_memory(run).peak_bytes == 4 * (100 + 2000 + 30 + 3)


def reverse_largest():
    values = torch.zeros(600, 400, requires_grad=True)
    return lambda: values.max().backward()


def count_zeros():
    values = torch.zeros(600, 400)

    @torch.no_grad()
    def count():
        return (values == 0).sum()

    return count


def make_numbers():
    return lambda: (torch.empty(9000), torch.arange(9000) / 3, torch.full((9000,), 1.0))


def convolve():
    layer, images = nn.Conv2d(8, 8, 3), torch.randn(4, 8, 32, 32)
    return lambda: layer(images).mean().backward()


# What decides about an operator's results beside its arguments: a way to set it, two values, and
# the steps that run with each.
STATES = {
    "default dtype": (
        torch.set_default_dtype,
        {torch.float32: make_numbers, torch.float64: make_numbers},
    ),
    "threads": (torch.set_num_threads, {1: convolve, 2: convolve}),
    "oneDNN": (torch._C._set_mkldnn_enabled, {True: convolve, False: convolve}),
    "backward": (bool, {False: count_zeros, True: reverse_largest}),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_result_is_not_repeated_in_another_state(name, monkeypatch):
    def forget():
        monkeypatch.setattr(tracer, "find_recipe", lambda key: None)
        monkeypatch.setattr(measured, "_measured", {})

    repeated, alone = estimate_in_states(*STATES[name], forget)
    assert repeated == alone


def test_the_types_of_numbers_decide_the_size_of_a_result():
    def run():
        values = torch.empty(100_000, dtype=torch.int64)
        return values * 1, values * True, values * 1.0, values + 1, values + 1.0

    # The last one adds up in the type of its result, into which it copies the integers.
    assert estimate_memory(run).peak_bytes == 100_000 * (8 + 8 + 8 + 4 + 8 + 4 + 4)


class Transposed(nn.Module):
    """Batch norm over the last dimension, and a layer that is given its result."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.BatchNorm1d(64), nn.Linear(64, 64)

    def forward(self, values):
        return self.mix(self.norm(values.mT).mT)


class Reader(nn.Module):
    """A recurrent network whose states are scored as letters."""

    def __init__(self, kind):
        super().__init__()
        self.states, self.head = kind(32, 64, 2), nn.Linear(64, 20)

    def forward(self, values):
        scores = self.head(self.states(values)[0]).log_softmax(-1)
        letters, lengths = torch.ones(8, 5, dtype=torch.int64), torch.full((8,), 5)
        return functional.ctc_loss(scores, letters, torch.full((8,), 30), lengths)


# What CPU libraries take for themselves, the CPU's layouts, and sizes that depend on values.
ON_CPU = {
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2), nn.GELU(), nn.Conv2d(24, 24, 7, padding=3, groups=24),
            nn.Conv2d(24, 64, 1), nn.ConvTranspose2d(64, 20, 4, 2),
        ),
        (torch.randn(8, 3, 64, 64),),
    ),
    "channels last": lambda: (
        nn.Conv2d(32, 32, 7, groups=32).to(memory_format=torch.channels_last),
        (torch.randn(8, 32, 32, 32).to(memory_format=torch.channels_last),),
    ),
    "large convolution": lambda: (nn.Conv2d(16, 16, 3), (torch.randn(48, 16, 160, 160),)),
    "transposed batch norm": lambda: (Transposed(), (torch.randn(64, 128, 64),)),
    "lstm and ctc": lambda: (Reader(nn.LSTM), (torch.randn(30, 8, 32),)),
    "gru and ctc": lambda: (Reader(nn.GRU), (torch.randn(30, 8, 32),)),
}  # fmt: skip


def judge_by_profiler(make_step):
    """The estimate of two steps, which must be within 1 % of the profiler's peak."""

    estimate = estimate_memory(make_step)
    judge(estimate, measure_twice(make_step), 0.01)
    return estimate


@pytest.mark.parametrize("name", mark_slow(ON_CPU, ["channels last", "transposed batch norm"]))
def test_what_the_cpus_libraries_take_is_measured(name):
    def make_step():
        model, inputs = ON_CPU[name]()
        return lambda: model(*inputs).mean().backward()

    estimate = judge_by_profiler(make_step)
    assert estimate.obstacle is None and estimate.lowest_bytes is None


def make_definite(made):
    return made.mT @ made / 600 + torch.eye(400)


# What operators of the CPU copy for themselves, by what is made of a layer's (600, 400) values.
COPIES = {
    "all sorted": lambda made: made.flatten().sort().values[:9].mean(),
    "the third smallest": lambda made: made.kthvalue(3, 1).values.mean(),
    "the median of all": lambda made: made.median(),
    "medians of columns": lambda made: made.median(0).values.mean(),
    "the largest of all": lambda made: made.max(),
    "the largest of rows": lambda made: made.amax(1).mean(),
    "means and variances": lambda made: sum(one.mean() for one in torch.var_mean(made, 1)),
    "a sum of a mask": lambda made: made.mean() + (made > 0).sum(),
    "a sum in 64 bits": lambda made: made.sum(dtype=torch.float64),
    "logarithms of sums": lambda made: torch.logsumexp(made, 1).mean(),
    "signs": lambda made: functional.soft_margin_loss(made, torch.ones_like(made)),
    "distances": lambda made: torch.cdist(made, made[:60], p=1).mean(),
    "spectra": lambda made: torch.fft.irfft2(torch.fft.rfft2(made)).square().mean(),
    "singular values": lambda made: torch.linalg.svdvals(made).mean(),
    "patches": lambda made: functional.fold(
        functional.unfold(made.view(6, 1, 100, 400), 3).mT.tanh().mT, (100, 400), 3
    ).mean(),
    "a gradient of ones": lambda made: made.sum(),
    "products of batches": lambda made: (made.view(6, 100, 400) @ made.view(6, 400, 100)).sum(),
    "batch norm": lambda made: functional.batch_norm(made, None, None, training=True).mean(),
    "group norm": lambda made: functional.group_norm(made, 4).mean(),
    "cholesky": lambda made: torch.linalg.cholesky(make_definite(made)).mean(),
    "lu": lambda made: torch.linalg.lu_factor(make_definite(made))[0].mean(),
    "an inverse by singular values": lambda made: torch.linalg.pinv(make_definite(made)).mean(),
    "a determinant": lambda made: torch.linalg.det(make_definite(made)),
    "a logarithm of a determinant": lambda made: torch.logdet(make_definite(made)),
    "batches of determinants": lambda made: torch.linalg.slogdet(
        made.view(6, 100, 400)[..., :100] + torch.eye(100)
    )[1].sum(),
    "unfolded images": lambda made: functional.unfold(made.view(6, 1, 100, 400), 3).mean(),
    "the largest of segments": lambda made: (
        torch.zeros(50, 400)
        .scatter_reduce(0, (torch.arange(600) % 50)[:, None].expand(600, 400), made, "amax")
        .mean()
    ),
    "a mask as a factor": lambda made: (made * (made > 0)).mean(),
    "integers in a quotient": lambda made: (
        made + torch.ones(600, 400, dtype=torch.uint8) / 255
    ).mean(),
    "integers beside a fraction": lambda made: (
        made.mean() + (torch.ones(600, 400, dtype=torch.int64) > 0.5).sum()
    ),
    "sums without nan": lambda made: made.nansum(),
    "masked by known values": lambda made: made[
        (torch.arange(240_000) % 3 == 0).view(600, 400)
    ].mean(),
    "quantized by channel": lambda made: torch.fake_quantize_per_channel_affine(
        made, torch.full((600,), 0.1), torch.zeros(600, dtype=torch.int32), 0, -128, 127
    ).mean(),
    "conjugates": lambda made: (
        torch.einsum("ij,kj->ik", *(torch.complex(made, made), torch.complex(made, made).conj()))
        .abs()
        .mean()
    ),
    "tangents": lambda made: torch.func.jvp(
        functools.partial(functional.linear, weight=torch.ones(400, 400), bias=torch.ones(400)),
        (made,),
        (torch.ones(600, 400),),
    )[1].mean(),
    "differences": lambda made: functional.mse_loss(made, torch.zeros(600, 400)),
    "huber's loss": lambda made: functional.huber_loss(made, torch.zeros(600, 400)),
    "the largest of bags": lambda made: functional.embedding_bag(
        torch.arange(600).view(60, 10), made, mode="max"
    ).mean(),
    "clamped by tensors": lambda made: made.clamp(-torch.ones(400), torch.ones(400)).mean(),
    "a rolled diagonal": lambda made: (made @ made.mT)[torch.eye(600).bool().roll(9, 0)].mean(),
}


PADDING = torch.arange(40) >= torch.arange(40, 8, -4)[:, None]  # (8, 40)
CAUSAL = torch.ones(40, 40).triu(1).bool()


def attend(**options):
    """Self-attention of (8, 40, 64) values by the fast path, which evaluation takes."""
    model, values = nn.MultiheadAttention(64, 8, batch_first=True).eval(), torch.randn(8, 40, 64)
    return lambda: model(values, values, values, **options)


def encode(*, first=False, nested=False, **options):
    layer = nn.TransformerEncoderLayer(64, 8, 96, batch_first=True, norm_first=first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()
    values = torch.randn(8, 40, 64)
    return lambda: model(values, **options)


def enlarge(shape, mode, **options):
    values = torch.randn(shape)
    return lambda: functional.interpolate(values, mode=mode, **options)


def convolve_images():
    model, images = nn.Sequential(nn.Conv2d(3, 32, 3), nn.SiLU()), torch.randn(16, 3, 32, 32)
    return lambda: model(images)


# What a step without gradients makes, by its fastest operators.
WITHOUT_GRADIENTS = {
    "attention": attend,
    "attention without weights": lambda: attend(need_weights=False),
    "attention of each head": lambda: attend(average_attn_weights=False),
    "attention to what is not padding": lambda: attend(key_padding_mask=PADDING),
    "causal attention": lambda: attend(attn_mask=CAUSAL, need_weights=False),
    "an encoder": encode,
    "an encoder of what is not padding": lambda: encode(src_key_padding_mask=PADDING),
    "a causal encoder that normalizes first": lambda: encode(
        first=True, mask=CAUSAL, src_key_padding_mask=PADDING
    ),
    "one channel": lambda: enlarge((1, 1, 14, 14), "bilinear", size=(224, 224)),
    "a small image": lambda: enlarge((2, 3, 16, 16), "bilinear", scale_factor=2),
    "an image": lambda: enlarge((2, 3, 20, 20), "bilinear", scale_factor=6),
    "near points": lambda: enlarge((2, 5, 9, 9), "nearest", scale_factor=4),
    "smooth curves": lambda: enlarge((2, 3, 9, 9), "bicubic", size=(20, 90)),
    "a line": lambda: enlarge((2, 3, 50), "linear", scale_factor=3),
    "a volume": lambda: enlarge((2, 3, 5, 6, 7), "trilinear", scale_factor=3),
    "images": convolve_images,
}  # fmt: skip


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_what_a_fast_operator_takes_is_counted(name, off):
    estimate = judge_by_profiler(lambda: off()(WITHOUT_GRADIENTS[name]()))
    assert estimate.obstacle is None and estimate.lowest_bytes in (None, estimate.peak_bytes)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_leaves_padding_out_is_a_near_lower_bound():
    estimate = judge_by_profiler(
        lambda: torch.no_grad()(encode(nested=True, src_key_padding_mask=PADDING))
    )
    padded = estimate_memory(lambda: torch.no_grad()(encode(src_key_padding_mask=PADDING)))
    assert "nested" in str(estimate.obstacle) and estimate.peak_bytes == padded.peak_bytes


def read_packed(kind, lengths, **options):
    """A step of a recurrent network on packed sequences of (8, 20, 16) values."""
    model, values = kind(16, 32, batch_first=True, **options), torch.randn(8, 20, 16)

    def step():
        packed = rnn.pack_padded_sequence(values, lengths, batch_first=True)
        rnn.pad_packed_sequence(model(packed)[0], batch_first=True)[0].square().mean().backward()

    return step


def mix_ragged():
    layers = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    parts = [torch.randn(length, 64) for length in (100, 200, 50)]

    def step():
        ragged = torch.nested.nested_tensor(parts, layout=torch.jagged)
        torch.nested.to_padded_tensor(layers(ragged), 0.0).square().mean().backward()

    return step


LENGTHS = torch.tensor([20, 18, 15, 11, 7, 5, 2, 1])
SEQUENCES = {
    "LSTM": lambda: read_packed(nn.LSTM, LENGTHS),
    "GRU in both directions": lambda: read_packed(nn.GRU, LENGTHS, bidirectional=True),
    "RNN": lambda: read_packed(nn.RNN, LENGTHS.tolist()),
    "jagged": mix_ragged,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_of_known_lengths_are_exact(name):
    estimate = judge_by_profiler(SEQUENCES[name])
    assert estimate.obstacle is None and estimate.lowest_bytes is None


def test_sequences_of_unknown_lengths_are_a_range():
    def make_step():
        lengths = torch.randint(1, 21, (8,)).sort(descending=True).values
        return read_packed(nn.LSTM, lengths)

    estimate = estimate_memory(make_step)
    longest = estimate_memory(lambda: read_packed(nn.LSTM, torch.full((8,), 20)))
    assert estimate.obstacle is None and estimate.peak_bytes >= 0.999 * longest.peak_bytes
    assert estimate.lowest_bytes < 0.6 * longest.peak_bytes


# In these torch computes for seconds.
LAPACK = ("cholesky", "lu", "singular values", "an inverse by singular values", "spectra")


@pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")  # of torch.func.jvp
@pytest.mark.parametrize("name", mark_slow(COPIES, COPIES.keys() - LAPACK))
def test_what_an_operator_copies_is_counted(name):
    def make_step():
        layer, values = nn.Linear(16, 400), torch.randn(600, 16)
        return lambda: COPIES[name](layer(values)).backward()

    estimate = judge_by_profiler(make_step)
    assert estimate.obstacle is None and estimate.excess is None


class Words(nn.Module):
    """An adaptive softmax of values over random words."""

    def __init__(self):
        super().__init__()
        self.states, self.words = nn.Linear(16, 64), nn.AdaptiveLogSoftmaxWithLoss(64, 2000, [200])

    def forward(self, values):
        return self.words(self.states(values), torch.randint(2000, (len(values),))).loss


# Steps whose values decide how much is selected, and what they make of a layer's (600, 400) values.
SELECTED = {
    "some elements": lambda made: made[made > 0].mean(),
    "selected elements": lambda made: made.masked_select(made > 0).mean(),
    "scattered elements": lambda made: torch.zeros(600, 400).masked_scatter(made > 0, made).mean(),
    "some rows": lambda made: made[(made.sum(1) > 0).nonzero().squeeze(1)].mean(),
    "words": lambda made: Words()(made[:, :16]),
}


@pytest.mark.parametrize("name", SELECTED)
def test_what_values_select_is_a_range_around_the_truth(name):
    def make_step():
        layer, values = nn.Linear(16, 400), torch.randn(600, 16)
        return lambda: SELECTED[name](layer(values)).backward()

    estimate, measured = estimate_memory(make_step), measure_twice(make_step)
    assert estimate.obstacle is None
    # Torch counts what is selected in 8 bytes.
    assert estimate.lowest_bytes - 8 <= measured <= estimate.peak_bytes + 8
    assert "unknown values" in estimate.notes[0]


def look_up(rows):
    rows(torch.arange(9)).sum().backward()


def fill(values):
    values.masked_fill(values > 0, values.mean()).sum().backward()


def test_gradients_that_nobody_asks_for_are_not_counted():
    def make_step():
        norm, values = nn.BatchNorm1d(400), torch.randn(600, 400)
        return lambda: norm(values).mean().backward()

    judge_by_profiler(make_step)


# Stays a bound in a second estimate, which repeats the results of the first.
BOUNDED = {
    "sparse gradients": lambda: functools.partial(look_up, nn.Embedding(500, 8, sparse=True)),
    "matrix exponential": lambda: lambda: torch.matrix_exp(torch.randn(64, 64)),
    "filled by a mean": lambda: lambda: fill(torch.randn(60, 40, requires_grad=True)),
}


def test_a_sparse_matrix_is_not_counted_as_a_dense_one():
    def make_step():
        edges = torch.randint(0, 500, (2, 900))
        near = torch.sparse_coo_tensor(edges, torch.ones(900), (500, 500), check_invariants=False)
        weight = torch.ones(500, 8, requires_grad=True)
        return lambda: torch.sparse.mm(near, weight).sum().backward()

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is not None  # a lower bound
    assert estimate.peak_bytes < 500 * 500 * 4


@pytest.mark.parametrize("name", BOUNDED)
def test_an_unknown_part_makes_a_lower_bound_each_time(name):
    for _ in range(2):
        assert estimate_memory(BOUNDED[name]).obstacle is not None


def test_a_product_of_many_values_is_an_upper_bound():
    def make_step():
        layer, values = nn.Linear(16, 400), torch.randn(600, 16)
        return lambda: layer(values).prod(1).mean().backward()

    assert "prod" in estimate_memory(make_step).excess


def test_a_model_can_be_moved_to_the_meta_device():
    def make_step():
        frame = nn.Linear(100, 100).to("meta")
        weights = {name: torch.zeros(one.shape) for name, one in frame.named_parameters()}
        return lambda: torch.func.functional_call(frame, weights, (torch.zeros(1, 100),))

    assert estimate_memory(make_step).peak_bytes < 2 * 4 * 100 * 101


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")  # of torch.func.jvp
@pytest.mark.parametrize("name", STEPS)
def test_on_a_gpu_it_is_within_three_percent_of_the_allocator(name):
    estimate = estimate_step(name, "cuda", "H100", CUDA_BATCH)
    judge(estimate, measure_cuda(name), 0.03)
    assert estimate.obstacle is None
    assert (estimate.excess is not None) is (name in UPPER)


def margin_step(share):
    """A loss with a margin at each sample's class, as metric learning has it; a mask selects it."""
    model, values = nn.Linear(64, 8), torch.randn(64, 64)
    labels = torch.randint(0, 8, (64,))

    def step():
        scores = model(values)
        mask = torch.zeros_like(scores)
        mask[torch.arange(64), labels] = 1
        own = scores[mask == 1]
        made = scores + mask * (own[: len(own) // share] - 0.5).unsqueeze(1)
        functional.cross_entropy(made, labels).backward()

    return step


def test_a_mask_that_selects_neither_all_nor_nothing_selects_one_in_each_row():
    estimate = estimate_memory(lambda: margin_step(1))
    measured_bytes = measure_twice(lambda: margin_step(1))
    assert estimate.peak_bytes == pytest.approx(measured_bytes, rel=0.001)
    assert "one element in each row" in estimate.notes[0]
    assert "test_estimate_steps.py" in estimate.notes[0]


def view_best(scores, values, marks):
    return scores[torch.zeros_like(scores).scatter_(1, scores.topk(3, 1)[1], 1.0) > 0].view(64, 3)


def reshape_marked(scores, values, marks):
    return values[:, None].expand(64, 8, 64)[marks > 0].reshape(64, 3, 64) * scores.sum()


def unflatten_marked(scores, values, marks):
    return scores[marks > 0].unflatten(0, (64, 3))


def weigh_marked(scores, values, marks):
    return scores[marks > 0] * torch.ones(192)


def judge_marked(scores, values, marks):
    each = scores[:, None].expand(64, 8, 8)[marks > 0]
    return functional.cross_entropy(each, torch.zeros(192, dtype=torch.long))


def view_first_and_marked(scores, values, marks):
    first = scores[marks.cumsum(1) * marks == 1]
    return first.view(64, 1) * scores[marks > 0].view(64, 3)


SEVERAL = [
    view_best, reshape_marked, unflatten_marked, weigh_marked, judge_marked, view_first_and_marked,
]  # fmt: skip


def marked_step(select):
    """A step that selects three elements of each row, by a mask of unknown values."""
    model, values = nn.Linear(64, 8), torch.randn(64, 64)
    marks = torch.zeros(64, 8).scatter_(1, torch.rand(64, 8).topk(3, 1)[1], 1.0)
    return lambda: select(model(values), values, marks).sum().backward()


@pytest.mark.parametrize("select", SEVERAL)
def test_a_mask_selects_as_many_in_each_row_as_the_shape_says_that_they_get(select):
    estimate = estimate_memory(lambda: marked_step(select))
    measured_bytes = measure_twice(lambda: marked_step(select))
    assert estimate.peak_bytes == pytest.approx(measured_bytes, rel=0.001)
    assert "3 elements in each row, as the shape says" in estimate.notes[0]
    assert "test_estimate_steps.py" in estimate.notes[0]
    single = [one for one in estimate.notes if "one element in each row" in one]
    assert len(single) == (select is view_first_and_marked)


def test_shapes_that_contradict_each_other_are_refused():
    def select(scores, values, marks):
        return scores[marks > 0].view(64, 3).sum() + scores[marks > 0].view(64, 20).sum()

    with pytest.raises(UsageError, match="is invalid for input of size"):
        estimate_memory(lambda: marked_step(select))


def test_an_error_beside_an_assumed_size_says_what_was_assumed():
    with pytest.raises(UsageError, match="how many elements are selected was assumed at"):
        estimate_memory(lambda: margin_step(3))


def test_a_lower_bound_is_that_of_the_way_that_holds_less():
    """Unknown values decide how long it goes on, and then something stops both ways."""
    values = torch.randn(1000, requires_grad=True)

    def step(values):
        made = [values * 2]
        if values.sum() > 0:
            made += [values * 3 for _ in range(50)]
        torch.stack(made).sum().backward()
        return torch.linspace(0, 1, int(values.abs().max()) + 3).tolist()[int(values.sum())]

    estimate = estimate_memory(step, values)
    assert estimate.obstacle is not None
    assert estimate.peak_bytes < 50 * values.nbytes
    assert f"at least {estimate.peak_bytes / 1024:.1f} KiB" in " ".join(estimate.notes)
