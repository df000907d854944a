"""Reads the catalogs of known errors: one block of ``key: text`` lines for each error.

[name] likely                     how certain it is; "certain" if nothing is said
source: moby/moby#48961           where people met it
text: a regular expression        any of several is enough; see `KnownError.patterns`
unless: an expression             on the same line: it is another error, or none
sample: a line that must match    ("\\n" is a line break)
unlike: a line that must not
cause: what is wrong
fix: a command                    or @NAME of a fix in `labkit.host.packages`
fix@fedora: for a family of distributions
cause@wsl: where a sign of `labkit.known_errors.context` is in the text; also fix@, else@
fix@raw: where the group (?P<raw>) matched; fix@raw-wsl: where both hold
else: the second fix to try
else@raw: -                       none where the group matched
brings: names of the errors that it causes
follows: yes                      it says that another process ended: whatever ended one brings it
passes: yes                       progress after it means that a retry succeeded
general: line or log              it gives way to any other error on its line, or in the log
general: advice                   as log, where the text itself advises: it hides those of log

An expression may hold {PUBLIC_HOST}: the name of a server that the whole internet knows.
A text may hold {name|what stands for it}: a named group of the pattern, a value of the context,
"raiser" (the package of the last frame above the text), or "share" (of a GPU's memory).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, get_args

from labkit.host import packages
from labkit.host.packages import Fix
from labkit.known_errors.context import PUBLIC_HOSTS
from labkit.known_errors.model import Certainty, KnownError, Variant
from labkit.known_errors.pythons import ROCM_BUILDS

FOLDER = Path(__file__).parent / "catalogs"
AREAS = (
    "driver",
    "gpu_access",
    "packages",
    "engine",
    "build",
    "python",
    "training",
    "models",
    "apps",
    "cluster",
)
FAMILIES = tuple(packages.INSTALL_COMMANDS)
_CERTAINTIES: Mapping[str, Certainty] = {each: each for each in get_args(Certainty)}
_HEAD = re.compile(r"\[(?P<name>[\w-]+)\] ?(?P<certainty>\w*)")
_LINE = re.compile(r"(?P<key>[a-z]+)(?:@(?P<condition>[\w-]+))?: ?(?P<text>.*)")
_PUBLIC_HOST = (
    rf"(?:[\w-]{{1,63}}\.){{0,5}}(?:{'|'.join(map(re.escape, PUBLIC_HOSTS))})(?![\w-]|\.\w)"
)
# What NVIDIA's catalog of Xid errors advises, by its name of the action.
XID_FIXES = {
    "app": (
        "CUDA_LAUNCH_BLOCKING=1 python your_program.py   # shows the line; restart the program",
        "compute-sanitizer python your_program.py   # if every program has it: the card or driver",
    ),
    "reset": (
        "sudo nvidia-smi --gpu-reset -i <the GPU's number>   # when nothing uses it; or reboot",
        "if it happens again: install a newer driver, then have the card checked",
    ),
    "reboot": (
        "reboot the machine   # a reset is not enough",
        "if it happens again: check power, heat and the slot, then have the card checked",
    ),
    "link": (
        "nvidia-smi nvlink --errorcounters   # shows the link; then reset all GPUs or reboot",
        "if it happens again on the same link: have the card, the bridge or the board checked",
    ),
    "support": (
        "sudo nvidia-bug-report.sh   # send its file to the maker of the card or server",
        "run the field diagnostics of the maker before the card works again",
    ),
    "power": ("connect the power cable of the card   # with the machine switched off", ""),
    "remap": (
        "nvidia-smi -q -d ROW_REMAPPER   # if it says pending: end the GPU's programs and reset it",
        "if it says that remapping failed: have the card replaced",
    ),
    "vgpu": ("install the guest driver of the host's vGPU release", ""),
    "none": ("nvidia-smi -q -d ECC,ROW_REMAPPER   # shows whether anything is left to do", ""),
}
XID_FIXES["lost"] = XID_FIXES["reboot"]

# What to do about a status of CUDA's, by its name in status.tsv.
STATUS_FIXES = {
    "program": "CUDA_LAUNCH_BLOCKING=1 python your_program.py   # shows the call; a library's own"
    " call: update the library",
    "fault": "CUDA_LAUNCH_BLOCKING=1 python your_program.py   # shows the first call that fails;"
    " compute-sanitizer python your_program.py shows the kernel",
    "memory": "nvidia-smi   # shows what else uses the GPU's memory; then a smaller batch or model",
    "start": "start CUDA after workers are started: multiprocessing.set_start_method('spawn');"
    " nvidia-smi shows whether the driver answers",
    "end": "ignore it if the program was ending; else end its threads before the main one",
    "launch": "use smaller blocks, less shared memory or a smaller batch; update the library whose"
    " kernel it is",
    "arch": "python -c 'import torch; print(torch.cuda.get_arch_list(),"
    " torch.cuda.get_device_capability())'   # install a build that has code for this GPU",
    "path": "unset LD_LIBRARY_PATH LD_PRELOAD   # another version of the library is found first",
    "driver": "nvidia-smi   # its CUDA Version is the newest that the driver runs: install a newer"
    " driver, or a build for that CUDA",
    "runtime": "update the program, or its CUDA runtime: pip install -U with the build for the"
    " driver's CUDA",
    "bindings": "pip install -U nvidia-ml-py   # not pynvml of old; an old driver: update it, or an"
    " older nvidia-ml-py",
    "busy": "nvidia-smi   # shows who holds the GPU, and its compute mode",
    "nogpu": "nvidia-smi; echo $CUDA_VISIBLE_DEVICES   # in a container: docker run --gpus all ...",
    "index": "nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES   # GPUs are counted from 0 among these",
    "license": "nvidia-smi -q | grep -i license   # ask the keeper of the license server",
    "reboot": "nvidia-smi; sudo dmesg | grep -iE 'nvrm|xid'   # after an update of the driver:"
    " reboot the machine",
    "graphics": "update the program: it shares a buffer between graphics and CUDA wrongly",
    "hardware": "sudo dmesg | grep -iE 'nvrm|xid'   # the Xid says what the GPU needs: paste it"
    " into labkit doctor --explain",
    "peer": "nvidia-smi topo -p2p r   # which GPUs reach each other; without: NCCL_P2P_DISABLE=1",
    "jit": "ls /usr/lib/*/libnvidia-ptxjitcompiler*   # in a container: NVIDIA_DRIVER_CAPABILITIES="
    "compute,utility; on the host: install the driver's compute package",
    "jitoff": "unset CUDA_DISABLE_PTX_JIT",
    "mps": "pgrep -a nvidia-cuda-mps   # on the host: start the control daemon again, or without"
    " MPS: unset CUDA_MPS_PIPE_DIRECTORY",
    "system": "ls -l /dev/nvidia*; ulimit -a   # in a container: docker run --gpus all ...",
    "none": "the program may go on: look for another error",
    "timeout": "split the work into shorter kernels, or use a GPU without a display",
    "rights": "ls -l /dev/nvidia* ; id   # some calls need root: sudo, or ask the machine's keeper",
    "support": "nvidia-smi -q   # shows what this GPU supports; update the program or the driver",
    "fabric": "systemctl status nvidia-fabricmanager   # of the driver's own version",
    "graph": "run without CUDA graphs: --enforce-eager (vLLM), mode='default' (torch.compile)",
    "shape": "CUDA_LAUNCH_BLOCKING=1 python your_program.py   # check the shapes and types of the"
    " line it shows; then: unset LD_LIBRARY_PATH",
    "power": "connect the power cable of the card   # with the machine switched off",
    "load": "sudo modprobe nvidia; sudo dmesg | tail   # says why the driver does not load",
    "lost": "sudo dmesg | grep -iE 'nvrm|xid'   # then switch the machine off and on; check power,"
    " heat and the slot",
    "reset": "nvidia-smi -q | grep -i -A3 reset   # when nothing uses the GPU: reset or reboot",
}


# What several errors have in common, by its name in braces.
TEXTS = {
    "ROCM_BUILD_CAUSE": "{built|the package} is built here for an AMD GPU, and its build looks for"
    " CUDA: ROCm's compiler (hipcc in /opt/rocm) is not there, or pip's isolated build took a torch"
    " for CUDA; the wheels of the index are for CUDA",
    "ROCM_FLASH": ROCM_BUILDS["flash-attn"],
    "ROCM_VLLM": ROCM_BUILDS["vllm"],
    "WSL_PEERS_CAUSE": "in WSL the GPUs do not reach each other's memory (no peer access, no CUDA"
    " IPC): NCCL's or the program's own exchange between them fails",
    "WSL_PEERS": "NCCL_P2P_DISABLE=1 NCCL_CUMEM_ENABLE=0 <the command>   # NCCL then copies through"
    " the machine's memory; in a container: -e for each, and --ipc=host; one GPU alone needs no"
    " NCCL: CUDA_VISIBLE_DEVICES=0",
    "WSL_PEERS_VLLM": "NCCL_P2P_DISABLE=1 NCCL_CUMEM_ENABLE=0 vllm serve <the model>"
    " --tensor-parallel-size <GPUs> --disable-custom-all-reduce   # in Python: both variables"
    " before import vllm, and LLM(..., disable_custom_all_reduce=True); in a container: -e for"
    " each, and --ipc=host; a model that fits one GPU: --tensor-parallel-size 1",
}


class Status(NamedTuple):
    """What a status of CUDA's or NVML's means, and what to do."""

    meaning: str
    advice: str


@cache
def read_statuses(folder: Path = FOLDER) -> Mapping[str, Status]:
    """The known statuses, by their names in capitals without underscores.

    >>> read_statuses()["nvml:GPUISLOST"].meaning
    'the GPU has left the bus'
    """
    text = (folder / "status.tsv").read_text(encoding="utf-8")
    rows = (row.split("\t") for row in text.splitlines() if not row.startswith("#"))
    return {name: Status(meaning, STATUS_FIXES[action]) for name, meaning, action in rows}


def find_status(name: str, area: str = "") -> Status | None:
    """The status of this name as CUDA writes it; an area's own ("lib", "nvml") goes first."""
    statuses = read_statuses()
    plain = name.replace("_", "").upper()
    # cuDNN adds a reason after another name: BAD_PARAM_STREAM_MISMATCH.
    key = f"{area}:{plain}"
    keys = (key[:end] for end in range(len(key), len(area) + 5, -1))
    own = next((statuses[key] for key in keys if key in statuses), None) if area else None
    return own or statuses.get(plain)


