"""Writes the commands of a fix for the machine that a log names.

The catalogs give a command as a shell on Debian runs it. Another system has another shell, other
package names and services; a portable or virtual environment has a pip of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from labkit.host.distribution import Distribution
from labkit.host.packages import (
    ADD_TOOLKIT_SOURCE,
    MAKE_CDI_SPEC,
    RESTART_DOCKER,
    TOOLKIT,
    TOOLKIT_GUIDE,
)

System = Literal["linux", "windows", "mac"]
NAMES = Path(__file__).parent / "catalogs" / "package_names.tsv"
COMMENT = "   #"

# Where a command can begin in a fix, and where it ends.
_START = r"(?:^|(?<=& )|(?<=\|\| )|(?<=; )|(?<=\| )|(?<=: )|(?<=\bor )|(?<=\bthen )|(?<=\())"
_END = r"(?=$|[;,)]|   #| && | \|)"
_SUDO = re.compile(rf"{_START}sudo (?:-n )?|(?<=\| )sudo ")
# Programs that only Linux has, or that reach the machine below a container.
_OF_LINUX = re.compile(
    rf"{_START}(?:sudo )?(?:[A-Z_]+=\S+ )?(?:apt(?:-get|-cache|-mark)?|dpkg|dnf|zypper|pacman|snap"
    r"|systemctl|journalctl|modprobe|rmmod|lsmod|modinfo|dmesg|ldconfig|lspci|lsusb|mokutil|dkms"
    r"|update-[a-z-]+|nvidia-ctk|nvidia-modprobe|nvidia-persistenced|ldd|strace|sysctl|mount|umount"
    r"|chmod|chown|ulimit|usermod|getent|loginctl|setenforce|setsebool|sh|bash|free|lsof|fuser|tee"
    r"|swapoff|swapon|fallocate|patchelf|rocminfo|vainfo|ip|ss|unshare|ln|resolvectl|ubuntu-drivers"
    r"|prime-select|apt-file|apt-key|add-apt-repository|timedatectl|hostnamectl|akmods|dracut|dcgmi"
    r"|mkinitcpio|nvidia-(?:xconfig|bug-report\.sh|container-cli|cuda-mps-control|settings)"
    r"|export LD_(?:LIBRARY_PATH|PRELOAD)|unset LD_(?:LIBRARY_PATH|PRELOAD))(?![\w-])"
    rf"|{_START}(?:sudo )?(?:cat|ls|find|head|tail|grep)(?: -\w+)* "
    r"/(?:proc|sys|dev|etc|usr|lib|run|var|opt|(?= ))"
)
_OF_HOST = re.compile(
    rf"{_START}(?:sudo )?(?:systemctl|modprobe|rmmod|mokutil|dkms|nvidia-ctk|nvidia-modprobe|docker"
    r"|podman|update-initramfs|ubuntu-drivers|snap|reboot|nvidia-smi --gpu-reset"
    r"|apt-get install (?:nvidia-(?:driver|container)|docker))(?![\w-])"
)
_INSTALL_OF_TOOLKIT = re.compile(rf"{_START}sudo apt-get install (?:-y )?{TOOLKIT}(?![\w-])")
# Colab and Kaggle let nobody at the machine below: its driver and engine are the provider's.
_OF_PROVIDER = re.compile(rf"labkit doctor|{_OF_HOST.pattern}")
_CHOOSE_GPU = (
    "choose a GPU for this notebook: Colab: Runtime, Change runtime type, a GPU; Kaggle: Settings,"
    " Accelerator   # then run all cells again: !nvidia-smi must list it; if a GPU is chosen: end"
    " the session and start another one, which may get another machine"
)
# Where it is set; to unset it, all its names are given.
_ALLOCATOR = re.compile(r"\bPYTORCH_(?:CUDA_|HIP_)?ALLOC_CONF(?==| in the shell)")
_OWN_WORDS = {"windows": "Windows", "mac": "macOS"}


@dataclass(frozen=True)
class LogHost:
    """The machine that wrote a log: its system, its package tool, the signs of it, its Python.

    ``family`` is the distribution's; ``python`` is the command that starts the Python of the log's
    own paths, None if it is simply ``python``; ``python_version`` is "3.9" and the like.
    ``torch_version`` is the release of torch that is installed, ``driver`` NVIDIA's branch, such as
    570; ``blackwell``: its GPU needs a build for CUDA 12.8 or newer. ``allocator_variable`` is the
    environment variable that this torch reads its allocator's settings from; ``names_family`` is
    false where the text names no distribution, so that ``family`` is only that of this machine.
    """

    system: System = "linux"
    family: str | None = None
    signs: frozenset[str] = frozenset()
    python: str | None = None
    python_version: str | None = None
    torch_version: str | None = None
    driver: int | None = None
    blackwell: bool = False
    allocator_variable: str = "PYTORCH_CUDA_ALLOC_CONF"
    names_family: bool = True

    def write(self, fix: str) -> str:
        """The fix with its commands as this machine runs them.

        >>> LogHost("windows", signs=frozenset({"cmd"})).write("export A=1   # before it")
        'set "A=1"   # before it'
        >>> LogHost(family="fedora").write("sudo apt-get install g++ python3-dev")
        'sudo dnf install gcc-c++ python3-devel'
        >>> LogHost(python_version="3.10").write("sudo apt-get install g++ python3-dev")
        'sudo apt-get install g++ python3.10-dev'
        """
        written = self._write(fix)
        if self.python_version:
            # python3-dev has the headers of the distribution's own Python alone.
            own = f"apt-get install g++ python{self.python_version}-dev"
            written = written.replace("apt-get install g++ python3-dev", own)
        return written

    def _write(self, fix: str) -> str:
        fix = self._prefer_own(self._name_tools(fix))
        fix = _ALLOCATOR.sub(self.allocator_variable, fix)
        command, mark, comment = fix.partition(COMMENT)
        command = self._add_toolkit_source(self._complete_torch(command))
        if "/whl/cu130" in command and not self.driver and "580" not in comment:
            mark, comment = COMMENT, self._note_driver(comment)
        if "vllm-python" in self.signs:
            command = _write_as_arguments(command)
        if "k8s" in self.signs and "docker-there" not in self.signs:
            command = _write_for_pod(command)
        command = self._choose_python(self._translate(command))
        comment = self._translate(comment, is_comment=True)
        if "uv" in self.signs:
            comment = _PIP_OF_COMMENT.sub(r"uv pip \g<what>", comment)
        fix = f"{command}{mark}{comment}" if comment.strip() else command
        if self.system == "windows" and not {"powershell", "cmd"} & self.signs:
            fix = _name_powershell(fix)
        if "hosted-notebook" in self.signs and _OF_PROVIDER.match(fix):
            return _CHOOSE_GPU
        if "%pip " in command and _REPLACES.search(command) and "restart" not in fix:
            return f"{fix}{'; ' if mark else COMMENT + ' '}{_RESTART}"
        if "image-build" in self.signs:
            return _write_step(fix)
        if not self.names_family and self.system == "linux":
            fix = self._name_families(fix)
        if "srun" in self.signs and re.fullmatch(rf"export {_ASSIGNMENTS}", command):
            return f"{command}{COMMENT} in the job's script, before srun;{comment or ' then again'}"
        if {"inside", "app-folder"} & self.signs and self.system == "linux":
            return _install_in_image(_name_host(fix))
        return fix

    def _note_driver(self, comment: str) -> str:
        """The comment with the driver that a build for CUDA 13 needs: the log does not name one."""
        older = "cu128" if self.blackwell else "cu126"
        note = f" cu130 needs driver 580 (nvidia-smi names it), {older} an older one"
        return f"{comment};{note}" if comment else note

    def _name_families(self, fix: str) -> str:
        """The fix with the distribution that its package tool is of: the text names none."""
        command, _, comment = fix.partition(COMMENT)
        found = _APT.search(command)
        if not found:
            tool = next((each for each in _TOOLS_BY_COMMAND if each in command), None)
            said = f"on {_TOOLS_BY_COMMAND[tool]}, as on this machine" if tool else ""
        else:
            others = {title: _install(found[0], tool) for title, tool in _OTHERS.items()}
            known = [f"{title}: {it}" for title, it in others.items() if it.startswith("sudo ")]
            # NVIDIA's package source must be added before, in each distribution's way.
            known = [f"elsewhere: {TOOLKIT_GUIDE}"] if TOOLKIT in command else known
            said = "; ".join(["on Debian and Ubuntu", *known])
        if "nvidia-driver" in command:  # each distribution's has another name
            family = self.family and self.family.capitalize()
            said = f"on {family}, as on this machine" if family else "on Debian or Ubuntu"
            if "dist-packages" in self.signs:  # the text's machine is Debian's or Ubuntu's
                said = "on Debian; Ubuntu: sudo ubuntu-drivers install"
        if not said or re.search(r"\b(?:Debian|Ubuntu|Fedora|Arch|Dockerfile)\b", fix):
            return fix
        return f"{command}{COMMENT} {'; '.join(filter(None, [said, comment.strip()]))}"

    def _name_tools(self, fix: str) -> str:
        """The fix with the launcher and the package tool that the log shows."""
        for sign in _TOOLS_OF_LOG:
            if sign == "srun" and STARTERS & self.signs:
                continue
            if sign in self.signs:
                for pattern, replacement in _TOOLS_OF_LOG[sign]:
                    fix = re.sub(pattern, replacement, fix)
        return fix

    def _add_toolkit_source(self, command: str) -> str:
        """The command with NVIDIA's package source before the toolkit that it installs from there.

        Where the log shows the toolkit, its source is there, too.
        """
        source = ADD_TOOLKIT_SOURCE.on(Distribution(family=self.family or "debian"))
        is_there = "toolkit-there" in self.signs or source in command
        if is_there or self.family in ("arch", "alpine") or "nixos" in self.signs:
            return command
        return _INSTALL_OF_TOOLKIT.sub(lambda found: f"{source} && {found[0]}", command, count=1)

    def _complete_torch(self, command: str) -> str:
        """The command with torchaudio, where the log has it, and the index for what is there.

        A torch that is installed once more keeps its release: what needs it may need just this one.
        """
        if "--no-deps" in command:  # for the torch that is there
            return command
        if "torchaudio" in self.signs:
            command = re.sub(
                r"\btorch torchvision (?=--index-url)", "torch torchvision torchaudio ", command
            )
        if index := _NEWEST_BUILDS.get(self.python_version or ""):
            return re.sub(r"/whl/cu1[23]\d\b", f"/whl/{index}", command)
        if builds := self._list_builds(command):
            # Torch before 2.3 (on Windows 2.5) is built for NumPy 1, and would get NumPy 2.
            first = 5 if self.system == "windows" else 3
            numpy = " 'numpy<2'" if int(str(self.torch_version).split(".")[1]) < first else ""
            torch = f"torch=={self.torch_version}"
            command = re.sub(
                r"\btorch( torchvision(?: torchaudio)?)", rf"{torch}\1{numpy}", command
            )
        return re.sub(
            r"(?<=/whl/)cu1[23]\d\b", lambda it: self._choose_build(it[0], builds), command
        )

    def _list_builds(self, command: str) -> Sequence[str]:
        """The builds of the release to keep, the newest first; none if the newest release is it."""
        if not self.torch_version or "--force-reinstall torch torchvision" not in command:
            return ()
        minor = int(self.torch_version.split(".")[1])
        builds = _BUILDS[max(each for each in _BUILDS if each <= minor)]
        return () if self.blackwell and builds[0] < "cu128" else builds

    def _choose_build(self, asked: str, builds: Sequence[str]) -> str:
        """The build asked for, or the newest other one that the driver and the GPU run."""
        least, most = "cu128" if self.blackwell else "cu118", "cu132"
        if self.driver:
            most = next(build for branch, build in _MOST_BUILDS if self.driver >= branch)
        # The index cu118 has older releases of torch alone, which pip takes.
        newest = (*_BUILDS[9], "cu118")
        fitting = [each for each in builds or newest if least <= each <= most]
        return asked if asked in fitting or not fitting else fitting[0]

    def _prefer_own(self, fix: str) -> str:
        """The command that the fix's comment names for this system in place of Linux' one."""
        command, _, comment = fix.partition(COMMENT)
        name = _OWN_WORDS.get(self.system)
        if not name or not _OF_LINUX.search(command):
            return fix
        found = re.search(rf"(?:^|; | )(?:on )?{name}: ([^;]+)", comment)
        return found[1] if found else fix

    def _translate(self, text: str, *, is_comment: bool = False) -> str:
        if self.system == "windows":
            shell = _Windows(powershell="powershell" in self.signs)
            return shell.translate(text, is_comment=is_comment)
        if self.system == "mac":
            text = _install(text, "brew")
            if is_comment:
                return _leave_out(text, _LINUX_ON_MAC, _KEPT_ON_MAC)
            return text if text.startswith("lsof ") else _write_for_mac(text)
        if tool := self._find_tool():
            text = _install(text, tool)
        for pattern, replacement in self._list_replacements():
            text = re.sub(pattern, replacement, text)
        if is_comment and self._has_own_engine:
            text = _leave_out(text, _OF_DOCKER, re.compile(rf"\b{self.engine}\b"))
        return _SUDO.sub("", text) if {"root", "hosted-notebook"} & self.signs else text

    @property
    def _is_uv_project(self) -> bool:
        """True if uv keeps the environment as the project's file says."""
        signs = self.signs
        return "uv-project" in signs or ("uv-run" in signs and "uv-pip" not in signs)

    def _find_tool(self) -> str | None:
        if "nixos" in self.signs:
            return "nix"
        if "image-based" in self.signs:
            return "rpm-ostree"
        return _TOOLS.get(self.family or "")

    def _list_replacements(self) -> list[tuple[str, str]]:
        signs = self.signs
        found = list(_BY_FAMILY.get(self.family or "", ()))
        # Docker Desktop's engine runs beside this WSL distribution, not in it.
        shown = signs | {"desktop-context"} if {"desktop", "wsl"} <= signs else signs
        for sign, replacements in _BY_SIGN.items():
            if sign in shown:
                found += replacements
        return found + list(_ENGINES.get(self.engine or "", ()))

    @property
    def engine(self) -> str | None:
        """The engine of the log where it is another one than docker: a key of `_ENGINES`."""
        signs = self.signs
        if "docker-there" in signs and "podman-emulates" not in signs:
            return None
        # crun, which is a sign of podman, is CRI-O's, too.
        barred = {"podman": {"k8s", "crio"}, "apptainer": {"podman", "nerdctl", "k8s"}}
        return next(
            (each for each in _ENGINES if each in signs and not barred.get(each, set()) & signs),
            None,
        )

    def write_second(self, fix: str) -> str | None:
        """A second fix as `write` writes it; None if it is docker's in a log of another engine.

        >>> LogHost(signs=frozenset({"podman"})).write_second("docker context use default")
        """
        written = self.write(fix)
        is_foreign = self._has_own_engine and _OF_DOCKER.search(written.partition(COMMENT)[0])
        return None if is_foreign else written

    @property
    def _has_own_engine(self) -> bool:
        return self.engine in ("podman", "nerdctl", "apptainer")

    def _choose_python(self, command: str) -> str:
        """The command with the pip and Python of the log's environment."""
        if "notebook" in self.signs:
            command = re.sub(rf"{_START}(?:python3? -m )?pip (?=\w)", "%pip ", command)
            # What follows on the line would be the shell's.
            command = command.replace(" && %pip ", "; then, in a line of its own: %pip ")
            command = re.sub(rf"^export (?P<all>{_ASSIGNMENTS})(?=$|;)", _set_in_notebook, command)
            return re.sub(
                rf"^(?P<all>{_ASSIGNMENTS})python your_program\.py$", _set_in_notebook, command
            )
        if "uv" in self.signs and "uv pip" not in command:
            if self._is_uv_project:
                command = _PIP_INSTALL.sub(_write_for_project, command)
            command = re.sub(
                rf"{_START}(?:python3? -m )?pip uninstall -y ", "uv pip uninstall ", command
            )
            # Its environments have no pip.
            command = re.sub(
                rf"{_START}(?:python3? -m )?pip (?=(?:list|show|freeze|check)\b)",
                "uv pip ",
                command,
            )
            return _PIP_INSTALL.sub(r"\g<set>uv pip install \g<rest>", command)
        if "poetry" in self.signs:
            return _PROGRAM_OF_POETRY.sub("poetry run ", command)
        if not self.python:
            return command
        python = self.python
        if "/uv/tools/" in python:  # such an environment has no pip
            return re.sub(
                rf"{_START}(?:python3? -m )?pip install ",
                lambda _: f"uv pip install --python {python} ",
                command,
            )
        command = re.sub(
            rf"{_START}(?:python3? -m )?pip (?=[a-z]+(?:[ ;,)]|$))",
            lambda _: f"{python} -m pip ",
            command,
        )
        return re.sub(rf"{_START}python3? (?=-[cm] )", lambda _: f"{python} ", command)


