"""``labkit doctor --fix``: nothing runs without a yes, and then exactly what was shown."""

from __future__ import annotations

import dataclasses
import io
import json
import sys

import pytest

from labkit import process
from labkit.cli import doctor, main
from labkit.doctor import checks as doctor_checks
from labkit.doctor.check import Check, Finding, SafeFix, failed, ok, unknown, warning
from labkit.doctor.checks import CHECKS, system
from labkit.doctor.run import examine_host, explain_refusal, list_offers, make_attempt
from labkit.host.distribution import Distribution
from labkit.host.machine import FolderFacts
from labkit.host.packages import INSTALL_DRIVER, INSTALL_TOOLKIT
from labkit.process import CommandResult
from tests.fakes.host import ADA, PODMAN_FINE, fails, says
from tests.fakes.sick_hosts import GPU_FILES, SMI_QUERY, play_host

DEBIAN = Distribution("Debian", "debian")
LOAD = SafeFix(("modprobe", "nvidia-uvm"), "loads the module")
TOUCH = SafeFix(("touch", "/tmp/x"), "makes a file", as_root=False)


class Mender:
    """A host with one fault that a command mends; remembers every command that was run."""

    def __init__(self, monkeypatch, tmp_path, answer=None, safe=LOAD, mends=True):
        self.ran = []
        self.limits = []
        self.broken = True
        self._answer = answer or CommandResult(("x",), 0)
        self._safe = safe
        self._mends = mends
        uvm = Check("uvm", "uvm", lambda host: None, lambda facts, _: self.judge())
        disk = Check(
            "disk", "disk", lambda host: None, lambda *_: warning("1 GiB", "full", "rm x && reboot")
        )
        monkeypatch.setattr(doctor_checks, "CHECKS", (uvm, disk))
        machine = dataclasses.replace(ADA, user_id=1000)
        monkeypatch.setattr(
            doctor, "make_host", lambda deep: play_host(tmp_path, deep=deep, machine=machine)
        )
        for name in ("run_command", "run_at_terminal"):
            monkeypatch.setattr(process, name, self.run)

    def judge(self):
        """What the check of the fault finds now."""
        if not self.broken:
            return ok("nvidia-uvm is there")
        return failed("no nvidia-uvm", "not loaded", "sudo modprobe nvidia-uvm", safe=self._safe)

    def run(self, arguments, *, timeout_seconds):
        """Notes the command, and mends the fault where it is one that does."""
        self.ran.append(tuple(arguments))
        self.limits.append(timeout_seconds)
        if self._answer.ok and self._mends:
            self.broken = False
        return self._answer._replace(arguments=tuple(arguments))


def type_in(monkeypatch, text):
    """Lets a person at a terminal type this."""
    stream = io.StringIO(text)
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stream)


ASKED = """\
uvm: no nvidia-uvm
  sudo modprobe nvidia-uvm   # loads the module
run it? [y/N] """
LEFT = """\
disk: not run: it restarts this machine
  type it yourself: rm x && reboot
"""
FOUND = """\
warning  disk 1 GiB
              cause: full
              try: rm x && reboot
failed   uvm  no nvidia-uvm
              cause: not loaded
              try: sudo modprobe nvidia-uvm

2 checks: 1 warning, 1 failed
"""
MENDED = """\
ok       uvm  nvidia-uvm is there
warning  disk 1 GiB
              cause: full
              try: rm x && reboot

2 checks: 1 ok, 1 warning
"""


def test_a_yes_runs_what_was_shown_and_looks_again(monkeypatch, tmp_path, capsys):
    mender = Mender(monkeypatch, tmp_path)
    type_in(monkeypatch, "y\n")
    assert main(["doctor", "--fix"]) == 0
    assert mender.ran == [("sudo", "modprobe", "nvidia-uvm")]
    assert mender.limits == [120]
    out, err = capsys.readouterr()
    assert err == f"{ASKED}uvm: now ok: nvidia-uvm is there\n{LEFT}"
    assert out == FOUND + MENDED


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "yesterday\n", "no\n"])
def test_anything_but_a_yes_is_a_no(monkeypatch, tmp_path, capsys, answer):
    mender = Mender(monkeypatch, tmp_path)
    type_in(monkeypatch, answer)
    assert main(["doctor", "--fix"]) == 5
    assert mender.ran == []
    out, err = capsys.readouterr()
    assert err == f"{ASKED}uvm: not run: you did not agree\n{LEFT}"
    assert out == FOUND


