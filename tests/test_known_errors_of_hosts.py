"""What pastes of hosts, engines and clusters are explained as: the first error and its fix."""

from __future__ import annotations

import re

import pytest

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors.match import explain_text, format_explanation

NO_DRIVER = (
    "docker: Error response from daemon: could not select device driver"
    ' "" with capabilities: [[gpu]].'
)
NO_DAEMON = "Cannot connect to the Docker daemon at unix://{}. Is the docker daemon running?"

NO_CDI_SPEC = "setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all"
NOT_OPEN = "NVRM: installed in this system is not supported by open\nNVRM: nvidia.ko because"
TWO_VERSIONS = "Failed to initialize NVML: Driver/library version mismatch"
HELD_BY_NOVA = "NVRM: GPU 0000:01:00.0 is already bound to NovaCore."
NO_GPU_IN_PLUGIN = "Detected non-NVML platform: could not load NVML library: libnvidia-ml.so.1"


def explain(text):
    """The first error of a text, with its fixes for the machine that the text names."""
    found = explain_text(text)
    first = found.first or next(iter(found.found), None)
    return found, first and (
        first.error,
        *first.write_fixes(found.context.choose_distribution(UNKNOWN)),
    )


@pytest.mark.parametrize(
    ("prompt", "family"),
    [
        ("d@fedora:~$ ", "fedora"),
        ("(venv) d@fedora:~/app$ ", "fedora"),
        ("user@host:~> ", "suse"),
        ("ann@opensuse-box:/srv> ", "suse"),
        ("ann@archlinux:~$ ", "arch"),
        ("[ann@rocky9 ~]$ ", "rhel"),
        ("root@debian:~# ", "debian"),
        ("ann@pop-os:~$ ", "ubuntu"),
        ("ann@box:~$ ", None),
        ("[ann@box ~]$ ", None),
        ("I am on Fedora 43: ", "fedora"),
        ("FROM nvidia/cuda:12.8.0-base-ubuntu22.04 ", None),
        ("in an Ubuntu 22.04 container ", None),
        ("<ann@fedora:~ wrote>", None),
    ],
)
def test_a_prompt_names_the_distribution(prompt, family):
    assert explain_text(f"{prompt}docker run\n{NO_DRIVER}").context.family == family


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (f"[ann@box:~]$ docker run\n{NO_DRIVER}", "--device nvidia.com/gpu=all"),
        (f"ann@MacBook-Pro ~ % docker ps\n{NO_DAEMON.format('/var/run/docker.sock')}", "open -a"),
        (f"ann@laptop ~ % docker ps\n{NO_DAEMON.format('/var/run/docker.sock')}", "open -a"),
        (NO_DAEMON.format("/Users/ann/.docker/run/docker.sock"), "open -a Docker"),
        (NO_DAEMON.format("/Users/ann/.colima/default/docker.sock"), "colima start"),
        (NO_DAEMON.format("/Users/ann/.orbstack/run/docker.sock"), "open -a OrbStack"),
        (
            'user@host:~> podman run\nno runtime for "nvidia" is configured',
            "zypper addrepo https://nvidia.github.io/",
        ),
        ("E: Unable to locate package nvidia-container-toolkit", "libnvidia-container/gpgkey"),
        ("No match for argument: nvidia-container-toolkit", "NVIDIA's package source"),
        ("ERROR: unable to select packages:\n  nvidia-utils (no such package):", "glibc"),
        (
            "/etc/alpine-release: 3.20\nERROR: Could not find a version that satisfies the"
            " requirement torch (from versions: none)",
            "slim",
        ),
        (
            'File "/tmp/ipython-input-7-1.py", line 1\nRuntimeError: No CUDA GPUs are available',
            "Change runtime type",
        ),
        (
            'k3s: k3s[1]: no runtime for "nvidia" is configured\ndpkg: x',
            "sources.list.d/nvidia-container-toolkit.list",
        ),
        (
            '"nvidia": {\n  "path": "nvidia-container-runtime"\n}\n'
            "Error response from daemon: unknown or invalid runtime name: nvidia",
            "restart docker",
        ),
        (
            "desktop-linux *  Docker Desktop\nnvidia-container-cli: initialization error: load"
            " library failed: libnvidia-ml.so.1: cannot open shared object file: no such file",
            "docker context use default",
        ),
        (
            r"C:\sd\venv\Scripts\python.exe"
            "\nERROR: Could not find a version that satisfies the requirement triton (from"
            " versions: none)",
            "<3.2",
        ),
    ],
)
def test_the_fix_is_for_the_machine_that_the_paste_shows(text, fix):
    _, (_, first, otherwise) = explain(text)
    assert fix in f"{first}\n{otherwise}"


@pytest.mark.parametrize(
    "text",
    [
        f"If you see this error when it starts:\n```\n{NO_DRIVER}\n```\nrestart the engine.",
        "**Q: What does `RuntimeError: CUDA out of memory` mean?**\nA: The GPU is full.",
        "### Error: `Driver/library version mismatch`\n\n**Solution:** reboot.",
    ],
)
def test_an_error_that_a_guide_quotes_is_none(text):
    found, first = explain(text)
    assert (first, found.failure) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        f"I start it and get this, can you help:\n{NO_DRIVER}\nCause: unknown",
        f"{NO_DRIVER}\nSolution: none so far",
    ],
)
def test_an_error_in_a_report_is_one(text):
    assert explain(text)[1]


@pytest.mark.parametrize(
    "message",
    ["expected 4 classes, got 3", "no errors in warn mode", "the mask was ignored", "1 retry left"],
)
def test_an_exception_of_ones_own_is_unknown_not_healthy(message):
    found = explain_text(f"ValueError: {message}")
    assert (found.first, found.failure.line_number) == (None, 1)


