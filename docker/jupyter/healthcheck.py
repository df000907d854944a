"""Exits 0 where the container's JupyterLab answers its owner; the engine asks every few seconds.

The server says itself, in a file that it writes when it is ready, on which port and under which
base URL it answers: options after the image's name may have changed both.
"""

import json
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

TIMEOUT_SECONDS = 8


def main(processes: Path) -> str | None:
    """What is wrong with the lab, or None."""
    folder = find_server(processes)
    if folder is None:
        return "no JupyterLab runs here"
    try:
        environment = read_environment(folder)
        runtime = Path(environment["JUPYTER_RUNTIME_DIR"])
        said = json.loads((runtime / f"jpserver-{folder.name}.json").read_text())
    except (OSError, ValueError, KeyError):
        return "JupyterLab has not started yet"
    return ask_server(said, "api" if "JUPYTERHUB_API_TOKEN" in environment else "api/status")


def find_server(processes: Path) -> Path | None:
    """The folder of JupyterLab's process below ``processes`` (/proc), None where there is none."""
    for folder in processes.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if b"jupyterlab" in words or b"jupyterhub.singleuser" in words:
            return folder
    return None


def read_environment(folder: Path) -> dict[str, str]:
    """The variables that a process was started with."""
    items = (folder / "environ").read_text(errors="replace").split("\0")
    return dict(item.split("=", 1) for item in items if "=" in item)


def ask_server(said: dict, path: str) -> str | None:
    """What is wrong with the server of which its own file says ``said``, or None.

    /api answers to anybody. That the server takes its token shows that its own settings are in
    force, and that what a page asks for is answered. Under JupyterHub it has no token.
    """
    every = ("0.0.0.0", "localhost")  # noqa: S104 - compared, not listened on
    host = "127.0.0.1" if said["hostname"] in every else said["hostname"]
    where = f"port {said['port']}"
    if said["secure"]:
        # It is asked whether it answers, on a connection that does not leave the container.
        unchecked = ssl._create_unverified_context()  # noqa: S323
        connection = HTTPSConnection(host, said["port"], timeout=TIMEOUT_SECONDS, context=unchecked)
    else:
        connection = HTTPConnection(host, said["port"], timeout=TIMEOUT_SECONDS)
    headers = {"Host": "localhost", "Authorization": f"token {said['token']}"}
    try:
        connection.request("GET", f"{said['base_url']}{path}", headers=headers)
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"JupyterLab does not answer on {where}: {error}"
    finally:
        connection.close()
    return None if status == 200 else f"JupyterLab answers {status} on {where}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "/proc")))