def test_without_a_terminal_it_says_what_it_would_run_and_runs_nothing(
    monkeypatch, tmp_path, capsys
):
    mender = Mender(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main(["doctor", "--fix"]) == 2
    assert mender.ran == []
    assert capsys.readouterr().err == (
        "error: --fix would run: sudo modprobe nvidia-uvm\n"
        "  cause: it cannot ask for confirmation: this is not a terminal\n"
        "  try: labkit doctor --fix --yes\n"
    )


def test_json_asks_nobody_either(monkeypatch, tmp_path, capsys):
    mender = Mender(monkeypatch, tmp_path)
    type_in(monkeypatch, "y\n")
    assert main(["doctor", "--fix", "--json"]) == 2
    assert mender.ran == []
    said = json.loads(capsys.readouterr().out)
    assert said["error"]["what"] == "--fix would run: sudo modprobe nvidia-uvm"


def test_with_yes_nobody_is_asked_and_sudo_asks_for_no_password(monkeypatch, tmp_path, capsys):
    mender = Mender(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["doctor", "--fix", "--yes", "--json"]) == 0
    assert mender.ran == [("sudo", "-n", "modprobe", "nvidia-uvm")]
    said = json.loads(capsys.readouterr().out)
    assert said["healthy"] is True
    assert said["fixes"] == [
        {
            "check": "uvm",
            "command": ["sudo", "-n", "modprobe", "nvidia-uvm"],
            "ran": True,
            "exit_code": 0,
            "said": None,
            "mended": True,
        }
    ]
    assert said["not_run"] == [
        {"check": "disk", "why": "it restarts this machine", "fix": "rm x && reboot"}
    ]


def test_a_command_that_fails_is_reported_with_the_line_to_type(monkeypatch, tmp_path, capsys):
    refused = fails("sudo: a password is required")
    mender = Mender(monkeypatch, tmp_path, refused)
    assert main(["doctor", "--fix", "--yes"]) == 5
    assert len(mender.ran) == 1  # and not again and again
    assert (
        "uvm: the command failed: sudo: a password is required\n"
        "uvm: now failed: no nvidia-uvm\n"
        "  type it yourself: sudo modprobe nvidia-uvm\n"
    ) in capsys.readouterr().err


def test_a_command_that_helps_nothing_is_not_called_a_success(monkeypatch, tmp_path, capsys):
    mender = Mender(monkeypatch, tmp_path, mends=False)
    assert main(["doctor", "--fix", "--yes"]) == 5
    assert len(mender.ran) == 1
    assert "uvm: now failed: no nvidia-uvm\n  type it" in capsys.readouterr().err


def test_a_missing_command_is_reported(monkeypatch, tmp_path, capsys):
    missing = CommandResult(("x",), None, missing=True)
    Mender(monkeypatch, tmp_path, missing, safe=TOUCH)
    assert main(["doctor", "--fix", "--yes"]) == 5
    assert "uvm: the command failed: touch: command not found\n" in capsys.readouterr().err


def test_without_fix_nothing_is_run(monkeypatch, tmp_path, capsys):
    mender = Mender(monkeypatch, tmp_path)
    assert main(["doctor"]) == 5
    assert mender.ran == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [["--yes"], ["--fix", "--list"], ["--fix", "--explain", "x"]],
    ids=["yes alone", "with list", "with explain"],
)
def test_what_makes_no_sense_is_refused(words):
    assert main(["doctor", *words]) == 2


def test_where_there_is_nothing_to_mend_nobody_need_be_there(monkeypatch, tmp_path, capsys):
    mender = Mender(monkeypatch, tmp_path)
    mender.broken = False
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["doctor", "--fix"]) == 0
    assert capsys.readouterr().err == LEFT


# What is offered


@pytest.mark.parametrize(
    ("safe", "user_id", "may_ask", "command"),
    [
        (LOAD, 1000, True, ("sudo", "modprobe", "nvidia-uvm")),
        (LOAD, 1000, False, ("sudo", "-n", "modprobe", "nvidia-uvm")),
        (LOAD, 0, True, ("modprobe", "nvidia-uvm")),
        (TOUCH, 1000, True, ("touch", "/tmp/x")),
    ],
    ids=["by sudo", "by sudo, unasked", "as root", "as this user"],
)
def test_the_command_for_a_user(safe, user_id, may_ask, command):
    assert safe.command(user_id, may_ask=may_ask) == command


