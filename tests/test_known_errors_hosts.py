"""The commands of the fixes fit the machine that a text names, for every known error."""

from __future__ import annotations

import re

import pytest

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.host.packages import INSTALL_COMMANDS
from labkit.known_errors.catalog import parse_catalog, read_catalogs
from labkit.known_errors.commands import LogHost
from labkit.known_errors.context import Context
from labkit.known_errors.match import explain_text
from labkit.known_errors.pythons import find_python
from labkit.known_errors.signs import FAMILIES, SIGNS

START = r"(?:^|&& |& |; |: )(?:sudo )?"
WINDOWS = (
    rf"{START}(?:sudo|apt|apt-get|unset|systemctl|dnf|rm|chmod|dmesg|ldconfig|ulimit) "
    rf"|{START}export \w+=|\$\(|python3 |{START}[A-Z_]{{3,}}=\S+ (?:python|pip)|set \"LD_|/etc/"
)
OTHERS = {
    "fedora": "apt|apt-get|apt-cache|dpkg|pacman|zypper|update-initramfs|update-grub",
    "suse": "apt|apt-get|apt-cache|dpkg|pacman|dnf|update-initramfs|update-grub",
    "arch": "apt|apt-get|apt-cache|dpkg|zypper|dnf|update-initramfs|update-grub",
    "alpine": "apt|apt-get|apt-cache|dpkg|pacman|zypper|dnf|update-initramfs",
}
# Programs and variables that these systems do not have, wherever a command or the comment beside it
# names them.
BEGIN = r"(?:^|&& |& |; |: |\| |\()(?:sudo )?"
NOT_ON_WINDOWS = re.compile(
    rf"{BEGIN}(?:head|tail|grep|awk|sed|xargs|ls|cat|lsof|fuser|ldd|ulimit|nohup|tmux|chmod|chown|free"
    r"|df|dmesg|which|source|unset|du|pkill|kill|pgrep|touch|cp|mv|ln|ubuntu-drivers|apt-file) "
    r"|(?<!-e )LD_LIBRARY_PATH|LD_PRELOAD|(?:^|[;&:] )export \w+="
    r"|\| ?(?:sh|bash|tail|head|grep|sort|xargs)\b"
)
NOT_ON_MAC = re.compile(
    rf"{BEGIN}(?:ubuntu-drivers|prime-select|apt(?:-get|-file|-key)?|dnf|systemctl|modprobe|dmesg|ldd"
    r"|free|journalctl|ldconfig|lspci|update-\w+|usermod|getent|resolvectl|ss|fuser|strace|dkms"
    r"|timedatectl|lsmod|mokutil|nvidia-smi|snap) |(?<!-e )(?<!DY)LD_LIBRARY_PATH|/proc/|/dev/shm;"
)
# What a container or another system is told, and what only names a variable.
SAID = re.compile(
    r"^(?:in|on) Linux|on (?:the|every|each) [\w ]{0,12}(?:host|node|machine)|resources\.limits"
    r"|volumeMounts|/usr/lib/aarch64-linux-gnu/tegra"
)
HOSTS = {
    "windows": (Context({"windows"}), WINDOWS),
    "powershell": (Context({"windows", "powershell"}), rf"{WINDOWS}|&&|(?:^|; )set \"|%\w+%"),
    "portable": (Context({"windows"}, python="python_embeded"), r"(?:^|&& |& )(?:python -m )?pip "),
    "mac": (
        Context({"mac"}),
        r"\bapt(?:-get)? install|(?:^|&& |; )sudo (?:systemctl|modprobe|dnf)",
    ),
    **{name: (Context(family=name), rf"{START}(?:{bad}) ") for name, bad in OTHERS.items()},
    "image-based": (Context({"image-based"}, family="fedora"), r"dnf install"),
    "nixos": (Context({"nixos"}), r"\bapt(?:-get)? (?:-y )?install|update-initramfs"),
    "rootless": (Context({"rootless"}), r"sudo systemctl restart docker"),
    "snap": (Context({"snap", "snap-docker"}), r"systemctl (?:restart|start) docker\b"),
    "desktop": (Context({"desktop", "desktop-context"}), r"systemctl restart docker|/etc/docker/d"),
    "podman": (Context({"podman"}), r"\bdocker (?:run|exec|pull|ps)\b|restart docker\b"),
    "podman's docker": (
        Context({"podman", "docker-there", "podman-emulates"}),
        r"\bdocker run|restart docker\b",
    ),
    "nerdctl": (Context({"nerdctl"}), r"\bdocker run|restart docker\b|--runtime=docker"),
    "crio": (Context({"crio", "k8s", "podman"}), r"restart (?:docker|containerd)\b|=containerd\b"),
    "apptainer": (Context({"apptainer"}), r"\bdocker run --gpus|restart docker\b"),
    "notebook": (
        Context({"notebook", "hosted-notebook"}),
        r"(?:^|&& |; )sudo |^pip |^export \w+=\S+$",
    ),
    "inside": (
        Context({"inside", "root"}),
        r"(?:^|&& |; )sudo |^(?:systemctl|modprobe|docker run)",
    ),
    "venv": (Context(python="/srv/venv/bin/python"), r"^pip |^python -[mc] "),
}
LINUX_ONLY = ("driver", "gpu_access", "packages", "engine", "cluster", "xid")
TOOLS = "apt|dpkg|dnf|yum|rpm|akmod|pacman|mkinitcpio|zypper|ubuntu|debian|jetson|l4t|lxc|wsl|rhel"
# Only one package tool, or systemd, writes these texts; they do not name it.
OF_ONE_TOOL = {
    "amdgpu-dkms-failed",
    "container-not-killed",
    "download-differs",
    "held-packages",
    "unmet-packages",
    "nvidia-key-missing",
    "package-file-conflict",
    "selinux-denied",
    "needs-epel",
    "nvidia-kmod-conflict",
    "nvidia-kmod-provider",
    "nvidia-repo-conflict-cuda",
    "precompiled-kmod-empty",
    "precompiled-module-missing",
    "prebuilt-module-missing",
    "seccomp-unknown-call",
    "service-masked",
    "signed-by-conflict",
    "suse-open-kmp-old-card",
}