REPORTS = {
    "a toolkit of the distribution's own": (
        "docker: Error response from daemon: OCI runtime create failed: runc create failed: error"
        " running hook #0: exit status 1\nnvidia-container-cli: detection error: nvml error:"
        " unknown error: unknown",
        ("nvml-refuses", "apt-get install nvidia-container-toolkit"),
    ),
    "a closed module on a kernel that is newer": (
        "nvidia-driver-daemonset-x2x9z\nERROR: The nvidia kernel module was not created.\nERROR:"
        " modpost: GPL-incompatible module nvidia.ko uses GPL-only symbol 'rcu_read_unlock_strict'",
        ("module-gpl-symbol", "driver.version=535.183.06"),
    ),
    "a drain that pods with data stop": (
        "nvidia driver module is already loaded with refcount 213\nerror: unable to drain node"
        ' "n1" due to error:cannot delete Pods with local storage (use --delete-emptydir-data to'
        " override): kube-system/metrics-server-5f8f64cb86-thks7",
        ("k8s-drain-local-storage", "DRAIN_DELETE_EMPTYDIR_DATA"),
    ),
    "a specification that only root reads": (
        "$ sudo podman run --device=nvidia.com/gpu=0 ubuntu nvidia-smi -L\nGPU 0: Tesla P100\n$"
        " podman run --device=nvidia.com/gpu=0 ubuntu nvidia-smi -L\nError: setting up CDI devices:"
        " unresolvable CDI devices nvidia.com/gpu=0",
        ("no-cdi-spec", "chmod a+r"),
    ),
    "docker on NixOS": (
        'docker: Error response from daemon: could not select device driver "cdi" with'
        " capabilities: [].\nhardware.nvidia-container-toolkit.enable = true; on NixOS",
        ("docker-cdi-off", "features.cdi = true;"),
    ),
    "an LXC container without the driver's libraries": (
        "in an LXC on Proxmox\nnvidia-container-cli: initialization error: load library failed:"
        " libnvidia-ml.so.1: cannot open shared object file: no such file or directory: unknown",
        ("no-driver-library", "--no-kernel-module"),
    ),
    "a web page as the toolkit's source": (
        "E: Type '<!doctype' is not known on line 1 in source list"
        " /etc/apt/sources.list.d/nvidia-container-toolkit.list",
        ("apt-source-malformed", "stable/deb/nvidia-container-toolkit.list"),
    ),
    "a ready-made module of another kernel": (
        "modprobe: FATAL: Module nvidia not found in directory"
        " /lib/modules/5.14.0-611.45.1.el9_7.x86_64\n"
        "kmod-nvidia-open-595.58.03-611.41.1.el9_7.x86_64",
        ("no-module-for-kernel", "grubby --set-default"),
    ),
    "device files that nothing made since the boot": (
        "Error: error executing hook `/usr/bin/nvidia-container-toolkit` (exit code: 1)\n"
        "ls: cannot access '/dev/nvidia*': No such file or directory",
        ("device-files-missing", "nvidia-persistenced"),
    ),
    "an installer while the desktop runs": (
        "ERROR: An NVIDIA kernel module 'nvidia-drm' appears to already be loaded in your kernel.",
        ("installer-refused", "modprobe -r nvidia_drm"),
    ),
    "a Kepler card of a cloud": (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
        "00:03.0 VGA compatible controller: NVIDIA Corporation GK104GL [GRID K520] (rev a1)",
        ("driver-not-loaded", "470"),
    ),
    "a fabric manager on a desktop's card": (
        "Job for nvidia-fabricmanager.service failed because the control process exited with"
        " error code.\n|   0  NVIDIA GeForce RTX 3050 Off  | 00000000:05:00.0 Off |",
        ("fabric-manager-failed", "disable --now nvidia-fabricmanager"),
    ),
    "an HGX without the fabric manager": (
        "Linux version 5.14.0-427.el9_4.x86_64\nDriver Version: 545.23.08\n"
        "  what():  Error (gpu_burn-drv.cpp:298): system not yet initialized",
        ("fabric-manager", "dnf install nvidia-fabric-manager-545.23.08"),
    ),
    "a MIG mode that waits for its GPU": (
        "Warning: MIG mode is in pending disable state for GPU 00000000:C1:00.0:In use by another"
        " client\n00000000:C1:00.0 is currently being used by one or more other processes",
        ("gpu-reset-in-use", "stop nvidia-persistenced"),
    ),
    "a reset inside a virtual machine": (
        'level=error msg="Resetting GPU 00000000:00:04.0 is not supported."\nlevel=fatal'
        ' msg="Error applying MIG configuration with hooks: error resetting all GPUs"',
        ("gpu-reset-not-supported", "WITH_REBOOT"),
    ),
    "a proxy before a public registry": (
        "error pulling image configuration: Get https://production.cloudflare.docker.com/x/data:"
        " x509: certificate signed by unknown authority",
        ("changed-certificate", "update-ca-certificates && sudo systemctl restart docker"),
    ),
    "enroot without the toolkit": (
        "slurmstepd: error: pyxis:     [ERROR] Command not found: nvidia-container-cli, see\n"
        "slurmstepd: error: pyxis:     [ERROR] /etc/enroot/hooks.d/98-nvidia.sh exited with 1",
        ("enroot-lacks-tool", "apt-get install nvidia-container-toolkit"),
    ),
    "an image without a shell": (
        "slurmstepd: error: pyxis: container start failed with error code: 1\nslurmstepd: error:"
        " pyxis:     enroot-switchroot: failed to execute: /bin/bash: No such file or directory",
        ("slurm-pyxis", "--no-container-entrypoint"),
    ),
    "WSL's libraries in an old cache": (
        "nvidia-container-cli: mount error: stat failed: /usr/lib/wsl/lib/libcuda.so.1: no such"
        " file or directory",
        ("wsl-libraries-stale", "sudo ldconfig"),
    ),
    "a driver of two sources": (
        "The following packages have unmet dependencies:\n nvidia-driver-565 : Depends:"
        " libnvidia-gl-565 (= 565.57.01-0ubuntu1) but it is not going to be installed",
        ("held-packages", "Pin: origin developer.download.nvidia.com"),
    ),
    "a variable that podman does not read": (
        "$ podman run --rm -e NVIDIA_VISIBLE_DEVICES=all nvidia/cuda:10.0-base nvidia-smi\n"
        'Error: exec: "nvidia-smi": executable file not found in $PATH',
        ("no-nvidia-smi-inside", "cdi generate --output=/etc/cdi/nvidia.yaml && podman run"),
    ),
    "a card that does not start": (
        "NVRM: RmInitAdapter: Cannot initialize GSP firmware RM\nNVRM:"
        " gpuWaitForGfwBootComplete_TU102: failed to wait for GFW_BOOT: (progress 0x3)",
        ("gsp-firmware-missing", "pull the power cord"),
    ),
    "a card that an earlier start left": (
        "NVRM: _kgspIsWpr2Up: unexpected WPR2 already up, cannot proceed with booting GSP",
        ("gsp-firmware-missing", "not a reboot"),
    ),
    "an old release of docker's snap": (
        "$ sudo snap install docker\ndocker: Error response from daemon: unknown or invalid"
        " runtime name: nvidia.",
        ("unknown-nvidia-runtime", "snap refresh docker"),
    ),
    "a runtime that this engine never had": (
        "docker-compose version 1.25.0, build unknown\nUbuntu: apt-get update\n"
        "docker: Error response from daemon: Unknown runtime specified nvidia.",
        ("unknown-nvidia-runtime", "docker run --gpus all ... in place of --runtime=nvidia"),
    ),
    "nvidia-smi of WSL that crashes": (
        "WSL version: 2.1.4.0\nuser@box:~$ nvidia-smi\nSegmentation fault",
        ("nvidia-smi-crash-wsl", "537.58"),
    ),
    "a disk without inodes": (
        "failed to register layer: write /opt/x.so: no space left on device\n"
        "Filesystem      Inodes   IUsed   IFree IUse% Mounted on\n"
        "/dev/sda2      3276800 3276800       0  100% /",
        ("inodes-used-up", "du --inodes"),
    ),
    "an image-based system without a specification": (
        "on bluefin (bootc):\n$ podman run -d --gpus=all ollama\nError: setting up CDI devices:"
        " unresolvable CDI devices nvidia.com/gpu=all",
        ("no-cdi-spec", "nvidia-cdi-refresh"),
    ),
    "Docker Desktop of Windows Home": (
        "Cannot create container for service a: Unknown runtime specified nvidia\n"
        "Windows Home 10 Home Version 21H2",
        ("unknown-nvidia-runtime", "WSL 2 based engine"),
    ),
    "a closed module for Blackwell on Fedora": (
        "$ sudo dnf install akmod-nvidia\nNVRM: installed in this system requires use of the"
        " NVIDIA open kernel modules.",
        ("needs-open-modules", "_with_kmod_nvidia_open"),
    ),
    "docker on a Mac with Colima": (
        "* Stop Docker Desktop for Mac\n* brew install docker\ncolima start\n$ docker ps\n"
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?",
        ("daemon-not-running", "docker context use colima"),
    ),
    "a toolkit that refuses every container": (
        "docker: Error response from daemon: OCI runtime create failed: runc create failed\n"
        "nvidia-container-cli: error parsing IMEX info: unsupported IMEX channel value: all",
        ("toolkit-imex-all", "1.16.2-1"),
    ),
    "a hook that crashes": (
        "Running hook #1:: error running hook: signal: segmentation fault (core dumped)",
        ("hook-crashed", "nvidia-container-cli --version"),
    ),
    "a mismatch that a reboot leaves": (
        "Failed to initialize NVML: Driver/library version mismatch\nTried rebooting the system,"
        " but still doesn't work.",
        ("driver-library-mismatch", "dkms status"),
    ),
    "a driver of the image's own": (
        "I run nvidia-smi in the container on a Mint host, where the driver is 535:\n"
        "Failed to initialize NVML: Driver/library version mismatch",
        ("driver-library-mismatch", "out of the image"),
    ),
    "a client with its name": (
        "[    9.424670] NVRM: API mismatch: the client 'kwin_wayland' (pid 1005)\n"
        "               NVRM: has the version 595.84, but this kernel module has\n"
        "               NVRM: the version 595.80.  Please make sure that this",
        ("driver-library-mismatch", "reboot"),
    ),
    "a toolkit that a person of Arch has installed": (
        "I am on Arch Linux; the nvidia container toolkit is installed.\n"
        "Error response from daemon: unknown or invalid runtime name: nvidia",
        ("unknown-nvidia-runtime", "nvidia-ctk runtime configure --runtime=docker"),
    ),
    "the name server of systemd in a build": (
        "#5 33.60   Temporary failure resolving 'mirror.example'\nnameserver 127.0.0.53",
        ("no-name-server", "systemd/resolve/resolv.conf"),
    ),
    "a link to no name server": (
        "[Errno -3] Temporary failure in name resolution\n"
        "cat: /etc/resolv.conf: No such file or directory",
        ("no-name-server", "stub-resolv.conf"),
    ),
    "headers of a kernel that is not the newest": (
        "ERROR: Unable to find the kernel source tree for the currently running kernel.\n"
        "kernel-devel-3.10.0-1160.45.1.el7.x86_64",
        ("no-kernel-headers", "sudo yum install kernel-devel"),
    ),
    "a driver older than kernel 6.13": (
        "nvidia/nv.c:130:18: error: expected ',' or ';' before 'DMA_BUF'",
        ("dkms-build-failed", "570.86.16"),
    ),
    "a driver container under Secure Boot": (
        "helm install gpu-operator\nKernel module load error: Operation not permitted",
        ("module-not-inserted", "driver.enabled=false"),
    ),
    "a data center card under WSL": (
        "drivers in Data Center mode, L40S\n$ nvidia-smi\n"
        "Failed to initialize NVML: GPU access blocked by the operating system",
        ("wsl-blocked", "nvidia-smi -dm 0"),
    ),
    "a name that leads to another server": (
        'Get "https://registry.ollama.ai/v2/": tls: failed to verify certificate: x509: certificate'
        " is valid for ollama.com, www.ollama.com, not registry.ollama.ai",
        ("certificate-other-name", "grep -n 'registry.ollama.ai' /etc/hosts"),
    ),
    "a server asked by its address": (
        "x509: cannot validate certificate for 10.0.0.5 because it doesn't contain any IP SANs",
        ("certificate-other-name", "-connect 10.0.0.5:443"),
    ),
    "extensions of the classic notebook": (
        "ModuleNotFoundError: No module named 'notebook.extensions'",
        ("package-part-missing", "pip install 'notebook<7'"),
    ),
    "a podman without CDI": (
        "podman versions : 3.4.4\nError: stat nvidia.com/gpu=all: no such file or directory",
        ("no-cdi-spec", "update podman to 4.1 or newer"),
    ),
    "two versions right after the start": (
        "[   12.014918] NVRM: API mismatch: the client has the version 570.153.02, but",
        ("driver-library-mismatch", "dkms autoinstall"),
    ),
    "a .run file beside another module": (
        "bash ./NVIDIA-Linux-x86_64-570.124.04.run --no-kernel-modules\nreboot\nnvidia-smi\n"
        "Failed to initialize NVML: Driver/library version mismatch",
        ("driver-library-mismatch", "sudo nvidia-uninstall"),
    ),
    "a proxy that only ollama's client knows": (
        "> HTTPS_PROXY=http://proxy.example:10000 ollama run llama2\npulling manifest\nError:"
        ' Get "https://registry.ollama.ai/v2/": dial tcp: lookup registry.ollama.ai: no such host',
        ("ollama-pull-failed", "systemctl edit ollama"),
    ),
    "cuDSS on a Jetson": (
        "Orin, JetPack 6.2\nImportError: libcudss.so.0: cannot open shared object file",
        ("mixed-cuda-libraries", "apt-get -y install cudss"),
    ),
    "accelerate with more processes than GPUs": (
        "Local process index: 1\nDevice: cuda:0\n"
        "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000",
        ("nccl-invalid-usage", "accelerate launch --num_processes"),
    ),
    "a context longer than vLLM's cache": (
        "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens"
        " that can be stored in KV cache (7344).",
        ("vllm-kv-cache", "--max-model-len 7344"),
    ),
    "a new GPU under driver 570": (
        "Fresh box, RTX 5090, driver 570.124.06\n"
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        ("no-architecture", "/whl/cu128"),
    ),
    "a report's form that names the system": (
        " - OS: Rocky Linux\n - OS version: 8.7\n"
        'could not select device driver "nvidia" with capabilities: [[gpu]]',
        ("no-gpu-driver-in-engine", "sudo dnf install nvidia-container-toolkit"),
    ),
    "docker that works with sudo alone": (
        "$ docker run --gpus all x nvidia-smi\nload library failed: libnvidia-ml.so.1: x\n"
        "$ sudo docker run --gpus all x nvidia-smi\n==========\n== CUDA ==\n==========",
        ("no-driver-library", "docker context use default"),
    ),
    "an Ubuntu between two long-term ones": (
        "Ubuntu 21.04\nThe NVIDIA driver on your system is too old (found version 11040).",
        ("driver-too-old", "ubuntu-drivers install"),
    ),
    "a log of DKMS that is named": (
        "apt -y install nvidia-driver\nBad return status for module build on kernel: 6.17.1-x"
        " (x86_64)\nConsult /var/lib/dkms/nvidia-current/550.163.01/build/make.log for more",
        ("dkms-build-failed", "tail -n 40 /var/lib/dkms/nvidia-current/550.163.01/build/make.log"),
    ),
    "a Slurm node without any GPU": (
        "Reason=gres/gpu count reported lower than configured (0 < 1) [slurm@2024-12-19T11:03:34]",
        ("slurm-gres-conf", "AutoDetect=nvml"),
    ),
    "Slurm before the device files": (
        "slurmd: fatal: can't stat gres.conf file /dev/nvidia0: No such file or directory",
        ("slurm-gres-conf", "After=nvidia-persistenced.service"),
    ),
    "nouveau on a system that the person names": (
        "ERROR: The Nouveau kernel driver is currently in use by your system.\nI am on Ubuntu"
        " 22.04 LTS",
        ("nouveau-holds-gpu", "update-initramfs -u"),
    ),
    "the operator on RKE2": (
        'rke2, RHEL 8.8\nFailed to create pod sandbox: no runtime for "nvidia" is configured',
        ("runtime-binary-missing", "rke2/agent/etc/containerd/config.toml.tmpl"),
    ),
    "NVIDIA's module for a kernel with AMD in its name": (
        'I use "sudo dkms install -m nvidia -v 570.86"\nError! Bad return status for module build'
        " on kernel: 5.13.18-21.09.16.amdgpu.ubuntu (x86_64)",
        ("dkms-build-failed", "make.log"),
    ),
    "a module that does not know kernel 6.12": (
        "/var/lib/dkms/nvidia/560.35.03/build/nvidia-drm/nvidia-drm-drv.c:207:6: error: 'const"
        " struct drm_mode_config_funcs' has no member named 'output_poll_changed'",
        ("dkms-build-failed", "550.135"),
    ),
    "a kernel of Arch's other kinds": (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nkernel"
        " `linux-cachyos`",
        ("driver-not-loaded", "nvidia-open-dkms"),
    ),
    "a rootless engine and a toolkit that ignores its settings": (
        "Rootless, after upgrading nvidia-container-toolkit from version 1.17.8-1 to 1.18.0-1:\n"
        "bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted",
        ("rootless-cgroups", "1.17.9"),
    ),
    "a kernel that knows no device rules": (
        "ubuntu 22.04 on my jetson nano (4.9.253-tegra)\nrunc create failed: error setting cgroup"
        " config for procHooks process: bpf_prog_query(BPF_CGROUP_DEVICE) failed: function not"
        " implemented: unknown.",
        ("kernel-without-cgroup-bpf", "unified_cgroup_hierarchy=0"),
    ),
    "a power supply that is too weak": (
        "The whole machine crashes and restarts when I train nnU-Net on the MSI RTX 3090",
        ("machine-switches-off-in-words", "nvidia-smi -pl"),
    ),
    "a daemon without its driver": (
        "nvidia-persistenced failed to initialize. Check syslog for more details.\nNVIDIA-SMI has"
        " failed because it couldn't communicate with the NVIDIA driver.\nSecureBoot enabled",
        ("driver-not-loaded", "Enroll MOK"),
    ),
    "a device plugin below docker": (
        "Failed to initialize NVML: could not load NVML library.\nIf this is a GPU node, did you"
        " set the docker default runtime to `nvidia`?",
        ("k8s-plugin-no-gpu", "--runtime=docker --set-as-default"),
    ),
    "a taint and no GPU": (
        "0/3 nodes are available: 1 PodToleratesNodeTaints, 3 Insufficient nvidia.com/gpu.",
        ("k8s-no-gpu-resource", "tolerations"),
    ),
    "a runtime that is named twice": (
        "unable to configure the Docker daemon with file /etc/docker/daemon.json: the following"
        " directives are specified both as a flag and in the configuration file: runtimes: (from"
        " flag: [nvidia], from file: map[nvidia:map[path:nvidia-container-runtime]])",
        ("daemon-json-broken", "systemctl cat docker"),
    ),
    "an option for a program that is gone": (
        "Process: 16402 ExecStart=/usr/bin/dockerd --add-runtime=nvidia=/usr/bin/nvidia-x"
        " (code=exited, status=1/FAILURE)\ndocker.service: Start request repeated too quickly.",
        ("docker-service-failed", "take --add-runtime out"),
    ),
    "podman's compose that passes over devices": (
        "$ podman compose up\nError: crun: executable file `nvidia-smi` not found in $PATH",
        ("no-nvidia-smi-inside", "podman-compose up"),
    ),
    "NVIDIA's program in Alpine": (
        "/ # nvidia-smi\n/bin/sh: nvidia-smi: not found",
        ("no-nvidia-smi", "gcompat"),
    ),
    "a program for glibc on an Alpine host": (
        "On Alpine Linux\n-bash: /usr/bin/nvidia-docker: No such file or directory",
        ("start-program-missing", "with glibc"),
    ),
    "no room for apt": (
        "E: You don't have enough free space in /var/cache/apt/archives/.",
        ("disk-full", "apt-get clean"),
    ),
    "a full /boot": (
        "zstd: error 70 : Write error : cannot write block : No space left on device\n"
        "update-initramfs: failed for /boot/initrd.img-6.8.0-41-generic with 1.",
        ("boot-full", "dpkg --configure -a"),
    ),
    "a toolkit of two sources": (
        " nvidia-container-toolkit : Depends: nvidia-container-toolkit-base (= 1.12.0-1) but"
        " 1.12.0-0pop1~1679409890~22.04~5f4b1f2 is to be installed",
        ("held-packages", "Pin: origin nvidia.github.io"),
    ),
    "--nv after the image": (
        "$ apptainer shell tf.sif --nv\nApptainer> nvidia-smi\nbash: nvidia-smi: command not found",
        ("apptainer-nv", "before the image"),
    ),
    "LXC's hook that LXD looks for": (
        "Error: The NVIDIA LXC hook couldn't be found",
        ("incus-no-toolkit", "/usr/share/lxc/hooks"),
    ),
    "a word as the GPU's name": (
        "nvidia-container-cli: device error: false: unknown device: unknown.",
        ("unknown-device", "NVIDIA_VISIBLE_DEVICES=all"),
    ),
    "a hook that is not there": (
        "ERROR: nvidia-container-runtime: inject NVIDIA hook: stat"
        " /usr/bin/nvidia-container-runtime-hook: no such file or directory",
        ("runtime-parts-differ", "upgrade nvidia-container-toolkit"),
    ),
    "capabilities that a Jetson's toolkit does not know": (
        "docker: Error response from daemon: failed to create shim: OCI runtime create failed: runc"
        " create failed: unable to start container process: error during container init: error"
        " running hook #1: error running hook: exit status 1, stdout: , stderr: unknown driver"
        " capability: all: unknown.",
        ("runtime-parts-differ", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
    ),
    "docker in docker without the host's iptables": (
        "modprobe: FATAL: Module ip_tables not found in directory"
        " /lib/modules/5.14.0-503.16.1.el9_5.x86_64",
        ("kernel-module-missing", "dnf install kernel-modules-extra"),
    ),
    "a driver that the host of LXC has not loaded": (
        "Error: Failed to run: /snap/lxd/current/bin/lxd forkstart template /var/snap/lxd/x:\n"
        "$ nvidia-smi\nNVIDIA-SMI has failed because it couldn't communicate with the NVIDIA"
        " driver. Make sure that the latest NVIDIA driver is installed and running.",
        ("driver-not-loaded", "on the host: if it fails"),
    ),
    "a card too old to be watched": (
        "Warning: GPU with UUID GPU-edae6d5d-6698 is too old to support healtchecking with error:"
        " %!s(MISSING). Marking it unhealthy\n0/1 nodes are available: 1 Insufficient"
        " nvidia.com/gpu.",
        ("k8s-no-gpu-resource", "DP_DISABLE_HEALTHCHECKS=xids"),
    ),
    "a rootless hook after a reboot": (
        "Error: error executing hook `/usr/bin/nvidia-container-toolkit` (exit code: 1): OCI"
        " runtime error\nI must run nvidia-smi after each reboot, then rootless podman works.",
        ("hook-failed-unknown", "nvidia-modprobe"),
    ),
    "a program that asks for NVIDIA's runtime": (
        "error: GPU is required but nvidia container runtime is not installed, please refer to",
        ("runtime-binary-missing", "nvidia-ctk runtime configure"),
    ),
    "a container whose rules lack the GPU": (
        'openat(AT_FDCWD, "/dev/nvidiactl", O_RDWR) = -1 EPERM (Operation not permitted)\n'
        "Failed to initialize NVML: Unknown Error",
        ("nvml-unknown-error", "no-cgroups"),
    ),
    "Docker Desktop's distribution as WSL's default": (
        "<3>WSL (20) ERROR: CreateProcessEntryCommon:370: getpwuid(0) failed 2\n"
        "<3>WSL (20) ERROR: CreateProcessEntryCommon:577: execvpe /bin/bash failed 2",
        ("wsl-no-shell", "--set-default Ubuntu"),
    ),
    "a laptop's card that this driver's firmware does not start": (
        "NVRM: RmInitAdapter failed! (0x62:0x1f:2015)\nNo devices were found",
        ("gpu-init-failed", "570.172.08"),
    ),
    "a card that a virtual machine left in a bad state": (
        "No devices were found\n[   36.07] NVRM kgspBootstrapRiscvOSEarly_GH100: Timeout waiting"
        " for GSP target mask release.",
        ("gsp-firmware-missing", "/sys/bus/pci/devices/"),
    ),
    "DKMS on Fedora": (
        "Error! Bad return status for module build on kernel: 6.8.10-300.fc40.x86_64 (x86_64)",
        ("dkms-build-failed", "/var/lib/dkms/nvidia"),
    ),
    "an image too new for Debian's own driver": (
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8\n"
        "ii  docker-ce                 5:28.2.2-1~debian.12~bookworm           amd64",
        ("driver-requirement", "from NVIDIA's own source"),
    ),
    "dnf behind a company's proxy": (
        "Errors during downloading metadata for repository 'nvidia-container-toolkit':\n  - Curl"
        " error (60): SSL peer certificate or SSH remote key was not OK for https://nvidia.github.io"
        " [SSL certificate problem: self-signed certificate in certificate chain]\nError: Failed to"
        " download metadata for repo 'nvidia-container-toolkit': Cannot download repomd.xml",
        ("changed-certificate", "update-ca-trust"),
    ),
    "an old docker before a new engine": (
        "docker: Error response from daemon: client version 1.43 is too old. Minimum supported API"
        " version is 1.44, please upgrade your client to a newer version",
        ("client-too-old", "docker-ce-cli"),
    ),
    "no memory for the card's firmware": (
        "NVRM: nvCheckOkFailedNoLog: Check failed: Out of memory [NV_ERR_NO_MEMORY] (0x00000051)"
        " returned from kgspCreateRadix3(pGpu, pKernelGsp) @ kernel_gsp.c:4502\n"
        "NVRM: RmInitAdapter: Cannot initialize GSP firmware RM",
        ("gsp-firmware-missing", "nvidia-persistenced"),
    ),
    "a suspend while CUDA is held": (
        "BUG: kernel NULL pointer dereference, address: 0000000000000000\n"
        " uvm_suspend.isra.0+0x9f/0x1b0 [nvidia_uvm]\n nv_set_system_power_state+0x3fe/0x4d0",
        ("power-state-warning", "fuser -v /dev/nvidia-uvm"),
    ),
}


@pytest.mark.parametrize("report", REPORTS)
def test_a_report_gets_its_cause_first_and_the_fix_that_helped(report):
    text, (name, fix) = REPORTS[report]
    _, (error, first, otherwise) = explain(text)
    assert error.name == name
    assert fix in f"{first}\n{otherwise}"


@pytest.mark.parametrize(
    ("text", "is_wsl"),
    [
        ("| NVIDIA-SMI 550.90.07              Driver Version: 550.90.07      CUDA", False),
        ("| NVIDIA-SMI 525.60.02    Driver Version: 526.98       CUDA Version: 12.0", True),
        ("| NVIDIA-SMI 575.51.02              Driver Version: 576.02         CUDA", True),
    ],
)
def test_two_versions_in_nvidia_smis_table_are_wsls(text, is_wsl):
    """Linux prints one version twice; in WSL the driver is Windows' own."""
    assert ("wsl" in explain_text(text).context.signs) is is_wsl


UNKNOWN_CARD = """\
NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:1b80)
NVRM: installed in this system is not supported by the
NVRM: NVIDIA 595.45.04 driver release.
"""
NO_ANSWER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that"
    " the latest NVIDIA driver is installed and running.\n"
)
TOO_OLD = (
    "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update"
    " your GPU driver\n"
)


