"""What a log says about the machine that wrote it: its GPU, driver, system and container.

The same error needs another fix on another machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache

from labkit.host.distribution import Distribution
from labkit.host.gpu import (
    Capability,
    infer_capability,
    infer_capability_of_device,
    name_architecture,
)
from labkit.host.packages import FIRST_BRANCHES, is_dropped
from labkit.host.torch_builds import NEEDS
from labkit.known_errors.commands import STARTERS, LogHost, System
from labkit.known_errors.message import Message
from labkit.known_errors.pythons import (
    ROCM_BUILDS,
    SOURCES,
    find_built_package,
    find_python,
    find_python_version,
    list_places,
)
from labkit.known_errors.signs import (
    BUILD_WORDS,
    CARD,
    CARD_PARTS,
    CARD_WORDS,
    FAMILIES,
    FIRST_RANK,
    MOST_PLACES,
    PYTHON_WORDS,
    RANK_WORDS,
    SIGNS,
    VALUES,
    VERSION_WORDS,
    find_sign,
    spell_card,
)

# Conditions that several others make together, without those of the second set.
_TOGETHER = {
    "wsl-gpus": ({"wsl", "several-gpus"}, set[str]()),
    "wsl-gpus-vllm": ({"wsl", "several-gpus", "vllm"}, set[str]()),
    "desktop-wsl": ({"desktop", "wsl"}, set[str]()),
    "smi-works-exec": ({"smi-works", "docker-exec"}, {"lxc", "wsl"}),
    "wsl-linux-driver": ({"wsl", "linux-libcuda"}, {"container"}),
    "cuda11-driver-wsl": ({"cuda11-driver", "wsl"}, set[str]()),
    "smi-works-outside": ({"smi-works", "docker-there"}, {"lxc", "wsl"}),
    "driver-cuda-build": ({"driver-there", "cuda-build"}, {"rocm", "mac"}),
    "rocm-wsl": ({"rocm", "wsl"}, set[str]()),
    "wsl-itself": ({"wsl"}, {"container"}),
    "legacy-debian": ({"legacy", "debian"}, set[str]()),
    "rocm-k8s": ({"rocm", "k8s"}, set[str]()),
    "rocm-users": ({"rocm", "user-matters"}, set[str]()),
    "lightning-forks": ({"lightning-run", "notebook"}, set[str]()),
    "rocm-vllm": ({"rocm", "vllm"}, {"cuda-build"}),
    "containers-apart": ({"several-machines", "container"}, {"k8s"}),
    "podman-bind": ({"podman", "bind-mount"}, {"k8s"}),
    "lxc-alone": ({"lxc", "lxc-named"}, {"docker-there", "podman", "k8s", "proxmox"}),
    "proxmox-lxc": ({"proxmox", "lxc-named"}, {"docker-there", "podman", "k8s"}),
    "sudo-works": ({"sudo-docker", "cuda-banner"}, set[str]()),
    "srun-alone": ({"srun"}, set(STARTERS)),
    "intel-mac": ({"mac", "x86-64"}, set[str]()),
    "nixos-docker": ({"nixos", "docker-there"}, {"podman"}),
    "jetson-ubuntu": ({"jetson", "ubuntu"}, set[str]()),
    "rebooted-run-file": ({"rebooted", "run-file"}, {"lxc"}),
    "rebooted-debian": ({"rebooted", "debian"}, {"lxc"}),
    "rebooted-ubuntu": ({"rebooted", "ubuntu"}, set[str]()),
    "legacy-notebook": ({"legacy", "hosted-notebook"}, set[str]()),
    "uv-build": ({"uv", "package-build"}, set[str]()),
    "local-conda": ({"local-source", "conda"}, {"on-windows"}),
    "conda-cpu": ({"conda", "cpu-build"}, {"rocm", "mac"}),
    "radeon-windows": ({"radeon", "on-windows"}, {"rocm"}),
    "fresh-no-gpus": ({"fresh", "docker-there"}, {"gpus-option", "torch-cpu"}),
    "driver-no-build": ({"driver-there"}, {"cuda-build", "rocm", "mac"}),
    "nccl-cu13-stays": ({"nccl-cu12", "nccl-cu13"}, {"cuda12-build"}),
    "nccl-cu12-stays": ({"nccl-cu12", "nccl-cu13", "cuda12-build"}, set[str]()),
    "cudnn-cu13-stays": ({"cudnn-cu12", "cudnn-cu13"}, {"cuda12-build"}),
    "cudnn-cu12-stays": ({"cudnn-cu12", "cudnn-cu13", "cuda12-build"}, set[str]()),
    "triton-for-windows": ({"windows", "triton-known"}, set[str]()),
    "windows-no-build": ({"on-windows"}, {"cuda-build", "rocm", "amd-windows"}),
}
# Distributions whose Python has the folder dist-packages.
_DEBIANS = ("debian", "ubuntu")
# Indexes of PyTorch's that get no new release.
OLD_INDEXES = frozenset(f"cu{each}" for each in (102, 110, 111, 113, 115, 116, 117, 118, 121, 124))
# Wheels of the field come late for a Python from this minor version on, and end at an old one.
NEW_PYTHON, OLD_PYTHON = 13, 9
# Which GPU of AMD's generation has code in ROCm's libraries, for the others of it.
# The Triton of each torch.
_TRITONS = {
    "2.4": "3.1",
    "2.5": "3.1",
    "2.6": "3.2",
    "2.7": "3.3",
    "2.8": "3.4",
    "2.9": "3.5",
    "2.10": "3.6",
}
# The torchvision of each torch.
_VISION = {
    "2.0.1": "0.15.2",
    "2.1.0": "0.16.0",
    "2.1.1": "0.16.1",
    "2.1.2": "0.16.2",
    "2.2.0": "0.17.0",
    "2.2.1": "0.17.1",
    "2.2.2": "0.17.2",
    "2.3.0": "0.18.0",
    "2.3.1": "0.18.1",
    "2.4.0": "0.19.0",
    "2.4.1": "0.19.1",
    "2.5.0": "0.20.0",
    "2.5.1": "0.20.1",
    "2.6.0": "0.21.0",
    "2.7.0": "0.22.0",
    "2.7.1": "0.22.1",
    "2.8.0": "0.23.0",
    "2.9.0": "0.24.0",
    "2.9.1": "0.24.1",
}
# The xformers that was built with each torch.
_XFORMERS = {
    "2.1.0": "0.0.22.post7",
    "2.1.1": "0.0.23",
    "2.1.2": "0.0.23.post1",
    "2.2.0": "0.0.24",
    "2.2.1": "0.0.25",
    "2.2.2": "0.0.25.post1",
    "2.3.0": "0.0.26.post1",
    "2.3.1": "0.0.27",
    "2.4.0": "0.0.27.post2",
    "2.4.1": "0.0.28.post1",
    "2.5.0": "0.0.28.post2",
    "2.5.1": "0.0.28.post3",
    "2.6.0": "0.0.29.post3",
    "2.7.0": "0.0.30",
    "2.7.1": "0.0.31.post1",
    "2.8.0": "0.0.32.post2",
    "2.9.0": "0.0.33.post1",
    "2.9.1": "0.0.33.post2",
}
_OVERRIDES = {"rdna3": "11.0.0", "rdna2": "10.3.0", "strix": "11.0.0"}


@cache
def _find_longest_run(part: str) -> str:
    return max(re.findall("[a-z]+", part), key=len, default="")


@dataclass
class Context:
    """The signs and values that were found in a log so far."""

    signs: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    family: str | None = None
    python: str | None = None
    python_version: str | None = None
    package: str | None = None

    def read(self, words: Set[bytes], lowered: Callable[[], str], text: str) -> None:
        """Adds what a block says: its words, its text in lower case, and its text."""
        whole = lowered()
        # To look a part up in the text takes longest: its letters are in one of the words.
        vocabulary = b"\n".join(words).decode()

        @cache  # signs share parts
        def places(part: str) -> list[int]:
            is_possible = _find_longest_run(part) in vocabulary
            return list_places(whole, part, MOST_PLACES) if is_possible else []

        for sign in SIGNS:
            if sign.name not in self.signs and find_sign(sign, words, whole, places):
                self.signs.add(sign.name)
        for sign in VALUES:
            if sign.name not in self.values and (found := find_sign(sign, words, whole, places)):
                self.values[sign.name] = found[1]
        if self.family is None:
            families = (sign.name for sign in FAMILIES if find_sign(sign, words, whole, places))
            # Jetson's Linux is an Ubuntu.
            self.family = next(families, "ubuntu" if "jetson" in self.signs else None)
        if self.python is None and any(word in words for word in PYTHON_WORDS):
            self.python = find_python(text)
        if self.python_version is None and any(word in words for word in VERSION_WORDS):
            self.python_version = find_python_version(text)
        if self.package is None and any(word in words for word in BUILD_WORDS):
            self.package = find_built_package(text)
        if "rank" not in self.values and any(word in words for word in RANK_WORDS):
            found = FIRST_RANK.search(text)
            self.values |= {"rank": found[1] or found[2]} if found else {}
        is_named = any(part in whole for part in CARD_PARTS)
        is_named = is_named or any(word in words for word in CARD_WORDS)
        if "card" not in self.values and is_named:
            names = map(spell_card, (found[0] for found in CARD.finditer(text)))
            known = filter(infer_capability, names)
            if card := next(known, None):
                self.values["card"] = card

    def add(self, later: Context) -> None:
        """Adds what later blocks say: what the log says first counts."""
        for each in fields(self):
            mine, found = getattr(self, each.name), getattr(later, each.name)
            both = found | mine if isinstance(mine, (set, dict)) else mine or found
            setattr(self, each.name, both)

    @property
    def capability(self) -> Capability | None:
        """The GPU's compute capability, by its number or its name; None if the text has neither."""
        number = self.values.get("capability", "").replace(".", "")
        if len(number) >= 2:
            return int(number[:-1]), int(number[-1])
        card = self.values.get("card", "")
        if found := infer_capability(card):
            return found
        device = self.values.get("device")
        return infer_capability_of_device(int(device, 16)) if device else None

    @property
    def rocm_build(self) -> str | None:
        """The way to ROCm's build of the package whose build for CUDA fails; None for others."""
        if "rocm" not in self.signs:
            return None
        way = ROCM_BUILDS.get((self.package or "").lower())
        return way and way.replace("{rocm}", self.values.get("rocm", "6.4"))

    def list_conditions(self) -> set[str]:
        """The names that a variant of a known error can ask for."""
        conditions = self.signs | self._judge_gpu() | self._judge_python()
        if self.family:
            conditions.add(self.family)
        if "toolkit" in self.values:
            conditions.add(f"toolkit-{self.values['toolkit'].replace('.', '-')}")
        if self.system == "windows":
            conditions.add("on-windows")
        if self.system == "mac":
            conditions.add("mac")
        if self.rocm_build:
            conditions.add("rocm-build")
        if self.package:
            conditions.add(f"built-{self.package.lower()}")
        if int(self.values.get("length", 0)) > int(self.values.get("positions", 10**6)):
            conditions.add("past-positions")
        return conditions | {
            name
            for name, (needed, barred) in _TOGETHER.items()
            if needed <= conditions and not barred & conditions
        }

    def _judge_gpu(self) -> set[str]:
        """The conditions of the GPU, its driver and the build of torch."""
        driver, build = self._driver_branch or 0, self.values.get("torch", "")
        facts = {
            "driver-there": bool(driver),
            "old-branch": 0 < driver < OLDEST_KEPT,
            "driver-ancient": 0 < driver < OLDEST_RUN,
            "cuda11-driver": 0 < driver < FIRST_BRANCHES[(12, 0)],
            "cuda12-driver": 0 < driver < NEEDS["cu130"].driver,
            "cuda-build": build not in ("", "cpu"),
            f"torch-{build}": bool(build),
            "driver-below-torch": build in NEEDS and 0 < driver < NEEDS[build].driver,
            "nvcc-there": "nvcc" in self.values,
            "own-script": "starter" in self.values,
            "cuda12-build": build.startswith("cu12"),
            "triton-known": ".".join(self.values.get("release", "").split(".")[:2]) in _TRITONS,
            "vision-known": self.values.get("release") in _VISION and bool(build),
            "xformers-known": self.values.get("release") in _XFORMERS and build.startswith("cu"),
            "before-torch-2-4": (_read_version(self.values.get("release")) or (9,)) < (2, 4),
            "old-index": self.values.get("index") in OLD_INDEXES,
        }
        if capability := self.capability:
            facts[name_architecture(capability).lower()] = True
            facts["sm-{}{}".format(*capability)] = True
            facts["legacy"], facts["current"] = capability < (7, 5), capability >= (7, 5)
            facts["torch-fits"] = has_code(build, capability)
            facts["dropped"] = driver > 0 and is_dropped(capability, driver)
        return {name for name, holds in facts.items() if holds}

    def _judge_python(self) -> set[str]:
        if self.python_version is None:
            return set()
        minor = int(self.python_version.partition(".")[2])
        return (
            {"python-new"}
            if minor >= NEW_PYTHON
            else {"python-old"}
            if minor <= OLD_PYTHON
            else set()
        )

    @property
    def _driver_branch(self) -> int | None:
        return int(self.values["driver"].partition(".")[0]) if "driver" in self.values else None

    def list_values(self) -> Mapping[str, str]:
        """The values for the placeholders of causes and fixes."""
        values = dict(self.values)
        if self.python_version:
            values["python"] = self.python_version
        if self.package and "package-build" in self.signs:
            values["package"] = SOURCES.get(self.package, self.package)
        if self.package:
            values["built"] = self.package
        if self.rocm_build:
            values["rocmbuild"] = self.rocm_build
        if generation := next((each for each in _OVERRIDES if each in self.signs), None):
            values["hsa"] = _OVERRIDES[generation]
        if vision := _VISION.get(values.get("release", "")):
            values["vision"] = vision
        if xformers := _XFORMERS.get(values.get("release", "")):
            values["xformers"] = xformers
        if triton := _TRITONS.get(".".join(values.get("release", "").split(".")[:2])):
            values["triton"] = triton
        if "driver" in values:
            values["branch"] = values["driver"].partition(".")[0]
        # RoBERTa and BART keep two positions for themselves.
        if values.get("positions") in ("514", "1026"):
            values["positions"] = str(int(values["positions"]) - 2)
        if self.capability:
            values["arch"] = f"{self.capability[0]}{self.capability[1]}"
            values["sm"] = f"sm_{self.capability[0]}{self.capability[1]}"
            fitting = (
                name
                for name, needs in NEEDS.items()
                if needs.has_code_for(self.capability, "x86_64")
            )
            if build := next(fitting, None):
                values["build"] = build
        return values

    @property
    def system(self) -> System:
        """The system that wrote the text; Linux where nothing says another one."""
        if "wsl" in self.signs:
            return "linux"
        is_windows_python = bool(self.python and re.search(r":\\|^py ", self.python))
        if is_windows_python or "powershell" in self.signs:
            return "windows"
        if "windows" in self.signs and "linux" not in self.signs:
            return "windows"
        return "mac" if self._is_mac and self.family is None else "linux"

    @property
    def _is_mac(self) -> bool:
        """Whether the text is of a Mac; a prompt like a Mac's decides where nothing says Linux."""
        has_prompt = "zsh-prompt" in self.signs and "linux" not in self.signs
        return "mac" in self.signs or (has_prompt and not {"card", "driver"} & self.values.keys())

    def choose_distribution(self, host: Distribution) -> Distribution:
        """The distribution, or the other system, that the text names; otherwise this host's."""
        if self.system != "linux":
            return Distribution(self.system, self.system)
        family = self.family or ("nixos" if "nixos" in self.signs else None)
        if family is None and "dist-packages" in self.signs and host.family not in _DEBIANS:
            family = "debian"
        if family is None:
            return host
        return Distribution(family, family, kernel=self.values.get("kernel"))

    def describe_host(self, distribution: Distribution) -> LogHost:
        """The machine that the commands of a fix are for."""
        python = None if "activated" in self.signs else self.python
        return LogHost(
            self.system,
            distribution.family,
            frozenset(self.signs),
            python,
            self.python_version,
            self.values.get("release"),
            self._driver_branch,
            "blackwell" in self.list_conditions(),
            self._name_allocator_variable(),
            bool(self.family or {"nixos", "image-based", "inside", "image-build"} & self.signs),
        )

    def _name_allocator_variable(self) -> str:
        """The variable of the allocator's settings: the old name where the release is unknown.

        Every torch reads the old one, torch 2.10 with a warning, and only from 2.10 on the new one.
        """
        if named := self.values.get("allocator"):
            return named.upper()
        release = _read_version(self.values.get("release"))
        if "lab" in self.signs or (release and release >= (2, 10)):
            return "PYTORCH_ALLOC_CONF"
        return "PYTORCH_HIP_ALLOC_CONF" if "rocm" in self.signs else "PYTORCH_CUDA_ALLOC_CONF"