# What a running kernel has loaded stays loaded.
_REPLACES = re.compile(r"--upgrade|--force-reinstall|uninstall|[<=>]=|<\d")
_RESTART = "then restart the kernel (Colab: Runtime, Restart session) and run all cells again"
_PIP_INSTALL = re.compile(
    rf"{_START}(?P<set>(?:env(?: -u \w+)+ )?(?:[A-Z_]+=(?:<[^>]*>|\S+) )*)(?:python3? -m )?"
    r"pip install (?P<rest>(?:[^;&|#\n]|#(?=\w))+?)(?=$| && | \| |;|   #| or )"
)
_PIP_OF_COMMENT = re.compile(
    r"(?<!uv )(?<!-m )(?<![\w./%-])pip (?:(?P<what>install|show|list|freeze|check)|uninstall -y)\b"
)
# A placeholder in it may have blanks.
_ARGUMENT = re.compile(r"\"[^\"]*\"|'[^']*'|(?:[^\s<]*<[^>]*>)+\S*|\S+")
# Their effect is in the command uv add, too, or it has no need of them.
_NEEDLESS = ("--upgrade", "-U", "--force-reinstall", "--no-cache-dir", "-v")
# The first torch that has a build, for which a project must not ask for an older one.
_FIRST_TORCH = {"cu126": "2.6", "cu128": "2.7", "cu129": "2.8", "cu130": "2.9"}