@pytest.mark.parametrize("host", [UNKNOWN, Distribution("Debian 12", "debian", (12,))])
def test_a_newer_driver_than_the_cards_last_branch_is_taken_back(host):
    said = format_explanation(
        explain_text(f"{UNKNOWN_CARD}GTX 1080, Driver Version: 595.45.04\n"), host
    )
    assert "its last branch is 580" in said
    assert "NVIDIA's driver 580" in said
    assert "open kind" not in said


@pytest.mark.parametrize("text", [TOO_OLD, UNKNOWN_CARD])
@pytest.mark.parametrize("guest", ["NVIDIA A40-8Q", "GRID T4-8C", "Ubuntu 22.04 with vGPU"])
def test_a_virtual_gpu_of_a_text_gets_the_guest_driver(text, guest):
    assert "install the guest driver" in format_explanation(
        explain_text(f"{guest}\n{text}"), UNKNOWN
    )


def test_the_kernel_of_a_text_chooses_archs_package():
    text = f"Linux box 6.12.62-1-lts #1 SMP\n$ sudo pacman -Q\nRTX 4090\n{TOO_OLD}"
    said = format_explanation(explain_text(text), UNKNOWN)
    assert "sudo pacman -Syu nvidia-open-dkms linux-lts-headers" in said