def has_code(build: str, capability: Capability) -> bool:
    """True if every torch of this build has code for the GPU, as far as that is certain."""
    oldest = {7: "cu118", 8: "cu118", 9: "cu118", 10: "cu128", 12: "cu128"}.get(capability[0])
    return bool(oldest) and capability >= (7, 5) and build.startswith("cu") and build >= str(oldest)


_NUMBER = re.compile(r"\d+(?:\.\d+)*")


def compare_versions(values: Mapping[str, str]) -> str | None:
    """Whether the version asked for (``wanted``) is before the ``first`` one or after the ``last``.

    ``wanted-older`` or ``wanted-newer``, the name of a variant; None if neither or unknown.
    """
    wanted, first = _read_version(values.get("wanted")), _read_version(values.get("first"))
    last = _read_version(values.get("last")) or first
    if not wanted or not first or not last:
        return None
    return "wanted-older" if wanted < first else "wanted-newer" if wanted > last else None


def _read_version(text: str | None) -> tuple[int, ...] | None:
    found = _NUMBER.search((text or "").partition("==")[2] or text or "")
    return tuple(map(int, found[0].split("."))) if found else None


# The newest Python that a release of torch has wheels for, by the release from which on it is so.
_NEWEST_PYTHONS = (
    ((2, 9), "3.14"),
    ((2, 6), "3.13"),
    ((2, 2), "3.12"),
    ((2, 0), "3.11"),
    ((1, 11), "3.10"),
    ((0,), "3.8"),
)