def _write_for_project(found: re.Match[str]) -> str:
    """pip's installation as uv's of a project: uv run undoes what the project's file does not say.

    It stays as it is where it has an option that ``uv add`` has not.
    """
    arguments = _ARGUMENT.findall(found["rest"])
    index = next((each for each in arguments if "://download.pytorch.org/" in each), None)
    names = [each for each in arguments if each not in (*_NEEDLESS, "--index-url", index)]
    isolated = "--no-build-isolation" in names
    # With an index, --no-deps only keeps torch as it is, which the project's file does.
    kept = ("--no-build-isolation", "--no-deps") if index else ("--no-build-isolation",)
    names = [each for each in names if each not in kept]
    if any(each.startswith(("-", ".", "git+", '"git+')) for each in names):
        return found[0]
    upgrades = "--upgrade" in arguments or "-U" in arguments
    if upgrades and not index and not re.search(r"[<=>]\d|[<=>]=", " ".join(names)):
        wanted = " ".join(f"--upgrade-package {each}" for each in names)
        return f"{found['set']}uv lock {wanted} && uv sync"
    if index and upgrades and (first := _FIRST_TORCH.get(index.rpartition("/")[2])):
        names = [f"'torch>={first}'" if each == "torch" else each for each in names]
    source = f" --index pytorch={index}" if index else ""
    option = " --no-build-isolation" if isolated else ""
    return f"{found['set']}uv add {' '.join(names)}{option}{source}"


# What runs inside the environment that poetry keeps for a project.
_PROGRAM_OF_POETRY = re.compile(
    rf"{_START}(?=(?:pip|hf|huggingface-cli|python3?|accelerate|torchrun) (?!-m venv))"
)
_ARGUMENTS = re.compile(
    r"(?:block_size|cpu_offload_gb|disable_custom_all_reduce|distributed_executor_backend|dtype"
    r"|enable_(?:chunked_prefill|expert_parallel)|enforce_eager|gpu_memory_utilization|kv_cache_\w+"
    r"|limit_mm_per_prompt|load_format|max_(?:lora_rank|model_len|num_batched_tokens|num_seqs)"
    r"|(?:pipeline|tensor)_parallel_size|quantization|tokenizer_mode)"
)
_OPTION = re.compile(r"--([a-z][a-z-]+)(?:[ =](?!-)('[^']*'|<[^>]*>|[^\s']+))?")


