"""Steps in torch alone, as tutorials and papers' code have them, to judge estimates by.

Importing this module adds them to ``STEPS``.
"""

from __future__ import annotations

import copy
import functools
import io

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.fakes.real_models import BOUNDS, STEPS, make_images, step, train


@step
def translation_with_attention():
    """Additive attention over an encoder's states, word by word, with teacher forcing."""
    words, width, length = 600, 128, 12
    embed, encoder = nn.Embedding(words, width), nn.GRU(width, width, batch_first=True)
    decoder = nn.GRU(2 * width, width, batch_first=True)
    query, key = nn.Linear(width, width), nn.Linear(width, width)
    score, head = nn.Linear(width, 1), nn.Linear(width, words)
    source, target = torch.randint(0, words, (2, 16, length))

    def measure():
        states, hidden = encoder(functional.dropout(embed(source), 0.1))
        said = torch.zeros(16, 1, dtype=torch.long)
        made = []
        for place in range(length):
            scores = score(torch.tanh(query(hidden.permute(1, 0, 2)) + key(states)))
            weights = scores.squeeze(2).unsqueeze(1).softmax(-1)
            seen = torch.cat([embed(said), torch.bmm(weights, states)], dim=2)
            output, hidden = decoder(seen, hidden)
            made.append(head(output))
            said = target[:, place].unsqueeze(1)
        logits = torch.cat(made, 1).log_softmax(-1)
        return functional.nll_loss(logits.view(-1, words), target.view(-1))

    parts = [embed, encoder, decoder, query, key, score, head]
    return train(nn.ModuleList(parts), measure, torch.optim.Adam)


@step
def dcgan():
    maker = nn.Sequential(
        nn.ConvTranspose2d(32, 128, 4, 1, 0, bias=False), nn.BatchNorm2d(128), nn.ReLU(True),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
        nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    critic = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(32, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2, True),
        nn.Conv2d(64, 1, 4, 1, 0, bias=False), nn.Sigmoid(), nn.Flatten(0),
    )  # fmt: skip
    first, second = (torch.optim.Adam(one.parameters(), 2e-4) for one in (maker, critic))
    images, losses = torch.randn(32, 3, 16, 16), []

    def run():
        critic.zero_grad()
        labels = torch.full((32,), 1.0)
        functional.binary_cross_entropy(critic(images), labels).backward()
        made = maker(torch.randn(32, 32, 1, 1))
        functional.binary_cross_entropy(critic(made.detach()), labels.fill_(0.0)).backward()
        second.step()
        maker.zero_grad()
        loss = functional.binary_cross_entropy(critic(made), labels.fill_(1.0))
        loss.backward()
        first.step()
        losses.append(loss.item())

    return run


@step
def deep_q_network():
    """Double networks on transitions that are kept one by one in a list."""
    policy = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                           nn.Linear(256, 2))  # fmt: skip
    target = copy.deepcopy(policy)
    memory = [
        (torch.randn(1, 4), torch.tensor([[n % 2]]), torch.randn(1, 4) if n % 10 else None)
        for n in range(256)
    ]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, amsgrad=True)

    def run():
        states, actions, following = zip(*memory, strict=True)
        goes_on = torch.tensor([one is not None for one in following])
        values = torch.zeros(256)
        with torch.no_grad():
            values[goes_on] = target(torch.cat([o for o in following if o is not None])).amax(1)
        chosen = policy(torch.cat(states)).gather(1, torch.cat(actions))
        optimizer.zero_grad()
        functional.smooth_l1_loss(chosen, (0.99 * values + 1)[:, None]).backward()
        nn.utils.clip_grad_value_(policy.parameters(), 100)
        optimizer.step()
        kept, new = target.state_dict(), policy.state_dict()
        target.load_state_dict({name: 0.995 * kept[name] + 0.005 * new[name] for name in kept})

    return run


@step
def spatial_transformer():
    net = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.Dropout2d(),
        nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(320, 10),
    )  # fmt: skip
    place = nn.Sequential(
        nn.Conv2d(1, 8, 7), nn.MaxPool2d(2, stride=2), nn.ReLU(True), nn.Flatten(),
        nn.Linear(968, 6),
    )  # fmt: skip
    place[-1].weight.data.zero_()
    place[-1].bias.data.copy_(torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float))
    images, labels = torch.rand(64, 1, 28, 28), torch.randint(0, 10, (64,))

    def measure():
        grid = functional.affine_grid(place(images).view(-1, 2, 3), images.size(), False)
        moved = functional.grid_sample(images, grid, align_corners=False)
        return functional.cross_entropy(net(moved), labels)

    return train(nn.ModuleList([net, place]), measure, torch.optim.SGD)