def read_catalogs(folder: Path = FOLDER) -> Iterator[tuple[str, KnownError]]:
    """The known errors, each with its area: those of the catalogs and of NVIDIA's Xid numbers.

    Raises ValueError for a block that lacks a field or has an unknown one.
    """
    for area in AREAS:
        text = (folder / f"{area}.txt").read_text(encoding="utf-8")
        yield from ((area, error) for error in parse_catalog(text))
    yield from (("xid", error) for error in make_xid_errors(read_xids(folder)))


def parse_catalog(text: str) -> Iterator[KnownError]:
    """The known errors of a catalog's text, in their order."""
    for block in re.split(r"\n{2,}", text.strip()):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if lines:
            yield _parse_block(lines)


def _parse_block(lines: Sequence[str]) -> KnownError:
    head = _HEAD.fullmatch(lines[0])
    if head is None:
        raise ValueError(f"not the head of a known error: {lines[0]}")
    texts: dict[str, list[str]] = {}
    variants: list[Variant] = []
    families: dict[str, str] = {}
    for line in lines[1:]:
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"not a line of {head['name']}: {line}")
        key, condition, value = found.groups()
        if condition in FAMILIES and key == "fix":
            families[condition] = _expand(value)
        elif condition:
            variants.append(_read_variant(condition, key, value))
        else:
            if key in ("text", "unless"):
                value = value.replace("{PUBLIC_HOST}", _PUBLIC_HOST)
            texts.setdefault(key, []).append(value)
    return _build_error(head["name"], head["certainty"], texts, variants, families)


