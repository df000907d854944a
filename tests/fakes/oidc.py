"""An OpenID Connect provider of an institution, as small as JupyterHub's login needs it."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT, SECRET = "the-class", "known-to-both"


@dataclass
class Provider:
    """A running provider at ``url``; whoever comes is logged in there as ``user`` already."""

    url: str
    user: str = "nobody"
    codes: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    scopes: set[str] = field(default_factory=set)

    def list_variables(self, hub: str) -> dict[str, str]:
        """What a hub at the URL ``hub`` is started with."""
        return {
            "HUB_AUTHENTICATOR": "generic-oauth",
            "OAUTH_CLIENT_ID": CLIENT,
            "OAUTH_CLIENT_SECRET": SECRET,
            "OAUTH_CALLBACK_URL": f"{hub}/hub/oauth_callback",
            "OAUTH2_AUTHORIZE_URL": f"{self.url}/authorize",
            "OAUTH2_TOKEN_URL": f"{self.url}/token",
            "OAUTH2_USERDATA_URL": f"{self.url}/userinfo",
        }

    def authorize(self, query: dict[str, str]) -> str:
        """Where the browser goes back to, with a code for one use."""
        assert (query["response_type"], query["client_id"]) == ("code", CLIENT)
        self.scopes |= set(query["scope"].split())
        code = secrets.token_hex(8)
        self.codes[code] = self.user
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def exchange(self, form: dict[str, str], basic: str) -> dict[str, str] | None:
        """The answer to a code; None without the client's secret or for an unknown code."""
        typed = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        knows = form.get("client_secret") == SECRET or basic == f"Basic {typed}"
        user = self.codes.pop(form.get("code", ""), None)
        if not knows or user is None:
            return None
        token = secrets.token_hex(8)
        self.tokens[token] = user
        return {"access_token": token, "token_type": "Bearer", "scope": " ".join(self.scopes)}

    def describe_user(self, bearer: str) -> dict[str, str] | None:
        """The claims of the user that the token is for."""
        user = self.tokens.get(bearer.removeprefix("Bearer "))
        return {"sub": "4711", "preferred_username": user} if user else None


@contextmanager
def run_provider(address: str) -> Iterator[Provider]:
    """A provider that listens on the address until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/authorize":
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                self.send_response(302)
                self.send_header("Location", provider.authorize(query))
                self.end_headers()
            else:
                self._send(provider.describe_user(self.headers.get("Authorization", "")))

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(text).items()}
            self._send(provider.exchange(form, self.headers.get("Authorization", "")))

        def _send(self, said: dict[str, str] | None) -> None:
            data = json.dumps(said or {"error": "invalid_grant"}).encode()
            self.send_response(200 if said else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    provider = Provider(f"http://{address}:{server.server_port}")
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