@step
def forward_forward():
    """Each layer has its own optimizer, and no gradient passes between layers."""
    layers = [nn.Linear(784, 500), nn.Linear(500, 500)]
    optimizers = [torch.optim.Adam(one.parameters(), lr=0.03) for one in layers]
    images = torch.rand(2, 256, 784)

    def run():
        good, bad = images
        for layer, optimizer in zip(layers, optimizers, strict=True):
            for _ in range(3):
                scores = [layer(one).relu().pow(2).mean(1) for one in (good, bad)]
                loss = torch.log(1 + torch.exp(torch.cat([2 - scores[0], scores[1] - 2]))).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            good, bad = (
                (layer(one / (one.norm(2, 1, keepdim=True) + 1e-4)).relu()).detach()
                for one in (good, bad)
            )

    return run


@step
def normalizing_flow():
    layers = nn.ModuleList(
        nn.Sequential(nn.Linear(32, 256), nn.LeakyReLU(), nn.Linear(256, 64)) for _ in range(6)
    )
    kept = (torch.arange(32) % 2).float()
    prior = torch.distributions.MultivariateNormal(torch.zeros(32), torch.eye(32))
    samples = torch.randn(512, 32)

    def measure():
        values, volume, mask = samples, torch.zeros(512), kept
        for layer in layers:
            scale, shift = (layer(values * mask) * (1 - mask).repeat(2)).chunk(2, 1)
            scale = scale.tanh()
            values = values * mask + (1 - mask) * (values * scale.exp() + shift)
            volume, mask = volume + scale.sum(1), 1 - mask
        return -(prior.log_prob(values) + volume).mean()

    return train(layers, measure, torch.optim.Adam)


@step
def contrasts():
    """SimCLR: the pairs are read from a matrix of similarities by a rolled diagonal."""
    net = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 128))
    images = torch.randn(512, 256)

    def measure():
        made = functional.normalize(net(images), dim=1)
        near = made @ made.T / 0.07
        itself = torch.eye(512, dtype=torch.bool)
        near = near.masked_fill(itself, -9e15)
        return (torch.logsumexp(near, -1) - near[itself.roll(256, 0)]).mean()

    return train(net, measure)


@step
def momentum_contrast():
    """MoCo: a slow copy of the encoder, and a queue of its outputs in a buffer."""
    quick = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(512, 64),
    )  # fmt: skip
    slow = copy.deepcopy(quick).requires_grad_(False)
    quick.register_buffer("queue", functional.normalize(torch.randn(64, 4096), dim=0))
    quick.register_buffer("place", torch.zeros(1, dtype=torch.long))
    images, others = make_images(32), make_images(32)
    optimizer = torch.optim.SGD(quick.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)

    def run():
        made = functional.normalize(quick(images), dim=1)
        with torch.no_grad():
            for one, other in zip(quick.parameters(), slow.parameters(), strict=True):
                other.data = other.data * 0.999 + one.data * 0.001
            order = torch.randperm(32)
            kept = functional.normalize(slow(others[order]), dim=1)[order.argsort()]
        good = torch.einsum("nc,nc->n", made, kept)[:, None]
        logits = torch.cat([good, made @ quick.queue.clone().detach()], 1) / 0.07
        optimizer.zero_grad()
        functional.cross_entropy(logits, torch.zeros(32, dtype=torch.long)).backward()
        optimizer.step()
        first = int(quick.place)
        quick.queue[:, first : first + 32] = kept.T
        quick.place[0] = (first + 32) % 4096

    return run


@step
def sharpness_aware():
    net = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    values, optimizer = torch.randn(64, 512), torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)

    def run():
        net(values).square().mean().backward()
        with torch.no_grad():
            norm = torch.stack([one.grad.norm() for one in net.parameters()]).norm() + 1e-12
            before = {one: one.data.clone() for one in net.parameters()}
            for one in net.parameters():
                one.add_(one.grad * 0.05 / norm)
        optimizer.zero_grad()
        net(values).square().mean().backward()
        for one in net.parameters():
            one.data = before[one]
        optimizer.step()
        optimizer.zero_grad()

    return run


@step
def graph_of_a_sparse_matrix():
    edges = torch.randint(0, 1500, (2, 8000))
    near = torch.sparse_coo_tensor(edges, torch.ones(8000), (1500, 1500)).coalesce()
    layers = nn.ModuleList([nn.Linear(64, 64, bias=False), nn.Linear(64, 7, bias=False)])
    values, labels = torch.randn(1500, 64), torch.randint(0, 7, (1500,))

    def measure():
        hidden = functional.dropout(torch.sparse.mm(near, layers[0](values)).relu(), 0.5)
        return functional.cross_entropy(torch.sparse.mm(near, layers[1](hidden)), labels)

    return train(layers, measure, torch.optim.Adam)