def _build_error(
    name: str,
    certainty: str,
    texts: dict[str, list[str]],
    variants: Sequence[Variant],
    families: Mapping[str, str],
) -> KnownError:
    try:
        error = KnownError(
            name,
            tuple(texts.pop("text")),
            _expand(texts.pop("cause")[0]),
            _read_fix(texts.pop("fix")[0], families),
            _CERTAINTIES[certainty or "certain"],
            _expand(texts.pop("else", [""])[0]) or None,
            tuple(texts.pop("brings", [""])[0].split()),
            texts.pop("unless", [None])[0],
            texts.pop("passes", ["no"])[0] == "yes",
            texts.pop("follows", ["no"])[0] == "yes",
            texts.pop("general", [None])[0],  # type: ignore[arg-type]
            tuple(variants),
            texts.pop("source")[0],
            tuple(each.replace("\\n", "\n") for each in texts.pop("sample")),
            tuple(each.replace("\\n", "\n") for each in texts.pop("unlike")),
        )
    except KeyError as missing:
        raise ValueError(f"{name} has no {missing}") from missing
    if texts:
        raise ValueError(f"{name} has unknown keys: {', '.join(texts)}")
    return error


def _read_variant(condition: str, key: str, text: str) -> Variant:
    if key == "fix":
        return Variant(condition, fix=_read_fix(text, {}))
    if key == "cause":
        return Variant(condition, cause=_expand(text))
    if key == "else":
        return Variant(condition, otherwise=_expand(text))
    raise ValueError(f"{key}@{condition}: only cause, fix and else have variants")