def suit_python(values: Mapping[str, str]) -> Mapping[str, str]:
    """The newest Python (``suits``) that has the torch that was asked for (``wanted``)."""
    version = re.match(r"torch==(\d+)\.(\d+)", values.get("wanted", ""))
    if version is None:
        return {}
    asked = (int(version[1]), int(version[2]))
    return {"suits": next(python for first, python in _NEWEST_PYTHONS if asked >= first)}


def name_driver(values: Mapping[str, str]) -> Mapping[str, str]:
    """The oldest branch of the driver (``least``) for the CUDA that an image ``needs``.

    >>> name_driver({"needs": "12.8"})
    {'least': '570'}
    """
    needed = _read_version(values.get("needs"))
    return {"least": str(FIRST_BRANCHES[needed])} if needed in FIRST_BRANCHES else {}


# The domains of servers that every name server of the internet knows, by their endings: if one does
# not know it, the name is right.
_PUBLIC = {
    "ai": "ollama wandb",
    "cn": "modelscope",
    "co": "hf huggingface",
    "com": "amazonaws anaconda cloudflarestorage docker github githubusercontent gitlab google"
    " googleapis nvidia ollama openai ubuntu",
    "dev": "pkg",
    "io": "conda docker gcr ghcr k8s nvcr quay",
    "org": "anaconda debian fedoraproject npmjs pypi pythonhosted pytorch",
}
PUBLIC_HOSTS = tuple(
    f"{name}.{ending}" for ending, names in _PUBLIC.items() for name in names.split()
)
_SIMILAR = 0.85


