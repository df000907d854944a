"""A proof that the server on a port is the lab that we started; no secret is sent.

The program that starts a lab shares a token with it in a file. Before it sends the token over a
socket, the server must prove that it has the token too::

    GET {base_url}labkit/proof?challenge=HEX      HEX: 32 to 128 lower-case hexadecimal digits

    {"protocol": "labkit-proof-1", "pid": 4711, "server": "127.0.0.1 8888",
     "client": "127.0.0.1 52114", "published_port": null, "proof": "9f86d0..."}

- ``key`` = HMAC-SHA256(token, "labkit-proof-1 key"), the token's text in UTF-8
- ``message`` = the compact JSON list [protocol, challenge, pid, server, client, published_port]
- ``proof`` = HMAC-SHA256(key, message), in hexadecimal digits

``server`` and ``client`` are the two ends of the connection as the server's own socket names them.
``published_port`` is the host's port that leads to a container (LABKIT_PUBLISHED_PORT), else null.
Each part stops one attack:

- An impostor does not know the token: it cannot make the proof, and learns nothing from a
  challenge. The token has 192 bits, so it cannot be found from a proof by trying; a server with a
  token that is easy to guess sends no proof (404).
- An old answer is invalid: every challenge is new.
- An impostor that forwards the challenge to the real lab uses its own connection to it: then
  ``client`` is not our end, and ``server`` or ``published_port`` is not the port that we asked.
  `ServerProof.is_direct` compares them. With an engine's port forwarding ``client`` is the engine's
  end; then ask the engine whether the container still has the published port.
- The lab ends after the proof and an impostor takes the port: the token is sent over the same
  connection only, which is never reopened.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

PROTOCOL = "labkit-proof-1"
# 16 random bytes are the minimum that cannot be guessed; `secrets.token_hex(24)` has 48 digits.
LEAST_TOKEN_LENGTH = 32
ANSWER_LIMIT_BYTES = 4096


@dataclass(frozen=True)
class ServerProof:
    """A lab that proved that it has the token: its process and the ends of the connection."""

    pid: int
    server: str
    client: str
    published_port: int | None = None

    def is_direct(self, connection: HTTPConnection) -> bool:
        """True if ``connection`` leads directly to the lab's own socket."""
        ours = connection.sock
        return (
            ours is not None
            and self.client == name_end(ours.getsockname())
            and self.server == name_end(ours.getpeername())
        )

    def sign(self, token: str, challenge: str) -> str:
        """The proof: 64 hexadecimal digits that cannot be computed without ``token``."""
        key = hmac.digest(token.encode(), f"{PROTOCOL} key".encode(), hashlib.sha256)
        parts = [PROTOCOL, challenge, self.pid, self.server, self.client, self.published_port]
        message = json.dumps(parts, separators=(",", ":")).encode()
        return hmac.new(key, message, hashlib.sha256).hexdigest()


def ask_for_proof(
    connection: HTTPConnection, token: str, base_url: str = "/"
) -> ServerProof | None:
    """The lab at the other end of ``connection``, or None if the server lacks the token.

    With a proof the token may be sent, over this connection only, which is never reopened.
    Raises OSError or HTTPException if nothing answers.
    """
    challenge = secrets.token_hex(32)
    connection.request("GET", f"{base_url}labkit/proof?challenge={challenge}")
    connection.auto_open = 0
    response = connection.getresponse()
    body = response.read(ANSWER_LIMIT_BYTES)
    if response.status != 200:
        return None
    try:
        answer: Any = json.loads(body)
        proof = ServerProof(
            answer["pid"], answer["server"], answer["client"], answer["published_port"]
        )
        given = str(answer["proof"]).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return proof if hmac.compare_digest(proof.sign(token, challenge).encode(), given) else None


def name_end(address: tuple[Any, ...]) -> str:
    """A socket's address and port as text.

    >>> name_end(("::1", 8888, 0, 0))
    '::1 8888'
    """
    return f"{address[0]} {address[1]}"
