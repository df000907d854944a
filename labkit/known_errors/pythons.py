"""Which Python a log's paths and prompts show, and which package was built in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

_VERSION = re.compile(
    r"[\\/](?-i:python(?P<dotted>3\.\d{1,2})t?[\\/]|[Pp]ython(?P<plain>3\d{1,2})[\\/]lib[\\/])site-",
    re.IGNORECASE,
)
# What says which Python runs: its banner, uv, the launcher of Windows, a report's form, a person.
_NAMED_VERSION = re.compile(
    r"(?:^[>$ ]{0,3}|\n[>$ ]{0,3})Python (3\.\d{1,2})\.\d|cpython-(3\.\d{1,2})\.\d"
    r"|\bPython (3\.\d{1,2})[\d.]* (?:environment|interpreter|\||\()|\bpy -(3\.\d{1,2})\b"
    r"|\bPython {1,3}3\.[\d.]{1,6} \(you have (3\.\d{1,2})\b"
    r"|\bPython [Vv]ersion\W{1,4}(?:Python )?(3\.\d{1,2})\b"
    r"|\b(?:am on|failing on|fails on|using|running|with|installed|have|under|use) "
    r"[Pp]ython ?(3\.\d{1,2})\b"
)
# Its own folder on Windows, which has the version in its name.
_OWN_FOLDER = re.compile(r"[\\/]Python(3\d{1,2})[\\/]{1,2}(?:[Ll]ib[\\/]|python\.exe)")
_BUILD_FAILS = ("... error", "metadata-generation-failed", "did not run successfully")
# What follows an environment's folder in a path: its packages, or the file of a program of it, as
# in /home/ann/venv/bin/torchrun", line 8.
_AFTER_FOLDER = {
    "site-packages": re.compile(
        r"[\\/]{1,4}[Ll]ib(?:64)?[\\/]{1,4}(?:python3\.\d{1,2}t?[\\/]{1,4})?site-packages"
    ),
    "/bin/": re.compile(r"/bin/[\w.-]{1,40}\""),
    "\\Scripts\\": re.compile(r"\\{1,2}Scripts\\{1,2}[\w.-]{1,40}\.exe"),
}
# So far before such a part the rest of it can begin, or so far after it end.
_REACH = 45
_BEFORE_FOLDER = re.compile(r"[^\n\"'<>|*?()]{1,150}$")
_START_OF_PATH = re.compile(r"(?<![\w.])[A-Za-z]:[\\/]|(?<![\w.~\\:/-])~?/(?!\S* )")
# ComfyUI's portable folder holds a Python of its own.
_PORTABLE = re.compile(
    r"(?P<root>(?:\b[A-Za-z]:[\\/](?:[\w .()~-]{1,40}[\\/]){0,6})?"
    r"ComfyUI_windows_portable[\w.-]{0,30})[\\/]"
    r"|(?P<folder>(?:\b[A-Za-z]:|\.)[\\/](?:[\w .()~-]{1,40}[\\/]){0,6}python_embedd?ed)[\\/]"
)
# Paths of pip's isolated builds and of editors are not the program's environment.
_FOREIGN = re.compile(
    r"pip-build-env|build-env-|\.vscode|/uv/(?:cache|archive)|builds-v0|/runfiles/"
)
_MOST_PATHS = 200
_CONDA = re.compile(r"conda|mamba|miniforge|[\\/]envs[\\/]", re.IGNORECASE)


def find_python(text: str) -> str | None:
    r"""The command that starts the Python of most paths in a text; None if they name none.

    >>> find_python('File "/home/ann/venv/lib/python3.11/site-packages/torch/x.py", line 1')
    '/home/ann/venv/bin/python'
    >>> print(find_python(r'C:\ai\ComfyUI_windows_portable>.\python_embeded\python.exe -s main.py'))
    .\python_embeded\python.exe -s
    """
    if portable := _find_portable(text):
        return portable
    found: dict[str, int] = {}
    for after in islice(_list_folders(text), _MOST_PATHS):
        before = _BEFORE_FOLDER.search(text, max(0, after.start() - 150), after.start())
        start = before and _START_OF_PATH.search(before[0])
        if before and start and not _FOREIGN.search(before[0]):
            prefix = re.sub(r"\\{2,}", r"\\", before[0][start.start() :])
            found[prefix] = found.get(prefix, 0) + 1
    names = (_name_python(prefix) for prefix in sorted(found, key=lambda each: -found[each]))
    return next(filter(None, names), None)


def _list_folders(text: str) -> Iterator[re.Match[str]]:
    for part, pattern in _AFTER_FOLDER.items():
        for at in list_places(text, part, _MOST_PATHS):
            if found := pattern.search(text, max(0, at - _REACH), at + len(part) + _REACH):
                yield found


def list_places(text: str, part: str, most: int) -> list[int]:
    """Where a text has a part: the first places, at most so many."""
    places: list[int] = []
    at = text.find(part)
    while at >= 0 and len(places) < most:
        places.append(at)
        at = text.find(part, at + 1)
    return places


def find_python_version(text: str) -> str | None:
    r"""The version of the Python of a text's first path with one, else the one that the text names.

    >>> find_python_version(r"C:\Python\Python39\lib\site-packages\torch")
    '3.9'
    >>> find_python_version(r'File "C:\Python313\Lib\subprocess.py", line 419, in check_call')
    '3.13'
    >>> find_python_version("$ python3 --version\nPython 3.14.0")
    '3.14'
    """
    for at in list_places(text, "site-packages", _MOST_PATHS):
        if found := _VERSION.search(text, max(0, at - _REACH), at + len("site-")):
            return found["dotted"] or f"3.{found['plain'][1:]}"
    for at in list_places(text, "Python3", _MOST_PATHS):
        if found := _OWN_FOLDER.search(text, max(0, at - 1), at + _REACH):
            return f"3.{found[1][1:]}"
    for part in ("ython", "py -3."):
        for at in list_places(text, part, _MOST_PATHS):
            if found := _NAMED_VERSION.search(text, max(0, at - _REACH), at + _REACH):
                return str(found[found.lastindex or 0])
    return None


# Packages that no index has.
SOURCES = {
    "apex": "git+https://github.com/NVIDIA/apex.git",
    "detectron2": "git+https://github.com/facebookresearch/detectron2.git",
    "pytorch3d": "git+https://github.com/facebookresearch/pytorch3d.git@stable",
}
# How packages of CUDA code come to an AMD GPU: a package's own way, as its project describes it.
ROCM_BUILDS = {
    "flash-attn": "FLASH_ATTENTION_TRITON_AMD_ENABLE=TRUE pip install flash-attn"
    " --no-build-isolation   # its kernels in Triton, which no compiler builds: set the variable"
    " when the program runs, too; MI200, MI300: GPU_ARCHS=<gfx90a or gfx942> in its place compiles"
    ' the faster ones (hipcc of /opt/rocm); without flash-attn: attn_implementation="sdpa"',
    "xformers": "pip install xformers --index-url https://download.pytorch.org/whl/rocm{rocm}"
    "   # ready wheels, of torch's own index (python -c 'import torch; print(torch.version.hip)'"
    " names the ROCm); none for this torch: leave it out, torch's own attention needs none",
    "bitsandbytes": "pip install --upgrade bitsandbytes   # 0.48 and newer have ROCm's library in"
    " their wheel for Linux; of its source: cmake -DCOMPUTE_BACKEND=hip -DBNB_ROCM_ARCH=<the gfx"
    " name of rocminfo> -S . && make, then pip install .",
    "apex": "git clone https://github.com/ROCm/apex && cd apex && pip install ."
    " --no-build-isolation   # AMD's own apex: NVIDIA's compiles for CUDA alone; needs hipcc of"
    " /opt/rocm; a program that only wants amp or FusedAdam: torch.amp,"
    " torch.optim.AdamW(fused=True)",
    "deepspeed": "DS_BUILD_OPS=0 pip install deepspeed --no-build-isolation   # its operations are"
    " compiled at their first use, by hipcc: export ROCM_HOME=/opt/rocm (with ROCm's compiler"
    " installed there); ds_report lists which of them can be",
    "vllm": "uv venv --python 3.12 && uv pip install vllm --extra-index-url"
    " https://wheels.vllm.ai/rocm/   # wheels for ROCm 7 and Python 3.12 alone: with another Python"
    " the installer takes the wheel for CUDA; else the image: docker run --device /dev/kfd --device"
    " /dev/dri --group-add video --ipc=host rocm/vllm",
}
# What pip and uv print of a package whose build fails, and the folder of its source.
_BUILT = re.compile(
    r"(?:Failed to build '|^Failed to build (?=[\w.-]{1,40}$)|based projects \("
    r"|ERROR: Failed building wheel for |× Failed to build `"
    r"|[\\/]pip-install-\w{6,12}[\\/])(?P<name>[A-Za-z][\w.-]{1,40}?)"
    r"(?=@|==|'|,|\)| |_[0-9a-f]{20,32}[\\/]|$)",
    re.MULTILINE,
)
_ASKED = re.compile(
    r"^[>$ !%]{0,3}(?:\([\w.-]{1,40}\) )?(?:\S{1,80}[>$#%] )?(?:uv |python3? -m )?pip3? install "
    r"(?:--?[a-z-]+ ){0,3}"
    r"([A-Za-z][\w.-]{1,40})(?:==\S{1,20})?(?: --?[a-z-]+){0,3}$",
    re.MULTILINE,
)
_SOURCE = re.compile(r"([A-Za-z][\w.-]{1,40}?)-\d[\w.+]{0,30}\.tar\.gz")


def find_built_package(text: str) -> str | None:
    """The package whose build fails in a text of pip or uv; None if none is named.

    >>> find_built_package("Using cached flash_attn-2.7.2.tar.gz\\nPreparing metadata ... error")
    'flash-attn'
    """
    for part in ("ailed ", "pip-install-"):
        for at in list_places(text, part, _MOST_PATHS):
            if found := _BUILT.search(text, max(0, at - _REACH), at + 2 * _REACH):
                return found["name"].replace("_", "-")
    end = min((at for at in map(text.find, _BUILD_FAILS) if at >= 0), default=0)
    # pip fetches and builds one source after the other.
    for at in reversed(list_places(text[:end], ".tar.gz", _MOST_PATHS)):
        if found := _SOURCE.search(text, max(0, at - 2 * _REACH), at + len(".tar.gz")):
            return found[1].replace("_", "-")
    # Newer pip names the package only in the command.
    asked = _ASKED.findall(text) if "build wheel" in text else []
    return str(asked[0]).replace("_", "-") if len(set(asked)) == 1 else None


def _find_portable(text: str) -> str | None:
    for part in ("python_embed", "ComfyUI_windows_portable"):
        at = text.find(part)
        found = _PORTABLE.search(text, max(0, at - 150), at + 60) if at >= 0 else None
        if found:
            folder = found["folder"] or f"{found['root']}\\python_embeded"
            return _quote_path(folder.replace("/", "\\") + "\\python.exe") + " -s"
    return None


def _name_python(prefix: str) -> str | None:
    """The command of the Python that an environment's folder holds."""
    of_conda = bool(_CONDA.search(prefix))
    if prefix[1:2] == ":":
        return _name_python_of_windows(prefix, of_conda=of_conda)
    if prefix.startswith(("/usr", "/nix", "/snap", "/System", "/Library", "/databricks")):
        return None
    if of_conda or re.search(r"venv|^env$|pyenv|virtualenvs|tools|pipx|uv/python", prefix):
        path = f"{prefix}/bin/python"
        return f"'{path}'" if " " in path else path
    return None


def _name_python_of_windows(prefix: str, *, of_conda: bool) -> str | None:
    name = re.split(r"[\\/]", prefix)[-1].lower()
    if found := re.fullmatch(r"python3(\d{1,2})(?:-32)?", name):
        return f"py -3.{found[1]}"
    if re.match(r"python_?-?embed|python$|py\d{3}$", name):
        return _quote_path(f"{prefix}\\python.exe") + " -s"
    if of_conda:
        return _quote_path(f"{prefix}\\python.exe")
    if re.search(r"venv|^env$|\.env$", name):
        return _quote_path(f"{prefix}\\Scripts\\python.exe")
    return None


def _quote_path(path: str) -> str:
    return f'"{path}"' if " " in path else path