def list_fixes(context):
    """Each known error's area, the error and every fix as it is for this context."""
    distribution = context.choose_distribution(UNKNOWN)
    host = context.describe_host(distribution)
    for area, error in read_catalogs():
        own = error.adapt(context.list_conditions(), {})
        fixes, seconds = {own.fix.on(distribution)}, {own.otherwise}
        for each in error.variants:
            # A variant of one family, such as rebooted-debian, is for no other one.
            family = each.condition.rpartition("-")[2]
            if family not in INSTALL_COMMANDS or each.condition.endswith(f"-{context.family}"):
                fixes.add(each.fix and each.fix.on(distribution))
                seconds.add(each.otherwise)
        written = [*map(host.write, filter(None, fixes))]
        written += filter(None, map(host.write_second, filter(None, seconds)))
        yield from ((area, error, fix) for fix in written)


def is_of_one_system(error):
    """True if the text itself names the tool or system that its fix is for."""
    return error.name in OF_ONE_TOOL or bool(
        re.search(TOOLS, " ".join([error.name, error.cause, *error.patterns]).lower())
    )


# Errors whose text or name is docker's own: no other engine prints them.
ENGINES = {"podman", "podman's docker", "nerdctl", "crio", "apptainer"}


def is_of_docker(error):
    """True if only docker's own programs write the text, or the fix has a variant for podman."""
    if any(each.condition == "podman" and each.fix for each in error.variants):
        return True
    texts = [error.name, *error.patterns, *error.samples]
    return bool(re.search(r"docker|swarm|daemon|moby|graphdriver", " ".join(texts).lower()))


