"""The signs in a log of the machine that wrote it: tables of words and expressions.

Only signs inside the text count: it is often read on another machine than the one that failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from typing import NamedTuple


class Sign(NamedTuple):
    """A fact about the machine: words of which one must be in the log, and the expression.

    A match contains one of ``parts``, or has it near: it is searched for only there. With each part
    are the runs of letters that it has between others of its signs.
    """

    name: str
    words: tuple[str, ...]
    pattern: re.Pattern[str]
    parts: tuple[tuple[str, frozenset[bytes]], ...]


_INNER_RUNS = re.compile(r"(?<=[^a-z])[a-z]+(?=[^a-z])")


def _sign(name: str, words: str, pattern: str, parts: str = "") -> Sign:
    """A sign; its parts, divided by "|", are by default its words."""
    split = tuple(words.split())
    searched = tuple(
        (part, frozenset(map(str.encode, _INNER_RUNS.findall(part))))
        for part in (parts.split("|") if parts else split)
    )
    return Sign(name, split, re.compile(pattern, re.MULTILINE), searched)


# An AMD GPU's architecture that is not one of a list, such as of the files that a library has.
_GFX = r"(?<![_;,+])(?<!, )(?<!,')(?<!, ')(?<!, \")gfx"
_ALONE = r"(?!\w|['\"]?[,;] ?['\"]?gfx)"

# The expressions read text in lower case. A group's text is the value of the sign.
SIGNS = (
    _sign(
        "wsl",
        "wsl wsl1 wsl2 microsoft mnt dxg desktop laptop smi",
        # In WSL nvidia-smi is of Linux, and the driver, with another number, of Windows.
        r"\bwsl[12]?\b|microsoft-standard|/mnt/c[/$#>]|dxg(?:krnl|kio)|@(?:desktop|laptop)-\w{5,8}:"
        r"|nvidia-smi (\d{3}\.[\d.]{2,6}) +driver version: (?!\1\b)\d{3}\.[\d.]{2,6}\s",
        "wsl|microsoft-standard|/mnt/c|dxg|@desktop-|@laptop-|driver version",
    ),
    _sign(
        "jetson",
        "jetson tegra l4t orin nvgpu jetpack xavier",
        r"jetson|(?<!non-)tegra|\bl4t\b|nvgpu|jetpack|\(orin\)|\bagx orin\b|\borin (?:nano|nx)\b",
    ),
    _sign(
        "windows",
        r"winerror dll windows win win10 win11 win32 wddm ps1 vcxproj :\ :/ 11001 11002",
        r"winerror|platform: win(?:dows|-)|\b[a-z]:\\|\.dll\b|\bwin1[01]\b"
        r"|\bwindows (?:home |pro |enterprise |server )?(?:1[01]|20\d\d)\b"
        r"|in wddm mode|\.ps1\b|\b[a-z]:/(?:program files|users/|windows/)|\.vcxproj\b"
        r"|operating systems?:?\s{1,4}windows\b|\bos:? {1,3}windows\b|\] on win32\b"
        r"|\b(?:i'm|i am|am|using|running|have|use) (?:on |a )?windows\b"
        # Its error numbers of sockets.
        r"|\berrno 1100[12]\b",
        "errno 1100|winerror|platform: win|:\\|.dll|windows |win10|win11|in wddm mode|.ps1"
        "|:/program files|:/users/|:/windows/|.vcxproj|operating system|on win32| windows",
    ),
    _sign(
        "powershell",
        "ps categoryinfo powershell pwsh",
        r"^(?:\([\w.-]{1,40}\) )?ps [a-z]:\\|\+ categoryinfo +:|at line:1 char:\d",
        "ps |categoryinfo|at line:1",
    ),
    _sign("cmd", ":\\", r"^(?:\([\w.-]{1,40}\) )?[a-z]:\\[^>\n]{0,50}>", ":\\"),
    # What only Linux has: it decides where a text also names Windows.
    _sign(
        "linux",
        "usr home etc nvrm systemd kernel root opt",
        r"(?<![\w.:\\])/(?:usr/(?:lib|bin|local|share|include)|home/\w|etc/\w|root/|opt/\w)"
        r"|\bnvrm: |\bsystemd\[|kernel: ",
        "/usr/|/home/|/etc/|/root/|/opt/|nvrm: |systemd[|kernel: ",
    ),
    # Kernels of WSL 2 before 5.10.43 have no GPU.
    _sign(
        "wsl-old",
        "microsoft",
        r"\b(?:4\.\d{1,2}|5\.[0-9])\.\d{1,3}(?:\.\d{1,3})?-microsoft",
        "-microsoft",
    ),
    # Before 21H2, Windows 10 gave no GPU to WSL 2.
    _sign(
        "windows-old",
        "19041 19042 19043 2004 20h2 21h1",
        r"\b(?:10\.0\.)?1904[123]\.\d|windows 10.{0,30}\b(?:2004|20h2|21h1|1904[123])\b",
        "19041.|19042.|19043.|windows 10",
    ),
    _sign(
        "mac",
        "macos macosx darwin mps homebrew apple users frameworks library macbook imac mac macpro"
        " osx colima orbstack % 2fusers safari nodename",
        r"macos|darwin|/opt/homebrew|\bmps backend|\bapple m\d|(?:[\s\"'(]|://)/users/[a-z]"
        # Prompts: of zsh on macOS, and of the names that it gives to a machine.
        r"|/library/frameworks/|\b(?:macbook|imac|mac-(?:mini|studio))(?:-pro|-air)?\b"
        # Chrome names itself Safari, too, but nobody is "in" that one.
        r"|\bmacpro\b|~/library/|%2fusers%2f|\b(?:in|with|from) safari\b"
        r"|device=mps\b|\bon mps\b|/osx-(?:64|arm64)\b|platform: osx"
        r"|^[\w.-]{1,40}@[\w.-]{1,60} [~/][\w./~-]* % |\bcolima\b|\borbstack\b"
        r"|\bnodename nor servname\b",
        "nodename nor|macos|darwin|/opt/homebrew|mps backend|apple m|/users/|/library/frameworks/"
        "|macbook|imac|mac-mini|mac-studio| % |colima|orbstack|device=mps|on mps|macpro|osx-|: osx"
        "|~/library/|%2fusers| safari",
    ),
    # zsh's prompt as macOS has it; on Linux others use it, too.
    _sign(
        "zsh-prompt",
        "%",
        r"^(?:\([\w.-]{1,40}\) )?[\w.-]{1,40}@[\w.-]{1,60} [a-z_.~/][\w.~/-]{0,60} % [a-z./]",
        " % ",
    ),
    # Debian's and Ubuntu's own name for the folder of Python's packages.
    _sign("dist-packages", "dist", r"/dist-packages/", "dist-packages"),
    # Where in a training the program is, by its own names and a person's words.
    _sign(
        "validation",
        "validation validate validating valid val eval evaluate evaluation evaluating",
        r"\bvalidat(?:ion|e|ing)\b|\bval(?:id)?_(?:loss|one|step|epoch|data)"
        r"|\bval(?:id)?\(|\beval_(?:step|loop|epoch)"
        r"|\bevaluat(?:e|ion|ing)(?:_|\b)",
        "validat|val_|val(|valid_|valid(|eval_|evaluat",
    ),
    _sign(
        "after-steps",
        "after leak growing grows increases increasing",
        r"\bafter (?:about |around |approximately |some |a few |many |several |~)?(?:\d+ )?"
        r"(?:steps|epochs|iterations|batches)|\bmemory leak"
        r"|memory (?:usage )?(?:keeps )?(?:grow|increas)",
        "after |memory leak|memory ",
    ),
    _sign(
        "intel-mac",
        "intel 64 darwin osx",
        r"\bintel(?:-based)? (?:i?mac|macbook)\b|\b(?:i?mac|macbook)(?: \w+)? (?:with|\(|, )?"
        r" ?intel\b|macosx_\d{1,2}_\d{1,2}_x86_64|x86_64-apple-darwin|darwin\S{0,30} x86_64"
        r"|/osx-64\b",
        "intel|macosx_|darwin|osx-64",
    ),
    _sign(
        "x86-64",
        "uname 64 amd64",
        r"uname -m\s{1,4}x86_64|\barchitecture:? +x86_64",
        "uname -m|architecture",
    ),
    # A Python of 32 bits, by its banner or its folder.
    _sign(
        "python-32",
        "32 32bit",
        r"\b32[ -]bit \(intel\)|python3\d{1,2}-32\b|\b32-?bit python",
        "32 bit|32-bit|32bit|-32",
    ),
    # A build of torch for the CPU: of its version, of conda's list, or without a CUDA.
    _sign(
        "cpu-build",
        "none cpu cpuonly mkl generic openblas",
        r"\d\+cpu\b|version\.cuda\){0,2}\W{1,12}(?:[\w.+]{1,20},? ){0,2}none\b"
        r"|used to build pytorch: none|_cpu_\w{0,20}\d"
        r"|\bcpuonly\b|\bcpu_(?:mkl|generic|openblas)_?\w{0,20}\d",
        "+cpu|version.cuda|to build pytorch|_cpu_|cpuonly|cpu_mkl|cpu_generic|cpu_openblas",
    ),
    _sign("podman-compose", "compose", r"\bpodman[ -]compose\b", "podman"),
    _sign("colima", "colima", r"\bcolima\b"),
    _sign("stub", "127", r"\b127\.0\.0\.53\b", "127.0.0.53"),
    # The person has rebooted, and the error is still there.
    _sign(
        "rebooted",
        "reboot rebooted rebooting restarting restarted nvrm",
        r"^(?:[^\n]{0,60}[$#] {0,2})?(?:sudo )?(?:(?:systemctl )?reboot|shutdown -r now)[ \t]*$"
        # The kernel's log, in the first minute and a half after its start.
        r"|\[ {1,4}\d{1,2}\.\d{6}\] nvrm: api mismatch"
        r"|\b(?:reboot(?:ed|ing)?|restart(?:ed|ing) (?:the )?(?:system|machine|computer|server))\b"
        r"[^.\n]{0,60}(?:[,.;] ?)?\b(?:but|still|same|didn'?t|doesn'?t|does not|did not|no luck)\b",
        "reboot|restarted|restarting|shutdown -r|nvrm: api mismatch",
    ),
    # The text tells of a container or image and of its host beside it.
    _sign(
        "inside-image",
        "docker container image",
        r"\b(?:docker )?(?:image|container)\b[^\n]{0,120}\bhost\b"
        r"|\bhost\b[^\n]{0,120}\b(?:in|inside) (?:the |a |my )?(?:docker|container|image)\b",
        "image|container|docker",
    ),
    # Releases that have yum alone.
    _sign(
        "yum-only",
        ".el6 .el7 centos amazon",
        r"\.el[67]\b|\bcentos(?: linux)? 7|amazon linux 2\b",
        ".el6|.el7|centos|amazon linux",
    ),
    _sign("lxc", "lxc lxd incus proxmox pve", r"\b(?:lx[cd]|incus)\b|proxmox|-pve\b"),
    _sign("pve", "pve", r"-pve\b", "-pve"),
    _sign(
        "proxmox",
        "proxmox pve pct",
        r"proxmox|-pve\b|/etc/pve/|\bpct \w",
        "proxmox|-pve|/pve/|pct ",
    ),
    _sign(
        "lxc-named", "lxc lxd incus pct", r"\b(?:lx[cd]|incus)\b|\bpct (?:enter|exec|start|set)\b"
    ),
    _sign("incus", "incus", r"\bincus\b"),
    # A folder of the host at a place in the container.
    _sign(
        "bind-mount",
        "volume mount bind",
        r"--volume[= ]|--mount[= ]\S{0,40}\bbind\b",
        "--volume|--mount",
    ),
    _sign("bind-mount", "run", r"\brun\b[^\n]{0,200}? -v[= ]?[./~$\w]", " -v"),
    # Written on the host of LXC containers, which do not start.
    _sign(
        "lxc-host",
        "forkstart startup",
        r"\bforkstart \S|TASK ERROR: startup for container|\bstartup for container '\d+' failed",
        "forkstart|startup for container",
    ),
    _sign(
        "root",
        "root",
        r"^(?:\([\w.-]{1,40}\) )?root@[\w.-]{1,60}:|running pip as the 'root' user|[ \"'=(]/root/",
        "root@|'root' user|/root/",
    ),
    # Written inside a container, not only about one.
    _sign(
        "inside",
        "root dockerenv workspace databricks",
        r"root@[0-9a-f]{12}:|/\.dockerenv|[ \"'(]/workspace/|[ \"'(]/databricks/",
        "root@|dockerenv|/workspace/|/databricks/",
    ),
    # The folder of the program in most images.
    _sign("app-folder", "app", r"(?:[ \"'(=]|-[li])/app/(?:\.?venv/|[\w./-]{1,60}\.py\b)", "/app/"),
    _sign(
        "notebook",
        "ipython kaggle content cell colab databricks localhost jupyter jupyterlab",
        r"<ipython-input-|/tmp/ipython-input-|/kaggle/|(?:^|[ \"'(])/content/|\bcolab\b"
        r"|\bcell in ?\[\d|[ \"'(]/databricks/"
        r"|\]\(https://localhost:8080/#\)"
        r"|\b(?:in|from|inside) (?:a |my |the )?jupyter(?:lab| lab| notebooks?)?\b(?![\\/-])",
        "ipython-input|/kaggle/|/content/|colab|cell in|/databricks/|localhost:8080/#|jupyter",
    ),
    _sign(
        "hosted-notebook",
        "kaggle content colab databricks ipython localhost",
        # Colab alone keeps a cell's source in /tmp; its page links each file of a traceback to the
        # address of its kernel.
        r"/kaggle/|(?:^|[ \"'(])/content/|\bcolab\b|[ \"'(]/databricks/|/tmp/ipython-input-"
        r"|\]\(https://localhost:8080/#\)",
        "/kaggle/|/content/|colab|/databricks/|/tmp/ipython-input|localhost:8080/#",
    ),
    # A virtual environment's name in front of the prompt: its pip is the one that is found.
    _sign(
        "activated",
        "venv env",
        r"^\((?:\.?venv|[\w.-]{0,30}env[\w.-]{0,30})\) \S",
        "venv) |env) ",
    ),
    _sign(
        "docker-there",
        "docker dockerd",
        r"\bdocker: |dockerd|\bdocker(?: compose|-compose)? \w|docker\.sock",
    ),
    _sign("podman", "podman crun", r"\bpodman\b|\bcrun\b"),
    _sign("podman-emulates", "emulate", r"emulate docker cli using podman", "emulate docker"),
    _sign("nerdctl", "nerdctl", r"\bnerdctl\b"),
    _sign("crio", "crio cri", r"\bcri-?o\b", "crio|cri-o"),
    # From this release on it looks for specifications of CDI in one folder only.
    _sign(
        "podman-5-5",
        "podman",
        r"\bpodman(?: version)?:? {1,3}v?(?:5\.(?:[5-9]|[1-9]\d)|[6-9]\.\d)\b",
    ),
    # Ubuntu 22.04's and Debian 11's: they take the name of a CDI device for a file.
    _sign(
        "podman-old",
        "podman",
        r"\bpodman(?: versions?)?(?: is)? {0,2}[:=]? {0,2}v?(?:[1-3]\.\d|4\.0\b)",
    ),
    _sign("sudo-docker", "sudo", r"[$#>] sudo docker run\b", "sudo docker"),
    # What NVIDIA's images print when they have started.
    _sign("cuda-banner", "cuda", r"^== cuda ==$", "== cuda =="),
    _sign("negativo17", "negativo17", r"\bnegativo17\b"),
    _sign("rootless", "rootless rootlesskit user", r"rootless|/run/user/\d{3,5}/docker\.sock"),
    _sign(
        "run-file",
        "nvidia",
        r"nvidia-linux-\w+-[\d.]+\.run|nvidia-installer",
        "nvidia-linux-|nvidia-installer",
    ),
    # What the text is about, to ask the right people.
    _sign(
        "names-torch",
        "torch pytorch torchvision torchrun",
        r"\b(?:py)?torch(?:vision|run)?\b",
    ),
    _sign(
        "names-gpu",
        "nvidia cuda nvrm cudnn cublas nccl gpu gpus nvcc nvml",
        # Not a file of a program's own.
        r"nvidia|\b(?:cuda|nccl)(?!\w{0,40}\.(?:cc?|cpp|cxx|cuh?|h|hpp)\b)|\bnvrm\b|cudnn|cublas"
        r"|\bgpus?\b|\bnvcc\b|\bnvml",
        "nvidia|cuda|nvrm|cudnn|cublas|nccl|gpu|nvcc|nvml",
    ),
    _sign("torchaudio", "torchaudio comfyui whisperx", r"torchaudio|comfyui|whisperx"),
    # The prefix of a service's lines in Compose.
    # Docker's Compose, by its command or a key of its file; with devices of its own kind.
    _sign(
        "compose-file",
        "compose reservations",
        r"\bdocker[ -]compose\b(?! version)|\breservations:|\bcompose\.ya?ml\b",
        "docker compose|docker-compose|reservations:|compose.y",
    ),
    _sign(
        "compose-devices", "reservations", r"\breservations:\s{1,40}(?:- )?devices:", "reservations"
    ),
    _sign("compose", "1", r"^[\w.-]{2,50}-1 {1,40}\| ", "-1 "),
    _sign(
        "compiling", "nvcc cc1plus cicc ninja build_ext", r"\bnvcc\b|cc1plus|cicc|ninja: |build_ext"
    ),
    _sign(
        "rented",
        "runpod runpodctl vast vastai lambdalabs paperspace tensordock",
        r"\brunpod|\bvast\.ai\b|\bvastai\b|lambdalabs|paperspace|tensordock",
        "runpod|vast.ai|vastai|lambdalabs|paperspace|tensordock",
    ),
    _sign(
        "geforce", "geforce rtx gtx", r"\bgeforce\b|\b(?:rtx|gtx) ?[1-5]\d{2}0\b", "geforce|rtx|gtx"
    ),
    # NVIDIA's modules as packages that are made for one kernel each.
    _sign("precompiled", "kmod", r"\bkmod-nvidia(?:-open)?-\d{3}\.", "kmod-nvidia"),
    _sign("ngc", "nvcr", r"\bnvcr\.io/"),
    # This project's own lab, whose commands help nobody else.
    _sign("lab", "labkit lab", r"\blabkit\b|/opt/lab\b", "labkit|/opt/lab"),
    _sign("node-reboot", "reboot", r"node reboot required"),
    _sign(
        "snap",
        "snap",
        r"/snap/|snap\.docker|/var/snap|\bsnap (?:install|list|run|docker)\b|docker'?s? snap\b"
        r"|\b(?:via|by|from|with|using|as a) snap\b",
    ),
    _sign("snap-docker", "snap", r"/snap/(?:bin/)?docker|snap\.docker|/var/snap/docker"),
    # In WSL, a docker that is no service there is Docker Desktop's.
    _sign(
        "desktop",
        "desktop unrecognized",
        r"docker[ -]desktop|desktop-linux|docker: unrecognized service",
        "docker desktop|docker-desktop|desktop-linux|unrecognized service",
    ),
    _sign("docker-exec", "exec", r"\bdocker(?:[ -]compose)? exec\b", " exec"),
    # A library of a driver for Linux, which WSL has not.
    _sign(
        "linux-libcuda",
        "compute libcuda",
        r"libnvidia-compute-\d{3}\S{0,12}\s{1,40}install\b|^ii {1,4}libnvidia-compute-\d{3}"
        r"|/lib/x86_64-linux-gnu/libcuda\.so",
        "libnvidia-compute|linux-gnu/libcuda",
    ),
    # nvidia-smi's table: its driver answers.
    _sign(
        "smi-works",
        "smi",
        r"nvidia-smi \d{3}\.[\d.]{2,6} +driver version: \d{3}\.[\d.]{2,6} +cuda version: \d",
        "driver version",
    ),
    _sign(
        "desktop-context",
        "desktop",
        r"desktop-linux ?\*|context:? {1,4}(?:is now )?\W?desktop-linux"
        r"|\.docker/desktop/docker\.sock: ",
    ),
    _sign(
        "container",
        "runc crun oci docker dockerenv containerd podman kubelet pod root@",
        # The prompt of a container's shell has its number.
        r"\boci runtime|docker[- :]|/\.dockerenv|containerd|podman|kubelet|\bpods?\b"
        r"|root@[0-9a-f]{12}:",
    ),
    _sign("gpus-option", "gpus gpu nvidia", r"--gpus\b|nvidia\.com/gpu|runtime[= ]nvidia"),
    _sign("fresh", "run", r"\b(?:docker|podman|nerdctl)(?: container)? run\b"),
    _sign(
        "k8s",
        "kubelet kubectl kubernetes k8s microk8s pod pods kuberay openshift daemonset operator"
        " kubepods oomkilled crashloopbackoff imagepullbackoff laststate qos",
        # A source of packages for Kubernetes says nothing about this machine.
        r"kubelet|kubectl|(?<!apt\.)kubernetes(?!-xenial)|(?<!pkgs\.)\b(?:micro)?k8s\b|\bpods?\b"
        r"|kuberay|openshift|\b(?:gpu|network)-operator\b|-daemonset\b|\bkubepods\b"
        # A pod's state as kubectl shows it.
        r"|\breason: +oomkilled|\d/\d +oomkilled|crashloopbackoff|imagepullbackoff|\blaststate:"
        r"|\bqos class:",
        "reason:|oomkilled|loopback|pullback|laststate|qos class"
        "|kubelet|kubectl|kubernetes|k8s|pod|kuberay|openshift|-operator|-daemonset",
    ),
    # The form of a container's log on a node: the container runtimes write it for the kubelet.
    _sign(
        "k8s",
        "stderr stdout",
        r"^\d{4}-\d\d-\d\dt\d\d:\d\d:\d\d\.\d{3,9}(?:z|[+-]\d\d:\d\d) std(?:out|err) [fp] ",
        "z stderr f|z stdout f|z stderr p|z stdout p|0 stderr f|0 stdout f|0 stderr p|0 stdout p",
    ),
    # Parts of many words: these are looked for where the text has them whole.
    _sign("k8s", "aks eks gke ocp", r"\b(?:aks|eks|gke|ocp)\b"),
    _sign("k3s", "k3s k3os rke2", r"\bk3s\b|\bk3os\b|\brke2\b"),
    _sign("rke2", "rke2", r"\brke2\b"),
    _sign("minikube", "minikube", r"\bminikube\b"),
    _sign(
        "kind-cluster",
        "kind kindest",
        r"\bkind (?:create|delete|export|load|get) \w|kindest/node|\bkind-(?:config|control-plane)",
    ),
    _sign("slurm", "slurm srun sbatch slurmstepd", r"\bslurm|\bsrun\b|\bsbatch\b"),
    _sign(
        "conda",
        "conda miniconda3 anaconda3 mamba miniforge3 miniforge mambaforge base",
        r"conda|mamba|miniforge|^\(base\) \S",
        "conda|mamba|miniforge|(base) ",
    ),
    _sign(
        "uv",
        "uv solution registry",
        r"\buv (?:pip|add|sync|run|lock)\b|× no solution found when resolving|@ registry\+https",
        "uv pip|uv add|uv sync|uv run|uv lock|no solution found|registry+",
    ),
    _sign(
        "poetry",
        "poetry pypoetry",
        r"\bpoetry (?:add|install|run|lock|update|source|shell)\b|[\\/]pypoetry[\\/]",
    ),
    # torch came from conda, which pip must not write over.
    _sign(
        "conda-torch",
        "conda mamba pytorch cpuonly",
        r"\b(?:conda|mamba) install [^\n]{0,60}\b(?:pytorch|cpuonly)\b|^pytorch {2,}\d",
        "conda install|mamba install|pytorch  ",
    ),
    _sign("deepspeed", "deepspeed", r"\bdeepspeed\b"),
    _sign("lightning", "lightning", r"(?<![\w-])lightning\b|pytorch[_-]lightning|lightning_fabric"),
    _sign("openwebui", "webui", r"open[-_ ]?webui", "webui"),
    _sign(
        "batch-one",
        "batch",
        r"\bbatch[ _-]?size\b['\"]?(?: is| was| of| to| =|=|:)?(?: already| now| only| even)?"
        r"[ =:]{1,3}1(?!\d|\.\d)",
        "batch size|batch_size|batch-size|batchsize",
    ),
    # Where uv keeps the environment as a project's file says, and where it does not.
    _sign(
        "uv-project",
        "uv registry",
        r"\buv (?:add|sync|lock)\b|\[tool\.uv\b|\buv\.lock\b|@ registry\+https",
        "uv add|uv sync|uv lock|tool.uv|uv.lock|registry+",
    ),
    _sign("uv-run", "uv", r"\buv run (?!--(?:with|no-project|script)\b)", "uv run"),
    _sign("uv-pip", "uv", r"\buv pip\b", "uv pip"),
    # Whoever wrote it cannot change the system.
    _sign(
        "no-root",
        "root sudo sudoers admin administrator",
        r"\b(?:without|no|don'?t have|do not have|haven'?t|lack(?:ing)?) (?:any )?"
        r"(?:root|sudo|admin(?:istrator)?)(?!-)\b"
        r"|\bnot in the sudoers file|\bnot (?:a |an |the )?(?:sudoer|admin)",
        "root|sudo|admin",
    ),
    # Reports of torch and vLLM name ROCm on a machine without it.
    _sign(
        "rocm",
        "rocm rocm5 rocm6 rocm7 rocminfo hip hipcc amdgpu kfd gfx1030 gfx1032 gfx1100 gfx1101"
        " gfx1102 gfx1201 gfx90a gfx942 gfx950 hipblaslt amd instinct mi210 mi250 mi250x mi300x"
        " mi325x mi350x mi355x",
        r"\brocm(?! used to build pytorch: n/a|\w* platform is| is (?:not|none)"
        r"|\w* (?:version)?\W{0,3}(?:n/a|none)\b)|\d\\+rocm|\bhipcc\b"
        r"|amdgpu|/dev/kfd|\bgfx1\d{3}|\bgfx9(?:0a|42|50)\b"
        r"|\bhip\b(?! runtime version: n/a|\W{1,4}(?:is )?none\b|\W{0,3}\bn/a)"
        r"|_hipblas|\bamd (?:linux|instinct)\b|libtorch_hip|\bmi(?:2[15]0x?|3[0-9]{2}x)\b",
        "rocm|hip|amdgpu|/dev/kfd|gfx1|gfx9|amd linux|amd instinct|mi2|mi3",
    ),
    _sign("rdna4", "rx gfx1200 gfx1201", rf"\brx ?90[67]0|{_GFX}120[01]{_ALONE}", "rx |rx9|gfx120"),
    _sign(
        "rdna3",
        "rx gfx1100 gfx1101 gfx1102 gfx1103 780m 760m 740m",
        rf"\brx ?7[6-9]\d0|{_GFX}110[0-3]{_ALONE}|\b7[468]0m\b",
        "rx |rx7|gfx110|0m",
    ),
    _sign(
        "rdna2",
        "rx gfx1030 gfx1031 gfx1032 gfx1034 gfx1035 gfx1036 680m 660m",
        rf"\brx ?6[3-9]\d0|{_GFX}103\d{_ALONE}|\b6[68]0m\b",
        "rx |rx6|gfx103|0m",
    ),
    _sign(
        "rdna1",
        "rx gfx1010 gfx1011 gfx1012 5700xt 5600xt",
        rf"\brx ?5[3-7]00|{_GFX}101[0-2]{_ALONE}|radeon ?5[67]00 ?xt\b",
        "rx |rx5|gfx101|radeon ",
    ),
    # Cards that no build of torch for ROCm of today has code for.
    _sign(
        "gcn",
        "rx wx vega gfx803 gfx900 gfx902 r9",
        rf"\brx ?(?:4[678]0|5[5-9]0)\b|{_GFX}(?:80[123]|90[02])\b{_ALONE}|\bwx ?[2-9]100"
        r"|\bvega ?(?:3|8|11|56|64)\b",
        "rx |rx4|rx5|gfx80|gfx90|wx|vega",
    ),
    _sign("strix", "gfx1151 strix 8060s", rf"{_GFX}1151{_ALONE}|strix halo|8060s"),
    _sign(
        "mig",
        "mig",
        r"\bmig[- ](?:\dg|mode|[0-9a-f]{8}-)|\bmig (?:is )?enabled|\bmig instance|with mig\b",
    ),
    _sign("torch-prerelease", "nvcr 0a0", r"nvcr\.io/nvidia/pytorch|\d\.\d\.0a0\b"),
    _sign(
        "nixos",
        "nixos nix nixpkgs hardware :~]$",
        # Only its prompt has a colon in brackets.
        r"nixos|/nix/store|nixpkgs version"
        r"|(?<![\w./])hardware\.nvidia(?:-container-toolkit)?\.\w+ ?="
        r"|^\[[\w.-]{1,40}@[\w.-]{1,60}:~[\w./-]*\][#$]",
        "nixos|/nix/store|nixpkgs|hardware.nvidia|:~",
    ),
    # Alpine's C library, for which few wheels and none of NVIDIA's programs are made.
    # An image that somebody runs beside it (docker run alpine) says nothing of the system.
    _sign(
        "musl",
        "musl alpine apk",
        r"\bmusl|\bapk add\b"
        r"|(?:^|[\]:>] ?)from (?:[\w./-]{1,60}[:/])?[\w.-]{0,20}alpine|\balpine linux\b"
        r"|\balpine(?: v|-release:? ?| )3\.\d|\bid=\W?alpine\b|@alpine[\w-]*:"
        r"|\bpython:[\w.]{0,12}-?alpine|\b(?:on|under|uses?|using) alpine\b(?!:)",
        "musl|alpine|apk add",
    ),
    _sign(
        "egpu",
        "egpu thunderbolt oculink usb4",
        r"\begpu\b|oculink|\busb4\b|thunderbolt (?:\d\b|egpu)",
    ),
    # A computer whose card, slot and power supply nobody can change.
    _sign(
        "laptop",
        "laptop max mobile i5 i7 i9 ryzen core ultra thinkpad zephyrus",
        r"\blaptop(?: gpu\b|\b(?!-\w{5,8}:))|\b(?:rtx|gtx) ?\d{4}\w? (?:with )?max-q\b"
        r"|\brtx a?\d{4} mobile\b"
        r"|\bi[3579]-\d{4,5}(?:h|hq|hk|hx|u|p|g\d)\b|\bcore ultra \d \d{3}(?:h|hx|u|v)\b"
        r"|\bryzen \d \d{4}(?:h|hs|hx|u)\b|\bthinkpad\b|\bzephyrus\b",
        "laptop|max-q|mobile|i3-|i5-|i7-|i9-|core ultra|ryzen |thinkpad|zephyrus",
    ),
    # The driver is built in a container, not by the distribution's packages.
    _sign(
        "driver-container",
        "driver operator",
        r"\bdriver_version=\d{3}|\bdriver-daemonset\b|\bgpu-driver-container\b|\bgpu[- ]operator\b"
        r"|\bnvidia-driver-ctr\b",
        "driver_version=|driver-daemonset|driver-container|driver-ctr|gpu-operator|gpu operator",
    ),
    _sign(
        "diffusers",
        "diffusers text dreambooth controlnet unet",
        r"\bdiffusers\b|\btrain_(?:text_to_image|dreambooth|controlnet|unconditional)",
        "diffusers|train_text_to|train_dreambooth|train_controlnet|train_unconditional",
    ),
    _sign(
        "vm",
        # A GPU on the first bus is a virtual machine's.
        "qemu libvirt ovmf vm vmware hypervisor harvester guest nvrm virtio",
        r"\bqemu\b|libvirt|\bovmf\b|\bharvester\b|in the guest\b|gpu 0000:00:[01]"
        r"|\b(?:lxd|incus|kvm|proxmox|kubevirt) vm\b|vmware|hypervisor detected"
        r"|red hat, inc\. virtio",
        "qemu|libvirt|ovmf|vm|hypervisor|harvester|guest|gpu 0000:00:|inc. virtio",
    ),
    _sign("cpu-manager", "cpu cpumanagerpolicy", r"cpu-?manager-?policy\W{1,4}static"),
    _sign(
        "intel-gpu",
        "i915 openvino arc cldnn xpu",
        r"\bi915\b|openvino|cldnn|\barc [ab]\d{3}|\d\+xpu\b|\btorch\.xpu\b",
        "i915|openvino|cldnn|arc a|arc b|+xpu|torch.xpu",
    ),
    _sign(
        "void",
        "void xbps kernel dkms",
        # Void names a kernel by its package: 6.18.10_1.
        r"\bxbps-|\bvoid ?linux|(?:kernel[- ]|\bvoid )\d\.\d{1,2}\.\d{1,3}_\d\b",
        "xbps-|void|kernel-|kernel ",
    ),
    _sign("appliance", "truenas unraid", r"\btruenas\b|\bunraid\b"),
    _sign("apptainer", "apptainer singularity", r"\b(?:apptainer|singularity)\b"),
    _sign("microk8s", "microk8s", r"microk8s"),
    _sign("k0s", "k0s", r"\bk0s\b"),
    _sign("kubevirt", "kubevirt vfio", r"kubevirt|vfio-pci"),
    _sign("gke", "gke cos", r"\bgke\b|container-optimized|\bcos_containerd"),
    _sign("gke-cos", "cos gke", r"\bcos[ -]?\d{3}\b|container-optimized|\bcos_containerd", "cos"),
    # The container had its GPU and lost it while it ran.
    _sign(
        "worked-before",
        "hours days minutes while same sudden suddenly randomly random",
        r"\bfor (?:some|a few|several|\d+) (?:hours|days|minutes)|\b(?:after|for) a while\b"
        r"|\bafter (?:about |around )?(?:some|a few|several|\d+) (?:hours?|days?|minutes)"
        r"|same (?:running )?container|\bsudden(?:ly)?\b|\brandom(?:ly)? (?:los|stop|fail|disa)",
        " hour| days| minutes|a while|same container|same running|sudden|random",
    ),
    _sign(
        "image-based",
        "bazzite bluefin silverblue kinoite aurora ostree bootc",
        r"bazzite|bluefin|silverblue|kinoite|\baurora\b|rpm-ostree|\bbootc\b",
        "bazzite|bluefin|silverblue|kinoite|aurora|ostree|bootc",
    ),
    _sign("azure", "azure aks", r"\bazure\b|\baks-|-azure\b"),
    _sign("radeon", "radeon", r"radeon (?:rx|pro|\(tm\)|graphics|vii|ai)"),
    _sign("talos", "talos", r"-talos\b|\btalos\b"),
    _sign("bumblebee", "bumblebee optirun bumblebeed", r"bumblebee|optirun"),
    _sign("adapter-transformers", "adapter", r"adapter-transformers", "adapter-t"),
    _sign(
        "no-nvidia-instance",
        "inf1 inf2 trn1 trn1n trn2",
        r"\b(?:inf[12]|trn[12]n?)\.\d{0,2}xlarge",
        "inf1.|inf2.|trn1|trn2",
    ),
    # Instances of clouds whose GPU is older than Turing (K80, M60, P100, V100).
    _sign(
        "old-instance",
        "p2. p3. p3dn. g3. g3s. _nc6s_v2 _nc6s_v3",
        r"\b(?:p2|p3(?:dn)?|g3s?)\.\d{0,2}xlarge|standard_nc\d{1,2}r?s_v[23]\b",
        "xlarge|_nc",
    ),
    _sign("standard-ami", "-x86_64-standard-", r"amazon-eks-node-al2023-(?:x86_64|arm64)-standard"),
    _sign(
        "image-build",
        "run e w #",
        r"#\d{1,3} \[[^\]\n]{0,30}\d/\d{1,3}\] run"
        r"|=> (?:error |cached )?\[[^\]\n]{0,30}\d/\d{1,3}\] run"
        r"|\bstep \d{1,3}/\d{1,3} ?: run|^#\d{1,3} (?:\d{1,4}\.\d{1,4} )?[ew]: "
        # BuildKit puts the step and the seconds before each line of it.
        r"|^#\d{1,3} \d{1,4}\.\d{1,4} \S",
        "] run|: run| e: | w: |#",
    ),
    # By its word, or the name of a profile: A40-8Q, GRID A100D-10C.
    _sign(
        "vgpu",
        "grid vgpu nvidia tesla",
        r"\bvgpu\b|\bgrid [a-z]?\d|\b(?:nvidia|tesla) [\w-]{2,16}-\d{1,3}[abcq]\b",
        "vgpu|grid |nvidia |tesla ",
    ),
    _sign(
        "selinux",
        "selinux avc fedora bluefin silverblue bazzite rhel rocky",
        r"selinux|avc: +denied|fedora|bluefin|silverblue|bazzite|\brhel\b|\brocky\b",
    ),
    _sign("devices-allowed", "container", r"container_use_devices (?:is|-->|=) ?(?:on|1)\b"),
    _sign("daemon-reload", "daemon", r"\bdaemon-reload|\bdaemon-reexec"),
    _sign("iptables-nft", "nf", r"iptables v[\d.]{3,8} \(nf_tables\)", "iptables v"),
    _sign("secure-boot-on", "secureboot secure", r"secureboot enabled|efi secure boot;"),
    _sign(
        "suspend",
        "suspend suspends suspended resume resumed hibernate hibernation sleep standby",
        r"after (?:a )?(?:suspend|resum|hibernat)\w*"
        r"|after (?:[a-z]{1,12} ){0,3}sleep(?:ing)?\b(?![(_.]| \d)"
        r"|suspended and|pm: suspend (?:entry|exit)|(?:system|machine|laptop|computer) suspends"
        r"|starting (?:nvidia )?system suspend|system will suspend now"
        r"|resum\w+ from (?:suspend|sleep|hibernat)|suspend[/ -](?:and )?resume|was suspended"
        r"|\bw[ao]k\w{1,4} (?:(?:my|the|this|a) \w{2,8} )?(?:up )?(?:from|after) "
        r"(?:suspend|sleep|standby)"
        r"|suspend(?:ed)? (?:my|the) \w{2,8}",
    ),
    # One user of a machine has the GPU, another has not.
    _sign(
        "user-matters",
        "user users root sudo getent account accounts groups",
        r"\b(?:other|another|second|different|2|two) (?:user|account)s?\b|\buser accounts\b"
        r"|\bgetent group\b|\bonly (?:as|with|under) (?:root|sudo)\b"
        r"|\b(?:as|with|under) (?:root|sudo)[, ]{1,2}(?:it )?(?:works|is true|returns true)",
        "user|account|getent|root|sudo",
    ),
    _sign(
        "hf-files",
        "datasets huggingface",
        r"[\\/]site-packages[\\/](?:datasets|huggingface_hub)[\\/]",
        "datasets|huggingface_hub",
    ),
    _sign(
        "remote-code",
        "trust",
        r"\btrust_remote_code\W{1,3}true\b",
        "trust_remote_code",
    ),
    _sign("triton-cache", "triton inductor torchinductor", r"\.triton/|/triton[_-]|torchinductor_"),
    _sign("vllm-image", "openai", r"\bvllm/vllm-openai\b", "vllm-openai"),
    _sign(
        "lightning-run",
        "gpu tpu lightning",
        r"^gpu available: true|\btpu available: false|\blightning[./\\]pytorch\b",
        "gpu available|tpu available|lightning",
    ),
    _sign(
        "with-volumes",
        "volumes volume compose mount",
        r"^ *volumes:\s|\b(?:bind|volume)[ -]?mount|\b(?:docker-)?compose\.\S{0,20}\bya?ml\b",
        "volume|bind|compose",
    ),
    # What a person or nvcc says of the machine's CUDA toolkit.
    _sign(
        "says-cuda-11",
        "cuda cu118 cu117 cu11 torch",
        r"\bcuda(?: version| toolkit)?[ =:v-]{0,3}11(?:\.\d)?\b|\+cu11\d\b|cuda_11\.\d"
        # What torch 1 and 2.0 were built for.
        r"|\bcudnn for cuda 11\b|\btorch(?:==|[ :=v]{1,3})(?:1\.\d{1,2}|2\.0)\.\d\b",
        "cuda|+cu11|torch==|torch 1|torch 2|torch v|torch:",
    ),
    _sign(
        "toolkit-there",
        "container cli ctk",
        # Its runtime in the engine's own settings; a person who says that it is installed.
        r"\bcontainer[ -]toolkit (?:is )?(?:already )?installed\b"
        r"|nvidia-container-(?:cli|toolkit) (?:v?\d\.|is already)|cli-version: \d|ctk version"
        r"|\"path\": ?\"\S{0,20}nvidia-container-runtime"
        r"|^(?:\W{0,3}sudo )?nvidia-ctk (?:runtime|cdi) ",
        "nvidia-ctk |nvidia-container-cli|nvidia-container-toolkit|nvidia-container-runtime"
        "|cli-version|ctk version|container toolkit|container-toolkit",
    ),
    # Inside pip's, uv's or poetry's build of a package, which sees none of the installed ones.
    _sign(
        "package-build",
        "egg_info metadata requirements subprocess build backend hooks",
        r"egg_info|getting requirements to build|preparing metadata|metadata-generation-failed"
        r"|prepare_metadata_for_build|build_meta|get_requires_for_build|build backend",
        "egg_info|requirements to build|preparing metadata|metadata-gen|_for_build|build_meta"
        "|build backend",
    ),
    # The source of the package lies in the folder where the command runs.
    _sign(
        "local-source",
        "setup install",
        r"setup\.py (?:install|build|develop|bdist)|pip3? install (?:\S{1,60} ){0,8}\.(?:/|\s|$)"
        r"|file \"(?!\S{0,30}(?:pip-|/tmp/|\\temp\\))[^\"\n]{1,60}[\\/]setup\.py\"",
        "setup.py|pip install|pip3 install",
    ),
    # Docker's daemon.json, which names the runtime.
    _sign(
        "runtime-named",
        "container",
        r"\"path\": ?\"\S{0,20}nvidia-container-runtime\"",
        "nvidia-container-runtime",
    ),
    # The listing of the folder with the specification.
    _sign(
        "cdi-in-run", "cdi", r"/run/cdi/?\s{1,4}nvidia[\w.-]{0,40}\.(?:json|ya?ml)\b", "/run/cdi"
    ),
    # Packages of one library for several CUDAs, in a list of what is installed.
    _sign("nccl-cu11", "nccl", r"\bnvidia-nccl-cu11\b", "nvidia-nccl-cu11"),
    _sign("nccl-cu12", "nccl", r"\bnvidia-nccl-cu12\b", "nvidia-nccl-cu12"),
    _sign("nccl-cu13", "nccl", r"\bnvidia-nccl-cu13\b", "nvidia-nccl-cu13"),
    _sign("cudnn-cu12", "cudnn", r"\bnvidia-cudnn-cu12\b", "nvidia-cudnn-cu12"),
    _sign("cudnn-cu13", "cudnn", r"\bnvidia-cudnn-cu13\b", "nvidia-cudnn-cu13"),
    _sign(
        "cmake-build",
        "cmake",
        r"\bcmake (?:-b\b|--build\b|\.\.(?:\s|$))",
        "cmake -b|cmake --build|cmake ..",
    ),
    _sign(
        "one-hot",
        "one_hot hot",
        r"\bone_hot\((?:[\w.]{0,20}_)?(?:masks?|labels?|targets?|gt)\b",
        "one_hot(",
    ),
    # The person says that the disk has room.
    _sign(
        "room-left",
        "available free left enough plenty",
        r"(?<!only )\b[1-9]\d* ?[gt]i?b\b(?: of)?(?: disk)?(?: space)?(?: is| are)?(?: still)?"
        r" (?:available|free|left)\b|(?<!not )\b(?:enough|plenty of) (?:free |disk ){0,2}space\b",
        "available|free|left|enough |plenty of ",
    ),
    _sign(
        "no-input-grad",
        "inputs",
        r"none of the inputs have requires_grad=true",
        "none of the inputs have",
    ),
    _sign("hyper-v", "hyper hyperv dxgkrnl", r"\bhyper-?v\b|dxgkrnl-dkms", "hyper|dxgkrnl-d"),
    # A card in Windows' driver model for computing alone.
    _sign(
        "tcc",
        "tcc center centre datacenter",
        r"\btcc +\||\b(?:tcc|data ?cent(?:er|re))(?: driver)? mode\b",
        "tcc|data cent|datacent",
    ),
    _sign("llama-python", "cpp llama", r"llama[-_]cpp[-_]python|site-packages[\\/]llama_cpp"),
    _sign("llamacpp", "ggml llama cpp gguf cu", r"\bggml[_.-]|llama[._]cpp|llama-(?:cli|server)"),
    _sign("jax", "jax jaxlib xla", r"\bjax(?:lib)?\b|\bxla"),
    _sign("sglang", "sglang mem", r"sglang|--mem-fraction-static", "sglang|--mem-fraction"),
    _sign("torchcodec", "torchcodec libtorchcodec", r"libtorchcodec"),
    _sign(
        "paddle",
        "paddle paddleocr paddlepaddle paddlex",
        r"paddle(?:ocr|paddle|x)?[\\/]|paddlepaddle|paddle::",
        "paddle",
    ),
    # The trainer of LoRA behind kohya_ss and others.
    _sign("sd-scripts", "scripts", r"sd[-_]scripts[\\/]", "scripts"),
    _sign(
        "in-evaluation",
        "evaluate loop step",
        r"\bin (?:evaluate|evaluation_loop|prediction_step|_maybe_log_save_evaluate)$",
        "in evaluat|in prediction|save_evaluate",
    ),
    _sign(
        "distributed",
        "torchrun elastic rank nccl ddp distributeddataparallel",
        r"torchrun|elastic|local_rank|\bnccl\b|\bddp\b|distributeddataparallel",
    ),
    _sign(
        "several-gpus",
        "parallel tp world_size gpu gpus rank rank1 nproc visible 2x 3090s 4090s 5090s",
        r"\b(?:tensor|pipeline)[-_]parallel[-_]size['\"]?[ =:]{1,2}[2-9]"
        r"|--?tp(?:[-_]size)?[ =][2-9]\b"
        r"|\bworld[-_ ]size\W{1,2}[2-9]|\bgpu 1: |nproc[-_]per[-_]node[= ][2-9]"
        r"|\b(?:two|2|2x|both|several|multiple|dual) (?:\w{1,10} ){0,3}gpus\b|\brank ?=? ?1\b"
        r"|visible_devices\W{1,3}0, ?1|\b2 ?x (?:nvidia |geforce )?rtx|\[rank1\]",
        "parallel_size|parallel-size|-tp|world_size|world size|world-size|gpu 1|nproc|gpus|rank"
        "|visible_devices|2x |2 x",
    ),
    _sign("tabpfn", "tabpfn tabpfnclassifier tabpfnregressor", r"\btabpfn"),
    # More tokens than the model has positions, by a warning, or the line that looks them up.
    _sign(
        "past-positions",
        "sequence predefined wpe position position_embeddings embed_positions positions",
        r"longer than the specified maximum sequence length"
        r"|exceed the model'?s predefined maximum length|\.wpe\(|\bembed_positions\("
        r"|\bposition(?:al)?_embeddings?\(pos"
        r"|\blonger than (?:the )?\d{3,5} (?:positions|tokens)\b",
        "specified maximum|predefined maximum|.wpe(|embed_positions(|embedding(pos|embeddings(pos"
        "|longer than ",
    ),
    # What the command line of torchrun sets.
    _sign("standalone", "standalone", r"torchrun[^\n]{0,50}\s--standalone\b", "--standalone"),
    _sign(
        "fixed-rank",
        "nproc",
        r"nproc[_-]per[_-]node[^\n]{1,40}\.py[^\n]{0,40}\s--local[_-]rank[= ]\d",
        "--local_rank|--local-rank",
    ),
    # What starts the processes of a training, or has its own options in place of a command line.
    # Before Lightning 1.8.
    _sign(
        "lightning-old",
        "lightning",
        r"pytorch_lightning[\\/](?:accelerators[\\/](?:gpu|accelerator)|plugins[\\/]training_type)"
        r"|lightning(?:==| |-)1\.[0-7]\.",
        "lightning",
    ),
    _sign(
        "accelerate-launch",
        "accelerate process",
        r"\baccelerate launch\b|accelerate[\\/]commands[\\/]launch|\blocal process index: \d",
        "accelerate|local process index",
    ),
    _sign(
        "deepspeed-launch",
        "deepspeed",
        r"deepspeed[\\/]launcher|\bdeepspeed --|^[^\n]{0,40}[$#] deepspeed \S|\[launch\.py:\d",
        "deepspeed",
    ),
    _sign(
        "several-machines",
        "nnodes init_method nodes machines servers rank node_rank",
        r"--nnodes[= ](?!1\b|1:1)\S|\binit_method\W{1,4}tcp://(?!127\.|localhost|0\.0)"
        r"|\b(?:two|several|multiple|both|2|4|8) (?:remote |gpu )?(?:nodes|machines|servers)\b"
        r"|\b(?:node|machine)[_-]rank[= ][1-9]",
        "--nnodes|init_method|nodes|machines|servers|node_rank|node-rank|machine_rank",
    ),
    # Slurm's srun starts each process itself, unless it starts one torchrun on each node.
    _sign(
        "srun",
        "srun slurm_procid slurm_localid slurm_ntasks procid localid ntasks",
        r"\bsrun: (?:error|job|warning|launch|step|terminating|force)"
        r"|\bsrun (?:\S{1,60} ){0,12}python|\bslurm_(?:procid|localid|ntasks)\b",
        "srun: |srun |slurm_procid|slurm_localid|slurm_ntasks",
    ),
    _sign(
        "torchrun",
        "torchrun elastic launch run",
        r"\btorchrun\b|torch[./]distributed[./](?:run|launch|elastic)\b",
        "torchrun|distributed.run|distributed/run|distributed.launch|distributed/launch"
        "|distributed.elastic|distributed/elastic",
    ),
    _sign("tune-run", "torchtune tune", r"\btune run\b|torchtune", "tune"),
    _sign(
        "torch-2-6",
        "torch cu124 cu126",
        r"\btorch(?:==|: | {1,30})2\.6\.0|\b2\.6\.0\+cu",
        "torch|2.6.0+cu",
    ),
    _sign("yolo", "yolov5 yolov7 yolov8 ultralytics yolo", r"\byolov\d|ultralytics", "yolo|ultra"),
    _sign("micromamba", "micromamba", r"\bmicromamba\b"),
    _sign("git-clone", "clone", r"\bgit clone\b", "git clone"),
    # The engine is made in Python, not by the command line of a server.
    _sign(
        "vllm-python",
        "llm engine ipython",
        r"entrypoints[\\/]llm\.py|\bllm\(model=|from vllm import|engine_class\.py"
        r"|\basyncengineargs\(|\basync_?llm_?engine\.from_engine_args\(",
        "entrypoints|llm(|import llm|vllm import|engine_class|engineargs|from_engine",
    ),
    _sign("vllm", "vllm", r"vllm"),
    _sign("unsloth", "unsloth", r"unsloth"),
    _sign(
        "comfyui",
        "comfyui comfy node prompt",
        r"comfyui|\*\*node type:|custom_nodes[\\/]|^prompt executed in \d",
        "comfyui|node type:|custom_nodes|prompt executed in",
    ),
    _sign("malloc-async", "cudamallocasync", r": cudamallocasync"),
    _sign("cpu-offload", "offload", r"enable_(?:model|sequential)_cpu_offload", "cpu_offload"),
    # Programs for NVIDIA that run on AMD cards under Windows.
    _sign(
        "amd-windows",
        "directml zluda amdgpu privateuseone",
        r"directml|zluda|stable-diffusion-webui-amdgpu|privateuseone",
        "directml|zluda|webui-amdgpu|privateuseone",
    ),
    _sign("onnxruntime", "onnxruntime", r"onnxruntime"),
    _sign("ollama", "ollama llama", r"ollama|llama runner process", "ollama|llama runner"),
    _sign(
        "forge",
        "webui forge sdforge",
        r"webui_forge|modules_forge|forge[\\/]webui|webui-forge|sdforge",
    ),
)
VALUES = (
    _sign(
        "capability",
        "capability gpu",
        r"(?:capability[: ]+(?:sm_)?|--gpu-name[= ]sm_)(\d{1,2}\.?\d)\b",
        "capability|--gpu-name",
    ),
    _sign(
        "driver",
        "driver drivers dkms nvrm module modules",
        r"(?:driver version[:=]? +|nvidia/|kernel module version +|nvidia-dkms[- ]|-m nvidia -v "
        r"|kernel modules version:?\s{1,4}|the (?=\S+ nvidia driver)"
        r"|(?:[(,;*|] {0,2}|\n {0,8}|\b(?:nvidia|gpu|with|on|my|current|have|using|installed) )"
        r"drivers?:? {1,4}v?)"
        r"(\d{3}\.\d+(?:\.\d+)?)(?! (?:or|and|is) (?:newer|later|above|higher|required|needed))",
        "driver version|nvidia/|kernel module version|nvidia-dkms|nvidia driver|-m nvidia -v"
        "|kernel modules version|driver 4|driver 5|driver 6|driver: |drivers 4|drivers 5|drivers 6",
    ),
    _sign(
        "device",
        "10de device",
        r"(?:pci id: 10de:|nvidia corporation device (?:\[10de:)?)([0-9a-f]{4})\b",
        "pci id|corporation device",
    ),
    _sign(
        "torch",
        "cu92 cu100 cu101 cu102 cu110 cu111 cu113 cu115 cu116 cu117 cu118 cu121 cu124 cu126 cu128"
        " cu129 cu130 cu132 cpu",
        # xformers names the torch that it was built with first.
        r"\d\+(cu\d{2,3}|cpu)\b(?! with cuda)",
        "+cu|+cpu",
    ),
    _sign(
        "index",
        "whl",
        r"pytorch\.org/whl/(?:nightly/)?(cu\d{3}|cpu|rocm[\d.]+|xpu)\b",
        "pytorch.org/whl/",
    ),
    # Of torch's build for ROCm, or its index.
    _sign("rocm", "rocm6 rocm7 rocm5", r"(?:\+|whl/)rocm([567]\.\d)", "+rocm|whl/rocm"),
    _sign(
        "release",
        "torch cu118 cu121 cu124 cu126 cu128 cu129 cu130 cu132 cpu",
        r"(?:(?<=collecting torch==)|\b(?=2\.\d{1,2}\.\d\+c(?:pu|u\d{3})\b(?! with cuda)))"
        r"(2\.\d{1,2}\.\d)\b",
        "+cu|+cpu|collecting torch==",
    ),
    # How many positions a model has, and tokens a text.
    _sign(
        "positions",
        "positions position maximum block model",
        r"(?:\bn_positions|\bmax_position_embeddings|\bblock_size|\bmodel_max_length"
        r"|for this model \(\d{2,6} >|predefined maximum length \()\W{0,5}(\d{2,6})\b",
        "n_positions|max_position|block_size|max_length|for this model|predefined maximum",
    ),
    _sign(
        "length",
        "size model tokens",
        r"(?:\btorch\.size\(\[\d{1,4}, |\bfor this model \(|\b(?:has|have|of) )(\d{3,6})"
        r"(?=\]| >| tokens)",
        "torch.size(|for this model| tokens",
    ),
    # What torch advises with an error of its own; its warning about the old name also names the new
    # one, which torch 2.9 does not read yet.
    _sign(
        "allocator",
        "alloc",
        r"(?:setting|management and) (pytorch_(?:cuda_|hip_)?alloc_conf)\b",
        "alloc_conf",
    ),
    # The command of conda that failed, to run it once more with a setting before it.
    _sign(
        "condacommand",
        "conda mamba micromamba",
        r"\b((?:micromamba|mamba|conda)(?: env)? (?:install|create|update)"
        r" (?=[^\n]*(?:torch|cuda|gpu|jax|tensorflow|\.ya?ml))"
        r"[\w .=*<>\"'/:+-]{1,50}[\w*\"'])(?=\n)",
        "conda |mamba ",
    ),
    _sign(
        "nvcc",
        "compilation",
        r"cuda compilation tools, release (\d{1,2}\.\d)",
        "compilation tools",
    ),
    _sign(
        "nccl",
        "nccl",
        r"\bnvidia-nccl-cu12(?:==| {1,30})(2\.[\d.]{3,8}\d)",
        "nvidia-nccl-cu12",
    ),
    _sign(
        "newnccl",
        "nccl",
        r"\bnvidia-nccl-cu13(?:==| {1,30})(2\.[\d.]{3,8}\d)",
        "nvidia-nccl-cu13",
    ),
    # The script with which a program installs and starts itself: it calls pip.
    _sign(
        "starter",
        "start install webui setup launch",
        r"\b(?<![a-z]/)((?:start|install|setup|webui|launch)[\w-]{0,20}\.sh)\b",
        ".sh",
    ),
    _sign(
        "jaxcuda",
        "jax xla_cuda12 xla_cuda13 cuda12 cuda13",
        r"(?:jax\[|xla_|jax-)(cuda1[23])\b",
        "jax[cuda|xla_cuda|jax-cuda",
    ),
    _sign(
        "kernel",
        "kernel linux",
        r"\b(\d\.\d{1,2}\.\d{1,3}-[\w.-]{2,40})",
        "kernel|linux|modules/|vmlinuz|-generic|-amd64",
    ),
    _sign(
        "toolkit",
        "container container1 toolkit cli",
        r"(?:nvidia-container-(?:toolkit|cli)|libnvidia-container\w*|toolkit|cli-version)"
        r"(?:[ =:(v-]{1,3}|[^\n]{0,50} to (?:version )?v?)(1\.\d{1,2}\.\d{1,2})\b",
        "toolkit|nvidia-container|cli-version",
    ),
)
# The names of distributions in a line that names the host's: of os-release, docker info, neofetch,
# a release file, or a prompt.
_NAMES = {
    "arch": "arch linux|manjaro|endeavouros|cachyos",
    "suse": "opensuse|suse linux|sles",
    "fedora": "fedora",
    "rhel": "rocky|almalinux|red hat|centos|oracle linux|amazon linux",
    "ubuntu": "ubuntu|linux mint|pop!_os|zorin",
    "debian": "debian",
    "alpine": "alpine",
}

# How the names begin that these systems give to a machine.
_HOST_NAMES = {
    "arch": "arch|manjaro|endeavouros|cachyos",
    "suse": "opensuse|suse|tumbleweed",
    "fedora": "fedora",
    "rhel": "rocky|alma|centos|rhel|redhat|oraclelinux",
    "ubuntu": "ubuntu|pop-os|mint|linuxmint|zorin",
    "debian": "debian",
    "alpine": "alpine",
}
_ENVIRONMENT = r"^(?:\([\w.-]{1,40}\) )?"


def _name_family(family: str) -> Sign:
    names, hosts = _NAMES[family], _HOST_NAMES[family]
    words = "rocky alma almalinux manjaro endeavouros cachyos opensuse suse sles fedora red centos"
    return _sign(
        family,
        f"{words} oracle amazon arch ubuntu mint pop zorin debian alpine :~"
        f" @{hosts.replace('|', ' @')}",
        r"^[ *>|#-]*(?:pretty_name=\W?|(?:operating system|(?:host )?os(?: name)?|linux"
        r"|(?:linux )?distro|(?:linux )?distribution|description)[ *|]{0,4}[:|][ *|]{1,4})"
        rf"(?:{names})\b|^(?:{names})(?: enterprise)?(?: linux)? release \d"
        rf"|{_ENVIRONMENT}\[[\w.-]+@(?:{hosts})[\w-]* [^\]]+\][#$]"
        rf"|{_ENVIRONMENT}[\w.-]{{1,40}}@(?:{hosts})[\w-]*:[~/][^\s$#>]*[#$>](?: |$)"
        # openSUSE's prompt ends as no other one.
        + (r"|^[\w.-]{1,40}@[\w.-]{1,60}:~[\w./-]*> " if family == "suse" else ""),
        "|".join([names, *(f"@{each}" for each in hosts.split("|"))])
        + ("|:~" if family == "suse" else ""),
    )


# By the family of distributions: only what the host itself writes, never an image's name.
FAMILIES = (
    *map(_name_family, _NAMES),
    _sign(
        "arch",
        "pacman archlinux arch1 arch arch2 zen cachyos hardened lts manjaro",
        r"\bpacman\b|archlinux|\blinux-(?:cachyos|zen|hardened)\b|-arch\d"
        r"|-zen\d-\d{1,2}-zen|-\d{1,2}-cachyos|\d-[1-9]-lts\b"
        r"|-manjaro\b",
        "pacman|archlinux|linux-|-arch|-zen|-cachyos|-lts|-manjaro",
    ),
    _sign(
        "suse",
        "zypper opensuse default provider",
        r"\bzypper\b|\bno provider of '|opensuse|-\d{6}\.\d{1,3}(?:\.\d{1,3})?-default"
        r"|\d-\d{1,2}-default\b",
        "zypper|no provider of|opensuse|-default",
    ),
    _sign(
        "fedora",
        ".fc4 .fc3 akmods akmod rpmfusion",
        r"\.fc\d\d\b|akmods|\binstall akmod-nvidia|rpmfusion",
        ".fc|akmods|install akmod|rpmfusion",
    ),
    _sign(
        "rhel",
        ".el6 .el7 .el8 .el9 .el10 amzn2023 ec2",
        # Amazon Linux names its user so.
        r"\.el\d|\.amzn2023|\bec2-user@",
        ".el|.amzn|ec2-user@",
    ),
    _sign(
        "ubuntu",
        "generic azure aws ubuntu lowlatency gcp oracle nvidia ubuntu1 ubuntu0 0ubuntu1 0ubuntu0",
        r"\d-(?:generic|azure|aws|gcp|oracle|lowlatency|nvidia)\b(?!\.)|repos/ubuntu|\dubuntu\d"
        r"|\d~2[0246]\.04",
        "-generic|-azure|-aws|-gcp|-oracle|-lowlatency|-nvidia|repos/ubuntu|ubuntu|.04",
    ),
    _sign(
        "debian",
        "dpkg apt pve amd64 reading bookworm trixie bullseye unable installation debian",
        r"\bdpkg: |^e: unable to locate package|has no installation candidate"
        r"|\bapt(?:-get)? (?:install|update)|-pve\b|\+deb1\d|\d-(?:cloud-)?amd64\b"
        r"|reading package lists\.|\bdebian (?:bookworm|trixie|bullseye)|\d~debian\.\d\d~",
        "dpkg: |e: unable to locate|no installation candidate|apt install|apt update"
        "|apt-get install|apt-get update|-pve|+deb1|-amd64"
        "|reading package lists|debian |~debian.",
    ),
    _sign("alpine", "apk lts virt", r"\bapk add\b|\d-0-(?:lts|virt)\b", "apk add|-0-lts|-0-virt"),
    # Last, what a person says of the system, but not of an image.
    *(
        _sign(
            family,
            words,
            rf"(?<![:/\w.-])(?:{said})\b(?![\w.-]*(?:'s)? (?:image|container|base|docker|pod))",
        )
        for family, words, said in (
            (
                "ubuntu",
                "ubuntu kubuntu",
                r"k?ubuntu(?: server| desktop)?,? ?(?:1[4-9]|2\d)\.(?:04|10)",
            ),
            ("debian", "debian", r"debian(?: gnu/linux)? ?(?:8|9|1[0-3])"),
            ("fedora", "fedora", r"fedora(?: linux| workstation| server)? ?(?:3[0-9]|4[0-9])"),
            (
                "rhel",
                "centos rocky rockylinux almalinux rhel",
                r"(?:centos|rocky ?linux|rocky|almalinux|rhel)(?: linux| stream)? ?(?:[6789]|10)",
            ),
            ("rhel", "yum", r"yum (?:-y )?(?:install|update|upgrade)"),
            ("suse", "leap tumbleweed", r"(?:leap|tumbleweed)"),
            (
                "arch",
                "arch archlinux endeavouros cachyos manjaro",
                r"(?:arch linux|(?:on|running|using|use) arch|endeavouros|cachyos|manjaro)",
            ),
            ("ubuntu", "mint pop", r"(?:linux mint(?: \d\d)?|pop!?_os \d\d)"),
        )
    ),
)
# Cards are named in capitals: these words decide whether the text is searched for them.
CARD_WORDS = frozenset(
    b"rtx gtx gt tesla quadro grid titan p100 v100 t4 a100 h100 h200 l4 l40s b200 gb10 k80"
    b" k40".split()
)
CARD_PARTS = ("rtx", "gtx", "0ti", "0 ti")
PYTHON_WORDS = (b"packages", b"embeded", b"embedded", b"portable", b"bin", b"scripts")
BUILD_WORDS = (b"subprocess", b"metadata", b"failed", b"successfully")
RANK_WORDS = (b"observed", b"exitcode")
# The rank whose process failed first, as torchrun's summary names it, or its log before.
FIRST_RANK = re.compile(
    r"Root Cause \(first observed failure\):(?:\n[^\n]{0,160}){1,3}?\n[^\n]{0,80}?"
    r"\brank +: (\d{1,5}) \(local_rank"
    r"|failed \(exitcode: -?\d{1,3}\) local_rank: (\d{1,5}) \(pid"
)
VERSION_WORDS = (b"packages", b"python", b"cpython", b"py")
CARD = re.compile(
    r"\b(?:NVIDIA )?(?:GeForce )?(?:(?:(?i:RTX|GTX)|GT|TITAN)(?: PRO)? ?[A-Z]?\d{2,4}"
    r"(?i: ?Ti\b)?(?: SUPER)?"
    r"|(?<![\w./#-])[1-5]0[5-9]0 ?(?i:Ti\b)"
    r"|(?:Tesla|Quadro|GRID)(?: RTX)? [A-Z]?\d{1,4}|[PVAHBLKT]\d{1,3}S?\b(?= |-))"
    r"|\bNVIDIA [PVAHBLKT]\d{1,3}S?\b"
)


def spell_card(name: str) -> str:
    """A card's name as NVIDIA writes it.

    >>> spell_card("rtx5060TI")
    'RTX 5060 Ti'
    >>> spell_card("5070ti")
    'RTX 5070 Ti'
    """
    if name[0].isdigit():
        name = f"{'GTX' if name[0] == '1' else 'RTX'} {name}"
    name = re.sub(r"\b(rtx|gtx) ?(?=\d)", lambda it: f"{it[1].upper()} ", name, flags=re.IGNORECASE)
    return re.sub(r"(?<=\d) ?ti\b", " Ti", name, flags=re.IGNORECASE)


# A sign stands so many characters around its part. So many places of a part are looked at in each
# block: where a frequent part belongs to the sign, one of the first does.
_AROUND = 60
MOST_PLACES = 200


def find_sign(
    sign: Sign, words: Set[bytes], text: str, places: Callable[[str], list[int]]
) -> re.Match[str] | None:
    """The first match near one of the sign's parts, if the text has one of its words."""
    if not any(word.encode() in words for word in sign.words):
        return None
    search = sign.pattern.search
    parts = (part for part, runs in sign.parts if runs <= words)
    for at in sorted(place for part in parts for place in places(part)):
        if found := search(text, max(0, at - _AROUND), at + _AROUND):
            return found
    return None
