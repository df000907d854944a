"""Measures the launcher against what it is built on: `make bench`. Prints ratios, not verdicts.

Every pair is measured side by side in one run, as medians, because timings of a busy machine
compare with nothing else.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from labkit.launch.server import wait_until
from labkit.launch.settings import Checkout
from labkit.launch.venv import PythonEnvironment
from labkit.process import run_command

ROOT = Path(__file__).parents[2]
CHECKOUT = Checkout(ROOT)
PYTHON = str(PythonEnvironment(CHECKOUT).python)
ROUNDS = 5
PORT = 18777
TOKEN = "bench"


def median_seconds(action: Callable[[], float], rounds: int = ROUNDS) -> float:
    """The median of what ``action`` returns, in seconds."""
    return statistics.median(action() for _ in range(rounds))


def time_command(*words: str) -> float:
    """Wall seconds of a command, started anew."""
    result = run_command(words, timeout_seconds=120, folder=ROOT)
    assert result.ok, result.message
    return result.seconds


def time_until_healthy(command: list[str], folder: Path) -> float:
    """Seconds until the JupyterLab that ``command`` starts takes our token."""
    environment = {
        **os.environ,
        "LABKIT_WORKSPACE": str(folder / "work"),
        "LABKIT_STATE": str(folder / "state"),
        "LABKIT_TOKEN_FILE": str(folder / "token"),
        "LABKIT_SERVER_PORT": str(PORT),
        "LABKIT_ALLOW_ROOT": "1",
        "JUPYTER_CONFIG_PATH": str(ROOT / "docker" / "jupyter") if "serve" in command else "",
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
    }
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=folder / "work",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        healthy = wait_until(
            takes_token,
            timeout_seconds=120,
            interval_seconds=0.02,
        )
        assert healthy, command
        return time.monotonic() - started
    finally:
        process.terminate()
        process.wait()


def takes_token() -> bool:
    """True where a JupyterLab takes our token; a bare one has no proof that it could give."""
    connection = HTTPConnection("127.0.0.1", PORT, timeout=5)
    try:
        connection.request("GET", "/api/status", headers={"Authorization": f"token {TOKEN}"})
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def compare_servers() -> tuple[float, float]:
    """Median seconds to healthy of `labkit serve`, warm, and of bare JupyterLab."""
    bare = [PYTHON, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={PORT}"]
    bare += [f"--IdentityProvider.token={TOKEN}"]
    serve = [PYTHON, "-m", "labkit", "serve"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work").mkdir()
        (folder / "token").write_text(TOKEN)
        time_until_healthy(serve, folder)  # the first start puts the notebooks in place
        pairs = [
            (time_until_healthy(serve, folder), time_until_healthy(bare, folder))
            for _ in range(ROUNDS)
        ]
    ours, theirs = zip(*pairs, strict=True)
    return statistics.median(ours), statistics.median(theirs)


def read_image_size(name: str) -> int | None:
    """The image's size in bytes, or None where there is no such image."""
    answer = run_command(
        ["docker", "image", "inspect", "--format", "{{.Size}}", name], timeout_seconds=30
    )
    return int(answer.stdout) if answer.ok else None


def main() -> None:
    """Measures everything and prints a line each."""
    ours, bare = compare_servers()
    print(f"to healthy, warm: {ours:.2f} s, bare jupyter lab {bare:.2f} s: {ours / bare:.2f} times")
    status = median_seconds(lambda: time_command(sys.executable, "-m", "labkit", "status"))
    print(f"labkit status, nothing running: {status:.3f} s")
    binding = median_seconds(lambda: time_command(PYTHON, "-c", "import pynvml"))
    devices = median_seconds(lambda: time_command(PYTHON, "-m", "labkit", "devices"))
    print(
        f"labkit devices: {devices:.3f} s, import pynvml {binding:.3f} s:"
        f" {devices / binding:.2f} times"
    )
    size, base = read_image_size("labkit:cpu"), read_image_size("debian:bookworm-slim")
    if size is None or base is None:
        print("image size: not measured (no engine, or no image: make build)")
    else:
        print(f"image size over its base: {(size - base) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
