"""A learner of a class, who signs up, logs in and works through JupyterHub's own pages and API."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar
from typing import Any

from labkit.launch.server import wait_until


class Learner:
    """A browser's session with the hub at ``url``, logged in under ``name``."""

    def __init__(self, url: str, name: str, password: str = "a-long-password") -> None:
        self.url, self.name, self._password = url, name, password
        self._jar = CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._jar))
        self._token = ""

    def ask(
        self, path: str, form: dict[str, str] | None = None, token: str = ""
    ) -> tuple[int, str, str]:
        """Status, final address and text of a page; ``form`` is posted."""
        data = urllib.parse.urlencode({**form, "_xsrf": self._xsrf()}).encode() if form else None
        headers = {"Authorization": f"token {token}"} if token else {}
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            with self._opener.open(request, timeout=60) as answer:
                return answer.status, answer.url, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.url, error.read().decode(errors="replace")

    def call(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an API below the hub or a server, asked with the learner's token."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"token {self._token}"}
        # Without cookies: the token alone.
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, None

    def sign_up(self) -> None:
        """Makes the account."""
        self.ask("/hub/signup")
        twice = ("signup_password", "signup_password_confirmation")
        form = {"username": self.name, **dict.fromkeys(twice, self._password)}
        assert self.ask("/hub/signup", form)[0] == 200

    def log_in(self) -> bool:
        """Logs in; False if the hub refuses."""
        self.ask("/hub/login")
        self.ask("/hub/login", {"username": self.name, "password": self._password})
        return self._take_token()

    def log_in_by_oauth(self) -> bool:
        """Logs in at the institution's page; False if the hub refuses."""
        self.ask("/hub/oauth_login")
        return self._take_token()

    def _take_token(self) -> bool:
        path = f"/hub/api/users/{self.name}/tokens?_xsrf={self._xsrf()}"
        status, _, text = self._post_json(path)
        self._token = json.loads(text)["token"] if status == 201 else ""
        return bool(self._token)

    def start(self) -> bool:
        """Starts the learner's server; True when it answers."""
        self.call(f"/hub/api/users/{self.name}/server", "POST")
        return wait_until(lambda: self.call(f"{self.place}/api")[0] == 200, timeout_seconds=300)

    @property
    def place(self) -> str:
        """The path of the learner's server."""
        return f"/user/{self.name}"

    @property
    def container(self) -> str:
        """The name of the learner's container."""
        return f"labkit-learner-{self.name}"

    def _post_json(self, path: str) -> tuple[int, str, str]:
        headers = {"Content-Type": "application/json", "Referer": f"{self.url}/hub/"}
        request = urllib.request.Request(f"{self.url}{path}", b"{}", headers)
        try:
            with self._opener.open(request, timeout=60) as answer:
                return answer.status, answer.url, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.url, error.read().decode()

    def _xsrf(self) -> str:
        hubs = [one.value for one in self._jar if one.name == "_xsrf" and one.path == "/hub/"]
        return str(hubs[0]) if hubs else ""
