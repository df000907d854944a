"""Who gets into the lab's JupyterLab, what strangers get into its log, and the proof it gives."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, NotConnected
from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.host.proof import LEAST_TOKEN_LENGTH, ServerProof, ask_for_proof
from labkit.jupyter.guard import (
    LIMIT_ALL,
    LIMIT_EACH,
    LINE_LENGTH,
    LINES_AT_ONCE,
    SECONDS_PER_LINE,
    WINDOW_SECONDS,
    Attempts,
    LineBudget,
    LogFilter,
    clean_text,
    find_token,
    rotate_log,
)
from labkit.launch.server import wait_until
from tests.own_servers import OwnServer, start_own_server, start_process
from tests.servers import TOKEN, LabServer

GUESSABLE = "secret"


class FakeClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Counting


def test_an_address_has_its_tries_in_each_minute():
    clock = FakeClock()
    attempts = Attempts(clock)
    for _ in range(LIMIT_EACH):
        attempts.add("10.0.0.1")
    assert attempts.seconds_left("10.0.0.1") == 0
    attempts.add("10.0.0.1")
    assert attempts.seconds_left("10.0.0.1") == WINDOW_SECONDS
    assert attempts.seconds_left("10.0.0.2") == 0
    clock.now += WINDOW_SECONDS
    assert attempts.seconds_left("10.0.0.1") == 0


def test_many_addresses_have_a_limit_together():
    attempts = Attempts(FakeClock())
    for number in range(LIMIT_ALL + 1):
        attempts.add(f"10.0.0.{number}")
    assert attempts.seconds_left("10.1.0.0") == WINDOW_SECONDS


def test_lines_pass_until_there_are_too_many():
    clock = FakeClock()
    budget = LineBudget(clock)
    assert [budget.take() for _ in range(LINES_AT_ONCE + 2)].count(True) == LINES_AT_ONCE
    assert budget.held_back == 2
    clock.now += SECONDS_PER_LINE
    assert [budget.take(), budget.take()] == [True, False]


# Log lines


def make_record(text: str, *arguments: object, **marks: object) -> logging.LogRecord:
    record = logging.LogRecord("x", logging.INFO, "/x/web.py", 1, text, arguments, None)
    record.__dict__.update(marks)
    return record


def test_a_strangers_line_is_one_and_short():
    record = make_record("404 %s?q=1&next=2 \x1b[2J\nforged", "/" + "a" * 9999, is_strangers=True)
    record.exc_info = (ValueError, ValueError("x"), None)
    assert LogFilter(LineBudget()).filter(record)
    line = logging.Formatter().format(record)
    assert len(line) <= LINE_LENGTH + 3
    assert not {"\n", "\x1b", "?"} & set(line)


def test_what_was_left_out_is_counted():
    clock = FakeClock()
    budget = LineBudget(clock)
    log_filter = LogFilter(budget)
    for _ in range(LINES_AT_ONCE + 5):
        log_filter.filter(make_record("403", is_strangers=True))
    clock.now += SECONDS_PER_LINE
    record = make_record("403", is_strangers=True)
    assert log_filter.filter(record)
    assert "5 lines" in record.getMessage()


def test_the_owners_lines_are_never_left_out_and_keep_their_traceback():
    log_filter = LogFilter(LineBudget())
    for _ in range(LINES_AT_ONCE + 5):
        record = make_record("it failed\nhere", is_strangers=False)
        record.exc_info = (ValueError, ValueError("\x1b]0;title\x07 ?token=abc"), None)
        assert log_filter.filter(record)
    text = logging.Formatter().format(record)
    assert "it failed\nhere" in text and "ValueError" in text
    assert "\x1b" not in text and "abc" not in text


@pytest.mark.parametrize("token", ["0" * 48, "my-token", "a'b"])
def test_no_token_of_an_address_is_logged(token):
    assert token not in clean_text(f"GET /lab?token={token}&reset 200")


# The token


def test_the_tokens_file_comes_first(tmp_path):
    (tmp_path / "token").write_text("from the file\n")
    variables = {"LABKIT_TOKEN_FILE": str(tmp_path / "token"), "JUPYTER_TOKEN": "other"}
    assert find_token(variables) == ("from the file", False)
    assert find_token({"LABKIT_TOKEN_FILE": "", "JUPYTER_TOKEN": "other"}) == ("other", False)


def test_without_one_it_is_random_and_told():
    (first, is_new), (second, _) = find_token({}), find_token({})
    assert is_new and first != second
    assert len(first) >= LEAST_TOKEN_LENGTH


@pytest.mark.parametrize("content", [None, "", "\n", "\xff"], ids=["none", "empty", "line", "junk"])
def test_a_file_without_a_token_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "token").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError) as caught:
        find_token({"LABKIT_TOKEN_FILE": str(tmp_path / "token"), "JUPYTER_TOKEN": "other"})
    assert str(tmp_path / "token") in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_what_is_not_a_token_file_is_named_and_not_waited_for(tmp_path, make):
    make(tmp_path / "token")
    with pytest.raises(UsageError, match=r"it is a (named pipe|folder)"):
        find_token({"LABKIT_TOKEN_FILE": str(tmp_path / "token")})


# A configuration that does not load

BAD_SETTINGS = {
    "token": ("LABKIT_TOKEN_FILE", "/nowhere/token"),
    "port": ("LABKIT_SERVER_PORT", "http"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_server_whose_settings_are_wrong_stops_and_says_why(tmp_path: Path, name: str):
    variable, value = BAD_SETTINGS[name]
    with start_process(tmp_path, **{variable: value}) as server:
        assert server.process.wait(60) == 1
    said = server.log.read_text()
    assert f"{variable}={value}" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_file_of_the_owners_that_fails_stops_the_server_too(tmp_path: Path):
    own = tmp_path / "state" / "jupyter" / "config" / "jupyter_server_config.py"
    own.parent.mkdir(parents=True)
    own.write_text("c.ServerApp.port = 1 / 0\n")
    strict = {"TRAITLETS_APPLICATION_RAISE_CONFIG_FILE_ERROR": "1"}
    with start_process(tmp_path, **strict) as server:
        assert server.process.wait(60) == 1
    assert "ZeroDivisionError" in server.log.read_text()


# The local log


def test_a_long_log_is_moved_away_and_goes_on(tmp_path):
    path = tmp_path / "server.log"
    with path.open("ab") as log:
        log.write(b"x" * 2000)
        log.flush()
        rotate_log(path, 1000)
        log.write(b"y")
    assert path.read_bytes() == b"y"
    assert (tmp_path / "server.log.1").read_bytes() == b"x" * 2000
    rotate_log(path, 1000)
    assert path.read_bytes() == b"y"


# The running server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """A server whose limits these tests may use up; its token is as long as the launcher's."""
    folder = tmp_path_factory.mktemp("guarded")
    with start_own_server(folder, JUPYTER_TOKEN=TOKEN) as running:
        yield running


