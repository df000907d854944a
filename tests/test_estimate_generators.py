"""Generators that were made before an estimate stay where they are, whoever holds them."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import functools
import itertools
import weakref

import pytest
import torch

from labkit import estimate_memory
from labkit.errors import UsageError
from labkit.memory.estimate.objects import name_holders

COUNT = 6


class Account:
    """A generator, and what it does beside giving batches."""

    def __init__(self):
        self.batches = [torch.randn(4, 10) for _ in range(COUNT)]
        self.log, self.ended = [], []
        self.given = 0

    def give(self):
        log, account = self.log, self
        try:
            for place, batch in enumerate(self.batches):
                log.append(place)
                account.given += 1
                yield batch
        finally:
            log.append("end")
            self.ended.append(True)

    @property
    def is_as_before(self):
        return (self.log, self.given, self.ended) == ([], 0, [])


def use(model, batch):
    model(batch).mean().backward()


def hold_directly(given):
    return lambda model: use(model, next(given))


def hold_in_a_default(given):
    def step(model, given=given):
        use(model, next(given))

    return step


def hold_in_a_class(given):
    class Source:
        one = given

    return lambda model: use(model, next(Source.one))


def hold_in_a_list(given):
    kept = {"a": [given]}
    return lambda model: use(model, next(kept["a"][0]))


def hold_a_method(given):
    take = given.__next__
    return lambda model: use(model, take())


def hold_send(given):
    take = given.send
    return lambda model: use(model, take(None))


def hold_a_method_in_a_list(given):
    kept = [given.__next__]
    return lambda model: use(model, kept[0]())


def hold_in_partial(given):
    take = functools.partial(next, given)
    return lambda model: use(model, take())


def hold_in_enumerate(given):
    counted = enumerate(given)
    return lambda model: use(model, next(counted)[1])


def hold_in_zip(given):
    pairs = zip(itertools.count(), given)
    return lambda model: use(model, next(pairs)[1])


def hold_in_map(given):
    doubled = map(torch.neg, given)
    return lambda model: use(model, next(doubled))


def hold_twice_in_chain(given):
    both = itertools.chain(given, given)
    return lambda model: use(model, next(both))


def hold_in_tee(given):
    one, _ = itertools.tee(given)
    return lambda model: use(model, next(one))


def hold_in_cycle(given):
    turns = itertools.cycle([given, given])
    return lambda model: use(model, next(next(turns)))


def hold_in_another_generator(given):
    def pass_on():
        for one in given:
            yield [one]

    passed = pass_on()
    return lambda model: use(model, *next(passed))


def hold_in_an_object(given):
    class Source:
        def __init__(self):
            self.given = given

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.given)

    source = Source()
    return lambda model: use(model, next(source))


def hold_in_a_dataset(given):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return given

    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    return lambda model: use(model, next(iter(loader)))


def hold_in_a_deque(given):
    kept = collections.deque([given])
    return lambda model: use(model, next(kept[0]))


def hold_in_an_asynchronous_one(given):
    async def pass_on():
        for one in given:
            yield one

    passed = pass_on()

    def step(model):
        try:
            passed.asend(None).send(None)
        except StopIteration as found:
            use(model, found.value)

    return step


HOLDS = [one for name, one in list(globals().items()) if name.startswith("hold_")]


@pytest.mark.parametrize("hold", HOLDS, ids=lambda one: one.__name__)
def test_a_generator_and_what_it_does_are_as_before(hold):
    account = Account()
    given = account.give()
    estimate = estimate_memory(hold(given), torch.nn.Linear(10, 3))
    assert account.is_as_before
    assert (estimate.notes, estimate.obstacle) == ((), None)
    assert [batch.shape for batch in given] == [(4, 10)] * COUNT
    assert account.given == COUNT


@pytest.mark.parametrize("hold", ["weakly", "in the context"])
def test_a_generator_that_has_moved_on_is_named(hold):
    account = Account()
    given = account.give()
    held, found = weakref.ref(given), contextvars.ContextVar("found")
    if hold == "weakly":
        notes = estimate_memory(
            lambda model: use(model, next(held())), torch.nn.Linear(10, 3)
        ).notes
    else:
        token = found.set(given)
        step = lambda model: use(model, next(found.get()))  # noqa: E731
        notes = estimate_memory(step, torch.nn.Linear(10, 3)).notes
        found.reset(token)
    assert notes == ("the generator give has moved on: the real step gets what comes next",)
    assert len(list(given)) < COUNT


def test_a_generator_that_is_named_and_not_used_is_no_note():
    given, begun = Account().give(), Account().give()
    next(begun)

    def step(model, batch):
        use(model, batch)
        return given if batch is None else begun

    assert estimate_memory(step, torch.nn.Linear(10, 3), torch.randn(4, 10)).notes == ()
    assert len(list(begun)) == COUNT - 1


def test_an_asynchronous_generator_that_has_begun_is_refused():
    async def give():
        yield torch.randn(4, 10)
        yield torch.randn(4, 10)

    given = give()
    with pytest.raises(StopIteration):
        given.asend(None).send(None)

    async def take():
        return await anext(given)

    with pytest.raises(UsageError, match=r"takes from a generator \(give\)"):
        estimate_memory(lambda model: use(model, asyncio.run(take())), torch.nn.Linear(10, 3))


class Trainer:
    """Has its own generator, which the copy of it has too."""

    def __init__(self, loader):
        self.model, self.loader = torch.nn.Linear(10, 3), loader
        self.batches = self.give()

    def give(self):
        for _, (batch,) in enumerate(self.loader):
            yield batch

    def step(self):
        for batch in self.give():
            use(self.model, batch)
            break


def test_what_the_simulation_itself_holds_is_not_named():
    data = torch.utils.data.TensorDataset(torch.randn(32, 10))
    trainer = Trainer(torch.utils.data.DataLoader(data, batch_size=4, shuffle=True))
    assert estimate_memory(Trainer.step, trainer).notes == ()
    given = trainer.give()
    step = hold_directly(given)
    assert estimate_memory(step, trainer.model).notes == ()


class Watched(torch.nn.Module):
    """A model that keeps what its own hooks get, as for Grad-CAM; ``view``: views of it."""

    def __init__(self, *, view):
        super().__init__()
        self.body, self.head, self.view = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(144, 5), view
        self.body.register_full_backward_hook(self.keep_gradient)
        self.body.register_forward_hook(self.keep_output)

    def keep_gradient(self, module, inputs, outputs):
        self.gradient = outputs[0]

    def keep_output(self, module, inputs, output):
        self.output = output.flatten(1) if self.view else output

    def forward(self, images):
        return self.head(self.body(images).flatten(1))


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_a_hook_that_keeps_gradients_on_its_module_is_no_note(view):
    def step(model, images):
        model(images)[:, 0].sum().backward()
        return model.gradient.mean((2, 3))

    images = torch.randn(2, 3, 8, 8)
    assert estimate_memory(step, Watched(view=view), images).notes == ()

    def make_step(batch=2):
        model = Watched(view=view)
        return lambda: step(model, torch.randn(batch, 3, 8, 8))

    assert estimate_memory(make_step).notes == ()


def test_labkits_own_objects_are_never_the_holders():
    from labkit.memory.estimate.iterators import HeldIterator

    one = torch.randn(3)
    held = HeldIterator([one])
    assert name_holders([one]) == []

    class Cache:
        """The program's own."""

        kept = one

    (name,) = name_holders([one])
    assert name.endswith(".Cache")
    assert held._held == [Cache.kept]
