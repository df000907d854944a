"""Exits 0 where JupyterLab answers inside the container; the engine asks every few seconds."""

import os
import sys
from http.client import HTTPConnection

port = int(os.environ.get("LABKIT_SERVER_PORT", "8888"))
connection = HTTPConnection("127.0.0.1", port, timeout=4)
try:
    # /api gives its version to anybody: no token is needed to ask whether the server is well.
    connection.request("GET", "/api")
    answer = connection.getresponse().status
except OSError as error:
    sys.exit(f"JupyterLab does not answer on port {port}: {error}")
sys.exit(0 if answer == 200 else f"JupyterLab answers {answer} on port {port}")