@pytest.mark.parametrize(
    ("fix", "why"),
    [
        ("sudo reboot", "it restarts this machine"),
        (
            INSTALL_TOOLKIT.on(DEBIAN),
            "it restarts the engine, and with it all containers",
        ),
        (INSTALL_DRIVER.on(DEBIAN), "it installs packages"),
        ("docker system prune", "it deletes what others may need"),
        (
            "sudo usermod -aG docker $USER   # then log out and in again",
            "it changes this user's permissions, from the next login on",
        ),
        ("ss -ltnp   # or choose another PORT=", "it only shows more, or needs your judgment"),
        ("make down up", "it starts, stops or builds the lab"),
    ],
)
def test_why_a_fix_is_left_to_a_person(fix, why):
    assert explain_refusal(fix) == why


def test_a_fix_that_is_fine_is_not_offered():
    assert list_offers([ok("fine"), Finding("skipped", "because"), unknown("?")], 1000) == []


# The safe fixes that checks come back with


def list_safe(host):
    """The commands that --fix would offer on this host."""
    findings = examine_host(host, CHECKS[:-5], offline=True).findings
    return [offer.command for offer in list_offers(findings, 1000) if offer.safe]


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        (
            {"files": {"dev/nvidia-uvm": None, "proc/modules": "nvidia 1 0 - Live 0\n"}},
            "sudo modprobe nvidia-uvm",
        ),
        (
            {
                "files": {
                    "dev/nvidiactl": None,
                    "dev/nvidia0": None,
                    "usr/bin/nvidia-modprobe": "",
                }
            },
            "sudo nvidia-modprobe -c=0 -u",
        ),
        (
            {
                "files": {
                    name: None for name in GPU_FILES if name.startswith(("proc/driver", "dev/"))
                }
                | {"proc/modules": "ext4 1 0 - Live 0\n"},
                "answers": {SMI_QUERY: None, "modinfo": says("580.95.05")},
            },
            "sudo modprobe nvidia",
        ),
        (
            {
                "answers": {
                    **{f"docker {word}": None for word in ("info", "compose version", "context")},
                    "docker context inspect": None,
                    **PODMAN_FINE,
                }
            },
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        ),
    ],
    ids=["uvm", "device files", "the module", "CDI"],
)
def test_what_a_host_can_be_mended_by(tmp_path, settings, command):
    host = play_host(tmp_path, gpu=True, **settings)
    assert [" ".join(words) for words in list_safe(host)] == [command]


@pytest.fixture
def checkout(tmp_path):
    """A checkout with its workspace."""
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    work = tmp_path / "work"
    work.mkdir()
    return work


def test_only_a_checkouts_own_workspace_is_given_back(checkout, tmp_path):
    assert system.is_own(checkout)
    link = tmp_path / "other" / "work"
    link.parent.mkdir()
    (link.parent / "compose.yaml").write_text("")
    link.symlink_to(checkout)
    assert not system.is_own(link)
    assert not system.is_own(tmp_path)
    assert not system.is_own(None)


@pytest.mark.parametrize(
    ("owner", "writable", "own", "arguments"),
    [
        (0, False, True, ("chown", "-R", "-P", "1000:1000", "/home/ada/work")),
        (1001, True, True, ("chown", "-R", "-P", "1000:1000", "/home/ada/work")),
        (1000, False, True, ("chmod", "u+rwx", "/home/ada/work")),
        (0, False, False, None),
    ],
    ids=["root's", "another's", "mine, closed", "elsewhere"],
)
def test_how_a_workspace_is_given_back(tmp_path, owner, writable, own, arguments):
    path = system.Path("/home/ada/work")
    folder = FolderFacts(path, True, True, owner, owner, writable, 1)
    finding = system.judge_workspace(system.WorkspaceFacts(folder, 1000, 1000, own), DEBIAN)
    assert (finding.safe.arguments if finding.safe else None) == arguments


def test_a_real_folder_is_opened_again(checkout, tmp_path):
    # By the real door, as this very user: mode only, which root's own rights would hide.
    check = next(each for each in CHECKS if each.name == "workspace")
    finding = dataclasses.replace(
        failed(
            "closed",
            "c",
            "f",
            safe=SafeFix(("chmod", "u+rwx", str(checkout)), "opens it", as_root=False),
        ),
        check=check.name,
    )
    checkout.chmod(0o500)
    host = play_host(tmp_path / "host", workspace=checkout)
    offer = list_offers([finding], host.machine.user_id)[0]
    attempt = make_attempt(
        offer, CHECKS, lambda: host, ask=lambda offer: True, run=process.run_command
    )
    assert attempt.fixed
    assert checkout.stat().st_mode & 0o777 == 0o700
