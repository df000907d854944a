"""The local runtime's .venv: created from the image's locks, and updated when they change."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import EngineError, LabkitError
from labkit.host.torch_builds import BUILDS, CPU_BUILD, CUDA_BUILDS, TorchBuild
from labkit.launch.certificates import trust_in_pip
from labkit.launch.progress import Step, StepLog, Steps
from labkit.launch.settings import EXTRAS, Checkout, check_locks
from labkit.process import compose_environment, run_command, stream_command

INSTALL_LIMIT_SECONDS = 2 * 3600.0
# The first stamp written: it marks a folder that labkit created and may clear.
OWNER = "environment"
# pip's configuration files can change where packages go; these variables and the options of
# _pip_command override them.
PIP_VARIABLES = {"PIP_USER": "0", "PIP_DRY_RUN": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
# What pip writes at the top of a script if the path of its Python is not valid in a "#!" line. The
# shell expands that path, so a folder named $(...) would run a command.
SHELL_HEADER = re.compile(rb"\A#!/bin/sh\n'''exec' .*\n")
SCRIPT_HEADER_BYTES = 8192
SAFE_HEADER = b"""#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")/python" "$0" "$@"
"""
# labkit itself is installed from here: editable, so that code changes need no reinstall.
LABKIT_INPUT = "pyproject.toml"
# The environment of the tests on simulated GPUs: CUDA's libraries in it are replaced.
SIMULATED_VENV = ".venv-simulated"
IPYTHON_SETTINGS = Path("docker/jupyter/ipython_config.py")

# The title of each lock's installation step.
TITLES = {
    "torch-cpu": "torch, the build for the CPU",
    **{build.torch_lock: f"torch, the build for CUDA {build.cuda}" for build in CUDA_BUILDS},
    **{f"cuda-{build.name}": f"CUDA {build.cuda}'s libraries" for build in CUDA_BUILDS},
    "lab": "JupyterLab and what the labs use",
    "test": "what the tests use",
    EXTRAS: "what EXTRAS= adds",
}

# The locks that differ between builds of torch.
BUILD_LOCKS = tuple(lock for build in BUILDS.values() for lock in build.locks if lock != "lab")

COUNT_REQUIREMENTS = """
import sys
from pip._vendor.packaging.requirements import Requirement
text = open(sys.argv[1]).read().replace("\\\\\\n", " ")
lines = (line.split(" --hash")[0].strip() for line in text.splitlines())
wanted = [Requirement(line) for line in lines if line and line[0] not in "#- "]
print(sum(not need.marker or need.marker.evaluate() for need in wanted))
"""


@dataclass(frozen=True)
class PythonEnvironment:
    """The checkout's .venv, or another folder of its root by ``name``, and the packages in it."""

    checkout: Checkout
    name: str | None = None

    @property
    def folder(self) -> Path:
        """The environment's folder."""
        return self.checkout.root / self.name if self.name else self.checkout.environment_folder

    @property
    def python(self) -> Path:
        """The environment's own interpreter."""
        return self.folder / "bin" / "python"

    @property
    def is_owned(self) -> bool:
        """True if labkit created the folder and may clear it; False for a link."""
        return not self.folder.is_symlink() and self._stamp(OWNER).is_file()

    def prepare(self, steps: Steps, locks: Sequence[str] = CPU_BUILD.locks) -> None:
        """Creates the environment if it is missing, and installs every lock that has changed.

        After an interrupt or failure the next call continues from there. Raises EngineError with
        the log's last lines, or if the folder exists and labkit did not create it.
        """
        check_locks(self.checkout, locks)
        self._refuse_foreign()
        if not self._is_usable():
            self._create(steps)
        self._remove_other_builds(steps, locks)
        for lock in locks:
            self._install_once(steps, lock, self.checkout.lock_file(lock), self._lock_options(lock))
        self._install_once(steps, "labkit", self.checkout.root / LABKIT_INPUT, ())
        self._link_settings()

    def is_current(self, locks: Sequence[str] = CPU_BUILD.locks) -> bool:
        """True if all packages of the locks are installed."""
        return self.python.exists() and all(
            self._read_stamp(lock) == self._digest(self.checkout.lock_file(lock)) for lock in locks
        )

    def find_cuda_build(self) -> TorchBuild | None:
        """The CUDA build of torch that is installed, or None."""
        return next(
            (build for build in CUDA_BUILDS if self._stamp(build.torch_lock).exists()), None
        )

    def _refuse_foreign(self) -> None:
        """Raises EngineError if the folder exists and labkit did not create it."""
        folder = self.folder
        if not os.path.lexists(folder) or self.is_owned:
            return
        if folder.is_symlink():
            found = f"a link to {folder.readlink()}"
        elif not folder.is_dir():
            found = "a file"
        elif not any(folder.iterdir()) or self._is_of_older_labkit():
            return
        else:
            found = "a Python environment" if (folder / "pyvenv.cfg").exists() else "a folder"
        raise EngineError(
            f"{folder} is {found} that labkit did not make, so labkit does not change it",
            cause="the local runtime keeps its own Python environment there",
            fix="LABKIT_VENV=.labkit/venv make up   # or move it away, then: make up",
        )

    def _is_of_older_labkit(self) -> bool:
        """True if an older labkit without owner's stamps created it: used, but never cleared."""
        return self._is_usable() and self._stamp("labkit").is_file()

    def _is_usable(self) -> bool:
        """True if the environment is complete and has this Python's version."""
        # `python -m venv` installs pip last.
        complete = self.python.exists() and (self.python.parent / "pip").exists()
        return complete and self._read_python_version() in (None, _python_version())

    def _read_python_version(self) -> str | None:
        """The environment's Python version, such as "3.12"; None if unknown."""
        try:
            text = (self.folder / "pyvenv.cfg").read_text(encoding="utf-8")
        except OSError:
            return None
        found = re.search(r"^version\s*=\s*(\d+\.\d+)", text, flags=re.MULTILINE)
        return found.group(1) if found else None

    def _create(self, steps: Steps) -> None:
        with (
            steps.step(f"making {self.folder.name} with Python {_python_version()}"),
            self._open_log("venv") as log,
        ):
            self._clear()
            command = [sys.executable, "-m", "venv", str(self.folder)]
            self._run(log, command, "making the .venv failed", self._remake_command)
        self._make_scripts_safe()

    def _clear(self) -> None:
        """Empties or creates the folder; the owner's stamp is in it all the time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp = self._stamp(OWNER)
        stamp.touch()
        for path in list(self.folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != stamp:
                path.unlink()

    @property
    def _remake_command(self) -> str:
        return f"rm -rf {shlex.quote(str(self.folder))} && make up"

    def _make_scripts_safe(self) -> None:
        """Quotes the interpreter's path in the environment's scripts against expansion."""
        for script in list((self.folder / "bin").iterdir()):
            if script.is_symlink() or not script.is_file():
                continue
            with script.open("rb") as file:  # read-only: a running script cannot be written
                header = SHELL_HEADER.match(file.read(SCRIPT_HEADER_BYTES))
            if header and header.group() != SAFE_HEADER:
                script.write_bytes(SAFE_HEADER + script.read_bytes()[header.end() :])

    def _install_once(
        self, steps: Steps, name: str, source: Path, options: tuple[str, ...]
    ) -> None:
        digest = self._digest(source)
        if self._read_stamp(name) == digest:
            return
        self._stamp(name).unlink(missing_ok=True)
        with steps.step(f"installing {TITLES.get(name, name)}") as step:
            follow = follow_pip(step, self._count(source)) if source.suffix == ".txt" else None
            with self._open_log(f"install-{name}", follow) as log:
                self._run(
                    log,
                    self._pip_command(name, source, options),
                    f"installing {name} failed",
                    "make up   # continues where it stopped",
                )
        self._make_scripts_safe()
        self._stamp(name).write_text(digest, encoding="ascii")

    def _link_settings(self) -> None:
        """Lets the environment's kernels find the lab's settings for IPython."""
        link = self.folder / "etc" / "ipython" / IPYTHON_SETTINGS.name
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(self.checkout.root / IPYTHON_SETTINGS)

    def _remove_other_builds(self, steps: Steps, locks: Sequence[str]) -> None:
        """Uninstalls the other build of torch and its libraries.

        pip accepts an installed torch 2.13.0+cpu for a lock's 2.13.0 and would keep it, and
        gigabytes of the other CUDA version's libraries would stay unused.
        """
        others = [lock for lock in BUILD_LOCKS if lock not in locks and self._stamp(lock).exists()]
        if not others:
            return
        kept = {name for lock in locks for name in self._list_packages(lock)}
        names = {name for lock in others for name in self._list_packages(lock)} - kept | {"torch"}
        with steps.step("removing the other build of torch"), self._open_log("remove") as log:
            pip = [str(self.python), "-m", "pip", "uninstall", "--disable-pip-version-check"]
            command = [*pip, "--yes", *sorted(names)]
            self._run(log, command, "removing torch failed", self._remake_command)
        # Last, so that an interrupted removal is repeated. All builds' stamps are removed: packages
        # that two builds share may be gone too, and the next installation checks them.
        for lock in (*others, *BUILD_LOCKS):
            self._stamp(lock).unlink(missing_ok=True)

    def _list_packages(self, lock: str) -> set[str]:
        """The names of the packages in a lock; empty if there is no such lock."""
        try:
            text = self.checkout.lock_file(lock).read_text(encoding="utf-8")
        except OSError:
            return set()
        return set(re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", text, flags=re.MULTILINE))

    def _pip_command(self, name: str, source: Path, options: tuple[str, ...]) -> list[str]:
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        pip += ["--no-deps", "--progress-bar", "off"]
        pip += ["--target=", "--root=/", f"--prefix={self.folder}"]  # override pip.conf
        if name == "labkit":
            return [*pip, "--no-build-isolation", "--no-index", "--editable", str(source.parent)]
        return [*pip, "--require-hashes", "--only-binary", ":all:", *options, "-r", str(source)]

    def _lock_options(self, lock: str) -> tuple[str, ...]:
        # Only torch comes from PyTorch's index; one retry, so that an outage costs a second.
        build = BUILDS.get(lock.removeprefix("torch-"))
        if build is None or build.torch_index is None:
            return ()
        index = os.environ.get("TORCH_INDEX", build.torch_index)
        return ("--index-url", index, "--retries", "1")

    def _count(self, lock: Path) -> int | None:
        """How many of the lock's packages this Python and machine need; None if unknown."""
        answer = run_command(
            [str(self.python), "-c", COUNT_REQUIREMENTS, str(lock)], timeout_seconds=30
        )
        return int(answer.stdout) if answer.ok and answer.stdout.strip().isdecimal() else None

    def _run(self, log: StepLog, command: list[str], what: str, fix: str) -> None:
        result = stream_command(
            command,
            timeout_seconds=INSTALL_LIMIT_SECONDS,
            on_line=log.write,
            environment={**compose_pip_environment(self.checkout), "PYTHONUNBUFFERED": "1"},
            folder=self.checkout.root,
        )
        if result.missing or result.timed_out:
            log.write(result.message)
        if not result.ok:
            raise log.failure(what, fix)

    def _open_log(self, name: str, follow: Callable[[str], None] | None = None) -> StepLog:
        return StepLog(self.checkout.logs_folder / f"{name}.log", follow)

    def _digest(self, source: Path) -> str:
        try:
            content = source.read_bytes()
        except OSError as error:
            raise LabkitError(
                f"cannot read {source}: {error.strerror}",
                cause="the checkout is not complete",
                fix=f"git -C '{self.checkout.root}' status",
            ) from error
        return hashlib.sha256(content + _python_version().encode()).hexdigest()

    def _stamp(self, name: str) -> Path:
        return self.folder / f".labkit-{name}"

    def _read_stamp(self, name: str) -> str | None:
        try:
            return self._stamp(name).read_text(encoding="ascii")
        except OSError:
            return None


def compose_pip_environment(checkout: Checkout) -> dict[str, str]:
    """The environment of pip (and uv): the network's certificate, and PYPI_INDEX as its index."""
    mirror = os.environ.get("PYPI_INDEX")
    index = {"PIP_INDEX_URL": mirror, "UV_DEFAULT_INDEX": mirror} if mirror else {}
    return {**compose_environment(), **PIP_VARIABLES, **index, **trust_in_pip(checkout)}


def follow_pip(step: Step, total: int | None) -> Callable[[str], None]:
    """A callback for pip's output; notes on ``step`` how many packages pip has processed."""
    seen = 0
    of_total = f" of {total}" if total else ""

    def read_line(line: str) -> None:
        nonlocal seen
        # pip prints "Processing" for a wheel file on this machine.
        found = re.match(r"(?:Collecting (?P<name>\S+?)(?:==|\s|$)|Processing (?P<file>\S+))", line)
        if found:
            seen += 1
            name = found["name"] or Path(found["file"]).name.split("-")[0]
            step.note(f"package {seen}{of_total}, {name}")
        elif line.startswith("Installing collected packages"):
            step.note(f"unpacking {total or seen} packages")

    return read_line


def _python_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
