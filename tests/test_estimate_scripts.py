"""Steps like those of public scripts: after an estimate the real step is as without one."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from labkit.memory.estimate.play import estimate_memory


class Net(nn.Module):
    """A small network with every kind of state."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.outputs = 0, []

    def forward(self, values):
        """The result; counts its calls."""
        self.calls += 1
        self.seen += 1
        return self.head(self.body(values))


class Meter:
    """A running mean, as in torch's examples."""

    total, count = 0.0, 0

    def update(self, value, count=1):
        self.total += value * count
        self.count += count


class Lab:
    """What the steps below take."""

    def __init__(self):
        torch.manual_seed(0)
        self.model, self.teacher, self.meter = Net(), Net(), Meter()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.momentum = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.inputs, self.targets = torch.randn(8, 4), torch.randint(0, 4, (8,))
        self.step_lr = StepLR(self.optimizer, 1)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        self.average = AveragedModel(self.model)
        self.generator = torch.Generator().manual_seed(3)
        self.shadow = {name: one.clone() for name, one in self.model.state_dict().items()}
        self.losses, self.best = [], float("inf")
        self.loader = DataLoader(TensorDataset(self.inputs, self.targets), 4, shuffle=True)
        self.center = torch.zeros(4)

    def loss(self):
        return functional.cross_entropy(self.model(self.inputs), self.targets)

    def train(self, loss=None):
        self.optimizer.zero_grad()
        (self.loss() if loss is None else loss).backward()
        self.optimizer.step()


def run_plain(lab):
    lab.model.train()
    lab.train()


def run_meter(lab):
    loss = lab.loss()
    lab.train(loss)
    lab.meter.update(loss.item(), 8)
    lab.losses.append(loss.item())


def run_best(lab):
    loss = lab.loss()
    lab.train(loss)
    if loss.item() < lab.best:
        lab.best = loss.item()


def run_schedule(lab):
    lab.train()
    lab.step_lr.step()


def run_plateau(lab):
    scheduler = ReduceLROnPlateau(lab.optimizer, patience=0)
    lab.train()
    scheduler.step(1.0)


def run_cycle(lab):
    scheduler = OneCycleLR(lab.optimizer, 0.1, total_steps=10)
    lab.train()
    scheduler.step()


def run_cosine(lab):
    scheduler = CosineAnnealingLR(lab.momentum, 10)
    lab.loss().backward()
    lab.momentum.step()
    scheduler.step()


def run_amp(lab):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = lab.loss()
    lab.scaler.scale(loss).backward()
    lab.scaler.unscale_(lab.optimizer)
    nn.utils.clip_grad_norm_(lab.model.parameters(), 1.0)
    lab.scaler.step(lab.optimizer)
    lab.scaler.update()
    lab.optimizer.zero_grad()


def run_accumulation(lab):
    for part in range(2):
        rows = slice(4 * part, 4 * part + 4)
        loss = functional.cross_entropy(lab.model(lab.inputs[rows]), lab.targets[rows])
        (loss / 2).backward()
    lab.optimizer.step()


def run_keep_gradients(lab):
    lab.loss().backward()


def run_zeros(lab):
    lab.train()
    lab.optimizer.zero_grad(set_to_none=False)


def run_ema(lab):
    lab.train()
    with torch.no_grad():
        for name, one in lab.model.state_dict().items():
            if one.is_floating_point():
                lab.shadow[name].mul_(0.9).add_(one, alpha=0.1)


def run_average(lab):
    lab.train()
    lab.average.update_parameters(lab.model)


def run_swap(lab):
    saved = {name: one.clone() for name, one in lab.model.state_dict().items()}
    lab.model.load_state_dict(lab.shadow)
    lab.model.load_state_dict(saved)
    lab.train()


def run_teacher(lab):
    lab.teacher.eval()
    for one in lab.teacher.parameters():
        one.requires_grad_(False)
    with torch.no_grad():
        wanted = lab.teacher(lab.inputs).softmax(-1)
    lab.train(
        functional.kl_div(lab.model(lab.inputs).log_softmax(-1), wanted, reduction="batchmean")
    )


def run_momentum_teacher(lab):
    lab.train()
    with torch.no_grad():
        pairs = zip(lab.teacher.parameters(), lab.model.parameters(), strict=True)
        for one, other in pairs:
            one.data.mul_(0.99).add_(0.01 * other.detach().data)
        lab.center = lab.center * 0.9 + lab.model(lab.inputs).mean(0) * 0.1