def correct_host(values: Mapping[str, str]) -> Mapping[str, str]:
    """The server that is ``meant`` by the name of an unknown ``host``, if one is named alike.

    >>> correct_host({"host": "www.gihtub.com"})
    {'meant': 'www.github.com'}
    """
    labels = values.get("host", "").lower().split(".")
    # A name below another domain is compared with servers of as many labels.
    for count in (2, 3):
        name = ".".join(labels[-count:])
        others = [each for each in PUBLIC_HOSTS if each.count(".") == count - 1]
        swapped = [each for each in others if sorted(each) == sorted(name)]
        alike = swapped or get_close_matches(name, others, 1, _SIMILAR)
        if alike and name not in others:
            return {"meant": ".".join([*labels[:-count], alike[0]])}
    return {}


_UNITS = {
    "bytes": 1 / 2**30,
    "kib": 1 / 2**20,
    "mib": 1 / 2**10,
    "mb": 1e6 / 2**30,
    "gib": 1.0,
    "gb": 1e9 / 2**30,
    "tib": 2.0**10,
    "pib": 2.0**20,
    "eib": 2.0**30,
}
# So many times a card's memory, or so many GiB where it is unknown, no right shape asks for.
_TIMES_TOO_LARGE, _GIB_TOO_LARGE = 8, 1024
# From this part of the card's memory on, the blocks that PyTorch holds unused are worth joining.
_IDLE_PART = 0.08
# Less than this part of it the driver keeps to itself: the card is full.
_FREE_PART = 0.01