NO_WHEEL = (
    "ERROR: Could not find a version that satisfies the requirement torch (from versions: none)"
)


@pytest.mark.parametrize(
    ("text", "is_musl"),
    [
        ("$ docker run --rm alpine echo ok\nok", False),
        ("$ docker run alpine:3.20 true", False),
        (
            "Unable to find image 'alpine:latest' locally\nlatest: Pulling from library/alpine",
            False,
        ),
        ("redis-1 | image: redis:7-alpine", False),
        ("FROM python:3.12-alpine", True),
        ("FROM alpine:3.20", True),
        ("docker run -it python:3.12-alpine sh", True),
        ('PRETTY_NAME="Alpine Linux v3.20"', True),
        ("/etc/alpine-release: 3.20", True),
        ("I am on Alpine.", True),
        ("ann@alpine:~$ pip install torch", True),
        ("$ apk add python3", True),
    ],
)
def test_an_image_that_is_run_beside_it_does_not_make_a_system_alpine(text, is_musl):
    said = format_explanation(explain_text(f"{text}\n{NO_WHEEL}"), UNKNOWN)
    assert ("Alpine (musl)" in said) is is_musl


ROUTE = "Internal Server Error for API route and version http://{}/v1.47/version, check if the"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ROUTE.format("%2F%2F.%2Fpipe%2FdockerDesktopLinuxEngine"), "quit Docker Desktop"),
        (
            "PS C:\\x> docker ps\n" + ROUTE.format("%2F%2F.%2Fpipe%2FdockerDesktopLinuxEngine"),
            "wsl.exe --shutdown",
        ),
        ("500 " + ROUTE.format("%2FUsers%2Fann%2F.docker%2Frun%2Fdocker.sock"), "open -a Docker"),
        ("Docker Desktop is not responding", "quit Docker Desktop"),
    ],
)
def test_a_docker_desktop_that_does_not_respond_is_started_again(text, said):
    screen = format_explanation(explain_text(text), UNKNOWN)
    assert screen.startswith("desktop-not-responding")
    assert said in screen
    assert "systemctl" not in screen