@pytest.mark.parametrize("name", HOSTS)
def test_no_command_contradicts_the_host(name):
    context, bad = HOSTS[name]
    wrong = []
    for area, error, fix in list_fixes(context):
        command = fix.partition("   #")[0]
        said = re.search(r"^(?:in|on) Linux|on (?:the|every|each) [\w ]{0,12}(?:host|node)", fix)
        if said or not re.search(bad, command):
            continue
        is_foreign = name in ("windows", "powershell", "mac") and area in LINUX_ONLY
        is_foreign = is_foreign or (name in ENGINES and is_of_docker(error))
        if not is_foreign and not is_of_one_system(error):
            wrong.append(f"{error.name}: {command}")
    assert not wrong, f"{len(wrong)} commands do not fit {name}:\n" + "\n".join(sorted(set(wrong)))


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("windows", NOT_ON_WINDOWS),
        ("powershell", NOT_ON_WINDOWS),
        ("portable", NOT_ON_WINDOWS),
        ("mac", NOT_ON_MAC),
    ],
)
def test_no_program_is_advised_that_the_system_lacks(name, missing):
    context, _ = HOSTS[name]
    wrong = {
        f"{error.name}: {fix}"
        for _, error, fix in list_fixes(context)
        if not SAID.search(fix) and missing.search(fix.partition("   #")[0])
    }
    assert wrong == set()


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("windows", r"LD_(?:LIBRARY_PATH|PRELOAD)|(?:^|[;&:] )export \w+=|\| (?:grep|head|tail) "),
        (
            "mac",
            r"(?:sudo |: )(?:systemctl|ldconfig|modprobe|dmesg|ubuntu-drivers|apt-get install) ",
        ),
    ],
)
def test_no_comment_names_a_program_that_the_system_lacks(name, missing):
    context, _ = HOSTS[name]
    wrong = {
        f"{error.name}: {fix}"
        for area, error, fix in list_fixes(context)
        if area not in LINUX_ONLY
        and not SAID.search(fix)
        and any(
            re.search(missing, part) and not re.search("container|Linux|macOS|WSL", part)
            for part in fix.partition("   #")[2].split("; ")
        )
    }
    assert wrong == set()


@pytest.mark.parametrize("family", INSTALL_COMMANDS)
def test_no_name_of_a_fix_is_left_in_a_command(family):
    host = Distribution(family, family)
    fixes = [
        fix.on(host)
        for _, error in read_catalogs()
        for fix in (error.fix, *(each.fix for each in error.variants))
        if fix
    ]
    assert not [fix for fix in fixes if re.search(r"@[A-Z]+_[A-Z_]+|\{[A-Z_]{4,}\}", fix)]


def test_a_family_cannot_have_the_name_of_a_fix():
    text = (
        "[some-error]\nsource: a/b\ntext: some error\nsample: some error\nunlike: other\n"
        "cause: it is so\nfix: reboot\nfix@ubuntu: @INSTALL_DRIVER\n"
    )
    with pytest.raises(ValueError, match="fix@ubuntu: @INSTALL_DRIVER"):
        list(parse_catalog(text))


# In these, what the machine's sign says holds for all of the error's texts.
ALIKE = {
    ("cuda-after-fork", "notebook"),
    ("daemon-not-running", "colima"),
    ("gguf-of-other-time", "ollama"),
    ("port-taken", "windows"),
    ("unknown-nvidia-runtime", "minikube"),
}


def test_what_one_text_says_has_another_name_than_a_sign_of_the_machine():
    signs = {sign.name for sign in (*SIGNS, *FAMILIES)}
    alike = {
        (error.name, group)
        for _, error in read_catalogs()
        for group in re.findall(r"\(\?P<(\w+)>\)", " ".join(error.patterns))
        if group in signs and any(each.condition == group for each in error.variants)
    }
    assert alike == ALIKE