def judge_memory(values: Mapping[str, str]) -> str | None:
    """Why a GPU's memory, or the machine's, did not suffice, as the name of a variant.

    ``wrong-shape`` if the next tensor is larger than any batch makes it; ``in-pieces``,
    ``of-others``, ``in-use``; ``one-tensor`` if the next one alone is half the card, ``refused`` if
    more was free than was asked for.

    ``values`` are those of torch's own text: ``asked``, ``capacity``, ``unused``, ``allocated`` and
    ``idle``, each with its unit. None if one is missing. Torch before 2.1 says ``reserved`` in
    place of ``idle``: there, ``in-splits`` stands for ``in-pieces``.
    """
    sizes = {name: size for name in values if (size := _read_size(values[name])) is not None}
    if "reserved" in sizes and "allocated" in sizes:
        sizes["idle"] = sizes["reserved"] - sizes["allocated"]
    limit = min(_TIMES_TOO_LARGE * sizes.get("capacity", _GIB_TOO_LARGE), _GIB_TOO_LARGE)
    if sizes.get("asked", 0) > limit:
        return "wrong-shape"
    try:
        asked, capacity, unused = sizes["asked"], sizes["capacity"], sizes["unused"]
        allocated, idle = sizes["allocated"], sizes["idle"]
    except KeyError:
        return None
    if asked <= idle + unused and idle >= _IDLE_PART * capacity:
        return "in-splits" if "reserved" in sizes else "in-pieces"
    if asked < unused and unused >= _FREE_PART * capacity:
        return "refused"
    if asked > capacity / 2:
        return "one-tensor"
    others = capacity - unused - allocated - idle
    return "of-others" if others > capacity / 2 else "in-use"


