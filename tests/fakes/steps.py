"""Training and inference steps of many kinds, on any device, to judge estimates by.

Each is a function ``make(device, batch)`` that returns a step. None needs more than some 100 MiB.
"""

from __future__ import annotations

import copy
import gc

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from labkit.memory.estimate.play import estimate_memory
from labkit.memory.track.tracker import track_memory
from tests.fakes.models import SmallGpt

STEPS = {}
# Steps whose estimate is an upper bound, and says so.
UPPER = {"lbfgs"}
BATCH = 16


def step(make):
    """Adds a step under its function's name."""
    STEPS[make.__name__] = make
    return make


def measure_twice(make_step):
    """The profiler's peak of making a step and taking it twice, with what stays loaded left out."""

    def run():
        step = make_step()
        step()
        step()

    run()
    gc.collect()
    with track_memory("cpu", tensors=True) as tracked:
        run()
    return tracked.use.find_span("tensors").peak_bytes


def train(model, inputs, optimizer=torch.optim.SGD, measure=None, **options):
    """A step that trains the model on the inputs."""
    trained = [one for one in model.parameters() if one.requires_grad]
    updates = optimizer(trained, lr=0.01, **options)

    def run():
        updates.zero_grad()
        made = model(inputs)
        (measure(made) if measure else made.square().mean()).backward()
        updates.step()

    return run


def make_mlp(device, width=256):
    return nn.Sequential(
        nn.Linear(width, 4 * width), nn.LayerNorm(4 * width), nn.GELU(), nn.Dropout(0.1),
        nn.Linear(4 * width, width),
    ).to(device)  # fmt: skip


class Attention(nn.Module):
    """Attention over (batch, 128, 64), with what scaled_dot_product_attention is given."""

    def __init__(self, heads=4, **options):
        super().__init__()
        self.heads, self.options = heads, options
        self.mix, self.gather = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, values):
        parts = self.mix(values).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*parts, **self.options)
        return self.gather(attended.transpose(1, 2).flatten(2))


def make_sequence(device, batch, dtype=None):
    return torch.randn(batch, 128, 64, device=device, dtype=dtype)


for name, options in {
    "attention": {},
    "attention_causal": {"is_causal": True},
    "attention_dropout": {"dropout_p": 0.1},
}.items():

    def make_attention(device, batch, options=options):
        return train(Attention(**options).to(device), make_sequence(device, batch))

    STEPS[name] = make_attention


@step
def attention_masked(device, batch):
    mask = torch.rand(128, 128, device=device) > 0.5
    model = Attention(attn_mask=mask, dropout_p=0.1).to(device)
    return train(model, make_sequence(device, batch))


@step
def attention_bfloat16(device, batch):
    model = Attention(is_causal=True).to(device, torch.bfloat16)
    return train(model, make_sequence(device, 4 * batch, torch.bfloat16))


@step
def attention_by_hand(device, batch):
    model = Attention().to(device)

    def run():
        query, key, value = model.mix(make_sequence(device, batch)).chunk(3, -1)
        weights = functional.dropout(torch.softmax(query @ key.mT / 8, -1), 0.1)
        model.gather(weights @ value).square().mean().backward()

    return run


for name, options in {
    "multihead": {},
    "multihead_dropout": {"dropout": 0.1},
    "multihead_weights": {"dropout": 0.1},
}.items():

    def make_multihead(device, batch, name=name, options=options):
        model = nn.MultiheadAttention(64, 4, batch_first=True, **options).to(device)
        values, weights = make_sequence(device, batch), name.endswith("weights")
        return lambda: model(values, values, values, need_weights=weights)[0].sum().backward()

    STEPS[name] = make_multihead


def make_encoder(device, dropout=0.1):
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).to(device)


@step
def encoder(device, batch):
    return train(make_encoder(device), make_sequence(device, batch), torch.optim.AdamW)


@step
def encoder_without_dropout(device, batch):
    return train(make_encoder(device, 0.0), make_sequence(device, batch))


@step
def encoder_evaluated(device, batch):
    model, values = make_encoder(device).eval(), make_sequence(device, batch)
    return torch.no_grad()(lambda: model(values))


@step
def decoder(device, batch):
    model = nn.TransformerDecoderLayer(64, 4, 256, batch_first=True).to(device)
    values = make_sequence(device, batch)
    return lambda: model(values, values).square().mean().backward()


@step
def gpt(device, batch):
    ids = torch.randint(0, 512, (batch, 64), device=device)
    return train(
        SmallGpt().to(device), ids, torch.optim.Adam,
        lambda logits: functional.cross_entropy(logits.flatten(0, 1), ids.flatten()),
    )  # fmt: skip


@step
def gpt_generates(device, batch):
    model = SmallGpt().to(device).eval()

    @torch.inference_mode()
    def run():
        ids = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        for _ in range(8):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)

    return run


