"""JupyterLab's settings, the same in a container and in a .venv; `labkit serve` gives the rest.

Nothing needs to be set: in a container that was started by hand, the server listens on all of its
interfaces and prints the URL with a random token.
"""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821 - Jupyter puts it here

# Jupyter skips a configuration file that fails and serves with its defaults: without the limits
# below, on another port. This file ends the server instead. With the variable, Jupyter does so for
# its owner's own files; kernels and terminals inherit what is left here, and are not meant.
os.environ.pop("TRAITLETS_APPLICATION_RAISE_CONFIG_FILE_ERROR", None)
try:
    from labkit.jupyter import LABEXTENSIONS
    from labkit.jupyter.guard import LogFilter, find_token

    # Under JupyterHub, the hub says who may come in, and where the server listens.
    under_hub = "JUPYTERHUB_API_TOKEN" in os.environ
    token, is_new = ("", False) if under_hub else find_token()
    port = os.environ.get("LABKIT_SERVER_PORT") or "8888"
    if not port.isdecimal():
        raise ValueError(f"LABKIT_SERVER_PORT={port} is not a port")
except Exception as error:
    sys.exit(f"error: JupyterLab's configuration does not load: {error}")

# In a container that was started by hand: `make up` says on which address a server listens.
address = os.environ.get("LABKIT_SERVER_ADDRESS")
by_hand = os.environ.get("LABKIT_IN_CONTAINER") == "1" and not address

# For every application: LabApp logs beside ServerApp.
c.Application.logging_config = {
    "filters": {"strangers": {"()": LogFilter}},
    "handlers": {"console": {"filters": ["strangers"]}},
}

if not under_hub:
    c.ServerApp.identity_provider_class = "labkit.jupyter.guard.LabIdentityProvider"
    c.LabIdentityProvider.token = token
    c.LabIdentityProvider.announce = is_new
    # The cookie of the login goes with no request that another site's page makes.
    c.LabIdentityProvider.cookie_options = {"samesite": "Strict"}
    # In a container, whoever publishes the port decides who reaches it.
    c.ServerApp.ip = address or ("0.0.0.0" if by_hand else "127.0.0.1")  # noqa: S104
    c.ServerApp.port = int(port)
c.ServerApp.open_browser = False
c.ServerApp.port_retries = 0  # the launcher chose the port; another one would not be found
c.ServerApp.root_dir = os.environ.get("LABKIT_WORKSPACE") or str(Path.cwd())
# Off: a request must name a loopback host, which stops DNS rebinding. The launcher decides; a
# container that was started by hand may be reached by any name, a proxy's or a pod's.
remote_access = os.environ.get("LABKIT_REMOTE_ACCESS") or ("1" if by_hand else "0")
c.ServerApp.allow_remote_access = remote_access == "1"
# Only where an unprivileged host user is root in a rootless engine's container.
c.ServerApp.allow_root = os.environ.get("LABKIT_ALLOW_ROOT") == "1"

c.ServerApp.contents_manager_class = "labkit.jupyter.contents.LabContentsManager"
# jupytext's would put a contents manager of its own between the browser and the learner's files.
# labkit's serves the start page and the memory in the status bar.
c.ServerApp.jpserver_extensions = {"jupyterlab_jupytext": False, "labkit.jupyter.start": True}
c.LanguageServerManager.autodetect = False  # none is in the environment; looking costs a second

c.LabApp.extra_labextensions_path = [str(LABEXTENSIONS)]
c.LabApp.extension_manager = "readonly"  # the environment is locked
c.LabApp.news_url = None