def _write_as_arguments(command: str) -> str:
    """Options of vLLM's command line as arguments of its engine in Python.

    >>> _write_as_arguments("--dtype half --max-model-len 8192 --enforce-eager")
    'LLM(model, dtype="half", max_model_len=8192, enforce_eager=True)'
    """
    options = [(name.replace("-", "_"), value) for name, value in _OPTION.findall(command)]
    is_of_engine = re.fullmatch(rf"(?:{_OPTION.pattern} ?)+", command) and all(
        _ARGUMENTS.fullmatch(name) for name, _ in options
    )
    if not is_of_engine:
        return command
    return f"LLM(model, {', '.join(f'{name}={_write_value(value)}' for name, value in options)})"


def _write_value(value: str) -> str:
    if not value:
        return "True"
    inner = value.strip("'")
    return inner if re.match(r"[\d{<]", inner) else f'"{inner}"'


def _set_in_notebook(found: re.Match[str]) -> str:
    pairs = re.findall(rf"([A-Za-z]\w*)=({_VALUE})", found["all"])
    inner = ", ".join(f'{name}="{_strip(value)}"' for name, value in pairs)
    return f"import os; os.environ.update({inner})"


_SET = re.compile(r'\bset "(?P<name>\w+)=(?P<value>[^"]+)"')


def _name_powershell(fix: str) -> str:
    """The fix with the setting of its variables in PowerShell beside cmd.exe's."""
    found = {each["name"]: each["value"] for each in _SET.finditer(fix)}
    if not found or any("%" in value for value in found.values()):
        return fix
    settings = "; ".join(f'$env:{name}="{value}"' for name, value in found.items())
    return f"{fix}{'; ' if COMMENT in fix else f'{COMMENT} '}PowerShell: {settings}; <the command>"


def _name_host(fix: str) -> str:
    """The fix with "on the host" before what a container cannot do."""
    said = re.search(r"\bon (?:the|its|every|each) [\w ]{0,12}(?:host|node|machine)\b", fix)
    return fix if said or not _OF_HOST.match(fix) else f"on the host: {fix}"


def _install_in_image(fix: str) -> str:
    """The fix where it installs packages, as an image without package lists and sudo needs it."""
    command, _, comment = fix.partition(COMMENT)
    if not re.fullmatch(rf"(?:sudo )?apt-get install {_NAME}(?: {_NAME})*", command):
        return fix
    names = command.partition(" install ")[2]
    said = "; ".join(
        filter(None, ["as root; in the image's Dockerfile: RUN <this>", comment.strip()])
    )
    return f"apt-get update && apt-get install -y {names}{COMMENT} {said}"


def _write_step(fix: str) -> str:
    """The fix as a step of the Dockerfile whose build failed, where it installs packages."""
    command, mark, comment = fix.partition(COMMENT)
    installed = re.fullmatch(
        rf"(?:sudo )?apt-get (?:install|update && (?:sudo )?apt-get install)(?: -y)?"
        rf"(?P<names>(?: {_NAME})+)",
        command,
    )
    if installed:
        step = f"RUN apt-get update && apt-get install -y{installed['names']}"
    elif re.fullmatch(r"(?:%|python -m )?pip install (?:(?!&&|;|\bthen\b).)+", command):
        step = f"RUN {command}"
    else:
        return fix
    said = " in the Dockerfile, before the step that failed"
    return f"{step}{COMMENT}{said}{';' + comment if mark else ''}"


# The options of docker run by their place in a pod's spec.
_IN_POD: Mapping[str, str] = {
    r"--gpus[= ](?:all|'?\S+'?)": "resources.limits: nvidia.com/gpu: 1",
    r"--shm-size[= ](\d+)g": "an emptyDir with medium: Memory and sizeLimit: {}Gi at /dev/shm",
    r"(?:-e|--env)[= ](\w+)=([^\s'\"]+)": "env: {} = {}",
    r"--cap-add[= ](\w+)": "securityContext.capabilities.add: [{}]",
    r"--privileged": "securityContext.privileged: true",
    r"--ipc[= ]host": "hostIPC: true",
    r"--(?:network|net)[= ]host": "hostNetwork: true",
    r"--user[= ]root": "securityContext.runAsUser: 0",
}
_RUN = re.compile(r"docker run (?P<options>(?:-[^\s]+(?:[= ](?!-|\.\.\.)\S+)? )+)\.\.\.$")


def _write_for_pod(command: str) -> str:
    """The options of ``docker run`` as a pod's spec names them, if it has one for each.

    >>> _write_for_pod("docker run --gpus all --ipc=host ...")
    "in the pod's spec: resources.limits: nvidia.com/gpu: 1; hostIPC: true"
    """
    found = _RUN.match(command)
    rest, settings = found["options"] if found else "", []
    while rest:
        for pattern, setting in _IN_POD.items():
            if option := re.match(rf"{pattern} ", rest):
                settings.append(setting.format(*option.groups()))
                rest = rest[option.end() :]
                break
        else:
            return command
    return f"in the pod's spec: {'; '.join(settings)}" if settings else command


_ON_LINUX_PATH = re.compile(r"(?<![\w.~:>/-])/(?:proc|sys|dev/shm|etc/(?:apt|docker|nvidia))\b")


def _write_for_mac(command: str) -> str:
    """The command for macOS: its sed, and whose machine is meant where it has no such program."""
    command = re.sub(rf"{_START}sed -i (?=[\"'])", "sed -i '' ", command)
    if _OF_LINUX.search(command) or _ON_LINUX_PATH.search(command):
        return f"on Linux: {command}"
    if re.search(rf"{_START}(?:sudo )?nvidia-smi\b", command):
        return f"on the machine with the NVIDIA GPU: {command}"
    return re.sub(r"(?<!-e )(?<!\w)LD_LIBRARY_PATH\b", "DYLD_LIBRARY_PATH", command)


# The install command of each tool, and the column of its names in the table.
_INSTALLS = {
    "dnf": ("sudo dnf install", 0),
    "rpm-ostree": ("rpm-ostree install", 0),
    "zypper": ("sudo zypper install", 1),
    "pacman": ("sudo pacman -S", 2),
    "apk": ("sudo apk add", 3),
    "brew": ("brew install", 4),
    "winget": ("winget install", 5),
}
_SEARCHES = {
    "dnf": "dnf search",
    "rpm-ostree": "dnf search",
    "zypper": "zypper search",
    "pacman": "pacman -Ss",
    "apk": "apk search",
    "brew": "brew search",
    "winget": "winget search",
}
# What a distribution's own customs add to a library's name.
_CORE = re.compile(r"^lib(?=[a-z]{3})|(?:\d[\d.]*)?-(?:dev|common)$|(?<=[a-z])\d[\d.]*$")
_OF_NVIDIA = re.compile(r"(?:nvidia|cuda|libnvidia|libcudnn|cudss)")
_TOOLS = {"fedora": "dnf", "rhel": "dnf", "suse": "zypper", "arch": "pacman", "alpine": "apk"}
_OTHERS = {"Fedora": "dnf", "Arch": "pacman", "Alpine": "apk"}
_TOOLS_BY_COMMAND = {
    "dnf install": "Fedora and RHEL",
    "zypper install": "openSUSE",
    "pacman -S": "Arch",
    "apk add": "Alpine",
}
_UPGRADES = {"dnf": "sudo dnf upgrade", "zypper": "sudo zypper update", "apk": "sudo apk upgrade"}
_REPAIRS = {"dnf": "sudo dnf reinstall", "zypper": "sudo zypper install --force"}
_NAME = r"(?:[a-z0-9][a-z0-9.+-]+(?:\"?\$\(uname -r\)\"?)?)"
_APT = re.compile(
    rf"{_START}(?:sudo )?(?:apt(?:-get)? update && (?:sudo )?)?apt(?:-get)? (?:-y )?install "
    r"(?P<options>(?:--?[a-z-]+ )*)(?!(?:the|that|ends|what|with) )"
    rf"(?P<names>{_NAME}(?: {_NAME})*){_END}"
)