NO_DRIVER_IN_TORCH = "RuntimeError: Found no NVIDIA driver on your system."
OFF_THE_BUS = "NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus."
REFUSED_KEY = "Kernel module load error: Key was rejected by service"
NO_NCCL = "libtorch_cuda.so: undefined symbol: ncclMemFree"
NO_GRADIENT = "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn"
UNKNOWN_RUNTIME = "Error response from daemon: unknown or invalid runtime name: nvidia"
LINES_BETWEEN = "\n" * 6


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (f"Failed to initialize NVML: Unknown Error\n{LINES_BETWEEN}kubectl get pods", "bare pod"),
        (f"i7-12700H laptop, RTX 3070 Ti{LINES_BETWEEN}{OFF_THE_BUS}", "-lgc 300,1500"),
        (f"NVIDIA GeForce RTX 4070 Laptop GPU{LINES_BETWEEN}{OFF_THE_BUS}", "charger"),
        (f"AMD Ryzen 9 7950X, RTX 4090{LINES_BETWEEN}{OFF_THE_BUS}", "reseat the card"),
        (f"DRIVER_VERSION=535.161.07{LINES_BETWEEN}{REFUSED_KEY}", "linux-modules-nvidia-"),
        (f"NVIDIA-Linux-x86_64-550.54.14.run{LINES_BETWEEN}{REFUSED_KEY}", "--module-signing"),
        (
            f'{UNKNOWN_RUNTIME}{LINES_BETWEEN}"nvidia": {{"path": "nvidia-container-runtime"}}',
            "sudo systemctl restart docker && docker info",
        ),
        (
            "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all"
            f"{LINES_BETWEEN}$ ls /run/cdi\nnvidia-container-toolkit.json",
            "podman --cdi-spec-dir=/run/cdi run",
        ),
        (
            f"{NO_NCCL}{LINES_BETWEEN}nvidia-nccl-cu11==2.14.3\nnvidia-nccl-cu12==2.27.3",
            "uninstall -y nvidia-nccl-cu11 && pip install --force-reinstall --no-deps"
            " nvidia-nccl-cu12==2.27.3",
        ),
        (
            "UserWarning: None of the inputs have requires_grad=True. Gradients will be None"
            f"{LINES_BETWEEN}{NO_GRADIENT}",
            "enable_input_require_grads()   # before get_peft_model",
        ),
        (
            "Operating System: Ubuntu 24.04\nnvidia-container-cli: requirement error: unsatisfied"
            " condition: cuda>=12.8, please update your driver",
            "ubuntu-drivers install nvidia:570",
        ),
        (
            "torch 2.2.2+cu121\nRuntimeError: operator torchvision::nms does not exist",
            "torchvision==0.17.2 torchaudio==2.2.2 --index-url https://download.pytorch.org/whl/cu121",
        ),
        (
            "train_text_to_image_lora.py\nValueError: Attempting to unscale FP16 gradients.",
            "cast_training_params(unet, dtype=torch.float32)",
        ),
        (
            "WeightsUnpickler error: Unsupported global: GLOBAL utils.HParams was not an allowed"
            " global by default.",
            "add_safe_globals([utils.HParams])",
        ),
        (
            "(x) ann@box:~/miniconda3$ python\n/opt/miniconda3/lib/libstdc++.so.6: version"
            " `GLIBCXX_3.4.33' not found (required by x.so)",
            "'libstdcxx-ng>=14'",
        ),
        (
            "Ubuntu 22.04\n nvidia-driver-530 : Depends: nvidia-kernel-common-530 (>= 530.41.03)"
            " but 530.30.02-0ubuntu1 is to be installed",
            "sudo apt-get update && sudo apt-get install nvidia-driver-530",
        ),
        (
            "Debian trixie, linux-image-6.12.22-amd64\nerror: implicit declaration of function"
            " 'follow_pfn'; did you mean 'follow_pte'?",
            "535.230.02",
        ),
    ],
)
def test_a_fact_far_from_the_error_chooses_its_fix(text, fix):
    _, first = explain(text)
    assert fix in first[1]


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (
            f"hardware.nvidia-container-toolkit.enable = true;\npodman run\n{NO_CDI_SPEC}",
            "podman --cdi-spec-dir=/run/cdi run",
        ),
        (f"NixOS 25.11\ndocker: {NO_CDI_SPEC}", "sudo systemctl restart docker"),
        (f"podman version 5.6.0\n{NO_CDI_SPEC}", "podman --cdi-spec-dir=/run/cdi run"),
        (f"podman version 5.4.1\n{NO_CDI_SPEC}", "nvidia-ctk cdi generate"),
        (f"driver of negativo17 on .fc43\n{NOT_OPEN}", "sudo sed -i 's/kernel-open/kernel/'"),
        (f"6.17.1-300.fc43.x86_64\n{NOT_OPEN}", "akmod-nvidia-580xx"),
        (f"NVIDIA-Linux-x86_64-570.1.run\n{NOT_OPEN}", "-m=kernel "),
        (
            f"On Debian 12, I rebooted, but it is the same.\n{TWO_VERSIONS}",
            "sudo apt-get update && sudo dpkg --configure -a && sudo apt-get --fix-broken install"
            " && sudo apt-get install linux-headers-$(uname -r) nvidia-kernel-dkms",
        ),
        (
            f"6.8.0-45-generic, I rebooted, but it is the same.\n{TWO_VERSIONS}",
            "linux-headers-$(uname -r) nvidia-dkms-<the branch of the libraries>",
        ),
        (
            f"8.0.6-200.fc43, I rebooted, but it is the same.\n{TWO_VERSIONS}",
            "sudo dkms autoinstall   #",
        ),
        (
            "nvidia-utils-535 : Depends: libc6 (>= 2.34) but 2.31-13+deb11u7 is to be installed",
            "sudo apt-get install linux-headers-amd64 nvidia-driver",
        ),
        (
            "rocm-gdb : Depends: libc6 (>= 2.38) but 2.36-9+deb12u3 is to be installed",
            "install the package of Debian 12",
        ),
        (
            "rocm-gdb : Depends: libc6 (>= 2.38) but 2.35-0ubuntu3 is to be installed",
            "'^(deb |URIs|Suites)' /etc/apt/sources.list /etc/apt/sources.list.d/",
        ),
        (f"7.0.0-10-generic\n{HELD_BY_NOVA}", "blacklist nova_core"),
        (f"7.0.0-10-generic\n{HELD_BY_NOVA}", "sudo update-initramfs -u"),
        (f"7.0.1-300.fc44\n{HELD_BY_NOVA}", "sudo dracut --force"),
        (
            "mount error: file creation failed: /var/lib/x/usr/lib/x86_64-linux-gnu/libcuda.so.1:"
            " file exists: unknown.",
            "USER root\\nRUN rm -f /usr/lib/*-linux-gnu/libnvidia-*.so*"
            " /usr/lib/*-linux-gnu/libcuda.so* ",
        ),
        (
            "Docker Desktop on Ubuntu 23.10\nload library failed: libnvidia-ml.so.1",
            "sudo usermod -aG docker $USER && docker context use default",
        ),
        (f"dpkg: x\n{NO_GPU_IN_PLUGIN}", "sudo apt-get install nvidia-container-toolkit && "),
        (f"microk8s kubectl logs x\n{NO_GPU_IN_PLUGIN}", "microk8s enable nvidia"),
        (
            "cc: error: unrecognized command-line option '-ftrivial-auto-var-init=zero'",
            "while an older kernel runs: -k <the kernel of the log>",
        ),
        ("slurmd: fatal: gres.conf duplicate records for gpu", "Name=gpu File=/dev/nvidia[0-1]"),
    ],
)
def test_the_fix_is_whole_and_in_its_order(text, fix):
    _, first = explain(text)
    assert fix in first[1]


