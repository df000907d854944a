"""What strangers can and cannot do to the running JupyterLab; the same in every runtime."""

from __future__ import annotations

import socket

import pytest

from labkit.launch.server import wait_until
from tests.servers import LabServer


@pytest.mark.parametrize("token", [None, "wrong", "0" * 32], ids=["none", "wrong", "same-length"])
@pytest.mark.parametrize("path", ["/api/status", "/api/contents", "/api/kernels", "/api/terminals"])
def test_api_refuses_without_the_token(lab_server: LabServer, path: str, token: str | None):
    assert lab_server.ask(path, token=token).status == 403


def test_api_answers_with_the_token(lab_server: LabServer):
    answer = lab_server.ask("/api/contents", token=lab_server.token)

    assert answer.status == 200
    assert "01_tensors.ipynb" in [entry["name"] for entry in answer.json()["content"]]


@pytest.mark.parametrize("path", ["/lab", "/lab/tree/01_tensors.ipynb", "/files/01_tensors.ipynb"])
def test_a_page_without_the_token_leads_to_the_login_page(lab_server: LabServer, path: str):
    answer = lab_server.ask(path)

    assert answer.status == 302
    assert answer.headers["Location"].startswith("/login?next=")
    assert b'name="password"' in lab_server.ask(answer.headers["Location"]).body


def test_login_page_asks_for_the_token(lab_server: LabServer):
    answer = lab_server.ask("/login")

    assert answer.status == 200
    assert b'name="password"' in answer.body
    assert lab_server.token.encode() not in answer.body


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret",
        "/files/..%2fsecret",
        "/files/%2e%2e/secret",
        "/files/..%252fsecret",
        "/api/contents/../secret",
        "/api/contents/..%2fsecret",
        "/api/contents/%2e%2e%2fsecret",
        "/files//etc/passwd",
        "/static/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/lab/api/settings/..%2f..%2f..%2fsecret",
    ],
)
def test_a_path_cannot_leave_the_workspace(lab_server: LabServer, path: str):
    (lab_server.workspace.parent / "secret").write_text("outside of the workspace")

    answer = lab_server.ask(path, token=lab_server.token)

    assert answer.status in (400, 403, 404)
    assert b"outside of the workspace" not in answer.body
    assert b"root:x" not in answer.body


def test_another_origin_is_refused_although_it_has_the_cookies(lab_server: LabServer):
    login = lab_server.ask(f"/lab?token={lab_server.token}")
    cookies = "; ".join(
        part.split(";")[0] for name, part in login.headers.items() if name.lower() == "set-cookie"
    )
    assert cookies

    answer = lab_server.ask(
        "/api/contents",
        method="POST",
        headers={"Cookie": cookies, "Origin": "http://evil.example", "Content-Type": "text/plain"},
        body={"type": "file"},
    )

    assert answer.status in (403, 404)
    assert not list(lab_server.workspace.glob("untitled*"))


def test_a_foreign_host_name_is_refused(lab_server: LabServer):
    # DNS rebinding: a page of evil.example whose name now leads to 127.0.0.1.
    answer = lab_server.ask(
        "/api/status", token=lab_server.token, headers={"Host": f"evil.example:{lab_server.port}"}
    )

    assert answer.status == 403


def test_only_loopback_listens(lab_server: LabServer):
    address = find_own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")

    with socket.socket() as client:
        client.settimeout(5)
        assert client.connect_ex((address, lab_server.port)) != 0


def find_own_address() -> str | None:
    """An address of this machine that is not loopback, found without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def test_the_log_does_not_hold_the_token(lab_server: LabServer):
    lab_server.ask(f"/lab?token={lab_server.token}")
    log = (lab_server.workspace.parent / "server.log").read_text()

    assert "is running at" in log
    assert lab_server.token not in log


def test_a_refused_request_does_not_bring_the_token_into_the_log(lab_server: LabServer):
    # tornado's words on a 404 quote the whole address.
    answer = lab_server.ask(f"/api/contents/nowhere.ipynb?token={lab_server.token}")
    log = lab_server.workspace.parent / "server.log"

    assert answer.status == 404
    # The server answers first and writes its line then.
    assert wait_until(lambda: "nowhere.ipynb" in log.read_text(), timeout_seconds=60)
    assert lab_server.token not in log.read_text()
