"""A maintainer's tools, in an environment of their own."""

from __future__ import annotations

import io

import pytest

from labkit.errors import EngineError
from labkit.launch import dev as tools_module
from labkit.launch.dev import prepare_tools
from labkit.launch.progress import Steps
from tests.fakes.host import make_checkout, write_program

# Plays the Python that makes the environment, whose pip does what the case says.
PYTHON = """\
for home; do :; done
mkdir -p "$home/bin"
printf '#!/bin/sh\\necho "$*" "$PIP_CERT" >> {calls}\\n{pip}\\n' > "$home/bin/pip"
chmod +x "$home/bin/pip" """


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("LABKIT_CA_FILE", raising=False)
    monkeypatch.delenv("PIP_CERT", raising=False)
    return make_checkout(tmp_path / "lab")


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Call it with what pip does; the calls it had, one a line."""

    def play(pip):
        script = PYTHON.format(calls=tmp_path / "calls", pip=pip)
        program = write_program(tmp_path / "bin", "python3", script)
        monkeypatch.setattr(tools_module.sys, "executable", str(program))

    play("exit 0")
    return play


def prepare(checkout):
    return prepare_tools(checkout, Steps(io.StringIO()), ["one==1", "two==2"], "make lock")


@pytest.mark.usefixtures("play")
def test_they_are_installed_once(checkout, tmp_path):
    first, second = prepare(checkout), prepare(checkout)
    assert first == second == checkout.state_folder / "tools" / "one==1+two==2" / "bin"
    assert (tmp_path / "calls").read_text() == "install --quiet one==1 two==2 \n"


def test_an_install_that_failed_is_begun_anew(checkout, play):
    play("echo no such release >&2; exit 1")
    with pytest.raises(EngineError) as caught:
        prepare(checkout)
    assert caught.value.what == "cannot install one==1 and two==2: no such release"
    assert caught.value.fix == "make lock   # again, with a network"
    play("exit 0")
    assert prepare(checkout).is_dir()


@pytest.mark.usefixtures("play")
def test_their_pip_trusts_the_networks_certificate(checkout, tmp_path, monkeypatch):
    certificate = tmp_path / "ca.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    monkeypatch.setenv("LABKIT_CA_FILE", str(certificate))
    prepare(checkout)
    assert (tmp_path / "calls").read_text().endswith(f"{checkout.state_folder}/trusted.pem\n")
