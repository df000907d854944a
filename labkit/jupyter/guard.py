"""Authenticates requests to the lab's JupyterLab, and limits what strangers write to its log.

Limit of wrong tokens
    A correct token of 32 characters or more (the launcher makes 48) is always accepted at once.
    It cannot be guessed at any request rate, so refusing it would protect nothing, and an
    attacker who exceeds the limit would lock the owner out. Here the limit protects the server's
    resources: above it, a wrong token gets a short 429.

    A shorter token (JUPYTER_TOKEN=secret) can be guessed. Above the limit, no token is compared
    until the minute is over, not even a correct one. An attacker can then block new logins from
    the same address (with many addresses, from all) as long as the attack lasts. Connections to a
    container's published port may all have the engine's address. The server warns about this
    drawback of a short token at startup. A login's cookie is checked first and always accepted:
    it is signed with a random secret.

Log
    A request is a stranger's until it is authenticated. Its log lines are short, without queries,
    headers and tracebacks, and limited: at most 30 at once, then one per 5 seconds, or about 5 MB
    a day. The owner's log lines are never left out.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.auth.identity import PasswordIdentityProvider, User
from jupyter_server.base.call_context import CallContext
from jupyter_server.base.handlers import APIHandler
from jupyter_server.prometheus.log_functions import prometheus_log_method
from tornado import web
from tornado.ioloop import IOLoop, PeriodicCallback
from traitlets import Bool

from labkit.errors import UsageError
from labkit.files import LARGEST_RECORD_BYTES, read_regular
from labkit.host.proof import LEAST_TOKEN_LENGTH, PROTOCOL, ServerProof, name_end

Clock = Callable[[], float]

LIMIT_EACH = 20
LIMIT_ALL = 100
WINDOW_SECONDS = 60

LINES_AT_ONCE = 30
SECONDS_PER_LINE = 5.0
LINE_LENGTH = 240
LOG_LIMIT_BYTES = 10_000_000
# Tornado's loggers for requests that are not authenticated yet, or cannot be parsed.
HTTP_MODULES = {"web", "http1connection", "httpserver", "iostream", "tcpserver"}


class Attempts:
    """Counts the wrong tokens of the current minute, for each address and in total."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._count = 0
        self._by_address: dict[str, int] = {}

    def add(self, address: str) -> None:
        """Counts one wrong token from ``address``."""
        self._turn()
        self._count += 1
        # Above the total limit, addresses are not distinguished: memory is bounded.
        if self._count <= LIMIT_ALL:
            self._by_address[address] = self._by_address.get(address, 0) + 1

    def seconds_left(self, address: str) -> int:
        """The seconds that ``address`` has to wait; 0 if it has attempts left."""
        self._turn()
        if self._count <= LIMIT_ALL and self._by_address.get(address, 0) <= LIMIT_EACH:
            return 0
        return max(1, round(self._started + WINDOW_SECONDS - self._clock()))

    def _turn(self) -> None:
        if self._clock() - self._started >= WINDOW_SECONDS:
            self._started, self._count, self._by_address = self._clock(), 0, {}