def _read_fix(text: str, families: Mapping[str, str]) -> Fix:
    for family, own in families.items():
        if own.startswith("@"):
            raise ValueError(f"fix@{family}: {own} stands for all families: name it in fix alone")
    if not text.startswith("@"):
        return Fix(_expand(text), **families)
    fix = getattr(packages, text[1:])
    if not isinstance(fix, Fix):
        raise ValueError(f"{text} is not a fix of labkit.host.packages")
    return dataclasses.replace(fix, **families)


def _expand(text: str) -> str:
    """The text with `TEXTS` and the commands of `labkit.host.packages` for names in braces."""
    return re.sub(
        r"\{([A-Z_]+)\}",
        lambda found: TEXTS.get(found[1]) or str(getattr(packages, found[1])),
        text,
    )


class Xid(NamedTuple):
    """An Xid: its number, how certain a fault is, NVIDIA's action, the meaning, what it brings.

    Without a meaning, the driver's catalog explains it.
    """

    number: str
    certainty: str
    action: str
    meaning: str
    brings: str

    @property
    def is_harmless(self) -> bool:
        """True if a program causes it and the GPU stays sound, or it need not be a fault."""
        return self.certainty == "possible" or self.action in ("app", "none")

    @property
    def is_loss(self) -> bool:
        """True if the GPU has left the bus."""
        return self.action == "lost"


def read_xids(folder: Path = FOLDER) -> tuple[Xid, ...]:
    """Every Xid that is known here, in the order of the numbers."""
    text = (folder / "xid.tsv").read_text(encoding="utf-8")
    return tuple(Xid(*row.split("\t")) for row in text.splitlines() if not row.startswith("#"))


def make_xid_errors(xids: Sequence[Xid]) -> Iterator[KnownError]:
    """A known error for each Xid with a meaning, and one for those that are not listed."""
    yield _build_other_xid([one.number for one in xids])
    for number, certainty, action, meaning, brings in xids:
        if not meaning:
            continue
        fix, otherwise = XID_FIXES[action]
        yield KnownError(
            f"xid-{number}",
            (rf"NVRM: Xid \(.{{1,40}}\): {number}\b", rf"caused by previous Xid {number}\b"),
            f"{meaning} (Xid {number})",
            Fix(fix),
            _CERTAINTIES[certainty],
            otherwise or None,
            tuple(brings.split()),
            source="docs.nvidia.com/deploy/xid-errors",
            samples=(f"kernel: NVRM: Xid (PCI:0000:41:00): {number}, pid=7, name=python",),
            unlike=(f"NVRM: Xid (PCI:0000:41:00): {number}9, pid={number}",),
        )


def _build_other_xid(listed: Sequence[str]) -> KnownError:
    """The known error for an Xid that the list does not have."""
    known = "|".join(listed)
    return KnownError(
        "xid-other",
        (rf"NVRM: Xid \(.{{1,40}}\): (?P<number>(?!(?:{known})\b)\d{{1,3}})\b",),
        "the GPU reports the error Xid {number|in this line}",
        Fix(
            "sudo nvidia-bug-report.sh   # docs.nvidia.com/deploy/xid-errors explains the number;"
            " reboot, and have the card checked if it happens again"
        ),
        "likely",
        source="docs.nvidia.com/deploy/xid-errors",
        samples=("kernel: NVRM: Xid (PCI:0000:41:00): 59, CMDre 00000001",),
        unlike=("NVRM: Xid (PCI:0000:41:00): 63, pid=7, Row Remapper",),
    )