PASTES = {
    "portable": (
        r"C:\ComfyUI_windows_portable>.\python_embeded\python.exe -s ComfyUI\main.py"
        "\n"
        "AssertionError: Torch not compiled with CUDA enabled",
        r".\python_embeded\python.exe -s -m pip install --force-reinstall torch",
    ),
    "venv of Windows": (
        r'  File "D:\sd\venv\lib\site-packages\torch\cuda\__init__.py", line 239'
        "\n"
        "AssertionError: Torch not compiled with CUDA enabled",
        r"D:\sd\venv\Scripts\python.exe -m pip install",
    ),
    "Python of Windows": (
        r'  File "C:\Users\Ann Lee\AppData\Local\Programs\Python\Python310\lib\site-packages\a.py"'
        "\nAssertionError: Torch not compiled with CUDA enabled",
        "py -3.10 -m pip install",
    ),
    "conda": (
        '  File "/home/ann/miniforge3/envs/gen/lib/python3.11/site-packages/torch/a.py"\n'
        "AssertionError: Torch not compiled with CUDA enabled",
        "/home/ann/miniforge3/envs/gen/bin/python -m pip install",
    ),
    "a build of pip's": (
        '  File "/tmp/pip-build-env-x/overlay/lib/python3.11/site-packages/setuptools/a.py"\n'
        "AssertionError: Torch not compiled with CUDA enabled",
        "pip install",
    ),
    "notebook": (
        "<ipython-input-3-1f> in <module>\nAssertionError: Torch not compiled with CUDA enabled",
        "%pip install",
    ),
    "fedora": (
        "Linux box 6.14.5-300.fc42.x86_64\n/bin/sh: 1: gcc: not found\n"
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
        "sudo dnf install gcc-c++ python3-devel",
    ),
    "Windows' driver": (
        r"PS C:\Users\ann> docker run --gpus all nvidia/cuda:12.8.0-base-ubuntu22.04"
        "\n"
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update"
        " your driver to a newer version",
        "install NVIDIA's current driver in Windows",
    ),
}


@pytest.mark.parametrize(("text", "command"), PASTES.values(), ids=PASTES.keys())
def test_the_command_is_for_the_machine_of_the_paste(text, command):
    found = explain_text(text)
    assert found.first.write_fixes(found.context.choose_distribution(UNKNOWN))[0].startswith(
        command
    )