@cache
def _read_names() -> Mapping[str, list[str]]:
    rows = (
        row.split("\t")
        for row in NAMES.read_text(encoding="utf-8").splitlines()
        if not row.startswith("#")
    )
    return {row[0]: row[1:] for row in rows}


def _install(text: str, tool: str) -> str:
    """The text with apt's installations as those of another tool."""
    return _APT.sub(lambda found: _write_install(found, tool), text)


def _write_install(found: re.Match[str], tool: str) -> str:
    asked = found["names"].replace('"', "").replace("$(uname -r)", "$(uname\0-r)").split()
    asked = [name.replace("\0", " ") for name in asked]
    if tool == "nix":
        return f"add to environment.systemPackages: {' '.join(asked)} (by nixpkgs' names)"
    install, column = _INSTALLS[tool]
    names = {name: _read_names().get(name, [""] * 6)[column] for name in asked}
    own = [each for each in names.values() if each]
    unknown = [name for name in asked if not names[name]]
    if unknown and tool == "apk" and _OF_NVIDIA.match(unknown[0]):
        return f"take an image or a machine with glibc: NVIDIA has no {unknown[0]} for Alpine"
    if "--only-upgrade" in found["options"]:
        install = _UPGRADES.get(tool, install)
    if "--reinstall" in found["options"]:
        install = _REPAIRS.get(tool, install)
    join = "; winget install " if tool == "winget" else " "
    command = f"{install} {join.join(dict.fromkeys(' '.join(own).split()))}" if own else ""
    searches = " and ".join(
        f'"{_SEARCHES[tool]} {_CORE.sub("", name) or name}"' for name in unknown
    )
    if not unknown:
        return command
    begin = f"{command}, then " if command else ""
    return f"{begin}install what {searches} lists (Debian: {' '.join(unknown)})"


