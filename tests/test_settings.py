"""What was asked for, and where the checkout is."""

from __future__ import annotations

import os

import pytest

from labkit.errors import UsageError
from labkit.launch.settings import (
    Checkout,
    Settings,
    find_checkout,
    read_lab_variables,
    read_settings,
    read_variables,
)
from tests.fakes.host import make_checkout


def test_nothing_asked_for():
    assert read_settings({}, {}) == Settings("auto", "auto", None, "127.0.0.1")


def test_options_come_before_the_environment():
    environment = {
        "LABKIT_RUNTIME": "podman",
        "LABKIT_FLAVOR": "cpu",
        "LABKIT_PORT": "9000",
        "LABKIT_BIND": "0.0.0.0",
        "LABKIT_CUDA": "cu126",
        "LABKIT_GPUS": "0,GPU-b",
        "LABKIT_MEMORY": "2g",
    }
    assert read_settings({}, environment) == Settings(
        "podman", "cpu", 9000, "0.0.0.0", True, "cu126", ("0", "GPU-b"), 2 * 2**30
    )
    options = {"runtime": "local", "port": "9001", "flavor": None, "other": "ignored"}
    options |= {"cuda": "cu130", "gpus": "all", "memory": "off"}
    assert read_settings(options, environment) == Settings(
        "local", "cpu", 9001, "0.0.0.0", True, "cu130", ("all",), 0
    )


@pytest.mark.parametrize(
    ("settings", "asks"),
    [
        (Settings(), False),
        (Settings(flavor="cuda"), False),
        (Settings(cuda="cu130"), True),
        (Settings(gpus=("all",)), True),
    ],
)
def test_a_build_or_gpus_by_name_ask_for_a_gpu(settings, asks):
    assert settings.asks_for_gpu is asks


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("port", ["0", "65536", "80x", "-1", "8888.0", "http"]),
        ("bind", ["my-host", "127.0.0", "0.0.0.0:80", "[::1]"]),
        ("memory", ["much", "-1g", "1.g", "16 gg", "$(id)"]),
    ],
)
def test_an_invalid_value_is_an_error_that_quotes_it(name, texts):
    for text in texts:
        with pytest.raises(UsageError) as caught:
            read_settings({name: text}, {})
        assert caught.value.what == f"invalid {name.upper()}={text}"
        assert str(caught.value.fix).startswith("make up")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("auto", None),
        ("off", 0),
        ("0", 0),
        ("500", 500),
        ("1.5 GiB", 3 * 2**29),
        ("16g", 2**34),
        ("512MB", 2**29),
    ],
)
def test_the_memory_limit(text, size):
    assert read_settings({"memory": text}, {}).memory_bytes == size


@pytest.mark.parametrize("text", ["1", "65535"])
def test_the_first_and_the_last_port(text):
    assert read_settings({"port": text}, {}).port == int(text)


def test_an_empty_value_counts_as_not_asked_for():
    assert read_settings({"port": ""}, {"LABKIT_PORT": ""}).port is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("192.168.0.7", "192.168.0.7"),
    ],
)
def test_the_address(text, address):
    assert read_settings({"bind": text}, {}).bind == address