for name, reentrant in {"checkpoint": False, "checkpoint_reentrant": True}.items():

    def make_checkpoint(device, batch, reentrant=reentrant):
        layers = nn.ModuleList(make_mlp(device) for _ in range(4))
        inputs = torch.randn(32 * batch, 256, device=device, requires_grad=True)

        def run():
            values = inputs
            for layer in layers:
                values = checkpoint(layer, values, use_reentrant=reentrant)
            values.square().mean().backward()

        return run

    STEPS[name] = make_checkpoint


def make_autocast(device, batch, dtype, scaler=None):
    model, inputs = make_mlp(device), torch.randn(32 * batch, 256, device=device)
    optimizer = torch.optim.AdamW(model.parameters())
    scale = scaler.scale if scaler else lambda loss: loss

    def run():
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype):
            loss = functional.mse_loss(model(model(inputs)), inputs)
        scale(loss).backward()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()

    return run


@step
def autocast_bfloat16(device, batch):
    return make_autocast(device, batch, torch.bfloat16)


@step
def autocast_float16_scaled(device, batch):
    return make_autocast(device, batch, torch.float16, torch.amp.GradScaler(device))


for name, (optimizer, options) in {
    "sgd_momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adam_one_by_one": (torch.optim.Adam, {"foreach": False}),
    "adam_foreach": (torch.optim.Adam, {"foreach": True}),
    "adam_fused": (torch.optim.Adam, {"fused": True}),
    "adamw_amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}),
}.items():

    def make_optimized(device, batch, optimizer=optimizer, options=options):
        model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(6))).to(device)
        inputs = torch.randn(batch, 256, device=device)
        return train(model, inputs, optimizer, **options)

    STEPS[name] = make_optimized


@step
def clipped_and_accumulated(device, batch):
    model, inputs = make_mlp(device), torch.randn(32 * batch, 256, device=device)
    optimizer = torch.optim.Adam(model.parameters())

    def run():
        optimizer.zero_grad()
        for part in inputs.chunk(4):
            model(part).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


@step
def frozen_backbone(device, batch):
    model = nn.Sequential(make_mlp(device), make_mlp(device), nn.Linear(256, 10).to(device))
    model[:2].requires_grad_(False)
    return train(model, torch.randn(32 * batch, 256, device=device), torch.optim.Adam)


class LowRank(nn.Module):
    """A frozen layer with a trained update of low rank, as LoRA has."""

    def __init__(self, width, rank=8):
        super().__init__()
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, values):
        return self.frozen(values) + self.up(self.down(functional.dropout(values, 0.05)))


@step
def low_rank(device, batch):
    model = nn.Sequential(LowRank(256), nn.GELU(), LowRank(256)).to(device)
    return train(model, torch.randn(32 * batch, 256, device=device), torch.optim.AdamW)


@step
def teacher(device, batch):
    model, inputs = make_mlp(device), torch.randn(32 * batch, 256, device=device)
    average = copy.deepcopy(model).requires_grad_(False)
    run = train(model, inputs)

    def run_both():
        with torch.no_grad():
            average(inputs)
        run()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 0.01)

    return run_both


@step
def adversaries(device, batch):
    maker, critic = make_mlp(device), make_mlp(device)
    noise = torch.randn(16 * batch, 256, device=device)
    for_maker, for_critic = train(maker, noise), torch.optim.Adam(critic.parameters())

    def run():
        for_critic.zero_grad()
        functional.softplus(critic(maker(noise).detach())).mean().backward()
        for_critic.step()
        functional.softplus(-critic(maker(noise))).mean().backward()
        for_maker()

    return run


@step
def embedding_and_head(device, batch):
    model = nn.Sequential(nn.Embedding(4000, 64), nn.Linear(64, 4000)).to(device)
    ids = torch.randint(0, 4000, (batch, 32), device=device)
    return train(
        model, ids, torch.optim.Adam,
        lambda logits: functional.cross_entropy(
            logits.flatten(0, 1), ids.flatten(), label_smoothing=0.1
        ),
    )  # fmt: skip


@step
def regression(device, batch):
    inputs, targets = (torch.randn(64 * batch, 256, device=device) for _ in range(2))
    model = make_mlp(device)
    return train(model, inputs, measure=lambda made: functional.smooth_l1_loss(made, targets))


@step
def norms_and_softmax(device, batch):
    model = nn.Sequential(
        nn.Linear(256, 256), nn.BatchNorm1d(256), nn.SiLU(), nn.Dropout(0.2), nn.Softmax(-1)
    ).to(device)
    inputs = torch.randn(64 * batch, 256, device=device)
    return train(model, inputs, torch.optim.Adam, lambda made: made.log().mean())