COMMANDS = {
    "two variables": (
        LogHost("windows"),
        "export A=1 B=2 && python x.py",
        'set "A=1" && set "B=2" && python x.py   # PowerShell: $env:A="1"; $env:B="2";'
        " <the command>",
    ),
    "cmd.exe": (
        LogHost("windows", signs=frozenset({"cmd"})),
        "export A=1 && python x.py",
        'set "A=1" && python x.py',
    ),
    "PowerShell": (
        LogHost("windows", signs=frozenset({"powershell"})),
        "CUDA_LAUNCH_BLOCKING=1 python your_program.py   # shows the line",
        '$env:CUDA_LAUNCH_BLOCKING="1"; python your_program.py   # shows the line',
    ),
    "the toolkit's folder": (
        LogHost("windows"),
        "export CUDA_HOME=/usr/local/cuda-<it> PATH=/usr/local/cuda/bin:$PATH",
        r'set "CUDA_HOME=C:\Program Files\NVIDIA GPU Computing Toolkit\CUDA\v<it>"'
        r' && set "PATH=%CUDA_PATH%\bin;%PATH%"',
    ),
    "a pipe": (
        LogHost("windows"),
        "env | grep -iE 'pip|proxy'   # shows it",
        'set | findstr /i "pip proxy"   # shows it',
    ),
    "the start of a file": (
        LogHost("windows"),
        "head -c 200 <the file>   # text?",
        "powershell -c \"Get-Content -TotalCount 5 '<the file>'\"   # text?",
    ),
    "a search in a file": (
        LogHost("windows"),
        "grep -nE 'FROM|COPY' Dockerfile",
        'findstr /n /i "FROM COPY" Dockerfile',
    ),
    "a change of a file": (
        LogHost("windows", signs=frozenset({"powershell"})),
        "sed -i 's/-std=c++14/-std=c++17/g' setup.py && pip install .",
        "(Get-Content setup.py) -replace '-std=c++14', '-std=c++17' | Set-Content setup.py;"
        " pip install .",
    ),
    "files to move": (
        LogHost("windows"),
        "mv ~/.cache/whisper /tmp/whisper",
        r"move %USERPROFILE%\.cache\whisper %TEMP%\whisper",
    ),
    "only of Linux": (
        LogHost("windows"),
        "tmux new -s train",
        "in Linux (WSL): tmux new -s train",
    ),
    "a comment for Linux": (
        LogHost("windows"),
        "pip install x   # then: export LD_LIBRARY_PATH=/usr/lib/y; one version only",
        "pip install x   # one version only",
    ),
    "sed on a Mac": (LogHost("mac"), "sed -i 's/a/b/' x.py", "sed -i '' 's/a/b/' x.py"),
    "a driver's tool on a Mac": (
        LogHost("mac"),
        "sudo ubuntu-drivers install   # then reboot",
        "on Linux: sudo ubuntu-drivers install   # then reboot",
    ),
    "a loader's path on a Mac": (
        LogHost("mac"),
        "LD_LIBRARY_PATH=<it>/lib <the command>   # or: sudo ldconfig",
        "DYLD_LIBRARY_PATH=<it>/lib <the command>",
    ),
    "quotes": (LogHost("windows"), "pip install 'numpy<2'", 'pip install "numpy<2"'),
    "the loader's path": (
        LogHost("windows"),
        "unset LD_LIBRARY_PATH; pip install torch",
        "pip install torch",
    ),
    "prose": (
        LogHost("windows"),
        "a newer model, which fits   # ls it",
        "a newer model, which fits   # ls it",
    ),
    "root": (LogHost(signs=frozenset({"root"})), "sudo apt-get install x", "apt-get install x"),
    "host": (
        LogHost(signs=frozenset({"inside"})),
        "sudo modprobe nvidia_uvm",
        "on the host: sudo modprobe nvidia_uvm",
    ),
    "a Dockerfile's step": (
        LogHost(signs=frozenset({"image-build"})),
        "sudo apt-get install g++ python3-dev   # and more",
        "RUN apt-get update && apt-get install -y g++ python3-dev   # in the Dockerfile, before the"
        " step that failed; and more",
    ),
    "a wheel in a Dockerfile": (
        LogHost(signs=frozenset({"image-build"})),
        "pip install 'numpy<2'",
        "RUN pip install 'numpy<2'   # in the Dockerfile, before the step that failed",
    ),
    "unknown package": (
        LogHost(family="arch"),
        "sudo apt-get install libfoo-dev",
        'install what "pacman -Ss foo" lists (Debian: libfoo-dev)',
    ),
    "one of two unknown": (
        LogHost(family="alpine"),
        "sudo apt-get install libcurl4-openssl-dev libfoo2-dev   # then build",
        'sudo apk add curl-dev, then install what "apk search foo" lists (Debian: libfoo2-dev)'
        "   # then build",
    ),
    "NVIDIA's on Alpine": (
        LogHost(family="alpine"),
        "sudo apt-get install cuda-toolkit-12-9",
        "take an image or a machine with glibc: NVIDIA has no cuda-toolkit-12-9 for Alpine",
    ),
    "no distribution in the text": (
        LogHost(family="debian", names_family=False),
        "sudo apt-get install g++ python3-dev   # then again",
        "sudo apt-get install g++ python3-dev   # on Debian and Ubuntu; Fedora: sudo dnf install"
        " gcc-c++ python3-devel; Arch: sudo pacman -S gcc python; Alpine: sudo apk add g++"
        " python3-dev; then again",
    ),
    "only this machine's distribution": (
        LogHost(family="fedora", names_family=False),
        "sudo apt-get install g++",
        "sudo dnf install gcc-c++   # on Fedora and RHEL, as on this machine",
    ),
    "a sentence": (
        LogHost(family="fedora"),
        "the message of apt-get install the names of it",
        "the message of apt-get install the names of it",
    ),
    "an unknown driver": (
        LogHost(),
        "pip install torch --index-url https://download.pytorch.org/whl/cu130   # then again",
        "pip install torch --index-url https://download.pytorch.org/whl/cu130   # then again; cu130"
        " needs driver 580 (nvidia-smi names it), cu126 an older one",
    ),
    "with sound": (
        LogHost(signs=frozenset({"torchaudio"}), driver=580),
        "pip install torch torchvision --index-url https://download.pytorch.org/whl/cu130",
        "pip install torch torchvision torchaudio --index-url"
        " https://download.pytorch.org/whl/cu130",
    ),
    "an old Python": (
        LogHost(python_version="3.8"),
        "pip install torch --index-url https://download.pytorch.org/whl/cu130",
        "pip install torch --index-url https://download.pytorch.org/whl/cu124",
    ),
    "a pod's memory of processes": (
        LogHost(signs=frozenset({"k8s"})),
        "docker run --gpus all --shm-size=8g ...   # or less",
        "in the pod's spec: resources.limits: nvidia.com/gpu: 1; an emptyDir with medium: Memory"
        " and sizeLimit: 8Gi at /dev/shm   # or less",
    ),
    "a pod's variable": (
        LogHost(signs=frozenset({"k8s"})),
        "docker run -e NVIDIA_DISABLE_REQUIRE=1 --privileged ...",
        "in the pod's spec: env: NVIDIA_DISABLE_REQUIRE = 1; securityContext.privileged: true",
    ),
    "an option that no pod has": (
        LogHost(signs=frozenset({"k8s"})),
        "docker run --gpus all --ulimit memlock=-1 ...",
        "docker run --gpus all --ulimit memlock=-1 ...",
    ),
    "docker beside Kubernetes": (
        LogHost(signs=frozenset({"k8s", "docker-there"})),
        "docker run --privileged ...",
        "docker run --privileged ...",
    ),
    "Proxmox": (
        LogHost(signs=frozenset({"pve"})),
        "sudo apt-get install linux-headers-$(uname -r)",
        "sudo apt-get install proxmox-headers-$(uname -r)",
    ),
}


