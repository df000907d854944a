"""Who gets into the lab's JupyterLab, and how much strangers can write into its log.

Limit of wrong tokens
    A correct token of 32 characters or more (the launcher makes 48) is always accepted at once.
    It cannot be guessed at any rate, so that refusing it would protect nothing, and an attacker
    who keeps the limit exceeded would lock the owner out. Here the limit protects the server:
    above it, a wrong token gets a short 429.

    A shorter token (JUPYTER_TOKEN=secret) can be guessed. Above the limit it is not compared until
    the minute is over, correct or not. An attacker can then delay a new login from the same
    address, or from any with many addresses, for as long as the attack lasts; connections to a
    container's published port may all have one address, the engine's. That is the price of a
    short token, and the server warns of it at startup. A login's cookie is checked first and
    always accepted: it is signed with a random secret.

Log
    A request is a stranger's until it is known to be the owner's. The lines that it causes are
    short, without queries, headers and tracebacks: at most 30 at once, then one in 5 seconds,
    about 5 MB a day whatever is sent. The owner's lines are never left out.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
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
from labkit.host.proof import LEAST_TOKEN_LENGTH, PROTOCOL, ServerProof, name_end

Clock = Callable[[], float]

LIMIT_EACH = 20
LIMIT_ALL = 100
WINDOW_SECONDS = 60

LINES_AT_ONCE = 30
SECONDS_PER_LINE = 5.0
LINE_LENGTH = 240
LOG_LIMIT_BYTES = 10_000_000
# Where tornado logs before it is known whose request it is, or what it cannot parse.
HTTP_MODULES = {"web", "http1connection", "httpserver", "iostream", "tcpserver"}


class Attempts:
    """Counts the wrong tokens of the current minute, for each address and in total."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._count = 0
        self._by_address: dict[str, int] = {}

    def add(self, address: str) -> None:
        """Counts one from ``address``."""
        self._turn()
        self._count += 1
        # Above the total limit, addresses are not distinguished: memory is bounded.
        if self._count <= LIMIT_ALL:
            self._by_address[address] = self._by_address.get(address, 0) + 1

    def seconds_left(self, address: str) -> int:
        """How long ``address`` has to wait, in seconds; 0 where it has tries left."""
        self._turn()
        if self._count <= LIMIT_ALL and self._by_address.get(address, 0) <= LIMIT_EACH:
            return 0
        return max(1, round(self._started + WINDOW_SECONDS - self._clock()))

    def _turn(self) -> None:
        if self._clock() - self._started >= WINDOW_SECONDS:
            self._started, self._count, self._by_address = self._clock(), 0, {}


class LabIdentityProvider(PasswordIdentityProvider):  # type: ignore[misc]
    """jupyter_server's own, with a limit of wrong tokens and a served proof of identity."""

    announce = Bool(False, config=True, help="Print the URL with the token once the server runs.")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.attempts = Attempts()

    def get_handlers(self) -> list[tuple[str, object]]:
        """jupyter_server's login and logout, and the proof."""
        return [*super().get_handlers(), (r"/labkit/proof", ProofHandler)]

    def cookie_secret_hook(self, h: hmac.HMAC) -> hmac.HMAC:
        """A new token ends every login that the old one gave."""
        h = super().cookie_secret_hook(h)
        h.update(self.token.encode())
        return h

    def get_user(self, handler: web.RequestHandler) -> Any:
        """Who sent the request; None a stranger."""
        # A token that is not text ends the request here, and the error page asks for the user:
        # unset, that is a traceback in the log.
        handler.current_user = None
        return super().get_user(handler)

    async def get_user_token(self, handler: web.RequestHandler) -> User | None:
        """Who sent the request by its token. Answers 429 to too many wrong ones."""
        given = self.get_token(handler)
        if given and self.token and not self.get_user_cookie(handler):
            self._judge(handler, given, can_be_guessed(self.token))
        return await super().get_user_token(handler)

    def process_login_form(self, handler: web.RequestHandler) -> User | None:
        """Who sent the login page's form. Answers 429 to too many wrong ones."""
        given = handler.get_argument("password", default="")
        guessable = bool(self.hashed_password) or can_be_guessed(self.token)
        if guessable and self.attempts.seconds_left(address_of(handler)):
            raise self._refuse(handler)
        user = super().process_login_form(handler)
        if user is None:
            self._judge(handler, given, guessable)
        return user

    def _judge(self, handler: web.RequestHandler, given: str, guessable: bool) -> None:
        """Counts ``given`` where it is wrong, and ends the request where there are too many."""
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
        """Sets what jupyter_server has no option for, when its web application is made."""
        super().validate_security(app, ssl_options)
        # A page that holds the token, for the browser that jupyter_server could open.
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
    """Shows whoever has the token that this server has it too; `labkit.host.proof` says how."""

    _track_activity = False

    @allow_unauthenticated
    def get(self) -> None:
        """Answers a challenge."""
        challenge = self.get_query_argument("challenge", "")
        if not re.fullmatch(r"[0-9a-f]{32,128}", challenge):
            raise web.HTTPError(400)
        token = self.identity_provider.token
        ends = find_ends(self)
        # Of a token that can be guessed, a proof would let anybody try guesses at home.
        if can_be_guessed(token) or ends is None:
            raise web.HTTPError(404)
        published = os.environ.get("LABKIT_PUBLISHED_PORT", "")
        proof = ServerProof(os.getpid(), *ends, int(published) if published.isdecimal() else None)
        self.set_header("Cache-Control", "no-store")
        self.finish({"protocol": PROTOCOL, **vars(proof), "proof": proof.sign(token, challenge)})