@pytest.mark.parametrize(
    ("text", "cause", "effect"),
    [
        (
            f"{REFUSED_KEY}\nERROR: Unable to load the kernel module 'nvidia.ko'.",
            "secure-boot",
            "installer-refused",
        ),
        (
            "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.0.0\n"
            "RuntimeError: Numpy is not available",
            "numpy-2",
            "numpy-missing-torch",
        ),
    ],
)
def test_what_follows_from_the_first_error_has_no_fix_of_its_own(text, cause, effect):
    found = explain_text(text).found
    assert [(each.error.name, each.caused_by) for each in found] == [(cause, None), (effect, cause)]


def test_a_missing_symbol_of_nccl_is_no_fault_of_its_fast_path():
    assert [each.error.name for each in explain_text(NO_NCCL).found] == ["mixed-cuda-libraries"]


def test_a_variable_that_is_unset_in_one_shell_is_said_to_come_back():
    found = explain_text("libcusparse.so.12: undefined symbol: __nvJitLinkAddData_12_1")
    assert "take the line that sets it out of ~/.bashrc" in format_explanation(found, UNKNOWN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wsl2\nload library failed: libnvidia-ml.so.1", "/usr/lib/wsl/lib"),
        (f"PS C:\\x> docker run\n{NO_DRIVER}", "docker context use desktop-linux"),
        (f"radeon rx 7900\n{NO_DRIVER_IN_TORCH}", "rocminfo | grep gfx"),
        (f"ann@MacBook-Pro ~ % python x.py\n{NO_DRIVER_IN_TORCH}", "ENABLE_MPS_FALLBACK"),
        (NO_DAEMON.format("/Users/ann/.orbstack/run/docker.sock"), "orbstack must have the *"),
        (f"QEMU virtual machine\n{OFF_THE_BUS}", "of the host"),
    ],
)
def test_the_second_fix_is_for_the_machine_of_the_text_too(text, said):
    _, first = explain(text)
    assert said in first[2]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("me@mac train % python train.py\n", "mps"),
        ("(base) ann@Anns-Air my-app % python3 train.py\n", "mps"),
        ("ann@box train % python train.py\n/home/ann/train.py\n", "whl/cu130"),
        ("ann@box train % python train.py\nGPU 0: NVIDIA GeForce RTX 4090\n", "whl/cu130"),
        ("12 of 30 train % done\n", "whl/cu130"),
        ("mean@epoch 90 % of the data\n", "whl/cu130"),
    ],
)
def test_a_prompt_of_zsh_is_of_a_mac_where_nothing_says_linux(prompt, said):
    _, first = explain(f"{prompt}AssertionError: Torch not compiled with CUDA enabled")
    assert said in first[1]