@pytest.mark.parametrize(("host", "fix", "written"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_is_written_for_its_shell(host, fix, written):
    assert host.write(fix) == written


def test_no_python_is_named_where_the_paths_are_the_systems():
    assert find_python('File "/usr/lib/python3.12/site-packages/torch/x.py"') is None


LINES = {
    "Linux version 6.8.0-45-generic (buildd@lcy02)": "ubuntu",
    "Module build for kernel 6.1.0-25-amd64 failed": "debian",
    "Kernel 6.12.10-1-lts, nvidia not found": "arch",
    "linux: 6.4.0-150600.23.25-default": "suse",
    "Linux box 5.14.0-503.el9.x86_64": "rhel",
    "kernel: Linux version 6.14.5-300.fc42.x86_64": "fedora",
    "Kernel: 6.6.31-0-lts": "alpine",
    "Unpacking nvidia-dkms-580 (580.95.05-0ubuntu0.24.04.2) ...": "ubuntu",
    "kernel 6.8.12-9-pve": "debian",
    "I am on Arch Linux with an RTX 5050": "arch",
    "running EndeavourOS": "arch",
    "I'm running Linux Mint 21 (Vanessa).": "ubuntu",
    "it is built on arch image 3": None,
    "kernel 5.15.167.4-microsoft-standard-WSL2": None,
}


@pytest.mark.parametrize(("line", "family"), LINES.items())
def test_a_kernel_or_a_package_names_the_distribution(line, family):
    found = explain_text(f"{line}\nCUDA error: out of memory").context
    assert found.choose_distribution(UNKNOWN).family == family


MISSING = "AssertionError: Torch not compiled with CUDA enabled\n"


@pytest.mark.parametrize(
    ("said", "command"),
    [
        ("Collecting torch==2.3.1", "torch==2.3.1 torchvision --index-url {}/cu121"),
        (
            "torch 2.11.0+cpu, NVIDIA GeForce RTX 5080",
            "torch==2.11.0 torchvision --index-url {}/cu130",
        ),
        ("torch 2.1.2+cpu, NVIDIA GeForce RTX 5080", "torch torchvision --index-url {}/cu130"),
        ("Driver Version: 550.54.14", "torch torchvision --index-url {}/cu128"),
        ("2.9.1+cpu\nDriver Version: 550.54.14", "torch==2.9.1 torchvision --index-url {}/cu128"),
        ("2.6.0+cpu\nDriver Version: 470.82.01", "torch==2.6.0 torchvision --index-url {}/cu118"),
        (
            "torch 2.1.2+cpu",
            "torch==2.1.2 torchvision 'numpy<2' --index-url {}/cu121",
        ),
        ("xformers needs torch==2.3.1", "torch torchvision --index-url {}/cu130"),
    ],
)
def test_a_torch_is_installed_once_more_as_it_is_for_the_driver_that_is_there(said, command):
    fix = explain_text(f"{said}\n{MISSING}").describe()["found"][0]["fix"]
    index = "https://download.pytorch.org/whl"
    assert fix.partition("   # ")[0] == f"pip install --force-reinstall {command.format(index)}"


def test_in_a_notebook_each_command_has_a_line_of_its_own():
    frame = 'File "/content/x.py", line 1'
    text = f"%pip install x\n{frame}\nRuntimeError: operator torchvision::nms does not exist"
    fix = explain_text(text).describe()["found"][0]["otherwise"]
    assert "; then, in a line of its own: %pip install" in fix
    assert "&& %pip" not in fix


OF_POD = "    Last State:     Terminated\n      Reason:       OOMKilled\n      Exit Code:    137\n"


@pytest.mark.parametrize(
    "text",
    [
        OF_POD,
        f"$ kubectl describe pod trainer-0\n{OF_POD}",
        "trainer-0   0/1   OOMKilled   3 (2m ago)   10m",
        "    lastState:\n      terminated:\n        exitCode: 137\n        reason: OOMKilled\n",
    ],
)
def test_a_pod_gets_kubernetes_own_limit(text):
    shown = explain_text(text).describe()["found"][0]
    for part in ("kubectl describe pod", "kubectl top pod", "resources.limits.memory"):
        assert part in shown["fix"]
    assert "docker" not in shown["fix"]


def test_a_container_of_docker_gets_dockers_limit():
    fix = explain_text('"State": {"OOMKilled": true, "ExitCode": 137}').describe()["found"][0]
    assert "docker update --memory" in fix["fix"]


@pytest.mark.parametrize(
    ("said", "is_named"),
    [("", True), ("Ubuntu 22.04\n", False), ("root@a1b2c3d4e5f6:/workspace# x\n", False)],
)
def test_a_text_without_a_distribution_is_told_for_which_one_a_command_is(said, is_named):
    text = f"{said}RuntimeError: Failed to find C compiler. Please specify via CC"
    fix = explain_text(text).describe(Distribution("Debian 12", "debian"))["found"][0]["fix"]
    assert fix.startswith(("sudo apt-get install g++", "apt-get update && apt-get install -y g++"))
    assert ("Fedora: sudo dnf install gcc-c++" in fix) == is_named


@pytest.mark.parametrize("family", ["alpine", "arch", "fedora", "suse"])
def test_every_package_has_a_name_or_a_search(family):
    fixes = {fix for _, _, fix in list_fixes(Context(family=family))}
    assert [fix for fix in fixes if "under its own names" in fix] == []
