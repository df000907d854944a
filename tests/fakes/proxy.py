"""An inspecting proxy, as companies have them: it opens TLS and signs with its own certificate.

It listens on loopback alone. One host it opens, and answers for it with a package index of one
wheel; all others it only tunnels to, as such proxies do for the hosts on their list.
"""

from __future__ import annotations

import hashlib
import io
import select
import shlex
import socket
import ssl
import subprocess
import threading
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

OPENED_HOST = "index.example"
USER, PASSWORD = "ada", "a-secret-of-the-proxy"
NAME = "Inspecting Proxy of the Tests"
WHEEL = "torch-99.0+cpu-py3-none-any.whl"


def make_certificates(folder: Path) -> Path:
    """Makes the proxy's own certificate, and one it signs for the host it opens; the own's path."""
    for line in (
        f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN={NAME}' -keyout ca.key -out ca.pem"
        " -addext keyUsage=critical,keyCertSign",
        f"req -newkey rsa:2048 -nodes -subj /CN={OPENED_HOST} -keyout host.key -out host.csr"
        f" -addext subjectAltName=DNS:{OPENED_HOST}",
        "x509 -req -days 2 -in host.csr -copy_extensions copy -CA ca.pem -CAkey ca.key"
        " -out host.pem",
    ):
        command = ["openssl", *shlex.split(line)]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "ca.pem"


def make_wheel() -> bytes:
    """A wheel that calls itself torch, of a version that no other index has."""
    info = "torch-99.0+cpu.dist-info"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("torch/__init__.py", "__version__ = '99.0+cpu'\n")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 99.0+cpu\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return content.getvalue()


class InspectingProxy:
    """The proxy, listening until ``stop``. ``opened`` lists what was asked for inside of TLS."""

    def __init__(self, certificates: Path) -> None:
        self.opened: list[str] = []
        self.wheel = make_wheel()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates / "host.pem", certificates / "host.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://{USER}:{PASSWORD}@127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def wheel_digest(self) -> str:
        return hashlib.sha256(self.wheel).hexdigest()

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096) or b"\r\n\r\n"
            method, target, _ = head.split(b"\r\n")[0].decode().split()
            host, _, port = target.rpartition(":")
            if method != "CONNECT":
                client.sendall(b"HTTP/1.1 405 Only CONNECT\r\n\r\n")
            elif host == OPENED_HOST:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                with self._context.wrap_socket(client, server_side=True) as opened:
                    self._answer(opened)
            else:
                with socket.create_connection((host, int(port)), timeout=30) as server:
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    tunnel(client, server)

    def _answer(self, opened: ssl.SSLSocket) -> None:
        proxy = self

        class Index(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy.opened.append(self.path)
                page = f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode()
                body = proxy.wheel if self.path.endswith(".whl") else page
                self.send_response(200)
                kind = "application/zip" if body is proxy.wheel else "text/html"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *words: object) -> None:
                """Says nothing."""

        Index(opened, ("127.0.0.1", 0), None)  # type: ignore[arg-type]


def tunnel(one: socket.socket, other: socket.socket) -> None:
    """Hands on what either side says until one of them ends."""
    while True:
        ready, _, _ = select.select([one, other], [], [], 60)
        for side in ready or [one]:
            content = side.recv(65536) if ready else b""
            if not content:
                return
            (other if side is one else one).sendall(content)