@pytest.mark.parametrize(
    ("bind", "opens"),
    [
        ("127.0.0.1", False),
        ("127.0.0.2", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.0.7", True),
    ],
)
def test_all_but_loopback_opens_to_others(bind, opens):
    assert Settings(bind=bind).opens_to_others is opens


LINES = """\
# a comment

export HF_TOKEN = "hf_a b"
PASSWORD='p$1#2'
EMPTY=
PLAIN=one two  # said beside it
"""


def test_a_file_of_variables(tmp_path):
    path = tmp_path / "variables"
    path.write_text(LINES)
    assert read_variables(path) == {
        "HF_TOKEN": "hf_a b",
        "PASSWORD": "p$1#2",
        "EMPTY": "",
        "PLAIN": "one two",
    }


@pytest.mark.parametrize("line", ["hf_secret", "1A=hf_secret", "=hf_secret", "A B=hf_secret"])
def test_a_line_that_sets_nothing_is_named_by_its_number_alone(tmp_path, line):
    path = tmp_path / "variables"
    path.write_text(f"A=1\n{line}\n")
    with pytest.raises(UsageError, match="line 2 of") as caught:
        read_variables(path)
    assert "hf_secret" not in str(caught.value)


def test_labkits_own_variables_do_not_come_in_an_env_file(tmp_path):
    path = tmp_path / "variables"
    path.write_text("LABKIT_TOKEN_FILE=/etc/passwd\n")
    with pytest.raises(UsageError, match="LABKIT_TOKEN_FILE"):
        read_lab_variables(Settings(env_file=path))


def test_the_checkouts_env_file_sets_what_is_not_set_yet(tmp_path, monkeypatch):
    checkout = make_checkout(tmp_path / "a lab")
    (checkout.root / ".env").write_text("LABKIT_PORT=9000\nLABKIT_FLAVOR=cuda\nTORCH_INDEX=x\n")
    monkeypatch.setattr(os, "environ", {"LABKIT_FLAVOR": "cpu"})
    assert find_checkout(checkout.root) == checkout
    assert os.environ == {"LABKIT_FLAVOR": "cpu", "LABKIT_PORT": "9000", "TORCH_INDEX": "x"}


def test_a_workspace_of_ones_own(tmp_path, monkeypatch):
    checkout = make_checkout(tmp_path / "a lab")
    for named, workspace in (("~/mine", tmp_path / "mine"), (str(checkout.root / "work"), None)):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("LABKIT_WORKSPACE", named)
        assert find_checkout(checkout.root).named == workspace
    assert find_checkout(checkout.root).workspace == checkout.root / "work"


def test_data_and_variables_must_be_there(tmp_path):
    (tmp_path / "file").touch()
    options = {"data": str(tmp_path), "env_file": str(tmp_path / "file")}
    settings = read_settings(options, {})
    assert (settings.data, settings.env_file) == (tmp_path, tmp_path / "file")
    for name, value in (("data", "file"), ("data", "none"), ("env_file", "."), ("env_file", "no")):
        with pytest.raises(UsageError, match=f"{name.upper()}=.* is not a f"):
            read_settings({name: str(tmp_path / value)}, {})


def test_every_place_is_inside_the_checkout(tmp_path):
    checkout = Checkout(tmp_path)
    assert checkout.workspace == tmp_path / "work"
    assert checkout.token_file == tmp_path / ".labkit" / "token"
    assert checkout.logs_folder == tmp_path / ".labkit" / "logs"
    assert checkout.environment_folder == tmp_path / ".venv"


def test_each_checkout_has_a_project_name_of_its_own(tmp_path):
    first, second = Checkout(tmp_path / "a lab"), Checkout(tmp_path / "b")
    assert first.project != second.project
    assert first.project == Checkout(tmp_path / "a lab").project
    assert first.project.startswith("labkit-")
    assert first.project.removeprefix("labkit-").isalnum()


def test_the_checkout_is_found_from_the_package_itself(monkeypatch):
    monkeypatch.delenv("LABKIT_HOME", raising=False)
    assert (find_checkout().root / "labkit" / "launch" / "settings.py").is_file()


def test_another_checkout_by_name(tmp_path, monkeypatch):
    checkout = make_checkout(tmp_path / "my lab")
    monkeypatch.setenv("LABKIT_HOME", str(checkout.root))
    assert find_checkout() == checkout


def test_a_link_to_a_checkout_is_that_checkout(tmp_path):
    checkout = make_checkout(tmp_path / "lab")
    link = tmp_path / "link"
    link.symlink_to(checkout.root)
    assert find_checkout(link).project == checkout.project


def test_a_folder_without_compose_yaml_is_no_checkout(tmp_path):
    with pytest.raises(UsageError) as caught:
        find_checkout(tmp_path)
    assert caught.value.what == f"no checkout of labkit at {tmp_path}"
    assert caught.value.fix == "labkit lab DIR   # a lab that needs no clone; else cd to the clone"