def judge_idle(values: Mapping[str, str]) -> str | None:
    """``idle-covers`` if what PyTorch holds unused is as much as was ``asked`` for."""
    sizes = {name: size for name in values if (size := _read_size(values[name])) is not None}
    idle = sizes.get("idle", sizes.get("reserved", 0) - sizes.get("allocated", 0))
    return "idle-covers" if 0 < sizes.get("asked", 0) <= idle else None


def _read_size(text: str) -> float | None:
    """GiB of a size with its unit; None if it is none."""
    number, _, unit = text.partition(" ")
    try:
        return float(number) * _UNITS[unit.lower()]
    except (KeyError, ValueError):
        return None


# Whom to ask about a text that no known error explains: the first sign that the text shows decides.
# A program's own:
PROGRAMS = {
    "vllm": "github.com/vllm-project/vllm/issues",
    "sglang": "github.com/sgl-project/sglang/issues",
    "comfyui": "github.com/comfyanonymous/ComfyUI/issues",
    "ollama": "github.com/ollama/ollama/issues",
    "llamacpp": "github.com/ggml-org/llama.cpp/issues",
    "deepspeed": "github.com/deepspeedai/DeepSpeed/issues",
    "unsloth": "github.com/unslothai/unsloth/issues",
}
# Of a machine or library, where the text also names a GPU, and its failure is not of a program in
# a language of its own.
ADDRESSES = {
    "jetson": "forums.developer.nvidia.com (Jetson)",
    "rocm": "github.com/ROCm/ROCm/issues",
    "k8s": "github.com/NVIDIA/gpu-operator/issues",
    "wsl": "github.com/microsoft/WSL/issues",
    "container": "github.com/NVIDIA/nvidia-container-toolkit/issues",
    "jax": "github.com/jax-ml/jax/issues",
    "onnxruntime": "github.com/microsoft/onnxruntime/issues",
    "names-torch": "discuss.pytorch.org",
    "names-gpu": "forums.developer.nvidia.com",
}
OWN_TRACKER = (
    "where the program or library that the message names keeps its issues (its own tracker), with"
    " this message, the lines around it and the versions"
)
# What shows more of a failure, by its language.
_MORE = {
    "rust": "RUST_BACKTRACE=1 <the command> (the stack)",
    "go": "GOTRACEBACK=all <the command> (all stacks)",
    "node": "node --version, npm ls (the versions)",
    "java": "the whole stack with each Caused by",
    "build": "the command that failed, with its output (make V=1, ninja -v, cmake --build . -v)",
    "c": "gdb -batch -ex run -ex bt --args <the command> (the stack)",
    "shell": "bash -x <the script> (each command)",
}
# Failures of these are of PyTorch, CUDA or the driver only where their own message names it.
_OWN_LANGUAGES = ("rust", "go", "node", "ruby", "java", "dotnet", "build", "c", "shell")
_PLACE_OF_LOG = re.compile(r"\S{0,200}\.(?:cc?|cpp|cxx|cuh?|h|hpp|rs|go|[jt]s):\d+")
_OF_GPU = re.compile(
    r"cu(?:da|blas|dnn|fft|solver|sparse)|\bnv(?:cc|ml|idia|rm|rtc)|nccl|torch|aten|\bgpus?\b"
    r"|\brocm|\bhip\w",
    re.IGNORECASE,
)