@step
def per_sample_gradients(device, batch):
    model, inputs = nn.Linear(64, 64).to(device), torch.randn(8 * batch, 64, device=device)
    weights = {name: one.detach() for name, one in model.named_parameters()}

    def measure(given, sample):
        return torch.func.functional_call(model, given, (sample,)).square().sum()

    return lambda: torch.func.vmap(torch.func.grad(measure), in_dims=(None, 0))(weights, inputs)


@step
def sorted_scores(device, batch):
    scores = torch.randn(4 * batch, 4096, device=device)
    return lambda: torch.softmax(scores.sort(1).values.cumsum(1), 1).topk(5)


@step
def best_is_kept(device, batch):
    model, inputs, best = make_mlp(device), torch.randn(16 * batch, 256, device=device), [1e9]

    def run():
        loss = model(inputs).square().mean()
        loss.backward()
        best[0] = min(best[0], loss.item())

    return run


@step
def lbfgs(device, batch):
    model, inputs = nn.Linear(256, 256).to(device), torch.randn(batch, 256, device=device)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=8, history_size=6)

    def measure():
        optimizer.zero_grad()
        loss = model(inputs).tanh().square().mean()
        loss.backward()
        return loss

    return lambda: optimizer.step(measure)


@step
def attention_with_a_trained_bias(device, batch):
    bias = nn.Parameter(torch.randn(4, 128, 128, device=device))
    model = Attention(attn_mask=bias).to(device)
    return lambda: model(make_sequence(device, batch)).square().mean().backward()


@step
def evaluated_with_gradients(device, batch):
    model, inputs = make_mlp(device).eval(), torch.randn(32 * batch, 256, device=device)
    return lambda: model(inputs.requires_grad_()).square().mean().backward()


@step
def double_precision(device, batch):
    model = nn.Sequential(nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 128)).double()
    inputs = torch.randn(32 * batch, 128, device=device, dtype=torch.float64)
    return train(model.to(device), inputs)


@step
def complex_spectrum(device, batch):
    sound, window = torch.randn(batch, 8192, device=device), torch.hann_window(256, device=device)
    layer = nn.Linear(129, 40).to(device)

    def run():
        spectrum = torch.stft(sound, 256, 64, window=window, return_complex=True)
        layer(spectrum.abs().mT).clamp(min=1e-5).log().mean().backward()

    return run


@step
def nearest_codes(device, batch):
    layer, codes = nn.Linear(64, 64).to(device), nn.Embedding(512, 64).to(device)
    inputs = torch.randn(64 * batch, 64, device=device)

    def run():
        values = layer(inputs)
        nearest = codes(torch.cdist(values, codes.weight).argmin(1))
        functional.mse_loss(nearest, values).backward()

    return run


for name, cell in {"lstm_cells": nn.LSTMCell, "gru_cells": nn.GRUCell}.items():

    def make_cells(device, batch, cell=cell):
        layer, inputs = cell(64, 64).to(device), torch.randn(40, 2 * batch, 64, device=device)

        def run():
            state = None
            for values in inputs:
                state = layer(values, state)
            (state[0] if isinstance(state, tuple) else state).square().mean().backward()

        return run

    STEPS[name] = make_cells


# Backward fills a tensor of its own with the gradient of what these have chosen.
for name, choose in {
    "largest": lambda values, rows: values.max(1).values,
    "topk": lambda values, rows: values.topk(5).values,
    "gathered": lambda values, rows: values.gather(1, (rows % 512)[:, None]),
    "indexed": lambda values, rows: values[rows[::4]],
    "selected": lambda values, rows: values.index_select(0, rows[::4]),
    "products": lambda values, rows: values.cumprod(1),
}.items():

    def make_chosen(device, batch, choose=choose):
        values = (torch.rand(16 * batch, 512, device=device) + 0.1).requires_grad_()
        rows = torch.randint(0, 16 * batch, (16 * batch,), device=device)
        return lambda: choose(values, rows).square().mean().backward()

    STEPS[f"chosen_{name}"] = make_chosen


@step
def bag_of_words(device, batch):
    words = torch.randint(0, 3000, (batch, 100), device=device)
    bag, layer = nn.EmbeddingBag(3000, 64, mode="sum").to(device), nn.Linear(64, 8).to(device)
    return lambda: layer(bag(words)).square().mean().backward()


@step
def embedding_in_bfloat16(device, batch):
    words = torch.randint(0, 6000, (batch, 100), device=device)
    table = nn.Embedding(6000, 64).to(device, torch.bfloat16)
    return lambda: table(words).square().sum().backward()


