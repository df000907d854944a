"""The network's proxies and certificate: found, refused where they are none, and handed on."""

from __future__ import annotations

import hashlib
import io
import os

import pytest

from labkit.errors import UsageError
from labkit.launch import certificates as certificate_module
from labkit.launch import venv as environment_module
from labkit.launch.certificates import (
    build_certificate,
    build_proxies,
    keep_fingerprint,
    read_certificate,
    trust_in_pip,
)
from labkit.launch.progress import Steps
from labkit.launch.venv import PythonEnvironment
from tests.fakes.host import make_checkout, write_program

TEXT = "-----BEGIN CERTIFICATE-----\nTHE PROXY\n-----END CERTIFICATE-----\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a proxy" / "ca.pem"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a lab")


def test_without_a_certificate_nothing_is_handed_on(checkout):
    assert read_certificate({}) is None
    assert build_certificate({}) == {"LABKIT_KEPT_CA": ""}
    assert trust_in_pip(checkout, {}) == {}
    assert not (checkout.state_folder / "trusted.pem").exists()


def test_the_build_gets_the_files_path(file):
    variables = build_certificate({"LABKIT_CA_FILE": str(file)})
    assert variables == {"LABKIT_CA_FILE": str(file), "LABKIT_KEPT_CA": ""}


def test_a_path_from_here_or_from_home_is_made_whole(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("HOME", str(file.parent))
    for named in ("ca.pem", "~/ca.pem"):
        assert build_certificate({"LABKIT_CA_FILE": named})["LABKIT_CA_FILE"] == str(file)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("1", True), ("yes", True), ("0", False), ("", False)],
)
def test_a_certificate_that_the_image_keeps_is_told_by_its_content(file, keep, kept):
    expected = hashlib.sha256(TEXT.encode()).hexdigest()[:16] if kept else ""
    assert keep_fingerprint({"LABKIT_CA_FILE": str(file), "LABKIT_CA_KEEP": keep}) == expected


def test_nothing_to_keep_is_an_error():
    with pytest.raises(UsageError) as caught:
        keep_fingerprint({"LABKIT_CA_KEEP": "1"})
    assert caught.value.what == "LABKIT_CA_KEEP is set, and LABKIT_CA_FILE is not"


@pytest.mark.parametrize(
    ("given", "both"),
    [
        pytest.param({}, {}, id="none"),
        pytest.param({"HTTP_PROXY": ""}, {}, id="empty"),
        pytest.param({"https_proxy": "a"}, {"HTTPS_PROXY": "a", "https_proxy": "a"}, id="small"),
        pytest.param({"NO_PROXY": "a,b"}, {"NO_PROXY": "a,b", "no_proxy": "a,b"}, id="capital"),
        pytest.param(
            {"HTTP_PROXY": "a", "http_proxy": "b"},
            {"HTTP_PROXY": "a", "http_proxy": "b"},
            id="each its own",
        ),
    ],
)
def test_a_proxy_is_named_in_both_writings(given, both):
    assert build_proxies(given) == both


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "nowhere.pem"
    with pytest.raises(UsageError) as caught:
        read_certificate({"LABKIT_CA_FILE": str(path)})
    assert caught.value.what == f"LABKIT_CA_FILE={path} cannot be read: No such file or directory"
    assert caught.value.fix == f"ls -l '{path}'"


def test_a_certificate_in_its_binary_form_is_refused_with_the_line_that_turns_it(file):
    file.write_bytes(b"\x30\x82\x03\x00")
    with pytest.raises(UsageError) as caught:
        read_certificate({"LABKIT_CA_FILE": str(file)})
    assert caught.value.what == f"LABKIT_CA_FILE={file} holds no certificate"
    assert str(caught.value.fix).startswith(f"openssl x509 -inform der -in '{file}' -out ca.pem")


@pytest.mark.parametrize("variable", ["PIP_CERT", "SSL_CERT_FILE"])
def test_pip_trusts_it_beside_what_it_trusted_before(file, checkout, tmp_path, variable):
    own = tmp_path / "own.pem"
    own.write_text("THE USER'S OWN\n")
    environment = {"LABKIT_CA_FILE": str(file), variable: str(own)}
    assert trust_in_pip(checkout, environment) == {
        "PIP_CERT": str(checkout.state_folder / "trusted.pem")
    }
    text = (checkout.state_folder / "trusted.pem").read_text()
    assert text == "THE USER'S OWN\n\n" + TEXT
    assert file.read_text() == TEXT


def test_without_a_choice_of_the_users_the_systems_certificates_are_kept(
    file, checkout, tmp_path, monkeypatch
):
    system = tmp_path / "system.pem"
    system.write_text("THE SYSTEM'S\n")

    class NoPaths:
        cafile = None

    monkeypatch.setattr(certificate_module.ssl, "get_default_verify_paths", NoPaths)
    monkeypatch.setattr(certificate_module, "SYSTEM_BUNDLES", ("/nowhere", str(system)))
    trust_in_pip(checkout, {"LABKIT_CA_FILE": str(file)})
    assert (checkout.state_folder / "trusted.pem").read_text() == "THE SYSTEM'S\n\n" + TEXT
    monkeypatch.setattr(certificate_module, "SYSTEM_BUNDLES", ())
    trust_in_pip(checkout, {"LABKIT_CA_FILE": str(file)})
    assert (checkout.state_folder / "trusted.pem").read_text() == "\n" + TEXT


# Plays the Python that makes the .venv, and its pip, which writes down whom it trusts.
PYTHON = """\
case "$*" in
"-m venv"*)
  for folder; do :; done
  mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" ;;
*install*) echo "$PIP_CERT" >> "{calls}" ;;
esac"""


def test_the_venvs_pip_trusts_it_and_this_process_is_left_as_it_was(
    file, checkout, tmp_path, monkeypatch
):
    program = write_program(tmp_path / "bin", "python3", PYTHON.format(calls=tmp_path / "calls"))
    monkeypatch.setattr(environment_module.sys, "executable", str(program))
    monkeypatch.delenv("PIP_CERT", raising=False)
    monkeypatch.setenv("LABKIT_CA_FILE", str(file))
    PythonEnvironment(checkout).prepare(Steps(io.StringIO()))
    trusted = str(checkout.state_folder / "trusted.pem")
    assert (tmp_path / "calls").read_text().splitlines() == [trusted] * 3
    assert "PIP_CERT" not in os.environ