_Replacements = tuple[tuple[str, str], ...]
# The tools of a log in place of torchrun, which starts a program's processes, and of conda.
_TOOLS_OF_LOG: Mapping[str, _Replacements] = {
    "micromamba": (
        (r"\bconda env create\b", "micromamba create"),
        (
            r"\bconda (?=(?:install|create|remove|update|list|search|run|activate|clean) )",
            "micromamba ",
        ),
    ),
    "lightning": (
        (r"\btorchrun --standalone (?=your_program)", "MASTER_PORT=29511 python "),
        (r"\btorchrun (?=your_program)", "python "),
        (
            r"\btorchrun --nproc[-_]per[-_]node=(<[^>]+>|\w+)(?: your_program\.py)?(?=$|   #)",
            r'Trainer(accelerator="gpu", devices=\1, strategy="ddp")',
        ),
    ),
    "accelerate-launch": (
        (r"\btorchrun --standalone ", "accelerate launch --main_process_port 29511 "),
        (r"\btorchrun --log-dir logs --tee 3 ", "accelerate launch --log_dir logs --tee 3 "),
        (r"\btorchrun --nproc[-_]per[-_]node=", "accelerate launch --num_processes="),
        (r"\btorchrun (?=your_program)", "accelerate launch "),
    ),
    "deepspeed-launch": (
        (r"\btorchrun --standalone ", "deepspeed --master_port 29511 "),
        (r"\btorchrun --log-dir logs --tee 3 ", "deepspeed --enable_each_rank_log=logs "),
        (r"\btorchrun --nproc[-_]per[-_]node=", "deepspeed --num_gpus="),
        (r"\btorchrun (?=your_program)", "deepspeed "),
    ),
    "srun": (
        (
            r"\btorchrun --standalone (?:--nproc[-_]per[-_]node=(?:<[^>]+>|\w+) )?your_program",
            "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) && srun python your_program",
        ),
        (
            r"\btorchrun --log-dir logs --tee 3 (?=your_program)",
            "srun --label --output=%x-%j-%t.log python ",
        ),
        (
            r"\btorchrun --nproc[-_]per[-_]node=(<[^>]+>|\w+) (?=your_program)",
            r"srun --ntasks-per-node=\1 --gpus-per-node=\1 python ",
        ),
        (r"\btorchrun:? --log-dir logs --tee 3\b", "srun --output=%x-%j-%t.log"),
        (r"\btorchrun (?=your_program)", "python "),
        (
            r"(?:^|(?<=; )|(?<=: ))((?:[A-Z]\w*=\S+ )+)(?=python (?:-X \w+ )?your_program\.py)",
            r"export \1&& srun --export=ALL ",
        ),
        (r"(?:^|(?<=; )|(?<=: ))(?=python (?:-X \w+ )?your_program\.py)", "srun "),
    ),
    "tune-run": (
        (
            r"\btorchrun --standalone your_program\.py",
            "tune run --rdzv-backend=c10d --rdzv-endpoint=localhost:0 <the recipe and its options>",
        ),
        (
            r"\btorchrun ((?:(?!your_program|[;#])\S+ )*)your_program\.py",
            r"tune run \1<the recipe and its options>",
        ),
    ),
}
# Programs that start the processes of a node themselves: under srun, too.
STARTERS = frozenset({"torchrun", "accelerate-launch", "deepspeed-launch", "lightning"})
_BY_FAMILY: Mapping[str, _Replacements] = {
    "fedora": (
        (r"sudo update-initramfs -u(?: -k all)?", "sudo dracut --force --regenerate-all"),
        (r"sudo update-grub", "sudo grub2-mkconfig -o /boot/grub2/grub.cfg"),
        (r"/usr/local/share/ca-certificates/", "/etc/pki/ca-trust/source/anchors/"),
        (r"sudo update-ca-certificates", "sudo update-ca-trust"),
    ),
    "suse": (
        (r"sudo update-initramfs -u(?: -k all)?", "sudo dracut --force --regenerate-all"),
        (r"sudo update-grub", "sudo grub2-mkconfig -o /boot/grub2/grub.cfg"),
        (r"/usr/local/share/ca-certificates/", "/etc/pki/trust/anchors/"),
    ),
    "arch": (
        (r"sudo update-initramfs -u(?: -k all)?", "sudo mkinitcpio -P"),
        (r"sudo update-grub", "sudo grub-mkconfig -o /boot/grub/grub.cfg"),
        (r"/usr/local/share/ca-certificates/", "/etc/ca-certificates/trust-source/anchors/"),
        (r"sudo update-ca-certificates", "sudo update-ca-trust"),
    ),
    "alpine": (
        (
            r"systemctl (?:enable --now|start) ([\w.-]+)",
            r"rc-update add \1 && sudo rc-service \1 start",
        ),
        (r"systemctl (restart|stop|status) ([\w.-]+)", r"rc-service \2 \1"),
        (r"journalctl -u (\w+)[\w -]*", r"tail -n 50 /var/log/\1.log"),
    ),
}
_BY_FAMILY = {**_BY_FAMILY, "rhel": _BY_FAMILY["fedora"]}
_BY_SIGN: Mapping[str, _Replacements] = {
    "incus": ((r"\blxc (?=(?:config|restart|exec|info|profile) )", "incus "),),
    "rootless": (
        (
            r"sudo nvidia-ctk runtime configure --runtime=docker(?! --config)",
            "nvidia-ctk runtime configure --runtime=docker"
            " --config=$HOME/.config/docker/daemon.json",
        ),
        (
            r"sudo systemctl (restart|start|enable --now|edit) docker\b",
            r"systemctl --user \1 docker",
        ),
        (r"/etc/docker/daemon\.json", "~/.config/docker/daemon.json"),
    ),
    "snap-docker": (
        (r"sudo systemctl (restart|start|stop) docker\b", r"sudo snap \1 docker"),
        (r"journalctl -u docker\b", "snap logs docker"),
        (r"/etc/docker/daemon\.json", "/var/snap/docker/current/config/daemon.json"),
    ),
    "desktop-context": (
        (re.escape(RESTART_DOCKER), "restart Docker Desktop"),
        (r"(?:sudo )?systemctl restart docker\b", "restart Docker Desktop"),
        (r"(?:sudo )?systemctl (?:enable --now|start) docker\b", "start Docker Desktop"),
        (r"/etc/docker/daemon\.json", "Docker Desktop's settings (Docker Engine)"),
    ),
    "k3s": ((r"systemctl restart containerd\b", "systemctl restart k3s"),),
    "rke2": ((r"systemctl restart containerd\b", "systemctl restart rke2-server"),),
    "yum-only": ((r"\bdnf upgrade\b", "yum update"), (r"\bdnf (?=[a-z])", "yum ")),
    "pve": ((r"linux-headers-(?=\"?\$\(uname -r\))", "proxmox-headers-"),),
    "image-based": (
        (r"sudo dnf install (?=[\w+-])", "rpm-ostree install "),
        (r"sudo dnf upgrade(?: [\w+-]+)*", "rpm-ostree upgrade"),
    ),
}
_DOCKER_COMMAND = (
    r"\bdocker (run|exec|ps|pull|build|logs|inspect|rmi?|images?|info|restart|system|volume|tag"
    r"|push|login|logout|manifest|network|version|container|compose|events|cp|stop|start|save|load)"
    r"\b(?! docker)"
)
# In place of a restart of docker: nothing, for there is no daemon, or a daemon of another name.
_NO_RESTART: _Replacements = (
    (
        r"(?: && |, then: |; then: |, and |, )sudo (?:systemctl )?(?:--user )?restart docker"
        r"(?:\.socket docker)?\b",
        "",
    ),
    (r"(?: && |, then: |; then: |, and |, )(?:systemctl --user )?restart docker\b", ""),
)
# Other engines than docker, by the sign of each.
# Snap's docker is beside another engine of no matter.
_NO_SNAP = (
    (r"; snap list docker(?=;|   #|$)", ""),
    (r"\bsnap list docker; ", ""),
    (r",? and two engines \(snap list docker\)(?: or [^;]*)?", ""),
)
_ENGINES: Mapping[str, _Replacements] = {
    "crio": (
        (r"--runtime=(?:docker|containerd)\b", "--runtime=crio"),
        (r"(systemctl (?:--user )?restart )(?:docker|containerd)\b", r"\1crio"),
        (r"-u (?:containerd|docker)\b", "-u crio"),
        (r"\b(?:the node's|node's|its|the) containerd\b", "CRI-O"),
    ),
    "nerdctl": (
        (re.escape(RESTART_DOCKER), "sudo nerdctl run --rm --gpus all ubuntu nvidia-smi"),
        (r"(systemctl (?:--user )?restart )docker\b", r"\1containerd"),
        (r"-u docker\b", "-u containerd"),
        *_NO_SNAP,
        (_DOCKER_COMMAND, r"nerdctl \1"),
    ),
    "podman": (
        (re.escape(RESTART_DOCKER), MAKE_CDI_SPEC),
        (r"\bdocker run --gpus(?: |=)all\b", "podman run --device nvidia.com/gpu=all"),
        *_NO_RESTART,
        *_NO_SNAP,
        (r"\bdocker builder prune\b", "podman image prune"),
        (r"\bdocker(?= (?:could|can|has|keeps|stores)\b)", "podman"),
        (_DOCKER_COMMAND, r"podman \1"),
    ),
    "apptainer": (
        (rf"(?: && )?{re.escape(RESTART_DOCKER)}", ""),
        (r"\bdocker run (?:--rm |-it )*--gpus all\b(?: --rm| -it)*", "apptainer exec --nv"),
        *_NO_RESTART,
    ),
}
# What only docker has: another engine's fix does not name it.
_OF_DOCKER = re.compile(
    r"\bdocker\b(?!\.io|://|-archive|/|\.com|[ -]compose\.ya?ml|file)|\bdockerd|daemon\.json"
    r"|\bnvidia-docker|\bbuildx\b"
)