def find_ends(handler: web.RequestHandler) -> tuple[str, str] | None:
    """This server's and the client's end of the request's connection; None on a Unix socket."""
    connection: Any = handler.request.connection
    ends = [connection.stream.socket.getsockname(), connection.stream.socket.getpeername()]
    if not all(isinstance(end, tuple) for end in ends):
        return None
    return name_end(ends[0]), name_end(ends[1])


def can_be_guessed(token: str) -> bool:
    """True where ``token`` is too short to be taken for random."""
    return len(token) < LEAST_TOKEN_LENGTH


def address_of(handler: web.RequestHandler) -> str:
    """The address that the request came from."""
    return str(handler.request.remote_ip)


def find_token(environment: Mapping[str, str] = os.environ) -> tuple[str, bool]:
    """The token, and whether it was made just now and must be printed.

    From the file LABKIT_TOKEN_FILE, so that it is in no environment, argument list or `docker
    inspect`; else JUPYTER_TOKEN; else a random one. Raises UsageError where the file has none.
    """
    path = environment.get("LABKIT_TOKEN_FILE")
    if not path:
        given = environment.get("JUPYTER_TOKEN", "").strip()
        return given or secrets.token_hex(24), not given
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the token from LABKIT_TOKEN_FILE={path}: {error}",
            cause=f"the file must be readable by uid {os.getuid()}",
            fix=f"ls -l {path}",
        ) from error
    if not token:
        raise UsageError(
            f"LABKIT_TOKEN_FILE={path} is empty",
            cause="without a token, everybody could use the lab",
            fix=f"openssl rand -hex 24 > {path}",
        )
    return token, False


def announce_url(app: Any, token: str) -> None:
    """Prints where to open the server, with its token: once, and not through the log."""
    host = "127.0.0.1" if app.ip in ("", "0.0.0.0", "::", "localhost") else app.ip  # noqa: S104
    port = os.environ.get("LABKIT_PUBLISHED_PORT") or app.port
    scheme = "https" if app.certfile else "http"
    print(
        f"JupyterLab is ready:  {scheme}://{host}:{port}{app.default_url}?token={token}", flush=True
    )


def log_request(handler: web.RequestHandler) -> None:
    """Logs a request that was answered: without its query, which may hold a token."""
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
    """True where no owner has been found for the request yet, or there is none."""
    return getattr(handler, "_jupyter_current_user", None) is None


class LineBudget:
    """Lets lines pass as long as there are not too many; counts those it holds back."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._left = float(LINES_AT_ONCE)
        self.held_back = 0

    def take(self) -> bool:
        """True where one more line may be written."""
        now = self._clock()
        self._left = min(self._left + (now - self._last) / SECONDS_PER_LINE, LINES_AT_ONCE)
        self._last = now
        if self._left < 1:
            self.held_back += 1
            return False
        self._left -= 1
        return True


# One for all handlers: jupyter_server and each of its extensions have a filter of their own.
STRANGERS_LINES = LineBudget()


class LogFilter(logging.Filter):
    """Takes tokens and control characters out of log lines, and bounds what strangers cause."""

    def __init__(self, budget: LineBudget = STRANGERS_LINES) -> None:
        super().__init__()
        self._budget = budget

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record; False where a stranger has caused too many lines."""
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
    """Moves what is in ``path`` to ``path.1`` where it has become too long.

    The file itself stays, emptied: the server's output is appended to it by whoever started it.
    """
    try:
        if path.stat().st_size > limit_bytes:
            shutil.copyfile(path, path.with_name(path.name + ".1"))
            os.truncate(path, 0)
    except OSError:
        logging.getLogger("labkit").warning("cannot rotate %s", path, exc_info=True)