def open_page(server: LabServer) -> list[str]:
    """The cookies that the page behind the printed URL sets."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", f"/lab?token={server.token}")
    response = connection.getresponse()
    response.read()
    connection.close()
    assert response.status == 200
    return response.headers.get_all("Set-Cookie") or []


def log_in(server: LabServer) -> str:
    """The cookies of a login, as a browser sends them."""
    return "; ".join(cookie.partition(";")[0] for cookie in open_page(server))


def use_up_tries(server: LabServer) -> list[int]:
    """The statuses that as many wrong tokens get as no address may try."""
    return [
        server.ask("/api/status", token=f"wrong {number}").status
        for number in range(LIMIT_EACH + 3)
    ]


@pytest.mark.slow
def test_both_cookies_stay_on_this_site(server: OwnServer):
    cookies = open_page(server)
    assert len(cookies) == 2
    assert all("samesite=strict" in cookie.lower() for cookie in cookies)


ODD_REQUESTS = {
    "token": ("GET", "/lab?token=%ff", {}),
    "path": ("GET", "/files/%ff", {}),
    "long": ("GET", "/" + "a" * 60_000, {}),
    "body": ("POST", "/login", {"Content-Type": "multipart/form-data; boundary=x"}),
    "referer": ("GET", "/api/status", {"Referer": "http://x/" + "a" * 20_000}),
    "host": ("GET", "/lab", {"Host": "evil.example" + "a" * 20_000}),
    "cookie": ("GET", "/api/status", {"Cookie": "username-127-0-0-1=abc"}),
}


@pytest.mark.parametrize("name", ODD_REQUESTS)
def test_a_stranger_causes_short_lines(server: OwnServer, name: str):
    method, path, headers = ODD_REQUESTS[name]
    before = server.log.stat().st_size
    answer = server.ask(path, method=method, headers=headers, body="x" if name == "body" else None)
    assert 400 <= answer.status < 500
    assert len(answer.body) < 4000
    # The owner's lines are always written, and this one after those.
    server.ask(f"/api/contents/after-{name}", token=server.token)
    marker = f"after-{name}".encode()
    assert wait_until(lambda: marker in read_from(server.log, before), timeout_seconds=60)
    lines = read_from(server.log, before).partition(marker)[0].splitlines()[:-1]
    assert lines and not any(b"Traceback" in line for line in lines)
    assert all(len(line) < LINE_LENGTH + 120 for line in lines)


def read_from(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def test_too_many_wrong_tokens_get_a_short_429_and_the_right_one_always_counts(server: OwnServer):
    cookies = log_in(server)
    before = server.log.stat().st_size
    statuses = use_up_tries(server)
    assert statuses[0] == 403 and statuses[-1] == 429
    answer = server.ask("/api/status", token="one more")
    assert answer.status == 429
    assert len(answer.body) < 200 and 1 <= int(answer.headers["Retry-After"]) <= WINDOW_SECONDS
    assert server.ask("/api/status", token=server.token).status == 200
    assert server.ask("/api/status", headers={"Cookie": cookies}).status == 200
    for number in range(200):
        server.ask(f"/api/contents?token=guess{number}", token=None)
    said = read_from(server.log, before)
    assert len(said) < 15_000
    assert b"guess" not in said


@pytest.mark.slow
def test_a_token_that_can_be_guessed_is_not_looked_at_over_the_limit(tmp_path):
    with start_own_server(tmp_path, JUPYTER_TOKEN=GUESSABLE) as server:
        cookies = log_in(server)
        assert server.ask("/api/status", token=GUESSABLE).status == 200
        use_up_tries(server)
        assert server.ask("/api/status", token=GUESSABLE).status == 429
        form = {"Cookie": cookies, "Content-Type": "application/x-www-form-urlencoded"}
        assert server.ask("/api/status", headers={"Cookie": cookies}).status == 200
        # Logged in, an old token of a page that stayed open is no guess.
        assert server.ask("/api/status", token="old", headers=form).status == 200
        assert server.ask(f"/labkit/proof?challenge={'0' * 64}").status == 404
        assert "6 characters" in server.log.read_text()


@pytest.mark.slow
def test_the_login_form_has_the_same_limit(tmp_path):
    with start_own_server(tmp_path, JUPYTER_TOKEN=TOKEN) as server:
        statuses = [send_login(server, "wrong") for _ in range(LIMIT_EACH + 1)]
        assert statuses[0] == 401 and statuses[-1] == 429
        assert send_login(server, TOKEN) == 302


def send_login(server: LabServer, password: str) -> int:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    body = f"_xsrf=0123456789abcdef0123456789abcdef&password={password}"
    headers = {
        "Cookie": "_xsrf=0123456789abcdef0123456789abcdef",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    connection.request("POST", "/login", body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.slow
def test_a_new_token_ends_the_old_ones_logins(tmp_path):
    with start_own_server(tmp_path / "one", JUPYTER_TOKEN=TOKEN) as server:
        cookies = log_in(server)
    # The secret that cookies are signed with stays in the state folder.
    state = {"LABKIT_STATE": str(tmp_path / "one" / "state")}
    with start_own_server(tmp_path / "two", JUPYTER_TOKEN="f" * 48, **state) as server:
        assert server.ask("/api/status", headers={"Cookie": cookies}).status == 403


@pytest.mark.slow
def test_without_a_token_the_url_is_printed_once_and_works(tmp_path):
    with start_own_server(tmp_path) as server:
        assert wait_until(lambda: "ready" in server.log.read_text(), timeout_seconds=60)
        said = [line for line in server.log.read_text().splitlines() if "ready" in line]
        assert len(said) == 1
        token = said[0].partition("?token=")[2]
        assert said[0].endswith(f"http://127.0.0.1:{server.port}/lab?token={token}")
        assert server.log.read_text().count(token) == 1
        assert server.ask("/api/status", token=token).status == 200
        # jupyter_server's page for opening a browser would hold it too.
        assert not list(tmp_path.rglob("*open.html"))


# The proof


@contextlib.contextmanager
def connect(port: int) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        yield connection


def prove(port: int, token: str, base_url: str = "/") -> ServerProof | None:
    with connect(port) as connection:
        return ask_for_proof(connection, token, base_url)


def test_the_server_proves_itself_without_the_token(server: OwnServer):
    with connect(server.port) as connection:
        proof = ask_for_proof(connection, server.token)
        assert proof is not None and proof.pid == server.process.pid
        assert proof.is_direct(connection)
        # What follows on the same connection reaches the same server.
        headers = {"Authorization": f"token {server.token}"}
        connection.request("GET", "/api/status", headers=headers)
        assert connection.getresponse().status == 200


def test_a_server_with_another_token_does_not(server: OwnServer):
    assert prove(server.port, "0" * 48) is None


@pytest.mark.slow
def test_a_published_port_is_part_of_the_proof(tmp_path):
    variables = {"JUPYTER_TOKEN": TOKEN, "LABKIT_PUBLISHED_PORT": "18123"}
    with start_own_server(tmp_path, base_url="/one/two/", **variables) as server:
        proof = prove(server.port, TOKEN, "/one/two/")
        assert proof is not None and proof.published_port == 18123
        assert prove(server.port, TOKEN) is None


@pytest.mark.parametrize("challenge", ["", "0" * 31, "0" * 129, "g" * 64, "A" * 64])
def test_what_is_no_challenge_is_refused(server: OwnServer, challenge: str):
    assert server.ask(f"/labkit/proof?challenge={challenge}").status == 400


class Impostor:
    """Listens where the lab should, and treats each connection as ``serve`` does."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self.seen = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(serve,), daemon=True)
        self._thread.start()

    def _run(self, serve: Callable[[socket.socket], None]) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                serve(client)

    def close(self) -> None:
        # Wakes the thread that waits for a connection, which would else wait for ever.
        with contextlib.suppress(OSError):  # macOS refuses it, and wakes the thread by close
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=10)


