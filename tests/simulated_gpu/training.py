"""Models and training steps of the kinds that people write, for the estimate and its measurement.

Each takes a device and a batch, makes model, data and optimizer there, and returns the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Step = Callable[[], object]
Make = Callable[[str, int], Step]
LENGTH, WIDTH = 128, 128


def train(
    model: nn.Module, inputs: torch.Tensor, loss: Any = None, optimizer: Any = torch.optim.SGD
) -> Step:
    """A step of training that reduces the mean square of the output, or ``loss`` of it."""
    chosen = optimizer((one for one in model.parameters() if one.requires_grad), lr=0.01)

    def step() -> None:
        chosen.zero_grad()
        result = model(inputs)
        (loss(result) if loss else result.square().mean()).backward()
        chosen.step()

    return step


class Attention(nn.Module):
    """nn.MultiheadAttention to itself, with a mask or the weights if asked for."""

    def __init__(self, dropout: float = 0.0, weights: bool = False, mask: bool = False) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(256, 8, dropout=dropout, batch_first=True)
        self.weights, self.mask = weights, mask

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        length = inputs.shape[1]
        mask = torch.zeros(length, length, device=inputs.device) if self.mask else None
        return self.attend(inputs, inputs, inputs, need_weights=self.weights, attn_mask=mask)[0]


def attention(**options: Any) -> Make:
    def make(device: str, batch: int) -> Step:
        inputs = torch.randn(batch, 256, 256, device=device)
        return train(Attention(**options).to(device), inputs)

    return make


def dot_product(dtype: torch.dtype, trains: bool = True, **options: Any) -> Make:
    """scaled_dot_product_attention alone."""

    def make(device: str, batch: int) -> Step:
        shape = (batch, 8, 256, 32)
        query = torch.randn(shape, device=device, dtype=dtype, requires_grad=trains)

        def step() -> None:
            result = functional.scaled_dot_product_attention(query, query, query, **options)
            if trains:
                result.float().square().mean().backward()

        return step

    return make


def encoder(dropout: float, trains: bool = True, norm_first: bool = False) -> Make:
    def make(device: str, batch: int) -> Step:
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 512, dropout=dropout, batch_first=True, norm_first=norm_first
        )
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).to(device)
        inputs = torch.randn(batch, LENGTH, WIDTH, device=device)
        if trains:
            return train(model, inputs, optimizer=torch.optim.AdamW)
        model.eval()
        return lambda: model(inputs)

    return make


def decoder(device: str, batch: int) -> Step:
    model = nn.TransformerDecoderLayer(WIDTH, 4, 512, dropout=0.0, batch_first=True).to(device)
    memory = torch.randn(batch, LENGTH, WIDTH, device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(memory, memory).square().mean().backward()
        optimizer.step()

    return step


def make_mlp(device: str) -> nn.Module:
    return nn.Sequential(
        nn.Linear(512, 1024), nn.LayerNorm(1024), nn.GELU(), nn.Dropout(0.1), nn.Linear(1024, 512)
    ).to(device)


def mlp(optimizer: Any = torch.optim.SGD, **options: Any) -> Make:
    def make(device: str, batch: int) -> Step:
        inputs = torch.randn(batch, 512, device=device)
        return train(
            make_mlp(device), inputs, optimizer=lambda names, lr: optimizer(names, lr, **options)
        )

    return make


def autocast(dtype: torch.dtype) -> Make:
    def make(device: str, batch: int) -> Step:
        model, inputs = make_mlp(device), torch.randn(batch, 512, device=device)
        optimizer = torch.optim.AdamW(model.parameters())

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=dtype):
                loss = functional.mse_loss(model(inputs), inputs)
            loss.backward()
            optimizer.step()

        return step

    return make


def frozen(device: str, batch: int) -> Step:
    """A frozen part below a small head that is trained."""
    below, head = make_mlp(device).requires_grad_(False), nn.Linear(512, 10).to(device)
    return train(nn.Sequential(below, head), torch.randn(batch, 512, device=device))


def accumulated(device: str, batch: int) -> Step:
    """Two backward passes before one step."""
    model, inputs = make_mlp(device), torch.randn(batch, 512, device=device)
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(2):
            model(inputs).square().mean().backward()
        optimizer.step()

    return step


def checkpointed(reentrant: bool) -> Make:
    def make(device: str, batch: int) -> Step:
        layers = nn.ModuleList(
            nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)) for _ in range(4)
        ).to(device)
        inputs = torch.randn(batch, 512, device=device, requires_grad=True)

        def step() -> None:
            result = inputs
            for layer in layers:
                result = checkpoint(layer, result, use_reentrant=reentrant)
            result.square().mean().backward()

        return step

    return make


def language_model(device: str, batch: int) -> Step:
    tokens, head = nn.Embedding(8000, 128).to(device), nn.Linear(128, 8000).to(device)
    ids = torch.randint(0, 8000, (batch, 32), device=device)
    return train(
        nn.Sequential(tokens, head),
        ids,
        lambda scores: functional.cross_entropy(scores.flatten(0, 1), ids.flatten()),
    )


def normalized(device: str, batch: int) -> Step:
    model = nn.Sequential(
        nn.Linear(256, 256), nn.BatchNorm1d(256), nn.SiLU(), nn.Dropout(0.2), nn.Softmax(-1)
    ).to(device)
    inputs = torch.randn(batch, 256, device=device)
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).log().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def evaluated(device: str, batch: int) -> Step:
    model, inputs = make_mlp(device).eval(), torch.randn(batch, 512, device=device)
    return lambda: model(inputs)


def sorted_sums(device: str, batch: int) -> Step:
    inputs = torch.randn(batch, 4096, device=device)
    return lambda: torch.softmax(inputs.sort(dim=1).values.cumsum(1), 1).topk(5)


def residual(device: str, batch: int) -> Step:
    """Sums, a concatenation and a product of halves, as in gated layers."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.widen, self.narrow = nn.Linear(256, 1024), nn.Linear(512, 256)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            value, gate = self.widen(inputs).chunk(2, dim=-1)
            return torch.cat([inputs, inputs + self.narrow(value * gate.sigmoid())], dim=-1)

    return train(Gated().to(device), torch.randn(batch, 256, device=device))