_COMMANDS = (
    r"(?:(?:python3?|pip|torchrun|ollama|uv|conda|cmake|make|accelerate|vllm|docker|comfy|pixi|nvcc"
    r"|julia|node|npm|nvidia-smi|set|git|hf|echo|dir|type|wsl|py|rmdir|winget|\.venv|fsutil|move"
    r"|copy|xcopy|nslookup|findstr|powershell|systeminfo|netstat|tasklist|kubectl|sqlite3|del|webui"
    r"|where|uvx?|poetry|conda)\b|\$env:"
    r"|<the (?:command|program|build)|\./|[\w.-]+\.(?:py|exe)\b)"
)
_PROGRAM = rf"(?={_COMMANDS})"
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|<[^>]*>|(?:[^\s;,)\"']|,(?=\S))*)"
_ASSIGNMENTS = rf"(?:[A-Za-z]\w*={_VALUE} ?)+"


# A variable of Linux' loader, which Windows' does not read: it searches the folders on PATH.
_LOADER = r"LD_(?:LIBRARY_PATH|PRELOAD)"
_FOLDERS_ON_PATH = r"put the folders site-packages\\nvidia\\*\\bin on PATH"
_TOOLKITS = r"C:\\Program Files\\NVIDIA GPU Computing Toolkit\\CUDA"
_LINUX_PATH = re.compile(
    r"^(?!docker|podman).*?(?<![\w.~:>/-])/(?:etc|usr/(?!local/cuda)|dev|proc|sys|var|lib)/"
)
_FAULTS_OF_GPU = r"wevtutil qe System /c:20 /rd:true /f:text | findstr /i nvlddmkm"


# A quotation mark of PowerShell's, while those of Linux' shells are replaced.
_QUOTE = "\0"


class _Windows:
    """Translates commands of a shell to cmd.exe or PowerShell."""

    def __init__(self, *, powershell: bool) -> None:
        self._powershell = powershell

    def translate(self, text: str, *, is_comment: bool) -> str:
        """The text as Windows runs it; a command that only Linux has is named so."""
        text = _install(text, "winget")
        for pattern, replacement in _WITHOUT_LINUX:
            text = re.sub(pattern, replacement, text)
        if is_comment:
            text = _leave_out(text, _LINUX_IN_COMMENT, _KEPT_ON_WINDOWS)
        elif _OF_LINUX.search(text) or "$(" in text or _LINUX_PATH.search(text):
            return f"in Linux (WSL): {text}"
        whole = text
        text = _SUDO.sub("", text)
        for pattern, translate in self._list_rules(is_comment=is_comment):
            text = re.sub(pattern, translate, text)
        text = re.sub(r"(?<![\w'])'([^'\n]*[<>=!~\[(][^'\n]*)'(?![\w'])", self._quote, text)
        if self._powershell:
            text = text if is_comment else text.replace(" && ", "; ")
            text = re.sub(r"\bset \"?(\w+)=([^\"&;]*)\"?", r'$env:\1="\2"', text)
            text = re.sub(r"%(\w+)%", r"$env:\1", text)
        elif not is_comment:
            text = re.sub(rf"; (?={_COMMANDS})", " & ", text)
        if not is_comment and _LEFT_OF_LINUX.search(text):
            return f"in Linux (WSL): {whole}"
        text = re.sub(r"(?<!-e )\bLD_LIBRARY_PATH\b(?!=)", "PATH", text)
        text = re.sub(r"\bpython3\.(\d{1,2})(?= -m)", r"py -3.\1", text)
        return re.sub(r"\bpython3(?= )", "python", text).replace(_QUOTE, "'")

    def _list_rules(
        self, *, is_comment: bool
    ) -> list[tuple[str, str | Callable[[re.Match[str]], str]]]:
        shell = self._powershell
        rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
            (rf"{_START}export (?P<all>{_ASSIGNMENTS})", self._set),
            (rf"{_START}(?P<all>(?:[A-Za-z]\w*={_VALUE} )+){_PROGRAM}", self._set_first),
            (rf"{_START}unset (?P<all>[A-Za-z_]+(?: [A-Z]\w+| \w+_proxy)*)", self._unset),
            (rf"{_START}(?:source |\. )?\.venv/bin/activate", r".venv\\Scripts\\activate"),
            (r"\.venv/bin/", r".venv\\Scripts\\"),
            (rf"{_START}env \|", "Get-ChildItem Env: |" if shell else "set |"),
            (r"\becho \$(\w+)", r"echo $env:\1" if shell else r"echo %\1%"),
            (r"\| grep (?:-\w+ )*(?:'([^']+)'|([^\s|;']+))", self._search),
            (
                rf"{_START}grep (?:-\w+ )*(?:'(?P<quoted>[^']+)'|(?P<word>\S+)) "
                r"(?P<path><[^>]+>\S*|[^\s;,|]+)",
                self._search_file,
            ),
        ]
        if not is_comment:
            rules += self._list_command_rules()
        home = "$HOME" if shell else "%USERPROFILE%"
        return [
            *rules,
            (
                r"(?:~|\$HOME)/([\w.][\w./-]*)",
                lambda found: home + _backslash(f"/{found[1]}"),
            ),
        ]

    def _list_command_rules(self) -> list[tuple[str, str | Callable[[re.Match[str]], str]]]:
        """What is replaced in commands alone: in a comment these are words."""
        temporary = "$env:TEMP" if self._powershell else "%TEMP%"
        return [
            (rf"{_START}head -c \d+ (?P<path><[^>]+>|[^\s;,]+)", self._show_start),
            (rf"{_START}head -n ?\d+ (?P<path><[^>]+>|[^\s;,]+)", self._show_start),
            (
                rf"{_START}sed -i [\"']s/(?P<old>[^/]+)/(?P<new>[^/]+)/g?[\"'] "
                r"(?P<path>[^\s;,]+)",
                self._replace_in_file,
            ),
            (
                rf"{_START}find (?P<folder><[^>]+>|\S+) -type d -name (?P<path>[^\s;,]+)",
                self._find_folders,
            ),
            (
                rf"{_START}sed -i '/(?P<old>[^/]+)/d' (?P<path>[^\s;,]+)",
                self._delete_lines,
            ),
            (rf"{_START}kill (?P<id>\{{[^}}]+\}}|<[^>]+>|\d+)", r"taskkill /f /pid \g<id>"),
            (r"~/miniconda3/bin/activate", r"~/miniconda3/Scripts/activate"),
            (rf"{_START}source ", ""),
            (rf"{_START}sed -n [\"']?(?P<line>[^\"']+)p[\"']? ", r"more +\g<line> "),
            (rf"{_START}mv (?=\S)", "move "),
            (rf"{_START}cp -r (?P<path><[^>]+>|\S+) ", r"xcopy /e /i \g<path> "),
            (rf"{_START}cp (?=\S)", "copy "),
            (rf"{_START}ls(?=$|;| &|   #)", "dir"),
            (r"\./webui\.sh", "webui.bat"),
            (rf"{_START}rm (-rf? )?(?P<path>[^\s;,]+)", self._remove),
            (rf"{_START}mkdir -p ", "mkdir "),
            (rf"{_START}ls (?:-\w+ )?(?=[<{{*.~\w])", "dir "),
            (rf"{_START}cat (?=[<{{*.~%$\w])", "type "),
            (rf"{_START}which ", "where.exe "),
            (r" \| (?:head|tail)(?: -n? ?\d+)?", ""),
            (r"(?<![\w.~/])/tmp/(?=[\w<])", lambda _: f"{temporary}\\"),
        ]

    def _set(self, found: re.Match[str]) -> str:
        pairs = re.findall(rf"([A-Za-z]\w*)=({_VALUE})", found["all"])
        tail = " " if found["all"].endswith(" ") else ""
        if self._powershell:
            return "; ".join(f'$env:{name}="{_strip(value)}"' for name, value in pairs) + tail
        return " && ".join(f'set "{name}={_strip(value)}"' for name, value in pairs) + tail

    def _set_first(self, found: re.Match[str]) -> str:
        return self._set(found).rstrip() + ("; " if self._powershell else " && ")

    def _unset(self, found: re.Match[str]) -> str:
        names = found["all"].split()
        if self._powershell:
            return f"Remove-Item {', '.join(f'Env:{name}' for name in names)}"
        return " && ".join(f'set "{name}="' for name in names)

    def _remove(self, found: re.Match[str]) -> str:
        path, is_folder = found["path"], bool(found[1])
        if self._powershell:
            return f"Remove-Item {'-Recurse -Force ' if is_folder else ''}{path}"
        return f"{'rmdir /s /q' if is_folder else 'del'} {_backslash(path, '~')}"

    def _run_powershell(self, command: str) -> str:
        command = command.replace("'", _QUOTE)
        return command if self._powershell else f'powershell -c "{command}"'

    def _show_start(self, found: re.Match[str]) -> str:
        return self._run_powershell(f"Get-Content -TotalCount 5 '{found['path']}'")

    def _replace_in_file(self, found: re.Match[str]) -> str:
        path, old, new = found["path"], found["old"], found["new"]
        return self._run_powershell(
            f"(Get-Content {path}) -replace '{old}', '{new}' | Set-Content {path}"
        )

    def _delete_lines(self, found: re.Match[str]) -> str:
        path, old = found["path"], found["old"].replace('"', "")
        return self._run_powershell(f"(Get-Content {path}) -notmatch '{old}' | Set-Content {path}")

    def _find_folders(self, found: re.Match[str]) -> str:
        return self._run_powershell(
            f"Get-ChildItem '{found['folder']}' -Recurse -Directory -Filter {found['path']}"
        )

    def _search_file(self, found: re.Match[str]) -> str:
        words = (found["quoted"] or found["word"]).replace("|", " ").replace('"', "").strip("'")
        return f'findstr /n /i "{words}" {_backslash(found["path"])}'

    def _search(self, found: re.Match[str]) -> str:
        words = (found[1] or found[2]).replace("|", " ")
        return f'| findstr /i "{words}"'

    def _quote(self, found: re.Match[str]) -> str:
        return '"' + found[1].replace('"', "'") + '"'


