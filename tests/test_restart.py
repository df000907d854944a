"""`up` on a lab that hangs, or whose state is lost: one server on the workspace, never two."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace

import pytest

from labkit.launch import server, up
from labkit.launch.progress import Steps
from labkit.launch.server import find_server_process, is_running
from labkit.launch.settings import Checkout, Settings
from labkit.launch.state import LabState, read_state, read_token
from labkit.launch.status import read_status
from labkit.launch.stop import stop_lab
from labkit.launch.up import start_lab
from tests.fakes.played_lab import make_played_checkout
from tests.ports import choose_port

# The lab's process outlives its Popen object: that is what it is for.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    made = make_played_checkout(tmp_path)
    monkeypatch.setattr(up, "DEFAULT_PORT", choose_port())
    monkeypatch.setattr(up, "HEALTH_LIMIT_SECONDS", 30.0)
    yield made
    stop_lab(made, Steps(io.StringIO()))


def start(checkout: Checkout, port: int | None = None) -> tuple[LabState, str]:
    """Starts the lab; its state, and what was printed."""
    screen = io.StringIO()
    status = start_lab(checkout, Settings("local", "cpu", port), Steps(screen))
    assert status.healthy and status.state
    return status.state, screen.getvalue()


def find_process(checkout: Checkout) -> int | None:
    return find_server_process(checkout.root, checkout.environment_folder / "bin" / "python")


@pytest.mark.slow
def test_a_lab_that_hangs_is_restarted_after_saying_so(checkout, monkeypatch):
    monkeypatch.setattr(server, "PROBE_SECONDS", 0.3)
    monkeypatch.setattr(up, "BUSY_LIMIT_SECONDS", 0.1)
    before, _ = start(checkout)
    (checkout.state_folder / "hang").write_text(str(before.handle.process_id))
    assert read_status(checkout).condition == "silent"

    after, printed = start(checkout)
    assert "does not answer" in printed
    assert "restarting it; it has no kernels" in printed
    assert not is_running(before.handle)
    assert find_process(checkout) == after.handle.process_id


@pytest.mark.parametrize("asks_for_port", [False, True], ids=["any port", "its own port"])
def test_a_lab_whose_state_file_is_lost_is_taken_as_it_is(checkout, asks_for_port):
    before, _ = start(checkout)
    (checkout.state_folder / "state.json").unlink()

    after, _ = start(checkout, before.port if asks_for_port else None)
    assert after.handle == before.handle
    assert (after.port, after.flavor) == (before.port, "cpu")
    assert replace(read_state(checkout), lessons=None) == after


def test_with_the_state_folder_gone_its_port_is_still_the_labs_own(checkout):
    before, _ = start(checkout)
    shutil.rmtree(checkout.state_folder)

    after, printed = start(checkout, before.port)
    assert "its token is gone" in printed
    assert after.port == before.port
    assert not is_running(before.handle)
    assert find_process(checkout) == after.handle.process_id
    assert read_token(checkout)


def test_a_stale_state_file_hides_no_running_lab(checkout):
    before, _ = start(checkout)
    path = checkout.state_folder / "state.json"
    path.write_text(path.read_text().replace(str(before.handle.process_started), "1"))
    assert read_status(checkout).condition == "gone"

    after, _ = start(checkout)
    assert after.handle == before.handle


def test_down_stops_a_lab_that_nothing_remembers(checkout):
    before, _ = start(checkout)
    shutil.rmtree(checkout.state_folder)
    assert stop_lab(checkout, Steps(io.StringIO())) is True
    assert not is_running(before.handle)
    assert stop_lab(checkout, Steps(io.StringIO())) is False
