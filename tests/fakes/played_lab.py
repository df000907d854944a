"""A checkout whose .venv and JupyterLab are played, and programs that pose as its server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from labkit.launch.server import wait_until
from labkit.launch.settings import Checkout

ROOT = Path(__file__).parents[2]

# pip has nothing to do, and `labkit serve` goes straight to JupyterLab, which is played.
PLAYED_PYTHON = """\
#!/bin/sh
case "$*" in *"-m pip "*) exit 0 ;; *"-m labkit serve") set -- -m jupyterlab ;; esac
export PYTHONPATH="{played}:{root}"
exec "{python}" "$@"
"""

# Answers challenges and, to whoever has the token, everything else. It takes its port once the file
# `hold` is gone, and answers nothing while its process id is in the file `hang`.
PLAYED_JUPYTERLAB = """\
import os, sys, time, urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from labkit.host.proof import PROTOCOL, ServerProof, name_end

token = Path(os.environ["LABKIT_TOKEN_FILE"]).read_text().strip()
hold, hang = (Path(os.environ["LABKIT_STATE"]) / name for name in ("hold", "hang"))
while hold.exists():
    time.sleep(0.01)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        while hang.exists() and hang.read_text() == str(os.getpid()):
            time.sleep(0.01)
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/labkit/proof":
            [challenge] = urllib.parse.parse_qs(url.query)["challenge"]
            ends = name_end(self.connection.getsockname()), name_end(self.connection.getpeername())
            proof = ServerProof(os.getpid(), *ends)
            return self.answer(
                200, {"protocol": PROTOCOL, **vars(proof), "proof": proof.sign(token, challenge)}
            )
        known = self.headers.get("Authorization") == f"token {token}"
        self.answer(200 if known else 403, {"path": url.path})

    do_POST = do_GET

    def answer(self, status, said):
        import json

        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


address = os.environ["LABKIT_SERVER_ADDRESS"], int(os.environ["LABKIT_SERVER_PORT"])
Server(address, Handler).serve_forever()
"""


def make_played_checkout(folder: Path, interpreter: str = sys.executable) -> Checkout:
    """A checkout with this one's locks, and a .venv whose Python and JupyterLab are played."""
    checkout, played = folder / "checkout", folder / "played"
    checkout.mkdir(parents=True)
    for name in ("compose.yaml", "pyproject.toml", "labs", "docker"):
        (checkout / name).symlink_to(ROOT / name)
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "pip").touch()
    (checkout / ".venv" / ".labkit-environment").touch()
    version = "{}.{}.{}".format(*sys.version_info)
    (checkout / ".venv" / "pyvenv.cfg").write_text(f"version = {version}\n", encoding="utf-8")
    python = binaries / "python"
    text = PLAYED_PYTHON.format(played=played, root=ROOT, python=interpreter)
    python.write_text(text, encoding="utf-8")
    python.chmod(0o755)
    (played / "jupyterlab").mkdir(parents=True)
    (played / "jupyterlab" / "__init__.py").touch()
    (played / "jupyterlab" / "__main__.py").write_text(PLAYED_JUPYTERLAB, encoding="utf-8")
    return Checkout(checkout.resolve())


Reply = Callable[[bytes], bytes]


def claim_everything(request: bytes) -> bytes:
    """Answers as a server that takes any token and serves any proof."""
    body = json.dumps(
        {
            "protocol": "labkit-proof-1",
            "pid": os.getpid(),
            "server": "",
            "client": "",
            "published_port": None,
            "proof": "0" * 64,
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def relay_to(port: int) -> Reply:
    """Passes each request on to the real lab's port, and its answer back."""

    def relay(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as real:
            real.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            answer = b""
            while block := real.recv(65536):
                answer += block
        return answer

    return relay


def _take(port: int, taken: list[socket.socket]) -> bool:
    with contextlib.suppress(OSError):
        taken.append(socket.create_server(("127.0.0.1", port)))
    return bool(taken)


class Impostor:
    """Listens on a port that is not its own, and keeps every byte that it gets."""

    def __init__(self, port: int = 0, reply: Reply = claim_everything) -> None:
        self.received = b""
        self._reply = reply
        # The threads of a killed server may hold its port after its process counts as ended.
        taken: list[socket.socket] = []
        assert wait_until(lambda: _take(port, taken), timeout_seconds=60), f"{port} is taken"
        (self._listener,) = taken
        self._listener.settimeout(0.02)
        self.port = int(self._listener.getsockname()[1])
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._done.is_set():
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(2)
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            block = connection.recv(65536)
            if not block:
                return
            self.received += block
            request += block
        connection.sendall(self._reply(request))

    def close(self) -> None:
        """Ends it; ``received`` stays."""
        self._done.set()
        self._thread.join()
        self._listener.close()


@contextlib.contextmanager
def impostor(port: int = 0, reply: Reply = claim_everything) -> Iterator[Impostor]:
    """An impostor that is closed with the block."""
    server = Impostor(port, reply)
    try:
        yield server
    finally:
        server.close()