def advise_unknown(context: Context, message: Message | None = None) -> str:
    """What to collect and where to ask about a text without a known error, one line each.

    ``message`` is what the failure says: its language decides before the machine's signs.
    """
    signs, language = context.signs, message.language if message else None
    said = _PLACE_OF_LOG.sub("", message.line) if message else ""
    is_own = language in _OWN_LANGUAGES and not _OF_GPU.search(said)
    names_gpu = {"names-gpu", "names-torch", "rocm"} & signs or {"card", "driver"} & set(
        context.values
    )
    has_gpu = bool(names_gpu) and not is_own
    known = {**PROGRAMS, **(ADDRESSES if has_gpu else {})}
    address = next((known[name] for name in known if name in signs), OWN_TRACKER)
    gpu = ["labkit doctor, labkit devices --report, sudo dmesg | grep -i nvrm"] if has_gpu else []
    pod = ["kubectl describe pod <the pod>"] if "k8s" in signs else []
    more = [_MORE[language]] if language in _MORE else []
    collect = ", ".join([*pod, *gpu, *more])
    start = "the whole log from the program's start: the first error is usually the cause"
    return f"collect: {collect}{', and ' if collect else ''}{start}\nask: {address}"


# The oldest branch of the driver that any build of today's torch runs with.
OLDEST_RUN = 450
# Older branches of the driver are no longer changed for new kernels.
OLDEST_KEPT = 535