class SpectralLayer(nn.Module):
    """A product of the lowest frequencies, as in Fourier neural operators."""

    def __init__(self, width, modes):
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.rand(width, width, modes, dtype=torch.cfloat) / width**2)

    def forward(self, values):
        found = torch.fft.rfft(values)
        made = torch.zeros_like(found)
        low = found[:, :, : self.modes]
        made[:, :, : self.modes] = torch.einsum("bix,iox->box", low, self.weight)
        return torch.fft.irfft(made, n=values.size(-1))


@step
def fourier_operator():
    ends = nn.ModuleList([nn.Linear(2, 32), nn.Linear(32, 1)])
    spectral = nn.ModuleList(SpectralLayer(32, 16) for _ in range(4))
    plain = nn.ModuleList(nn.Conv1d(32, 32, 1) for _ in range(4))
    values, aims = torch.randn(16, 256, 2), torch.randn(16, 256, 1)

    def measure():
        hidden = ends[0](values).permute(0, 2, 1)
        for one, other in zip(spectral, plain, strict=True):
            hidden = functional.gelu(one(hidden) + other(hidden))
        return torch.norm(ends[1](hidden.permute(0, 2, 1)) - aims, 2, 1).mean()

    return train(nn.ModuleList([ends, spectral, plain]), measure, torch.optim.Adam)


@step
def phases():
    layer, images = nn.Conv2d(1, 8, 3, padding=1), torch.randn(8, 1, 64, 64)

    def measure():
        found = torch.fft.fftshift(torch.fft.fft2(layer(images)))
        turned = torch.fft.ifft2(found * torch.exp(1j * found.angle().detach())).abs()
        again = torch.fft.irfft2(torch.fft.rfft2(layer(images), norm="ortho"), norm="ortho")
        return turned.mean() + again.square().mean()

    return train(layer, measure)


@step
def ensemble():
    """Models whose parameters are stacked, and run at once."""
    models = [nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)) for _ in range(6)]
    weights, buffers = torch.func.stack_module_state(models)
    frame = copy.deepcopy(models[0]).to("meta")
    values, labels = torch.randn(64, 128), torch.randint(0, 10, (64,))
    optimizer = torch.optim.SGD(weights.values(), lr=0.1)

    def call(given, kept):
        return torch.func.functional_call(frame, (given, kept), (values,))

    def run():
        logits = torch.func.vmap(call)(weights, buffers)
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), labels.repeat(6)).backward()
        optimizer.step()

    return run


@step
def updates_in_backward():
    """Each parameter has an optimizer, which a hook runs as soon as the gradient is there."""
    net = nn.Sequential(*(nn.Linear(512, 512) for _ in range(6)))
    optimizers = {one: torch.optim.Adam([one], foreach=False) for one in net.parameters()}

    def update(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for one in net.parameters():
        one.register_post_accumulate_grad_hook(update)
    values = torch.randn(64, 512)
    return lambda: net(values).square().mean().backward()


@step
def saved_in_16_bits():
    net = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(4)))
    values = torch.randn(512, 256)

    def measure():
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.bfloat16, torch.Tensor.float):
            return net(values).square().mean()

    return train(net, measure)


@step
def labels_of_plus_and_minus():
    layer, values = nn.Linear(64, 1500), torch.randn(512, 64)
    signs = torch.randint(0, 2, (512, 1500)).float() * 2 - 1
    return train(layer, lambda: functional.soft_margin_loss(layer(values), signs))


def train_on(make, shape, measure):
    """A layer trained on what ``measure`` makes of its result."""
    layer, values = make(), torch.randn(*shape)
    return train(layer, lambda: measure(layer(values)))


for name, (make, shape, measure) in {
    "sorted_samples": (lambda: nn.Linear(16, 1), (100_000, 16), lambda made: (
        made.squeeze(1).sort().values - torch.randn(100_000).sort().values).abs().mean()),
    "order_statistics": (lambda: nn.Linear(64, 100), (600, 64), lambda made: (
        torch.quantile(made, 0.9, dim=0).mean() + made.median(0).values.mean() + made.median()
        + made.kthvalue(5, 1).values.mean() + made.mode(1).values.mean())),
    "patches_folded": (lambda: nn.Conv2d(3, 3, 1), (8, 3, 48, 48), lambda made: functional.fold(
        functional.unfold(made, 3, padding=1).transpose(1, 2).tanh().transpose(1, 2),
        (48, 48), 3, padding=1).square().mean()),
    "city_block_distances": (lambda: nn.Linear(64, 64), (1500, 64), lambda made: (
        torch.cdist(made, made[:300], p=1).exp().neg().mean())),
    "factorized": (lambda: nn.Linear(64, 64), (8, 64, 64), lambda made: (
        torch.linalg.svdvals(made).sum() + torch.linalg.qr(made)[1].abs().mean()
        + torch.linalg.inv(made @ made.mT + torch.eye(64)).mean())),
}.items():  # fmt: skip
    STEPS[name] = functools.partial(train_on, make, shape, measure)