def run_freeze(lab):
    for one in lab.model.body.parameters():
        one.requires_grad = False
    lab.train()


def run_new_head(lab):
    lab.model.head = nn.Linear(8, 4)
    lab.optimizer.add_param_group({"params": lab.model.head.parameters()})
    lab.train()


def run_hooks(lab):
    def keep(module, taken, made):
        lab.model.outputs.append(made.detach())

    handle = lab.model.head.register_forward_hook(keep)
    lab.train()
    handle.remove()


def run_gradient_hooks(lab):
    for one in lab.model.parameters():
        one.register_hook(lambda gradient: gradient.clamp(-1, 1))
    lab.train()


def run_evaluation(lab):
    lab.train()
    lab.model.eval()
    with torch.inference_mode():
        lab.model(lab.inputs).argmax(-1).eq(lab.targets).float().mean()


def run_checkpointing(lab):
    hidden = checkpoint(lab.model.body, lab.inputs, use_reentrant=False)
    lab.train(functional.cross_entropy(lab.model.head(hidden), lab.targets))


def run_loader(lab):
    for inputs, targets in lab.loader:
        lab.train(functional.cross_entropy(lab.model(inputs), targets))


def run_generator(lab):
    noise = torch.randn(8, 4, generator=lab.generator)
    lab.train(lab.model(lab.inputs + noise).square().mean())


def run_draws(lab):
    weight = random.random() + float(np.random.rand()) + torch.rand(())
    lab.train(lab.loss() * weight)


def run_mixup(lab):
    order = torch.randperm(8)
    share = float(np.random.beta(0.2, 0.2))
    mixed = share * lab.inputs + (1 - share) * lab.inputs[order]
    lab.train(functional.cross_entropy(lab.model(mixed), lab.targets))


def run_penalty(lab):
    inputs = lab.inputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(lab.model(inputs).sum(), inputs, create_graph=True)
    lab.train(slope.square().mean())


def run_saving(lab):
    lab.train()
    kept = io.BytesIO()
    torch.save({"model": lab.model.state_dict(), "optimizer": lab.optimizer.state_dict()}, kept)
    kept.seek(0)
    lab.optimizer.load_state_dict(torch.load(kept)["optimizer"])


def run_rates(lab):
    for group in lab.optimizer.param_groups:
        group["lr"] *= 0.5
    lab.train()


def run_in_place(lab):
    lab.inputs.mul_(0.5)
    lab.targets += 0
    lab.train()


def run_initialization(lab):
    lab.model.apply(lambda one: nn.init.zeros_(one.weight) if isinstance(one, nn.Linear) else None)
    lab.train()


def run_pruning(lab):
    with torch.no_grad():
        lab.model.head.weight *= (lab.model.head.weight.abs() > 0.1).float()
    lab.train()


STEPS = {name[4:]: one for name, one in list(globals().items()) if name.startswith("run_")}


def describe(value, seen=None):
    """All state that a step can reach from the value, in words."""
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        state = value.tolist(), value.requires_grad, str(value.dtype), type(value).__name__
        return (*state, None if value.grad is None else value.grad.tolist())
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if id(value) in seen:
        return "seen"
    seen[id(value)] = value
    if isinstance(value, dict):
        return [(k if isinstance(k, str) else "", describe(v, seen)) for k, v in value.items()]
    if isinstance(value, list | tuple | set):
        return [describe(one, seen) for one in value]
    if (hasattr(value, "__dict__") and not callable(value)) or isinstance(value, nn.Module):
        return [type(value).__name__, describe(vars(value), seen)]
    return repr(value) if isinstance(value, int | float | str | None) else type(value).__name__


def take_step(name, *, estimate):
    """What a lab is before and after an estimate, and after a real step."""
    lab = Lab()
    before = describe(lab)
    if estimate:
        made = estimate_memory(STEPS[name], lab)
        assert made.peak_bytes
        assert describe(lab) == before
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    STEPS[name](lab)
    return describe(lab), torch.initial_seed(), random.random()


@pytest.mark.parametrize("name", STEPS)
def test_the_real_step_is_as_without_an_estimate(name):
    assert take_step(name, estimate=True) == take_step(name, estimate=False)