# What Windows has no word for.
_LEFT_OF_LINUX = re.compile(
    rf"{_START}(?:sed|awk|xargs|du|touch|kill|unset|find|tmux|nohup|pgrep|pkill|head|tail|grep|which"
    r"|chmod|chown|free|df|fuser|setsid)(?= )|\| (?:sort|xargs|tail|head|awk|sed|sh|bash)\b"
)
_LINUX_IN_COMMENT = re.compile(
    r"\b(?:export|unset|env -u) LD_|\bLD_PRELOAD\b|\bulimit -|\brocminfo\b|\bldd on\b|\bchmod \+x"
    r"|\bdf -h /|\bsudo \w|/usr/lib/|/opt/(?:rocm|intel)\b|\bjournalctl\b|\bls -l\b"
)


_KEPT_ON_WINDOWS = re.compile(r"^ ?(?:in a )?container")
_LINUX_ON_MAC = re.compile(
    r"\b(?:systemctl|apt(?:-get)? install|ldconfig|modprobe|rmmod|free -h|dmesg|journalctl"
    r"|ubuntu-drivers)\b|/etc/docker/"
)
_KEPT_ON_MAC = re.compile(r"\b(?:macOS|Linux|container|WSL|brew)\b")


def _leave_out(comment: str, foreign: re.Pattern[str], fitting: re.Pattern[str]) -> str:
    """A comment without the parts with ``foreign`` programs, where no ``fitting`` word explains it.

    >>> _leave_out(" it is slow; sudo dmesg shows it", _LINUX_ON_MAC, _KEPT_ON_MAC)
    ' it is slow'
    """
    parts = comment.split("; ")
    kept = [part for part in parts if not foreign.search(part) or fitting.search(part)]
    if not kept or kept[0] == parts[0]:
        return "; ".join(kept)
    first = re.sub(r"^(?:and|or|then)[: ] ?", "", kept[0].strip())
    return " " + "; ".join([first, *kept[1:]])


# The same on Windows, or in words, for what Linux alone has.
_WITHOUT_LINUX = (
    (rf"{_START}unset {_LOADER}(?: [A-Z_]+)*(?:;| &&) (?=\S)", ""),
    (rf"{_START}unset {_LOADER}(?: [A-Z_]+)*", "take folders with other versions out of PATH"),
    (
        r"(?:(?<=&& )|(?<=; )|^)export (?:LD_LIBRARY_)?PATH=\$\(python.*?\)(?:/\w+)?(?::\$\w+)?"
        r"(?=$|   #|;)",
        _FOLDERS_ON_PATH,
    ),
    (rf"&& unset {_LOADER}", ""),
    (rf"{_START}(?:sudo )?free -h", 'systeminfo | findstr /i "Memory"'),
    (rf"{_START}df -h(?: -?[^\s;&#]+)*", "fsutil volume diskfree C:"),
    (r"(?:; | && )df -i(?: [^\s;&#]+)*", ""),
    (
        rf"{_START}(?:sudo )?dmesg(?: -\w+)? \| grep[^;]*(?:nvrm|xid)[^;]*?(?=$|;|   #)",
        _FAULTS_OF_GPU,
    ),
    (rf"{_START}LD_LIBRARY_PATH=(\S+) (?={_COMMANDS})", r"put \1 on PATH, then "),
    (r"; (?:sudo )?dmesg(?: -\w+)? \| grep [^;]*?killed process'?(?: \| tail)?", ""),
    (rf"{_START}(?:sudo )?lsof -i :(\d+)", r"netstat -ano | findstr :\1"),
    (rf"{_START}ls -d /usr/local/cuda\*(?:/bin)?", rf'dir "{_TOOLKITS}"'),
)


def _backslash(path: str, home: str = "") -> str:
    if home and path.startswith(home):
        path = f"%USERPROFILE%{path[1:]}"
    return path.replace("/", "\\")


def _strip(value: str) -> str:
    value = value[1:-1] if value[:1] in "\"'" and value[:1] == value[-1:] and value else value
    value = re.sub(r":\$(\w*PATH)$", r";$\1", value)
    value = value.replace("$HOME", "$USERPROFILE").replace("$USER", "$USERNAME")
    value = value.replace("$USERNAMEPROFILE", "$USERPROFILE")
    value = re.sub(r"/usr/local/cuda-(<\w+>|[\d.]+)", rf"{_TOOLKITS}\\v\1", value)
    value = re.sub(
        r"/usr/local/cuda([\w./<>-]*)", lambda x: f"%CUDA_PATH%{_backslash(x[1])}", value
    )
    return re.sub(r"\$(\w+)", r"%\1%", value)


# The builds of torch for CUDA by the minor version 2.x from which on they are, the newest first.
_BUILDS = {
    0: ("cu118",),
    1: ("cu121", "cu118"),
    4: ("cu124", "cu121", "cu118"),
    6: ("cu126", "cu124", "cu118"),
    7: ("cu128", "cu126", "cu118"),
    8: ("cu128", "cu126"),
    9: ("cu130", "cu128", "cu126"),
}
# Up to which build a branch of the driver runs them, from this one on.
_MOST_BUILDS = ((580, "cu132"), (525, "cu129"), (0, "cu118"))
# The newest build of torch for CUDA that an old Python has: of torch 2.4 and 2.8.
_NEWEST_BUILDS = {"3.8": "cu124", "3.9": "cu128"}