@step
def waves():
    """WaveNet: dilated convolutions with gates, and the sum of what they skip."""
    first, last = nn.Conv1d(1, 32, 1), nn.Conv1d(64, 256, 1)
    gates = nn.ModuleList(nn.Conv1d(32, 64, 2, dilation=2**n) for n in range(6))
    skips = nn.ModuleList(nn.Conv1d(32, 96, 1) for _ in range(6))
    sounds, letters = torch.randn(4, 1, 1000), torch.randint(0, 256, (4, 1000))

    def measure():
        hidden, total = first(sounds), 0
        for gate, skip in zip(gates, skips, strict=True):
            one, other = gate(functional.pad(hidden, (gate.dilation[0], 0))).chunk(2, 1)
            more, skipped = skip(one.tanh() * other.sigmoid()).split([32, 64], 1)
            hidden, total = hidden + more, total + skipped
        return functional.cross_entropy(last(total.relu()), letters)

    return train(nn.ModuleList([first, last, gates, skips]), measure, torch.optim.Adam)


@step
def volumes():
    """A U-Net of three dimensions with the Dice loss."""

    def make_block(before, after):
        return nn.Sequential(
            nn.Conv3d(before, after, 3, padding=1), nn.InstanceNorm3d(after, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )  # fmt: skip

    down, bottom, up = make_block(1, 16), make_block(16, 32), nn.ConvTranspose3d(32, 16, 2, 2)
    head = nn.Sequential(make_block(32, 16), nn.Conv3d(16, 3, 1))
    images, labels = torch.randn(2, 1, 16, 32, 32), torch.randint(0, 3, (2, 16, 32, 32))

    def measure():
        kept = down(images)
        logits = head(torch.cat([kept, up(bottom(functional.max_pool3d(kept, 2)))], 1))
        shares, dims = logits.softmax(1), (2, 3, 4)
        wanted = functional.one_hot(labels, 3).permute(0, 4, 1, 2, 3).float()
        common = 2 * (shares * wanted).sum(dims) / (shares.sum(dims) + wanted.sum(dims))
        return functional.cross_entropy(logits, labels) + 1 - common.mean()

    return train(nn.ModuleList([down, bottom, up, head]), measure)


@step
def capsules():
    weights, inputs = nn.Parameter(torch.randn(10, 144, 16, 8) * 0.1), torch.randn(16, 144, 8)

    def measure():
        votes, scores = torch.einsum("kijl,bil->bkij", weights, inputs), torch.zeros(16, 10, 144)
        for _ in range(3):
            total = torch.einsum("bki,bkij->bkj", scores.softmax(1), votes)
            length = total.square().sum(-1, keepdim=True)
            made = length.sqrt() / (1 + length) * total
            scores = scores + torch.einsum("bkij,bkj->bki", votes, made)
        return made.norm(dim=-1).mean()

    return train(nn.ParameterList([weights]), measure)


@step
def linear_chain():
    """A conditional random field: a logsumexp for each word."""
    layer, moves = nn.Linear(64, 12), nn.Parameter(torch.randn(12, 12))
    values, labels = torch.randn(32, 50, 64), torch.randint(0, 12, (32, 50))

    def measure():
        scores = layer(values)
        total = scores[:, 0]
        for place in range(1, 50):
            total = torch.logsumexp(total[:, :, None] + moves + scores[:, place, None], 1)
        right = scores.gather(2, labels[:, :, None]).sum()
        right = right + moves[labels[:, :-1], labels[:, 1:]].sum()
        return torch.logsumexp(total, 1).sum() - right

    return train(nn.ParameterList([moves, *layer.parameters()]), measure)


BOUNDS["graph_of_a_sparse_matrix"] = "lower bound"


class TimesBlock(nn.Module):
    """Folds a series by its strongest periods, which NumPy divides."""

    def __init__(self, steps=96, width=32):
        super().__init__()
        self.steps = steps
        self.mix = nn.Sequential(nn.Conv2d(width, 64, 3, padding=1), nn.GELU(),
                                 nn.Conv2d(64, width, 3, padding=1))  # fmt: skip

    def forward(self, values):
        batch, width = values.size(0), values.size(2)
        power = torch.fft.rfft(values, dim=1).abs()
        strongest = power.mean((0, 2))[1:].topk(3).indices + 1
        made = []
        for period in self.steps // strongest.detach().cpu().numpy():
            rows = -(-self.steps // int(period))
            padded = functional.pad(values, (0, 0, 0, rows * int(period) - self.steps))
            folded = padded.reshape(batch, rows, int(period), width).permute(0, 3, 1, 2)
            mixed = self.mix(folded.contiguous()).permute(0, 2, 3, 1).reshape(batch, -1, width)
            made.append(mixed[:, : self.steps])
        weights = power[:, strongest].mean(-1).softmax(1)
        return values + (torch.stack(made, -1) * weights[:, None, None]).sum(-1)


@step
def series_folded_by_periods():
    model = nn.Sequential(nn.Linear(7, 32), TimesBlock(), TimesBlock(), nn.Linear(32, 7))
    series = torch.randn(16, 96, 7)
    return train(model, lambda: functional.mse_loss(model(series), series))


@step
def speech_in_packed_sequences():
    """Convolutions over spectrograms, a recurrent network over what is not padding, and CTC."""
    layers = nn.ModuleDict({
        "read": nn.Sequential(nn.Conv2d(1, 16, 3, stride=2), nn.Hardtanh(0, 20, inplace=True)),
        "follow": nn.GRU(16 * 19, 64, bidirectional=True, batch_first=True),
        "head": nn.Linear(128, 29),
    })  # fmt: skip
    sounds, letters = torch.randn(4, 1, 40, 100), torch.randint(1, 29, (4, 12))
    frames, lengths = torch.tensor([49, 40, 33, 20]), torch.tensor([12, 9, 8, 5])
    pack, pad = nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence

    def measure():
        seen = layers["read"](sounds).flatten(1, 2).transpose(1, 2)
        states = layers["follow"](pack(seen, frames, batch_first=True))[0]
        scores = layers["head"](pad(states, batch_first=True)[0]).log_softmax(-1)
        return functional.ctc_loss(scores.transpose(0, 1), letters, frames, lengths)

    return train(layers, measure)


@step
def soft_actor_critic():
    """Two critics, their averages, an actor, and a temperature that is read as a number."""

    def make(inputs, outputs):
        return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, outputs))

    actor, critics = make(11, 6), nn.ModuleList([make(14, 1), make(14, 1)])
    targets, heat = copy.deepcopy(critics), torch.zeros(1, requires_grad=True)
    of_critics, of_actor = (torch.optim.Adam(one.parameters()) for one in (critics, actor))
    of_heat = torch.optim.Adam([heat])

    def act(states):
        mean, spread = actor(states).chunk(2, -1)
        normal = torch.distributions.Normal(mean, (torch.tanh(spread) * 3.5 - 1.5).exp())
        drawn = normal.rsample()
        action = torch.tanh(drawn)
        return action, (normal.log_prob(drawn) - torch.log(1 - action**2 + 1e-6)).sum(1, True)

    def judge(both, states, actions):
        return [one(torch.cat([states, actions], 1)) for one in both]

    def update(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def run():
        states, following, actions = torch.randn(256, 11), torch.randn(256, 11), torch.rand(256, 3)
        weight = heat.exp().item()
        with torch.no_grad():
            chosen, likely = act(following)
            worth = torch.min(*judge(targets, following, chosen)) - weight * likely
        update(of_critics, sum(functional.mse_loss(one, 0.99 * worth + 1)
                               for one in judge(critics, states, actions)))  # fmt: skip
        chosen, likely = act(states)
        update(of_actor, (weight * likely - torch.min(*judge(critics, states, chosen))).mean())
        update(of_heat, (-heat.exp() * (likely.detach() + 3)).mean())
        with torch.no_grad():
            for new, kept in zip(critics.parameters(), targets.parameters(), strict=True):
                kept.lerp_(new, 0.005)

    return run


@step
def samples_without_gradients():
    """A diffusion model's sampler in inference mode, whose convolutions oneDNN computes."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1))
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 50), 0)

    @torch.inference_mode()
    def run():
        images = torch.randn(8, 3, 32, 32)
        for place in reversed(range(0, 50, 10)):
            noise = model(torch.cat([images, images]))[:8]
            clean = (images - (1 - kept[place]).sqrt() * noise) / kept[place].sqrt()
            images = kept[max(place - 10, 0)].sqrt() * clean.clamp(-1, 1) + noise / 10
        return (images.clamp(-1, 1) + 1).mul(127.5).to(torch.uint8)

    return run


@step
def experts_in_a_loop():
    choose, count = nn.Linear(64, 4, bias=False), 4
    experts = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
                            for _ in range(count))  # fmt: skip
    tokens = torch.randn(512, 64)

    def measure():
        weights, chosen = choose(tokens).topk(2)
        made, weights = torch.zeros_like(tokens), weights.softmax(1)
        for number, expert in enumerate(experts):
            rows, places = torch.where(chosen == number)
            made[rows] += weights[rows, places, None] * expert(tokens[rows])
        return made.square().mean()

    return train(nn.ModuleList([choose, experts]), measure)


@step
def trained_by_epochs():
    """A loader that shuffles, a model of lazy layers, and the best state kept in memory."""
    data = torch.utils.data.TensorDataset(torch.randn(512, 64), torch.randint(0, 10, (512,)))
    loader = torch.utils.data.DataLoader(data, 64, shuffle=True, drop_last=True)
    model = nn.Sequential(nn.LazyLinear(256), nn.ReLU(), nn.LazyLinear(10))
    model(torch.zeros(2, 64))
    optimizer, kept = torch.optim.Adam(model.parameters()), io.BytesIO()

    def run():
        for values, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(values), labels).backward()
            optimizer.step()
        kept.seek(0)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, kept)
        kept.seek(0)
        model.load_state_dict(torch.load(kept)["model"])

    return run


@step
def windows_of_tokens():
    """Batches from one long array, at drawn places, and gradients of two of them added up."""
    tokens = np.random.default_rng(0).integers(0, 200, 5_000)
    embed = nn.Embedding(200, 128)
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    head, length = nn.Linear(128, 200), 64
    model = nn.ModuleList([embed, layer, head])
    optimizer = torch.optim.AdamW(model.parameters())

    def run():
        for _ in range(2):
            starts = torch.randint(len(tokens) - length, (8,))
            values = torch.stack([torch.from_numpy(tokens[one : one + length]) for one in starts])
            logits = head(layer(embed(values)))[:, :-1].flatten(0, 1)
            (functional.cross_entropy(logits, values[:, 1:].flatten()) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


@step
def graph_with_accuracies():
    """Two convolutions on a graph, and shares of right answers by whole numbers."""
    nodes = 400
    values, labels = torch.randn(nodes, 200), torch.randint(0, 7, (nodes,))
    source, target = torch.randint(0, nodes, (2, 2_000))
    trained = torch.rand(nodes) < 0.3
    first, last = nn.Linear(200, 64), nn.Linear(64, 7)
    optimizer = torch.optim.Adam([*first.parameters(), *last.parameters()])

    def gather(made):
        return torch.zeros(nodes, made.size(1)).index_add_(0, target, made[source])

    def run():
        optimizer.zero_grad()
        made = gather(last(functional.dropout(gather(first(values)).relu(), 0.5)))
        functional.cross_entropy(made[trained], labels[trained]).backward()
        optimizer.step()
        right = made.argmax(1) == labels
        return [int(right[one].sum()) / int(one.sum()) for one in (trained, ~trained)]

    return run


@step
def speech_decoded():
    """CTC, a span of each spectrum masked at random, and the best letters as text."""
    recurrent, head = nn.GRU(40, 64, batch_first=True, bidirectional=True), nn.Linear(128, 29)
    optimizer = torch.optim.AdamW([*recurrent.parameters(), *head.parameters()])
    spectra, texts = torch.randn(8, 100, 40), torch.randint(1, 29, (8, 12))

    def run():
        begin, count = torch.randint(0, 60, (1,)), torch.randint(0, 40, (1,))
        heard = spectra.clone()
        heard[:, begin : begin + count] = 0
        scores = head(recurrent(heard)[0]).log_softmax(-1)
        lengths = torch.full((8,), 100), torch.full((8,), 12)
        optimizer.zero_grad()
        functional.ctc_loss(scores.transpose(0, 1), texts, *lengths).backward()
        optimizer.step()
        return "".join(chr(96 + int(one)) for one in scores[0, :40].argmax(-1) if one != 0)

    return run


@step
def policy_with_a_baseline():
    """An environment of NumPy's that takes actions as numbers, and returns in lists of tensors."""
    body, policy, value = nn.Linear(8, 512), nn.Linear(512, 4), nn.Linear(512, 1)
    optimizer = torch.optim.Adam(nn.ModuleList([body, policy, value]).parameters())

    def run():
        state, steps = np.zeros(8, dtype=np.float32), []
        for _ in range(40):
            hidden = body(torch.from_numpy(state)).relu()
            actions = torch.distributions.Categorical(logits=policy(hidden))
            action = actions.sample()
            steps.append((actions.log_prob(action), value(hidden)))
            state = np.roll(state, 1)
            state[0] = action.numpy() / 4
        returns = torch.tensor([float(place) for place in range(40)])
        returns = (returns - returns.mean()) / returns.std()
        losses = []
        for (chance, guess), one in zip(steps, returns, strict=True):
            losses.append(-chance * (one - guess.item()))
            losses.append(functional.smooth_l1_loss(guess, torch.tensor([one])).view(()))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()

    return run


@step
def boxes_suppressed():
    """A detector's head, and a loop that drops the boxes that overlap a better one."""
    head = nn.Conv2d(32, 5, 1)
    optimizer, features = torch.optim.SGD(head.parameters(), 0.01), torch.randn(1, 32, 24, 24)

    def run():
        made = head(features).flatten(2)[0].t()
        optimizer.zero_grad()
        made.square().mean().backward()
        optimizer.step()
        boxes, order, kept = made[:, :4].detach(), made[:, 4].argsort(descending=True)[:30], []
        while order.numel() > 1:
            kept.append(int(order[0]))
            size = torch.min(boxes[order[0], 2:], boxes[order[1:], 2:]).clamp(min=0).prod(1)
            order = order[1:][size <= 0.5]
        return kept

    return run


@step
def codebook_restarted():
    """Codes that nothing chose start again from samples."""
    codes, encoder, values = nn.Embedding(64, 32), nn.Linear(32, 32), torch.randn(256, 32)
    optimizer = torch.optim.Adam([*codes.parameters(), *encoder.parameters()])

    def run():
        made = encoder(values)
        chosen = torch.cdist(made, codes.weight).argmin(1)
        optimizer.zero_grad()
        (codes(chosen) - made).square().mean().backward()
        optimizer.step()
        unused = torch.bincount(chosen, minlength=64) < 1
        with torch.no_grad():
            count = int(unused.sum())
            if count > 0:
                codes.weight.data[unused] = made[torch.randperm(256)[:count]]

    return run


BOUNDS["experts_in_a_loop"] = "interval"


@step
def proximal_policy():
    """Rollouts kept in tensors, and their minibatches in an order that NumPy shuffles."""
    steps, worlds, seen, actions = 32, 8, 16, 4
    actor = nn.Sequential(nn.Linear(seen, 128), nn.Tanh(), nn.Linear(128, actions))
    critic = nn.Sequential(nn.Linear(seen, 128), nn.Tanh(), nn.Linear(128, 1))
    weights = [*actor.parameters(), *critic.parameters()]
    optimizer, draws = torch.optim.Adam(weights, eps=1e-5), np.random.default_rng(0)
    states = torch.zeros(steps, worlds, seen)
    taken, before, gains, values = (torch.zeros(steps, worlds) for _ in range(4))

    def roll_out():
        for place in range(steps):
            states[place] = torch.tensor(draws.normal(size=(worlds, seen)), dtype=torch.float32)
            with torch.no_grad():
                policy = torch.distributions.Categorical(logits=actor(states[place]))
                taken[place] = chosen = policy.sample()
                before[place] = policy.log_prob(chosen)
                values[place] = critic(states[place]).flatten()
            gains[place] = torch.tensor(draws.normal(size=worlds))

    def run():
        roll_out()
        kept = [one.flatten(0, 1) for one in (states, taken, before, gains - values, gains)]
        for part in np.split(draws.permutation(steps * worlds), 4):
            state, action, old, better, gain = (one[part] for one in kept)
            policy = torch.distributions.Categorical(logits=actor(state))
            ratio = (policy.log_prob(action) - old).exp()
            better = (better - better.mean()) / (better.std() + 1e-8)
            worse = torch.max(-better * ratio, -better * ratio.clamp(0.8, 1.2)).mean()
            missed = functional.mse_loss(critic(state).flatten(), gain)
            optimizer.zero_grad()
            (worse + missed / 2 - policy.entropy().mean() / 100).backward()
            nn.utils.clip_grad_norm_(weights, 0.5)
            optimizer.step()

    return run


@step
def radiance_field():
    """Rays through two networks: samples at even depths, and more of them where there is matter."""
    rays, depths = 256, 32
    coarse, fine = (
        nn.Sequential(nn.Linear(63, 128), nn.ReLU(), nn.Linear(128, 4)) for _ in range(2)
    )
    origins, ways, colors = torch.randn(rays, 1, 3), torch.randn(rays, 1, 3), torch.rand(rays, 3)

    def encode(places):
        waves = [
            wave(places * 2.0**power) for power in range(10) for wave in (torch.sin, torch.cos)
        ]
        return torch.cat([places, *waves], -1)

    def render(network, depth):
        made = network(encode(origins + ways * depth[..., None]))
        gaps = torch.cat([depth.diff(), torch.full((rays, 1), 1e10)], -1)
        opaque = 1 - torch.exp(-made[..., 3].relu() * gaps)
        clear = torch.cat([torch.ones(rays, 1), 1 - opaque + 1e-10], -1).cumprod(-1)[:, :-1]
        weights = opaque * clear
        return (weights[..., None] * made[..., :3].sigmoid()).sum(-2), weights

    def measure():
        depth = torch.linspace(2, 6, depths).expand(rays, depths) + torch.rand(rays, depths) / 8
        first, weights = render(coarse, depth)
        sums = (weights[:, 1:-1] + 1e-5).cumsum(-1)
        drawn = torch.rand(rays, depths) * sums[:, -1:]
        place = torch.searchsorted(sums.detach(), drawn).clamp(max=depths - 3)
        more = depth.gather(1, place + 1).detach()
        last, _ = render(fine, torch.cat([depth, more], -1).sort(-1)[0])
        return functional.mse_loss(first, colors) + functional.mse_loss(last, colors)

    return train(nn.ModuleList([coarse, fine]), measure, torch.optim.Adam)


@step
def differential_equation():
    """A network that is to solve an equation: its second derivatives are in its loss."""
    layers = [nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)]
    model, points, known = nn.Sequential(*layers), torch.rand(2_000, 2), torch.rand(2_000, 1)

    def derive(value, by):
        return torch.autograd.grad(value.sum(), by, create_graph=True)[0]

    def measure():
        place, time = (points[:, one : one + 1].clone().requires_grad_() for one in range(2))
        value = model(torch.cat([place, time], 1))
        slope = derive(value, place)
        rest = derive(value, time) + value * slope - 0.01 * derive(slope, place)
        return (value - known).square().mean() + rest.square().mean()

    return train(model, measure, torch.optim.Adam)


