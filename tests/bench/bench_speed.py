"""How long an estimate takes beside the real step: ``python -m tests.bench.bench_speed``.

It prints the table of docs/memory.md: seconds of CPU time, medians of several, side by side in one
process and after a first estimate. Names as arguments choose models.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
import warnings

import torch
from torch import nn
from torch.nn import functional

from labkit.memory.estimate.play import estimate_memory

ROUNDS = 5
HEADER = "| model, batch | estimate | one step | making it and two steps |\n|---|---|---|---|"


class Residual(nn.Module):
    """Adds a part's result to what it was given, which may be transposed for it."""

    def __init__(self, width, part, *, across=False):
        super().__init__()
        self.norm, self.part, self.across = nn.LayerNorm(width), part, across

    def forward(self, values):
        made = self.norm(values)
        made = self.part(made.mT).mT if self.across else self.part(made)
        return values + made


def make_feed(width, wider):
    return nn.Sequential(nn.Linear(width, wider), nn.GELU(), nn.Linear(wider, width))


class Attention(nn.Module):
    """Causal attention, written in plain operators."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.mix, self.out = (
            heads,
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, values):
        batch, length, width = values.shape
        mixed = self.mix(values).view(batch, length, 3, self.heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        scores = query @ key.mT / key.size(-1) ** 0.5
        hidden = torch.ones(length, length).tril() == 0
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, length, width))


class Patches(nn.Module):
    """An image's patches, as a sequence, through layers of their own."""

    def __init__(self, size, width, layers):
        super().__init__()
        self.cut, self.layers, self.head = (
            nn.Conv2d(3, width, size, size),
            layers,
            nn.Linear(width, 10),
        )

    def forward(self, images):
        return self.head(self.layers(self.cut(images).flatten(2).mT).mean(1))


class UNet(nn.Module):
    """Four levels, each with two convolutions and batch norms on either side."""

    def __init__(self, width=16):
        super().__init__()
        sizes = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(map(self.make_level, [3, *sizes], sizes))
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(sizes)
        )
        self.up = nn.ModuleList(self.make_level(2 * one, one) for one in sizes[:-1])
        self.head = nn.Conv2d(width, 10, 1)

    @staticmethod
    def make_level(taken, made):
        parts = [
            [nn.Conv2d(one, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
            for one in (taken, made)
        ]
        return nn.Sequential(*parts[0], *parts[1])

    def forward(self, images):
        kept = []
        for level in self.down:
            kept.append(level(functional.max_pool2d(kept[-1], 2) if kept else images))
        values = kept.pop()
        for rise, level in zip(reversed(self.rise), reversed(self.up), strict=True):
            values = level(torch.cat((kept.pop(), rise(values)), 1))
        return self.head(values).mean((2, 3))


class Loop(nn.Module):
    """A cell that is called for each step of (steps, batch, width) values."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(256, 10)

    def forward(self, values):
        state = None
        for one in values:
            state = self.cell(one, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Tanh(nn.Module):
    """A recurrent cell by hand."""

    def __init__(self):
        super().__init__()
        self.taken, self.kept = nn.Linear(256, 256), nn.Linear(256, 256)

    def forward(self, values, state):
        state = torch.zeros(values.shape) if state is None else state
        return torch.tanh(self.taken(values) + self.kept(state))


class Layer(nn.Module):
    """A recurrent layer, whose last step is scored."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(256, 10)

    def forward(self, values):
        return self.head(self.layer(values)[0][-1])


def make_cnn():
    layers = []
    for taken, made in ((3, 32), (32, 64), (64, 128), (128, 128)):
        conv = nn.Conv2d(taken, made, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(made), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def make_dense(*widths):
    layers = [one for pair in itertools.pairwise(widths) for one in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def make_encoder():
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


def make_gpt():
    layers = [
        nn.Sequential(Residual(256, Attention(256, 4)), Residual(256, make_feed(256, 1024)))
        for _ in range(4)
    ]
    return nn.Sequential(nn.Embedding(512, 256), *layers, nn.Linear(256, 512))


def make_mixer():
    layers = [
        nn.Sequential(
            Residual(128, make_feed(64, 128), across=True), Residual(128, make_feed(128, 512))
        )
        for _ in range(4)
    ]
    return Patches(4, 128, nn.Sequential(*layers))


# The model, and its inputs: a shape, or a shape and the number of words.
MODELS = {
    "multilayer perceptron, 1024 wide, 128": (
        lambda: make_dense(1024, 1024, 1024, 1024, 10), (128, 1024),
    ),
    "autoencoder, 784-256-64-256-784, 128": (
        lambda: make_dense(784, 256, 64, 256, 784), (128, 784),
    ),
    "CNN with batch norm, 32 images of 32 pixels": (make_cnn, (32, 3, 32, 32)),
    "UNet, 16 wide, 4 images of 64 pixels": (UNet, (4, 3, 64, 64)),
    "MLP-Mixer, 128 wide, 16 images of 32 pixels": (make_mixer, (16, 3, 32, 32)),
    "`nn.TransformerEncoder`, 256 wide, 16 times 128": (make_encoder, (16, 128, 256)),
    "GPT-2's attention in plain PyTorch, 8 times 128": (make_gpt, (8, 128), 512),
    "ViT, 256 wide, 8 images of 224 pixels": (
        lambda: Patches(16, 256, make_encoder()), (8, 3, 224, 224),
    ),
    "`nn.LSTM`, 256 wide, 32 times 128": (lambda: Layer(nn.LSTM(256, 256)), (128, 32, 256)),
    "`nn.GRU`, the same": (lambda: Layer(nn.GRU(256, 256)), (128, 32, 256)),
    "`nn.RNN`, the same": (lambda: Layer(nn.RNN(256, 256)), (128, 32, 256)),
    "one `nn.GRUCell` in a loop, the same": (lambda: Loop(nn.GRUCell(256, 256)), (128, 32, 256)),
    "one `nn.LSTMCell` in a loop, the same": (lambda: Loop(nn.LSTMCell(256, 256)), (128, 32, 256)),
    "one `nn.RNNCell` in a loop, the same": (lambda: Loop(nn.RNNCell(256, 256)), (128, 32, 256)),
    "two `nn.Linear` and a tanh in a loop, the same": (lambda: Loop(Tanh()), (128, 32, 256)),
}  # fmt: skip


def make_step(name):
    """A training step with Adam."""
    make, shape, *words = MODELS[name]
    model, values = make(), torch.randint(*words, shape) if words else torch.rand(shape)
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        optimizer.zero_grad()
        model(values).square().mean().backward()
        optimizer.step()

    return step


def measure(function):
    """The seconds of CPU time that the function takes."""
    started = time.process_time()
    function()
    return time.process_time() - started


def compare(name):
    """The seconds of an estimate, of one step, and of making the model and two steps."""

    def run():
        step = make_step(name)
        step()
        step()

    def estimate():
        estimate_memory(lambda: make_step(name))

    estimate()
    run()
    step = make_step(name)
    step()
    ways = estimate, step, run
    rounds = [[measure(way) for way in ways] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def main(names):
    """Prints a row for each model."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(HEADER)
    for name in MODELS:
        if not names or any(one in name for one in names):
            taken = compare(name)
            print(f"| {name} |", " | ".join(f"{one:.3f}" for one in taken), "|", flush=True)
            print(f"{taken[0] / taken[1]:.2f} of a step", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