def second_order(device: str, batch: int) -> Step:
    """A penalty on the gradient of the inputs."""
    model = make_mlp(device)
    inputs = torch.randn(batch, 512, device=device, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step() -> None:
        optimizer.zero_grad()
        [gradient] = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        gradient.square().mean().backward()
        optimizer.step()

    return step


ADAMW = torch.optim.AdamW
# The step, its batch, and whether it trains.
STEPS: dict[str, tuple[Make, int, bool]] = {
    "attention": (attention(), 8, True),
    "attention, dropout": (attention(dropout=0.1), 8, True),
    "attention, weights": (attention(weights=True), 8, True),
    "attention, weights and dropout": (attention(weights=True, dropout=0.1), 8, True),
    "attention, mask": (attention(mask=True), 8, True),
    "dot product, float32": (dot_product(torch.float32), 8, True),
    "dot product, bfloat16": (dot_product(torch.bfloat16), 16, True),
    "dot product, causal": (dot_product(torch.float16, is_causal=True), 16, True),
    "dot product, inference": (dot_product(torch.float32, trains=False), 8, False),
    "encoder": (encoder(0.0), 8, True),
    "encoder, dropout": (encoder(0.1), 8, True),
    "encoder, norm first": (encoder(0.1, norm_first=True), 8, True),
    "encoder, inference": (encoder(0.0, trains=False), 8, False),
    "decoder": (decoder, 8, True),
    "MLP, SGD": (mlp(), 1024, True),
    "MLP, momentum": (mlp(momentum=0.9), 1024, True),
    "MLP, Adam": (mlp(torch.optim.Adam), 1024, True),
    "MLP, foreach AdamW": (mlp(ADAMW, foreach=True), 1024, True),
    "MLP, AdamW in a loop": (mlp(ADAMW, foreach=False), 1024, True),
    "MLP, fused AdamW": (mlp(ADAMW, fused=True), 1024, True),
    "MLP, RMSprop": (mlp(torch.optim.RMSprop), 1024, True),
    "MLP, inference": (evaluated, 4096, False),
    "autocast, bfloat16": (autocast(torch.bfloat16), 1024, True),
    "autocast, float16": (autocast(torch.float16), 1024, True),
    "frozen part": (frozen, 4096, True),
    "accumulated gradients": (accumulated, 1024, True),
    "checkpoint": (checkpointed(reentrant=False), 512, True),
    "checkpoint, reentrant": (checkpointed(reentrant=True), 512, True),
    "embedding, large head": (language_model, 32, True),
    "batch norm, clipped": (normalized, 4096, True),
    "sort, cumsum, topk": (sorted_sums, 512, False),
    "gated, concatenated": (residual, 2048, True),
    "second order": (second_order, 1024, True),
}