UNKNOWN_CUDA = (
    "UserWarning: CUDA initialization: CUDA unknown error - this may be due to an incorrectly"
)
NO_CUDNN = (
    "Could not load library libcudnn_ops_infer.so.8. Error: libcudnn_ops_infer.so.8: cannot open"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"after waking the laptop up from sleep\n{UNKNOWN_CUDA} set up environment", "rmmod"),
        (f"it woke from standby\n{UNKNOWN_CUDA} set up environment", "rmmod"),
        (f"I have cuda version 11.8\n{NO_CUDNN} shared object file", "export LD_LIBRARY_PATH"),
        (f"nvcc: cuda_12.4\n{NO_CUDNN} shared object file", "pip install --upgrade ctranslate2"),
        (">>> torch.cuda.is_available()\nFalse\nroot@jetsonxavier:~# jetson", "<NVIDIA's wheel"),
    ],
    ids=["sleep", "standby", "CUDA 11", "CUDA 12", "a Jetson"],
)
def test_what_a_person_tells_of_the_machine_chooses_the_fix(text, said):
    _, (_, fix, _) = explain(text)
    assert said in fix


WSL = "uname -r\n5.15.167.4-microsoft-standard-WSL2\n"
SERVED = "vllm serve Qwen/Qwen2.5-32B-Instruct-AWQ --tensor-parallel-size 2\n"


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "AcceleratorError: CUDA error: API call is not supported in the installed CUDA driver",
        "NCCL WARN Cuda failure 'API call is not supported in the installed CUDA driver'",
        "RuntimeError: CUDA error: operation not supported",
        "RuntimeError: CUDA error: unknown error",
        "Segmentation fault (core dumped)",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ],
)
def test_several_gpus_in_wsl_do_without_peer_access(error):
    _, (_, fix, otherwise) = explain(WSL + SERVED + error)
    assert fix.startswith("NCCL_P2P_DISABLE=1 NCCL_CUMEM_ENABLE=0 vllm serve")
    assert "--disable-custom-all-reduce" in fix
    assert otherwise is None
    _, (_, fix, _) = explain(WSL + "torchrun --nproc-per-node=2 train.py\n" + error)
    assert fix.startswith("NCCL_P2P_DISABLE=1 NCCL_CUMEM_ENABLE=0 <the command>")
    for other in (WSL + error, SERVED + error):
        _, (_, fix, _) = explain(other)
        assert "NCCL_CUMEM_ENABLE=0" not in fix


