"""The command line: what goes to stdout and stderr, exit codes, and JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import labkit
from labkit import cli
from labkit.cli import FAMILIES, main
from labkit.errors import EngineError, ExitCode
from labkit.launch.settings import Settings
from labkit.launch.state import LabHandle, LabState
from labkit.launch.status import LabStatus
from tests.fakes.host import ADA, make_checkout

STATE = LabState("local", "cpu", 8890, "127.0.0.1", "no engine", "now", LabHandle())


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    checkout = make_checkout(tmp_path / "a lab")
    monkeypatch.setenv("LABKIT_HOME", str(checkout.root))
    return checkout


def healthy(checkout, state=STATE):
    return LabStatus.of(checkout, state, "abc")


# The dispatcher


@pytest.mark.parametrize("name", FAMILIES)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: labkit {name} ")
    assert "--debug" in said


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert [name for name in FAMILIES if f"    {name} " not in said] == []


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"labkit {labkit.__version__}\n"


@pytest.mark.parametrize("words", [["history"], ["run"], ["doctor", "--explain"]], ids=" ".join)
def test_no_files_name_in_an_error_acts_on_a_terminal(words, tmp_path, capsys):
    hostile = tmp_path / "a\x1b]0;title\x07\u202e.ipynb"
    hostile.mkdir()
    assert main([*words, str(hostile)]) != 0
    said = "".join(capsys.readouterr())
    assert "\\x1b]0;title" in said
    assert not {"\x1b", "\x07", "\u202e"} & set(said)


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        pytest.param("staus", "labkit status", id="a typing error"),
        pytest.param("start", "labkit status", id="another word"),
        pytest.param("xyzzy", "labkit --help", id="nothing near"),
    ],
)
def test_an_unknown_command(capsys, word, fix):
    assert main([word]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: unknown command {word!r}\n"
        f"  cause: the commands are: {', '.join(FAMILIES)}\n"
        f"  try: {fix}\n"
    )


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["up", "--speed", "9"], "unrecognized arguments: --speed 9"),
        (["logs", "--lines", "many"], "argument --lines: invalid int value: 'many'"),
    ],
    ids=["none", "unknown option", "not a number"],
)
def test_a_mistake_in_the_arguments_is_a_usage_error(capsys, words, what):
    assert main(words) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == f"error: {what}"


@pytest.fixture
def play(monkeypatch):
    """Lets `labkit status` do as the test says."""

    def play_run(run):
        monkeypatch.setattr("labkit.cli.launch.run_status", run)

    return play_run


def fail(arguments):
    raise EngineError("no engine", cause="none is installed", fix="make up RUNTIME=local")


def test_an_error_goes_to_stderr_with_its_exit_code(play, capsys):
    play(fail)
    assert main(["status"]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: no engine\n  cause: none is installed\n  try: make up RUNTIME=local\n"
    )


def test_with_json_a_failure_prints_exactly_one_object(play, capsys):
    play(fail)
    assert main(["status", "--json"]) == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "schema_version": 1,
        "error": {
            "what": "no engine",
            "cause": "none is installed",
            "fix": "make up RUNTIME=local",
            "exit_code": 5,
        },
    }
    assert captured.err.startswith("error: no engine\n")


@pytest.mark.parametrize(
    "words",
    [
        *(["lab", ""], ["run", "tensors", ""], ["run", "--output=", "tensors"], ["report", ""]),
        *(["compare", "a", ""], ["prove", "--output", ""], ["history", ""], ["check", ""]),
        *(["estimate", ""], ["up", "--data", ""], ["doctor", "--explain", ""], ["reset", ""]),
        ["exec", "--env-file", "", "--", "true"],
    ],
    ids=" ".join,
)
def test_an_empty_value_is_a_usage_error_and_not_the_current_folder(capsys, words):
    assert main(words) == 2
    assert " is empty" in capsys.readouterr().err


def test_a_parameter_of_a_notebook_may_be_empty(capsys):
    assert main(["run", "none.ipynb", "-p", "name", ""]) == 2
    assert "none.ipynb" in capsys.readouterr().err


def test_with_json_a_usage_error_is_an_object_too(capsys):
    assert main(["statsu", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["what"] == "unknown command 'statsu'"


@pytest.mark.parametrize("words", [["status"], ["status", "--debug"]], ids=["plain", "--debug"])
def test_a_traceback_only_with_debug(play, capsys, words):
    play(fail)
    main(words)
    assert ("Traceback" in capsys.readouterr().err) is ("--debug" in words)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(
            OSError(28, "No space left on device", "/lab/x"),
            "error: /lab/x: No space left on device\n  cause: the disk is full\n  try: df -h .\n",
            id="disk full",
        ),
        pytest.param(
            PermissionError(13, "Permission denied", "/lab/x"),
            "error: /lab/x: Permission denied\n  cause: the system refused it\n"
            "  try: the same command with --debug\n",
            id="not allowed",
        ),
    ],
)
def test_what_the_system_refuses_is_no_traceback(play, capsys, error, said):
    def refuse(arguments):
        raise error

    play(refuse)
    assert main(["status"]) == 1
    assert capsys.readouterr().err == said


def test_ctrl_c_ends_with_130(play, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    play(interrupt)
    assert main(["status"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_went_away_is_no_error(play, capfd):
    def print_to_nobody(arguments):
        raise BrokenPipeError

    play(print_to_nobody)
    assert main(["status"]) == 0
    assert capfd.readouterr().err == ""


def test_json_has_its_schema_version_first(capsys):
    cli.print_json({"running": False})
    assert capsys.readouterr().out == '{\n  "schema_version": 1,\n  "running": false\n}\n'


# up, down, status, logs


def test_status_with_nothing_running(checkout, capsys):
    assert main(["status"]) == 0
    assert capsys.readouterr().out == "not running\n  try: make up\n"


def test_status_closes_an_open_state_folder(checkout):
    checkout.state_folder.mkdir(exist_ok=True)
    checkout.state_folder.chmod(0o755)
    assert main(["status"]) == 0
    assert checkout.state_folder.stat().st_mode & 0o777 == 0o700


def test_status_as_json(checkout, capsys):
    assert main(["status", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema_version"] == 1
    assert (said["running"], said["healthy"], said["url"]) == (False, False, None)


@pytest.mark.parametrize(
    ("well", "exit_code", "said"),
    [
        (True, 0, "running (local, cpu):  http://127.0.0.1:8890/lab?token=abc\n"),
        (False, 1, "not healthy: its process is gone\n  try: make up\n"),
    ],
    ids=["well", "not well"],
)
def test_status_in_words(checkout, monkeypatch, capsys, well, exit_code, said):
    status = (
        healthy(checkout) if well else LabStatus(checkout, STATE, "gone", "its process is gone")
    )
    monkeypatch.setattr("labkit.launch.status.read_status", lambda checkout: status)
    assert main(["status"]) == exit_code
    assert capsys.readouterr().out == said


def test_status_tells_the_build_and_the_gpus(checkout, monkeypatch, capsys):
    state = replace(STATE, runtime="docker", flavor="cuda", build="cu130", gpus="0,1")
    status = healthy(checkout, state)
    monkeypatch.setattr("labkit.launch.status.read_status", lambda checkout: status)
    assert main(["status"]) == 0
    assert capsys.readouterr().out == (
        "running (docker, cuda cu130, GPUs: 0,1):  http://127.0.0.1:8890/lab?token=abc\n"
    )


def test_outside_of_a_checkout_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    assert main(["status", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["what"] == f"no checkout of labkit at {tmp_path}"


@pytest.fixture
def started(checkout, monkeypatch):
    """What `up` was asked for; the lab it starts is played."""
    asked = []

    def start(checkout, settings, steps):
        asked.append(settings)
        return healthy(checkout)

    monkeypatch.setattr("labkit.launch.up.start_lab", start)
    monkeypatch.setattr("labkit.host.machine.read_machine", lambda: ADA)
    return asked


def test_up_ends_with_the_url_and_how_to_stop(started, capsys):
    assert main(["up"]) == 0
    assert capsys.readouterr().out == (
        "JupyterLab is ready:  http://127.0.0.1:8890/lab?token=abc\nstop it:  make down\n"
    )


def test_up_a_second_time_says_that_it_runs_already(started, checkout, capsys, monkeypatch):
    monkeypatch.setattr("labkit.launch.state.read_state", lambda checkout: STATE)
    assert main(["up"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "the lab is running already"


def test_up_as_json(started, capsys):
    assert main(["up", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True


def test_up_hands_on_what_was_asked_for(started):
    main(["up", "--runtime", "docker", "--flavor", "cpu", "--port", "9000", "--bind", "0.0.0.0"])
    main(["up", "--flavor", "cuda", "--cuda", "cu126", "--gpus", "0,1"])
    assert started == [
        Settings("docker", "cpu", 9000, "0.0.0.0", bind_asked=True),
        Settings(flavor="cuda", cuda="cu126", gpus=("0", "1")),
    ]


def test_up_refuses_gpus_that_are_none(started, capsys):
    assert main(["up", "--gpus", "cuda:0"]) == 2
    assert capsys.readouterr().err.startswith("error: invalid GPUS=cuda:0\n")
    assert started == []


def test_up_refuses_a_port_that_is_none(started, capsys):
    assert main(["up", "--port", "80x"]) == 2
    assert capsys.readouterr().err.startswith("error: invalid PORT=80x\n")
    assert started == []


@pytest.mark.parametrize(
    ("stopped", "said"), [(True, "stopped; your files are in {}"), (False, "nothing was running")]
)
def test_down(checkout, monkeypatch, capsys, stopped, said):
    monkeypatch.setattr("labkit.launch.stop.stop_lab", lambda checkout, steps: stopped)
    assert main(["down"]) == 0
    assert capsys.readouterr().out == said.format(checkout.workspace) + "\n"


def test_logs_before_the_first_start(checkout, capsys):
    assert main(["logs"]) == 5
    assert capsys.readouterr().err.startswith("error: there is no log yet\n")


# exec, shell, test


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["shell"], ["bash"]),
        (["exec", "--", "labkit", "devices"], ["labkit", "devices"]),
        (["exec", "--", "labkit", "run", "--all"], ["labkit", "run", "--all"]),
        (["exec", "--runtime", "local", "--", "ls", "-l"], ["ls", "-l"]),
        (["exec", "ls", "-l", "--json"], ["ls", "-l", "--json"]),
        (["exec", "--runtime", "local", "sh", "--", "x"], ["sh", "--", "x"]),
    ],
    ids=["shell", "exec", "exec with options", "a choice", "no --", "its own --"],
)
def test_a_command_inside_the_lab_is_handed_on_as_it_is(checkout, monkeypatch, words, command):
    class FakeLab:
        entered = None

        def enter(self, handle, command):
            FakeLab.entered = list(command)
            return 7

    monkeypatch.setattr(
        "labkit.launch.up.prepare_lab", lambda checkout, settings, steps: (FakeLab(), None)
    )
    assert main(words) == 7
    assert FakeLab.entered == command


@pytest.mark.parametrize("words", [["exec"], ["exec", "--"]])
def test_no_command_inside_the_lab_is_a_usage_error(checkout, capsys, words):
    assert main(words) == 2
    assert "labkit shell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "kind", "options"),
    [
        (["test"], "test", []),
        (["test", "--"], "test", []),
        (["test", "--", "-k", "ports", "-x"], "test", ["-k", "ports", "-x"]),
        (["lint"], "lint", []),
    ],
    ids=["test", "test with nothing", "test with options", "lint"],
)
def test_the_tools_exit_code_is_the_commands(checkout, monkeypatch, words, kind, options):
    def run_tools(checkout, settings, steps, asked_kind, asked_words):
        assert (asked_kind, list(asked_words)) == (kind, options)
        return 7

    monkeypatch.setattr("labkit.launch.dev.run_tools", run_tools)
    assert main(words) == 7


def test_clean_names_what_went_and_what_stayed(checkout, monkeypatch, capsys):
    monkeypatch.setattr("labkit.launch.stop.clean_checkout", lambda checkout, steps: [".venv"])
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == f"removed .venv\nkept {checkout.workspace}\n"


def test_clean_with_nothing_to_remove(checkout, monkeypatch, capsys):
    checkout.logs_folder.rmdir()
    checkout.state_folder.rmdir()
    checkout.workspace.rmdir()
    monkeypatch.setattr("labkit.launch.stop.clean_checkout", lambda checkout, steps: [".labkit"])
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_lock_prints_a_line_a_lock(checkout, monkeypatch, capsys):
    monkeypatch.setattr(
        "labkit.launch.dev.update_locks",
        lambda checkout, steps: ["lab: unchanged", "test: + a 1"],
    )
    assert main(["lock"]) == 0
    assert capsys.readouterr().out == "lab: unchanged\ntest: + a 1\n"


def test_build_says_when_it_is_done(checkout, monkeypatch, capsys):
    monkeypatch.setattr(
        "labkit.launch.up.prepare_lab",
        lambda checkout, settings, steps, use_running: (None, use_running),
    )
    assert main(["build"]) == 0
    assert capsys.readouterr().out == "up to date\n"
