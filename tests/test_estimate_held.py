"""What a step changes in objects that code in C keeps: documents, tuples, databases, HDF5."""

from __future__ import annotations

import email.message
import functools
import importlib.util
import sqlite3
import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace
from unittest import mock
from xml.dom import minidom
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from labkit.memory.estimate import objects
from labkit.memory.estimate.play import estimate_memory

Batches = namedtuple("Batches", ("first", "others"))


def run(change):
    """The estimate of a step that trains and makes the change."""

    def step(weight):
        weight.square().sum().backward()
        change()

    return estimate_memory(step, torch.ones(4, requires_grad=True))


def make_document():
    root = ElementTree.Element("runs", {"name": "mine"})
    ElementTree.SubElement(root, "run").text = "1"
    return root


def change_element(root):
    root.append(ElementTree.Element("another"))
    root.set("loss", "0.1")
    root.text, root.tail, root.tag = "text", "tail", "other"
    root[0].text = "2"
    del root[0]


CHANGES = {
    "all of it": change_element,
    "an attribute": lambda root: root.attrib.update(name="theirs"),
    "a part of a part": lambda root: ElementTree.SubElement(root[0], "step"),
    "the order": lambda root: root.insert(0, ElementTree.Element("first")),
    "all parts": lambda root: root.clear(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_document_is_as_before(name):
    root, alone = make_document(), ElementTree.ElementTree(make_document())
    attributes = root.attrib

    def change():
        CHANGES[name](root)
        CHANGES[name](alone.getroot())

    assert run(change).obstacle is None
    expected = ElementTree.tostring(make_document())
    assert ElementTree.tostring(root) == ElementTree.tostring(alone.getroot()) == expected
    assert root.attrib is attributes
    change()  # the real one
    assert ElementTree.tostring(root) != expected


def test_a_large_document_leaves_other_objects_their_place():
    root, holder = ElementTree.Element("a"), SimpleNamespace(part=SimpleNamespace(items=[]))
    for _ in range(25_000):
        ElementTree.SubElement(root, "b")
    run(lambda: (root.get("x"), holder.part.items.append(1)))
    assert holder.part.items == []


def test_a_large_document_is_whole():
    root = ElementTree.Element("a")
    for _ in range(25_000):
        ElementTree.SubElement(root, "b")
    assert run(lambda: root[-1].set("x", "1")).notes == ()
    assert root[-1].get("x") is None


def test_a_change_of_a_larger_document_is_named(monkeypatch):
    monkeypatch.setattr(objects, "MOST_ELEMENTS", 1_000)
    root = ElementTree.Element("a")
    for _ in range(1_010):
        ElementTree.SubElement(root, "b")
    assert run(lambda: root[-1].get("x")).notes == ()
    assert run(lambda: root[0].set("x", "1")).notes == ()
    (note,) = run(lambda: root[-1].set("x", "1")).notes
    assert "more than 1,000 parts" in note
    assert (root[0].get("x"), root[-1].get("x")) == (None, "1")


def test_other_trees_and_messages_are_as_before():
    page, message = minidom.parseString("<a x='1'><b/></a>"), email.message.EmailMessage()

    def change():
        page.documentElement.appendChild(page.createElement("c"))
        page.documentElement.setAttribute("y", "2")
        message["Loss"] = "0.1"

    run(change)
    assert page.documentElement.toxml() == '<a x="1"><b/></a>'
    assert message.items() == []


def hold_in_tuple(values):
    return lambda: next(values[0])


def hold_in_tuple_of_tuples(values):
    holder = SimpleNamespace(inner=(1, (values,)))
    return lambda: next(holder.inner[1][0][0])


def hold_in_named_tuple(values):
    batches = Batches(values[0], [])
    return lambda: (next(batches.first), batches.others.append(1))[0]


def hold_in_list(values):
    held = [(values[0], 1)]
    return lambda: next(held[0][0])


def hold_in_default(values):
    def take(held=(values[0],)):
        return next(held[0])

    return take


def hold_in_partial(values):
    return functools.partial(next, values[0])


def hold_in_named_argument(values):
    def take(source):
        return next(source)

    return functools.partial(take, source=values[0])


HOLDERS = (
    hold_in_tuple, hold_in_tuple_of_tuples, hold_in_named_tuple, hold_in_list, hold_in_default,
    hold_in_partial, hold_in_named_argument,
)  # fmt: skip


@pytest.mark.parametrize("hold", HOLDERS)
def test_an_iterator_that_only_a_tuple_holds_is_where_it_was(hold):
    values = (iter([torch.ones(2), torch.zeros(2), torch.ones(2)]),)
    take = hold(values)
    take()
    assert run(take).obstacle is None
    assert take().tolist() == [0, 0]


def test_what_is_not_an_iterator_in_a_tuple_is_the_same_object():
    held = ([1], {"a": 1})
    holder = SimpleNamespace(pair=held)
    run(lambda: (holder.pair[0].append(2), holder.pair[1].clear()))
    assert holder.pair is held
    assert held == ([1], {"a": 1})


@pytest.mark.parametrize("uses_cursor", [False, True])
def test_a_database_has_the_programs_own_authorizer_again(uses_cursor):
    asked = SimpleNamespace(count=0)

    def judge(action, first, second, *_):
        asked.count += 1
        return sqlite3.SQLITE_DENY if first == "secrets" else sqlite3.SQLITE_OK

    database = sqlite3.connect(":memory:")
    database.executescript("create table rows (value); create table secrets (value)")
    database.set_authorizer(judge)
    database.set_progress_handler(lambda: 0, 1000)
    cursor = database.cursor() if uses_cursor else database

    def read():
        cursor.execute("select value from rows").fetchall()
        with pytest.raises(sqlite3.DatabaseError):
            database.execute("select value from secrets")

    assert run(read).obstacle is None
    assert asked.count == 0
    read()
    assert asked.count > 0
    assert run(lambda: database.execute("delete from rows")).obstacle is not None
    database.execute("delete from rows")
    database.close()


class HeldPart:
    """Has the place of h5py's classes, of which one object is all of a file."""

    def __init__(self, name, values):
        self.id, self.values, self.attrs = name, values, HeldAttributes(name, values)
        self.is_open = True

    def __getitem__(self, key):
        return self.values[key]

    def __setitem__(self, key, value):
        self.values[key] = value

    def create_dataset(self, key, data):
        self.values[key] = data

    def resize(self, count):
        self.values["count"] = count

    def close(self):
        self.is_open = False


class HeldAttributes(HeldPart):
    """Has the place of h5py.AttributeManager."""

    def __init__(self, name, values):
        self._id, self.values = name, values


def play_h5py(monkeypatch):
    """A module with what labkit takes of h5py's; open files are known by their names."""
    files = SimpleNamespace(OBJ_ALL=1, OBJ_FILE=2, names=[])
    files.get_obj_ids = lambda where, kind: list(files.names)
    files.get_name = lambda number: number.encode()
    files.flush = lambda number: None
    module = ModuleType("h5py")
    module.h5f = files
    for name in ("Dataset", "Group", "File"):
        setattr(module, name, type(name, (HeldPart,), dict(vars(HeldPart))))
    module.AttributeManager = HeldAttributes
    vars(HeldAttributes)  # its methods are inherited, and are left alone
    monkeypatch.setitem(sys.modules, "h5py", module)
    return module


@pytest.mark.parametrize(
    ("change", "is_dropped"),
    [
        (lambda one: one["Dataset"].__setitem__("x", 5), True),
        (lambda one: one["Dataset"].resize(9), True),
        (lambda one: one["Group"].create_dataset("y", 1), False),
        (lambda one: one["Group"].__setitem__("x", 1), False),
        (lambda one: one["File"].close(), None),
        (lambda one: one["Dataset"]["x"], None),
    ],
    ids=["values", "size", "new", "assigned", "closed", "read"],
)
def test_a_file_that_a_library_in_c_has_open_is_as_before(change, is_dropped, monkeypatch):
    module = play_h5py(monkeypatch)
    module.h5f.names.append("runs.h5")
    parts = {
        name: getattr(module, name)("runs.h5", {"x": 1}) for name in ("Dataset", "Group", "File")
    }
    held = SimpleNamespace(parts=parts, keep=None)
    before = {name: dict(vars(getattr(module, name))) for name in parts}

    def take():
        change(parts)
        own = module.Group("own.h5", {})  # which the step has opened itself
        own.create_dataset("z", 3)
        assert own["z"] == 3

    estimate = run(take)
    assert [one.values for one in parts.values()] == [{"x": 1}] * 3
    assert parts["File"].is_open
    assert held.parts is parts
    noted = any("runs.h5, an HDF5 file that was open before" in one for one in estimate.notes)
    assert noted is (is_dropped is True)
    assert (estimate.obstacle is not None) is (is_dropped is False)
    if is_dropped is False:
        assert "runs.h5" in str(estimate.obstacle)
    assert before == {name: dict(vars(getattr(module, name))) for name in parts}


@pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="needs h5py")
def test_a_real_hdf5_file_is_as_before(tmp_path):
    import h5py

    path = tmp_path / "runs.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
        file.create_dataset("log", shape=(1,), maxshape=(None,), data=np.zeros(1))
        file.attrs["steps"] = 0

        def change():
            file["x"][0] += 1
            file.attrs["steps"] = 5
            file["log"].resize(2, 0)
            file["x"].write_direct(np.ones(3))
            file.flush()

        estimate = run(change)
        assert estimate.obstacle is None
        assert any("runs.h5, an HDF5 file that was open before" in one for one in estimate.notes)
        assert "create_group" in str(run(lambda: file.create_group("new")).obstacle)
    with h5py.File(path) as file:
        assert (list(file["x"]), file["log"].shape, dict(file.attrs)) == (
            [0] * 3,
            (1,),
            {"steps": 0},
        )


def make_replay():
    """A step that draws samples by the errors which earlier steps have kept."""
    priorities, model = np.ones(10), torch.nn.Linear(4, 3)
    samples, generator = torch.randn(8, 4), np.random.default_rng(0)

    def step():
        chances = np.sqrt(priorities)
        chosen = generator.choice(10, 4, p=chances / chances.sum())
        made = model(samples[torch.as_tensor(chosen % 8)])
        priorities[chosen] = made.abs().mean(1).detach().numpy() + 1e-5
        made.sum().backward()

    return step


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_value_that_an_earlier_step_has_kept_is_decided_otherwise_after_an_error():
    estimate = estimate_memory(make_replay)
    assert estimate.obstacle is None
    assert any("ways that end in an error were left out" in note for note in estimate.notes)


@pytest.mark.parametrize("kind", [mock.MagicMock, mock.Mock])
@pytest.mark.parametrize("given", [False, True])
def test_a_mock_is_called_and_has_heard_nothing(kind, given):
    logger, values = kind(), torch.ones(2, 4)
    logger.scale.return_value = 2

    def step(logger):
        made = torch.nn.Linear(4, 3)(values) * logger.scale()
        logger(made)
        logger.log.loss("sum", made)
        made.sum().backward()

    estimate = estimate_memory(step, logger) if given else estimate_memory(lambda: step(logger))
    assert estimate.obstacle is None
    assert logger.mock_calls == []
    assert logger.scale.call_count == 0