class LabIdentityProvider(PasswordIdentityProvider):  # type: ignore[misc]
    """jupyter_server's identity provider, with a limit of wrong tokens and a proof of identity."""

    announce = Bool(False, config=True, help="Print the URL with the token once the server runs.")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.attempts = Attempts()

    def get_handlers(self) -> list[tuple[str, object]]:
        """The handlers of jupyter_server's login and logout, and of the proof."""
        return [*super().get_handlers(), (r"/labkit/proof", ProofHandler)]

    def cookie_secret_hook(self, h: hmac.HMAC) -> hmac.HMAC:
        """Makes cookies depend on the token, so that a new token ends all earlier logins."""
        h = super().cookie_secret_hook(h)
        h.update(self.token.encode())
        return h

    def get_user(self, handler: web.RequestHandler) -> Any:
        """The authenticated user of the request; None for a stranger."""
        # An undecodable token ends the request here, and the error page reads current_user. If it
        # is unset, the log gets a traceback.
        handler.current_user = None
        return super().get_user(handler)

    async def get_user_token(self, handler: web.RequestHandler) -> User | None:
        """The user of the request's token. Responds 429 to too many wrong tokens."""
        given = self.get_token(handler)
        if given and self.token and not self.get_user_cookie(handler):
            self._judge(handler, given, can_be_guessed(self.token))
        return await super().get_user_token(handler)

    def process_login_form(self, handler: web.RequestHandler) -> User | None:
        """The user of the login page's form. Responds 429 to too many wrong tokens."""
        given = handler.get_argument("password", default="")
        guessable = bool(self.hashed_password) or can_be_guessed(self.token)
        if guessable and self.attempts.seconds_left(address_of(handler)):
            raise self._refuse(handler)
        user = super().process_login_form(handler)
        if user is None:
            self._judge(handler, given, guessable)
        return user

    def _judge(self, handler: web.RequestHandler, given: str, guessable: bool) -> None:
        """Counts ``given`` if it is wrong, and ends the request if there are too many."""
        over = self.attempts.seconds_left(address_of(handler))
        if over and guessable:
            raise self._refuse(handler)
        if hmac.compare_digest(given.encode(), self.token.encode()):
            return
        self.attempts.add(address_of(handler))
        if self.attempts.seconds_left(address_of(handler)):
            raise self._refuse(handler)

    def _refuse(self, handler: web.RequestHandler) -> web.Finish:
        seconds = self.attempts.seconds_left(address_of(handler))
        handler.set_status(429)
        handler.set_header("Retry-After", str(seconds))
        return web.Finish(f"Too many wrong tokens. Try again in {seconds} seconds.\n")

    def validate_security(self, app: Any, ssl_options: dict[str, Any] | None = None) -> None:
        """Changes settings for which jupyter_server has no option, before its web app starts."""
        super().validate_security(app, ssl_options)
        # A file that contains the token, for the browser that jupyter_server could open.
        app.no_browser_open_file = True
        settings = app.web_app.settings
        settings["log_function"] = log_request
        settings["xsrf_cookie_kwargs"] = {
            **settings.get("xsrf_cookie_kwargs", {}),
            "samesite": "Strict",
        }
        if self.token and can_be_guessed(self.token):
            self.log.warning(
                f"the token has {len(self.token)} characters and may be guessed: use"
                f" {LEAST_TOKEN_LENGTH} or more, from `openssl rand -hex 24`"
            )
        if self.announce:
            IOLoop.current().add_callback(announce_url, app, self.token)
        log_file = os.environ.get("LABKIT_LOG_FILE")
        if log_file:
            PeriodicCallback(lambda: rotate_log(Path(log_file)), 30_000).start()


class ProofHandler(APIHandler):  # type: ignore[misc]
    """Proves to a client with the token that this server has it too; see `labkit.host.proof`."""

    _track_activity = False

    @allow_unauthenticated
    def get(self) -> None:
        """Responds to a challenge."""
        challenge = self.get_query_argument("challenge", "")
        if not re.fullmatch(r"[0-9a-f]{32,128}", challenge):
            raise web.HTTPError(400)
        token = self.identity_provider.token
        ends = find_ends(self)
        # A proof of a guessable token would allow an offline brute-force attack.
        if can_be_guessed(token) or ends is None:
            raise web.HTTPError(404)
        published = os.environ.get("LABKIT_PUBLISHED_PORT", "")
        proof = ServerProof(os.getpid(), *ends, int(published) if published.isdecimal() else None)
        self.set_header("Cache-Control", "no-store")
        self.finish({"protocol": PROTOCOL, **vars(proof), "proof": proof.sign(token, challenge)})


def find_ends(handler: web.RequestHandler) -> tuple[str, str] | None:
    """The server's and the client's address of the connection; None on a Unix socket."""
    connection: Any = handler.request.connection
    ends = [connection.stream.socket.getsockname(), connection.stream.socket.getpeername()]
    if not all(isinstance(end, tuple) for end in ends):
        return None
    return name_end(ends[0]), name_end(ends[1])


def can_be_guessed(token: str) -> bool:
    """True if ``token`` is too short to be considered random."""
    return len(token) < LEAST_TOKEN_LENGTH


def address_of(handler: web.RequestHandler) -> str:
    """The address that the request came from."""
    return str(handler.request.remote_ip)