@step
def learning_to_learn():
    """Steps within a step: the weights that one task would get, and gradients through them."""
    shapes = [(64, 784), (64,), (5, 64), (5,)]
    weights = [nn.Parameter(torch.randn(shape) / 100) for shape in shapes]
    optimizer = torch.optim.Adam(weights)
    values, labels = torch.randn(4, 100, 784), torch.arange(5).repeat(20)

    def score(given, used):
        first, second, third, fourth = used
        made = functional.linear(functional.linear(given, first, second).relu(), third, fourth)
        return functional.cross_entropy(made, labels[: len(given)])

    def run():
        total = 0
        for task in values:
            used = weights
            for _ in range(3):
                slopes = torch.autograd.grad(score(task[:25], used), used, create_graph=True)
                used = [one - slope / 100 for one, slope in zip(used, slopes, strict=True)]
            total = total + score(task[25:], used)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return run


@step
def hard_negatives():
    """A detector's loss: boxes of objects, and those of the background that look most like one."""
    anchors, kinds = 2_000, 21
    model = nn.Linear(32, 4 + kinds)
    values, boxes = torch.randn(4, anchors, 32), torch.randn(4, anchors, 4)
    labels = torch.randint(0, kinds, (4, anchors)) * (torch.rand(4, anchors) < 0.05)

    def measure():
        made = model(values)
        found, scores, right = made[..., :4], made[..., 4:], labels > 0
        apart = functional.smooth_l1_loss(found[right], boxes[right], reduction="sum")
        wrong = functional.cross_entropy(scores.transpose(1, 2), labels, reduction="none")
        ranks = wrong.detach().masked_fill(right, 0).sort(1, descending=True)[1].sort(1)[1]
        used = right | (ranks < 3 * right.sum(1, keepdim=True))
        missed = functional.cross_entropy(scores[used], labels[used], reduction="sum")
        return (apart + missed) / right.sum()

    return train(model, measure, torch.optim.SGD)


@step
def filtered_states():
    """A Kalman filter that is trained: small matrices, inverted and decomposed at each time."""
    size, seen, batch = 8, 3, 64
    moves, shows = nn.Parameter(torch.eye(size)), nn.Parameter(torch.randn(seen, size))
    noise, error = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(seen))
    optimizer = torch.optim.Adam([moves, shows, noise, error])
    series = torch.randn(20, batch, seen)

    def run():
        mean, spread, total = torch.zeros(batch, size), torch.eye(size).expand(batch, -1, -1), 0
        for values in series:
            mean, spread = mean @ moves.T, moves @ spread @ moves.T + noise.exp().diag()
            expected = shows @ spread @ shows.T + error.exp().diag()
            missed = values - mean @ shows.T
            gain = spread @ shows.T @ torch.linalg.inv(expected)
            mean = mean + (gain @ missed[..., None])[..., 0]
            spread = (torch.eye(size) - gain @ shows) @ spread
            root = torch.linalg.cholesky(expected)
            model = torch.distributions.MultivariateNormal(torch.zeros(seen), scale_tril=root)
            total = total - model.log_prob(missed).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return run


BOUNDS["hard_negatives"] = "interval"