COMPOSED = """\
services:
  app:
    runtime: nvidia
    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
"""


@pytest.mark.parametrize(
    "error",
    [
        "Auto-detected mode as 'csv'\ninvoking the NVIDIA Container Runtime Hook directly (e.g."
        " specifying the docker --gpus flag) is not supported.",
        "ImportError: /usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so: file too short",
    ],
)
def test_compose_on_a_jetson_names_the_runtime_alone(error):
    _, (_, fix, otherwise) = explain(COMPOSED + error)
    assert "runtime: nvidia for the service, and no deploy" in fix
    assert otherwise is None
    _, (_, fix, _) = explain(error)
    assert fix.startswith("docker run --runtime")


PODMAN = "$ podman run --rm --device nvidia.com/gpu=all ubuntu nvidia-smi\n"


@pytest.mark.parametrize(
    "error",
    [
        NO_CDI_SPEC,
        "Failed to initialize NVML: Unknown Error",
        "Failed to initialize NVML: Insufficient Permissions",
        "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: x",
        "crun: error executing hook `/usr/bin/nvidia-container-toolkit` (exit code: 1)",
        "crun: cannot stat `/usr/lib64/libEGL_nvidia.so.550.54.14`: No such file or directory",
        "nvidia-container-cli: mount error: failed to add device rules: open /sys/fs/cgroup/x:"
        " permission denied",
        "http: server gave HTTP response to HTTPS client",
        "level=warning msg=vfs storage driver",
        "crun: executable file `nvidia-smi` not found in $PATH: No such file or directory",
    ],
)
@pytest.mark.parametrize(
    "prompt", [PODMAN, "Emulate Docker CLI using podman. Create x\n$ docker run"]
)
def test_a_log_of_podman_gets_podmans_fixes_alone(prompt, error):
    shown = format_explanation(explain_text(f"{prompt}\n{error}"), UNKNOWN)
    fixes = re.findall(r"  (?:try|else|note): (.*)", shown)
    assert not [
        fix for fix in fixes if re.search(r"restart docker|\bdocker (?!images)|daemon\.json", fix)
    ]


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (
            "$ sudo nerdctl run --gpus all x\n"
            'exec: "nvidia-container-cli": executable file not found',
            "sudo nerdctl run --rm --gpus all ubuntu nvidia-smi",
        ),
        (
            "kubelet: Failed to create pod sandbox: failed to find runtime handler nvidia from"
            " runtime list map[crun runc] (cri-o)",
            "--runtime=crio --set-as-default && sudo systemctl restart crio",
        ),
        (
            "$ apptainer exec x.sif python train.py\nRuntimeError: Found no NVIDIA driver on"
            " your system.",
            "apptainer exec --nv",
        ),
        (
            "$ apptainer exec --nv x.sif python train.py\nDataLoader worker (pid 12) is killed by"
            " signal: Bus error. out of shared memory",
            "DataLoader(num_workers=0)",
        ),
    ],
)
def test_each_engine_gets_its_own_commands(text, fix):
    _, (_, first, second) = explain(text)
    assert fix in first
    assert "restart docker" not in first
    assert not second or "docker" not in second


def test_reserved_ports_of_windows_are_not_named_on_linux():
    _, (_, fix, otherwise) = explain(
        PODMAN + "rootlessport cannot expose privileged port 80, you can add x to /etc/sysctl.conf"
    )
    assert fix.startswith("podman run -p 18888:8888")
    assert otherwise is None


def test_a_jetson_without_its_runtime_gets_jetpacks_package():
    _, (_, fix, otherwise) = explain(
        "Jetson AGX Orin JetPack 6\n$ docker compose up\nError response from daemon: could not"
        ' select device driver "nvidia" with capabilities: [[gpu]]'
    )
    assert fix.startswith("sudo apt-get install nvidia-container && sudo nvidia-ctk runtime")
    assert otherwise is None


@pytest.mark.parametrize(
    "error",
    [
        "Failed to initialize NVML: Unknown Error",
        NO_DRIVER,
        "unknown or invalid runtime name: nvidia",
    ],
)
def test_docker_desktop_in_wsl_is_restarted_as_itself(error):
    text = f"Docker Desktop 4.35 with WSL2\nann@box:~$ docker run --gpus all ubuntu\n{error}"
    _, (_, fix, otherwise) = explain(text)
    for each in filter(None, (fix, otherwise)):
        assert not re.search(r"systemctl restart docker|/etc/docker/", each.partition("   #")[0])


def test_a_port_that_podman_asks_for_is_podmans():
    text = f"{PODMAN}Bind for 0.0.0.0:8888 failed: port is already allocated"
    assert explain(text)[1][1].startswith("podman run -p 8890:8888")


SEES_NONE = '$ python -c "import torch; print(torch.cuda.is_available())"\nFalse'
NO_DEVICE = "Error at driver init: Call to cuInit results in CUDA_ERROR_NO_DEVICE (100)"
FORKED = "RuntimeError: Cannot re-initialize CUDA in forked subprocess."
NO_VLLM = "ModuleNotFoundError: No module named 'vllm'"
NO_CACHE = "[Errno 13] Permission denied: '/cache/huggingface/hub/models--a--b/.no_exist/c/d.json'"
BUSY = "Device or resource busy: '/root/.triton/cache/a/cuda_utils.so'"
OF_ALLOCATOR = (
    'RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp"'
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"sbatch job.sh\n{SEES_NONE.replace('$ ', 'srun ')}", "srun --gres=gpu:1"),
        (f"WSL2, ROCm, gfx1100\n{SEES_NONE}", "torch/lib/libhsa-runtime64.so"),
        (f"ROCm 6.1, gfx1100; two users, A and B: A has it\n{SEES_NONE}", "render,video"),
        (f"in WSL2\n{NO_DEVICE}", "/usr/lib/wsl/lib"),
        (f"Cell In[14], line 1\nGPU available: True (cuda), used: True\n{FORKED}", "%env CUDA_VIS"),
        (f"image vllm/vllm-openai:latest\n{NO_VLLM}", "-v <the volume>"),
        (f"{NO_CACHE}\nvolumes:\n  - ./c:/cache", 'chown -R "$(docker exec'),
        (f"Stale file handle\n{BUSY}", "TRITON_CACHE_DIR="),
        (f"A100 in MIG mode\n{OF_ALLOCATOR}", "<the MIG-..."),
        ("pods could not find the NVML library on K3s", "runtimeClassName"),
        ("CUDA error: uncorrectable ECC error encountered\nsrun: error: n1: task 0", "--exclude"),
    ],
    ids=[
        *("a Slurm step", "ROCm in WSL", "two users", "numba in WSL", "Lightning", "vLLM's image"),
        *("a volume", "Triton on NFS", "MIG", "K3s", "ECC in a cluster"),
    ],
)
def test_where_the_error_is_met_chooses_its_fix(text, said):
    _, (_, fix, _) = explain(text)
    assert said in fix