def find_token(environment: Mapping[str, str] = os.environ) -> tuple[str, bool]:
    """The token, and whether it was just generated and must be printed.

    It is read from the file LABKIT_TOKEN_FILE, which keeps it out of environments, argument lists
    and `docker inspect`; else from JUPYTER_TOKEN; else it is random. Raises UsageError if the
    file has none.
    """
    path = environment.get("LABKIT_TOKEN_FILE")
    if not path:
        given = environment.get("JUPYTER_TOKEN", "").strip()
        return given or secrets.token_hex(24), not given
    try:
        token = read_regular(Path(path), 0, LARGEST_RECORD_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        cause = f"the file must be readable by uid {os.getuid()}"
        if Path(path).is_dir():
            cause = "an engine that mounts a file that is missing makes a folder of its name"
        raise UsageError(
            f"cannot read the token from LABKIT_TOKEN_FILE={path}:"
            f" {getattr(error, 'strerror', None) or error}",
            cause=cause,
            fix=f"ls -ld {shlex.quote(path)}",
        ) from error
    if not token:
        raise UsageError(
            f"LABKIT_TOKEN_FILE={path} is empty",
            cause="without a token, anybody could use the lab",
            fix=f"openssl rand -hex 24 > {shlex.quote(path)}",
        )
    return token, False


def announce_url(app: Any, token: str) -> None:
    """Prints the server's URL with its token, once, and not to the log."""
    host = "127.0.0.1" if app.ip in ("", "0.0.0.0", "::", "localhost") else app.ip  # noqa: S104
    port = os.environ.get("LABKIT_PUBLISHED_PORT") or app.port
    scheme = "https" if app.certfile else "http"
    print(
        f"JupyterLab is ready:  {scheme}://{host}:{port}{app.default_url}?token={token}", flush=True
    )


def log_request(handler: web.RequestHandler) -> None:
    """Logs a completed request without its query, which may contain a token."""
    status, request = handler.get_status(), handler.request
    if status < 300 or status == 304:
        level = logging.DEBUG
    elif status < 400:
        level = logging.INFO
    else:
        level = logging.WARNING if status < 500 else logging.ERROR
    milliseconds = 1000 * request.request_time()
    line = f"{status} {request.method} {request.path} ({request.remote_ip}) {milliseconds:.1f} ms"
    logger = getattr(handler, "log", logging.getLogger("tornado.access"))
    logger.log(level, line, extra={"is_strangers": is_strangers(handler)})
    prometheus_log_method(handler)  # type: ignore[no-untyped-call]


def is_strangers(handler: object) -> bool:
    """True if the request is not authenticated (yet)."""
    return getattr(handler, "_jupyter_current_user", None) is None


class LineBudget:
    """Limits the rate of log lines; counts the suppressed ones."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._left = float(LINES_AT_ONCE)
        self.held_back = 0

    def take(self) -> bool:
        """True if another line may be written."""
        now = self._clock()
        self._left = min(self._left + (now - self._last) / SECONDS_PER_LINE, LINES_AT_ONCE)
        self._last = now
        if self._left < 1:
            self.held_back += 1
            return False
        self._left -= 1
        return True


# Shared by all handlers: jupyter_server and each of its extensions have their own filter.
STRANGERS_LINES = LineBudget()


class LogFilter(logging.Filter):
    """Removes tokens and control characters from log lines, and limits the lines of strangers."""

    def __init__(self, budget: LineBudget = STRANGERS_LINES) -> None:
        super().__init__()
        self._budget = budget

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record; False if strangers have caused too many lines."""
        text = record.getMessage()
        if self._is_strangers(record):
            if not self._budget.take():
                return False
            record.exc_info = record.exc_text = record.stack_info = None
            text = re.sub(r"\?\S*", "", " ".join(text.split()))
            text = text if len(text) <= LINE_LENGTH else text[:LINE_LENGTH] + "..."
            if self._budget.held_back:
                text += f" ({self._budget.held_back} lines of refused requests left out)"
                self._budget.held_back = 0
        elif record.exc_info:
            record.exc_text = clean_text(logging.Formatter().formatException(record.exc_info))
        record.msg, record.args = clean_text(text), ()
        return True

    def _is_strangers(self, record: logging.LogRecord) -> bool:
        marked: bool | None = getattr(record, "is_strangers", None)
        if marked is not None:
            return marked
        handler = CallContext.get(CallContext.JUPYTER_HANDLER)
        if handler is not None:
            return is_strangers(handler)
        return Path(record.pathname).parent.name == "tornado" and record.module in HTTP_MODULES


def clean_text(text: str) -> str:
    r"""``text`` without the values of tokens, and with control characters escaped.

    >>> print(clean_text("GET /lab?token=0123&reset \x1b[2J"))
    GET /lab?token=[secret]&reset \x1b[2J
    """
    text = re.sub(r"(token=)[^\s&\"'<>)]+", r"\1[secret]", text)
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def rotate_log(path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Moves the content of ``path`` to ``path.1`` if it is too long.

    The file itself is kept and truncated, because the process that started the server appends
    the server's output to it.
    """
    try:
        if path.stat().st_size > limit_bytes:
            shutil.copyfile(path, path.with_name(path.name + ".1"))
            os.truncate(path, 0)
    except OSError:
        logging.getLogger("labkit").warning("cannot rotate %s", path, exc_info=True)
