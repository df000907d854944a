"""A played NVIDIA driver: a libnvidia-ml.so.1 in C, built by the tests and scripted by a file.

``nvidia-ml-py`` loads it as it loads the real one, so the whole way from the C interface to what
labkit prints is run. It does not make torch see a GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml.c")
ROOT = Path(__file__).parents[3]
GIB = 2**30
MIB = 2**20


def build_driver(folder: Path, *, old: bool = False) -> Path:
    """Builds the library into the folder; an old one lacks the symbols of later drivers."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc, to build the fake libnvidia-ml.so.1")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *(["-DOLD_DRIVER"] if old else [])]
    subprocess.run([compiler, *flags, "-o", library, SOURCE], check=True, timeout=60)
    return folder


def script_gpu(index: int = 0, *lines: str, kind: str = "gpu") -> str:
    """A GPU of 24 GiB with 512 MiB reserved and 20 GiB free; later lines overrule."""
    facts = (
        "name NVIDIA GeForce RTX 4090",
        f"uuid {'GPU' if kind == 'gpu' else 'MIG'}-0000000{index:x}",
        "capability 8 9",
        f"memory {24 * GIB} {512 * MIB} {20 * GIB}",
    )
    return "\n".join([kind, *facts, *lines])


def script_driver(*parts: str) -> str:
    """A whole script: driver 580.95.05 with CUDA 13.0, then its parts."""
    return "\n".join(["driver 580.95.05", "cuda 13000", *parts, ""])


class PlayedHost:
    """A machine with a played driver, on which labkit commands are run."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.library = library
        # `labkit devices` reads which torch is installed from this file, and imports none.
        version = folder / "torch" / "version.py"
        version.parent.mkdir()
        (folder / "torch" / "__init__.py").write_text("raise ImportError('only a version here')\n")
        version.write_text("__version__ = '2.13.0+cu130'\ncuda: str = '13.0'\n")

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs ``labkit`` with the words in a fresh interpreter, on the scripted driver."""
        return self.run_python(script, "-m", "labkit", *words, **environment)

    def run_python(
        self, script: str, *words: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs this Python with the words, where the scripted driver is the one that is found."""
        return subprocess.run(
            [sys.executable, *words],
            env={**self.play(script), **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    def write_script(self, script: str, name: str = "script") -> Path:
        """The file that the driver reads the script from."""
        path = self.folder / name
        path.write_text(script)
        return path

    def play(self, script: str) -> dict[str, str]:
        """The environment in which any program finds the scripted driver."""
        path = self.write_script(script)
        hidden = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NO_COLOR"}
        kept = {key: value for key, value in os.environ.items() if key not in hidden}
        return {
            **kept,
            "LD_LIBRARY_PATH": str(self.library),
            "FAKE_NVML_SCRIPT": str(path),
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
            "PYTHONIOENCODING": "utf-8",
        }