def relay_to(port: int) -> Callable[[socket.socket], None]:
    """Passes one request on to ``port`` and its answer back."""

    def serve(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as real:
            real.sendall(client.recv(65536))
            client.sendall(real.recv(65536))

    return serve


def test_a_proof_that_was_passed_on_is_not_direct(server: OwnServer):
    impostor = Impostor(relay_to(server.port))
    with connect(impostor.port) as connection:
        proof = ask_for_proof(connection, server.token)
        assert proof is not None and proof.server == f"127.0.0.1 {server.port}"
        assert not proof.is_direct(connection)
    impostor.close()


def test_an_old_answer_proves_nothing(server: OwnServer):
    old = server.ask(f"/labkit/proof?challenge={'0' * 64}").body
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(old)}\r\n\r\n".encode()
    impostor = Impostor(lambda client: (client.recv(65536), client.sendall(head + old))[1])
    assert prove(impostor.port, server.token) is None
    impostor.close()


ANSWERS = {
    "no json": b"hello",
    "no object": b"[]",
    "nested": b"[" * 4000,
    "no fields": b"{}",
    "odd types": b'{"pid": [], "server": {}, "client": 1, "published_port": "x", "proof": null}',
    "text": '{"pid": 1, "server": "", "client": "", "published_port": null, "proof": "ä"}'.encode(),
}


@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)
def test_what_an_impostor_answers_is_no_proof(body: bytes):
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    impostor = Impostor(lambda client: (client.recv(65536), client.sendall(head + body))[1])
    assert prove(impostor.port, TOKEN) is None
    impostor.close()


def test_the_token_cannot_follow_to_another_connection(server: OwnServer):
    with connect(server.port) as connection:
        assert ask_for_proof(connection, server.token) is not None
        connection.close()
        with pytest.raises(NotConnected):
            connection.request("GET", "/api/status")


def test_the_proof_is_the_one_that_is_written_down():
    # Made with `openssl dgst -sha256 -mac HMAC`, by the words of labkit.host.proof.
    proof = ServerProof(4711, "127.0.0.1 8888", "127.0.0.1 52114", None)
    assert proof.sign("0" * 48, "ab" * 32) == WRITTEN_DOWN


WRITTEN_DOWN = "77ba795f8c6219bccb3611c23a9c7d1f46affcb82993caa0168757661c743289"
