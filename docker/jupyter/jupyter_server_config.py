"""JupyterLab's settings, the same in a container and in a .venv; `labkit serve` gives the rest."""

import logging
import os
import re
from pathlib import Path

c = get_config()  # noqa: F821 - Jupyter puts it here


class HideToken(logging.Filter):
    """Takes tokens out of log lines: tornado's own words on a refused request quote its address."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record; every one is let through."""
        message = record.getMessage()
        hidden = re.sub(r"(token=)[0-9A-Fa-f]{16,}", r"\1[secret]", message)
        if hidden != message:
            record.msg, record.args = hidden, ()
        return True


c.ServerApp.logging_config = {
    "filters": {"hide_token": {"()": HideToken}},
    "handlers": {"console": {"filters": ["hide_token"]}},
}

# Read from a file, so that the token is in no environment, argument list or `docker inspect`.
c.IdentityProvider.token = Path(os.environ["LABKIT_TOKEN_FILE"]).read_text().strip()

c.ServerApp.ip = os.environ.get("LABKIT_SERVER_ADDRESS", "127.0.0.1")
c.ServerApp.port = int(os.environ.get("LABKIT_SERVER_PORT", "8888"))
c.ServerApp.port_retries = 0  # the launcher chose the port; another one would not be found
c.ServerApp.root_dir = os.environ["LABKIT_WORKSPACE"]
c.ServerApp.open_browser = False
# False: a request must name a loopback host, which stops DNS rebinding. Inside a container the
# server listens on every interface of it, so Jupyter's own guess would be True.
c.ServerApp.allow_remote_access = os.environ.get("LABKIT_REMOTE_ACCESS") == "1"
# Only where an unprivileged host user is root in a rootless engine's container.
c.ServerApp.allow_root = os.environ.get("LABKIT_ALLOW_ROOT") == "1"
# jupytext's would put a contents manager of its own between the browser and the learner's files.
c.ServerApp.jpserver_extensions = {"jupyterlab_jupytext": False}
c.LanguageServerManager.autodetect = False  # none is in the environment; looking costs a second

c.LabApp.extension_manager = "readonly"  # the environment is locked
c.LabApp.news_url = None