@step
def graph_attention(device, batch):
    nodes, count = 16 * batch, 128 * batch
    values, layer = torch.randn(nodes, 64, device=device), nn.Linear(64, 64).to(device)
    sources, targets = torch.randint(0, nodes, (2, count), device=device)
    score = nn.Linear(128, 1).to(device)

    def run():
        hidden = layer(values)
        scores = score(torch.cat([hidden[sources], hidden[targets]], 1))[:, 0].exp()
        sums = torch.zeros(nodes, device=device).index_add(0, targets, scores)
        weights = (scores / sums[targets])[:, None]
        mixed = torch.zeros_like(hidden).index_add(0, targets, hidden[sources] * weights)
        mixed.square().mean().backward()

    return run


@step
def llama(device, batch):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.RMSNorm(64) for _ in range(2))
            self.query, self.others = (nn.Linear(64, 64, bias=False) for _ in range(2))
            self.gate, self.down = nn.Linear(64, 344), nn.Linear(172, 64)

        def forward(self, values):
            normed = self.norms[0](values)
            query = self.query(normed).unflatten(-1, (8, 8)).transpose(1, 2)
            key, value = self.others(normed).unflatten(-1, (2, 4, 8)).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )
            values = values + attended.transpose(1, 2).flatten(2)
            gate, kept = self.gate(self.norms[1](values)).chunk(2, -1)
            return values + self.down(functional.silu(gate) * kept)

    words = torch.randint(0, 1000, (batch, 64), device=device)
    embedding, head = nn.Embedding(1000, 64), nn.Linear(64, 1000, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, Block(), Block(), head).to(device)
    return train(
        model, words, torch.optim.AdamW,
        lambda logits: functional.cross_entropy(logits.flatten(0, 1), words.flatten()), fused=True,
    )  # fmt: skip


@step
def adafactor(device, batch):
    model = nn.Sequential(nn.Linear(500, 700), nn.ReLU(), nn.Linear(700, 500)).to(device)
    return train(model, torch.randn(batch, 500, device=device), torch.optim.Adafactor)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by Newton and Schulz's iteration."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            update = parameter.grad.lerp(momentum.lerp_(parameter.grad, 0.05), 0.95)
            update /= update.norm() + 1e-7
            for _ in range(5):
                gram = update @ update.mT
                update = 3.4445 * update + (2.0315 * gram @ gram - 4.775 * gram) @ update
            parameter.add_(update, alpha=-0.01)


@step
def muon(device, batch):
    layers = (nn.Linear(width, 600, bias=False) for width in (600, 600))
    model = nn.Sequential(*layers).to(device)
    return train(model, torch.randn(batch, 600, device=device), Muon)


@step
def gradient_penalty(device, batch):
    critic = nn.Sequential(
        nn.Linear(128, 512), nn.LeakyReLU(0.2), nn.Linear(512, 512), nn.LeakyReLU(0.2),
        nn.Linear(512, 1),
    ).to(device)  # fmt: skip
    inputs = torch.randn(16 * batch, 128, device=device)

    def run():
        values = inputs.clone().requires_grad_()
        score = critic(values).sum()
        (slope,) = torch.autograd.grad(score, values, create_graph=True)
        ((slope.norm(dim=1) - 1).square().mean() + score).backward()

    return run


@step
def hessian_vector(device, batch):
    model, inputs = make_mlp(device).eval(), torch.randn(16 * batch, 256, device=device)
    weights = {name: one.detach() for name, one in model.named_parameters()}
    along = {name: torch.randn_like(one) for name, one in weights.items()}

    def measure(given):
        return torch.func.functional_call(model, given, (inputs,)).square().mean()

    return lambda: torch.func.jvp(torch.func.grad(measure), (weights,), (along,))


@step
def connectionist(device, batch):
    layer, count = nn.Linear(64, 30).to(device), 8 * batch
    sounds = torch.randn(100, count, 64, device=device)
    letters = torch.randint(1, 30, (count, 20), device=device)
    lengths = torch.full((count,), 100), torch.full((count,), 20)
    return lambda: functional.ctc_loss(layer(sounds).log_softmax(-1), letters, *lengths).backward()


@step
def logits_of_pixels(device, batch):
    layer, inputs = nn.Linear(64, 784).to(device), torch.randn(64 * batch, 64, device=device)
    pixels = torch.rand(64 * batch, 784, device=device)

    def run():
        made = layer(inputs)
        functional.binary_cross_entropy_with_logits(made, pixels, reduction="sum").backward()

    return run


def estimate_in_states(change, steps, forget):
    """The estimates of ``steps`` in the states that ``change`` sets, twice.

    At first what one keeps is there for the next; then ``forget`` drops it before each.
    """
    kept = torch.get_default_dtype(), torch.get_num_threads()
    found = []
    try:
        for repeats in (True, False):
            for state, step in steps.items():
                if not repeats:
                    forget()
                change(state)
                found.append(estimate_memory(step))
    finally:
        torch.set_default_dtype(kept[0])
        torch.set_num_threads(kept[1])
        torch._C._set_mkldnn_enabled(True)
    half = len(found) // 2
    return found[:half], found[half:]
