"""Small models of the kinds that people train, and a training step around each."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class SmallGpt(nn.Module):
    """A decoder of two layers, with learned positions and causal attention."""

    def __init__(self, vocabulary=512, width=128, heads=4, layers=2, length=64):
        super().__init__()
        self.heads = heads
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(GptLayer(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        values = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            values = layer(values)
        return self.head(values)


class GptLayer(nn.Module):
    """Attention and a feed-forward part, each with its norm before it."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.gather = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, values):
        batch, length, width = values.shape
        mixed = self.attend(self.first(values)).view(batch, length, 3, self.heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        values = values + self.gather(attended.transpose(1, 2).reshape(batch, length, width))
        return values + self.feed(self.second(values))


def make_mlp(batch):
    model = nn.Sequential(
        nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    return model, torch.randn(batch, 256), torch.randint(0, 10, (batch,))


def make_cnn(batch):
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return model, torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))


def make_encoder(batch):
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(encoder, nn.Linear(128, 10))
    return model, torch.randn(batch, 64, 128), torch.randint(0, 10, (batch, 64))


def make_gpt(batch):
    ids = torch.randint(0, 512, (batch, 64))
    return SmallGpt(), ids, torch.randint(0, 512, (batch, 64))


MODELS = {"mlp": make_mlp, "cnn": make_cnn, "encoder": make_encoder, "gpt": make_gpt}
OPTIMIZERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}


def make_training(model, optimizer, device=None):
    """A function of the batch size that makes the model and returns its training step."""

    def make_step(batch):
        made = MODELS[model](batch)
        net, inputs, labels = [one.to(device) for one in made] if device else made
        steps = OPTIMIZERS[optimizer](net.parameters(), lr=0.01)

        def step():
            steps.zero_grad()
            logits = net(inputs).flatten(0, -2)
            functional.cross_entropy(logits, labels.flatten()).backward()
            steps.step()

        return step

    return make_step


def run_twice(make_step, batch):
    """Makes the step and takes it twice, as an estimate does."""
    step = make_step(batch)
    step()
    step()
