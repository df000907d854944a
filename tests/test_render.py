"""Data that names its view is shown by it, in print and in a notebook."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import pytest

from labkit.render import Displayed


@dataclass(frozen=True, repr=False)
class Parcel(Displayed, view="tests.parcel_view", text="format_parcel", html="render_parcel"):
    weight: int


@dataclass(frozen=True, repr=False)
class Letter(Displayed, view="tests.parcel_view", text="format_parcel"):
    weight: int


@pytest.fixture
def parcel_view(monkeypatch):
    view = types.ModuleType("tests.parcel_view")
    view.format_parcel = lambda one: f"{one.weight} kg"
    view.render_parcel = lambda one: f"<b>{one.weight} kg</b>"
    monkeypatch.setitem(sys.modules, "tests.parcel_view", view)


@pytest.mark.usefixtures("parcel_view")
def test_text_and_html_come_from_the_view():
    parcel = Parcel(3)
    assert (repr(parcel), str(parcel), parcel._repr_html_()) == ("3 kg", "3 kg", "<b>3 kg</b>")
    bundle = parcel._repr_mimebundle_(include=None)
    assert bundle == {"text/plain": "3 kg", "text/html": "<b>3 kg</b>"}


@pytest.mark.usefixtures("parcel_view")
def test_without_html_there_is_only_text():
    assert Letter(3)._repr_html_() is None
    assert Letter(3)._repr_mimebundle_() == {"text/plain": "3 kg"}


def test_the_view_is_loaded_only_when_something_is_shown():
    with pytest.raises(ModuleNotFoundError):
        repr(Parcel(3))
