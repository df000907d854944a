"""Puts the simulated GPU into a Python environment with a CUDA 13 build of torch.

    python -m tests.simulated_gpu.build .venv-simulated

The environment is for this alone: CUDA's libraries in it are replaced. The real ones stay beside
them as ``NAME.real``. What is compiled is kept by the hash of its sources and of torch's version:
a second build takes seconds. Needs gcc and g++, Linux on x86-64.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).parent
NATIVE = HERE / "native"
# Kept outside of the environment, so that a new environment needs no compiler's minutes.
CACHE_VARIABLE = "LABKIT_SIM_CACHE"
RUNTIME = ("machine", "process", "devices", "memory", "pools", "streams", "graphs", "kernels")
DRIVER = ("driver", "driver_memory", "driver_absent")
FLAGS = ("-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-fvisibility=hidden")
# torch's headers are large: without optimization they take a third of the time.
ARITHMETIC_FLAGS = ("-O0", "-std=c++20", "-fPIC", "-w")


@dataclass(frozen=True)
class Library:
    """A library that is replaced: the file, and the sources of what is not a stub."""

    folder: str
    name: str
    sources: tuple[str, ...]
    # What a stub returns: in the runtime "not supported", in math libraries success.
    stub: int = 0


NOT_SUPPORTED = 801
MOST_BYTES = 8 << 20  # a simulated library is smaller
# torch finds these by DT_RPATH, before LD_LIBRARY_PATH: the files themselves are replaced.
REPLACED = (
    Library("cu13/lib", "libcudart.so.13", (*RUNTIME, *DRIVER), NOT_SUPPORTED),
    Library("cu13/lib", "libcublas.so.13", ("cublas",)),
    Library("cu13/lib", "libcublasLt.so.13", ("cublaslt",)),
    Library("cu13/lib", "libcufft.so.12", ("cufft",)),
    Library("cudnn/lib", "libcudnn.so.9", ("cudnn",)),
)
# torch loads the arithmetic when it is imported, by this entry point.
ENTRY_POINT = "[torch.backends]\nlabkit_simulated_gpu = labkit_simulated_gpu:load\n"
METADATA = "Metadata-Version: 2.1\nName: labkit-simulated-gpu\nVersion: 1\n"


class BuildError(Exception):
    """The simulated GPU cannot be built here; the text says why."""


@dataclass(frozen=True)
class Environment:
    """The Python environment that gets the simulated GPU."""

    folder: Path

    @property
    def home(self) -> Path:
        """Where the driver's libraries, nvidia-smi and the arithmetic are put."""
        return self.folder / "simulated-gpu"

    @cached_property
    def packages(self) -> Path:
        """The environment's site-packages."""
        found = sorted(self.folder.glob("lib/python3*/site-packages"))
        if not found:
            raise BuildError(f"{self.folder} is not a Python environment")
        return found[0]

    @property
    def nvidia(self) -> Path:
        """The folder of NVIDIA's packages."""
        return self.packages / "nvidia"

    @cached_property
    def torch_version(self) -> str:
        """torch's version. Raises BuildError if it is not a build for CUDA 13."""
        try:
            text = (self.packages / "torch" / "version.py").read_text(encoding="utf-8")
        except OSError as error:
            raise BuildError(f"{self.folder} has no torch: {error.strerror}") from error
        version = re.search(r"__version__ = '([^']+)'", text)
        cuda = re.search(r"cuda: [^=]+= '([^']+)'", text)
        if not version or not cuda or not cuda[1].startswith("13."):
            raise BuildError(f"torch in {self.folder} is not a build for CUDA 13")
        return version[1]

    def read_macro(self, header: str, name: str) -> int:
        """The number that a header of NVIDIA's packages defines."""
        text = (self.nvidia / header).read_text(encoding="utf-8", errors="replace")
        found = re.search(rf"#define {name}\s+(\d+)", text)
        if found is None:
            raise BuildError(f"{header} does not define {name}")
        return int(found[1])

    def find_oldest_architecture(self) -> int:
        """The oldest GPU that torch has code for, 75 for compute capability 7.5."""
        # An earlier build may be half there: torch must not load its arithmetic.
        script = "import torch; print(torch._C._cuda_getArchFlags() or '')"
        python = self.folder / "bin" / "python"
        printed = run("env", "TORCH_DEVICE_BACKEND_AUTOLOAD=0", str(python), "-c", script)
        numbers = [int(number) for number in re.findall(r"sm_(\d+)", printed)]
        return min(numbers, default=75)


def run(*command: str) -> str:
    """The command's standard output; raises BuildError with its errors."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout


@dataclass(frozen=True)
class Compiler:
    """Compiles sources into objects and libraries, each once for what it is made of."""

    environment: Environment
    cache: Path

    @cached_property
    def definitions(self) -> tuple[str, ...]:
        """What the sources have to know of this torch and its libraries."""
        cudnn = [
            self.environment.read_macro("cudnn/include/cudnn_version.h", f"CUDNN_{part}")
            for part in ("MAJOR", "MINOR", "PATCHLEVEL")
        ]
        cudart = self.environment.read_macro("cu13/include/cuda_runtime_api.h", "CUDART_VERSION")
        return (
            f"-DCUDNN_VERSION_NUMBER={cudnn[0] * 10000 + cudnn[1] * 100 + cudnn[2]}",
            f"-DCUDART_VERSION_NUMBER={cudart}",
            f"-DOLDEST_ARCHITECTURE={self.environment.find_oldest_architecture()}",
        )

    def make(self, suffix: str, sources: Iterable[Path], *command: str) -> Path:
        """The file that ``command -o FILE`` makes of the sources, from the cache if it is there."""
        digest = hashlib.sha256("\0".join(command).encode())
        for source in (*sources, *sorted(NATIVE.glob("*.h"))):
            digest.update(source.read_bytes())
        digest.update(self.environment.torch_version.encode())
        made = self.cache / f"{digest.hexdigest()[:24]}{suffix}"
        if not made.exists():
            unfinished = made.with_name(f"{made.name}.{os.getpid()}")
            run(*command, "-o", str(unfinished))
            unfinished.replace(made)
        return made

    def compile(self, source: Path) -> Path:
        """The object of one C or C++ source."""
        program = ("g++", "-std=c++20") if source.suffix == ".cpp" else ("gcc",)
        folders = (f"-I{NATIVE}", f"-I{self.environment.nvidia / 'cu13' / 'include'}")
        return self.make(
            ".o", [source], *program, *FLAGS, *self.definitions, *folders, "-c", str(source)
        )

    def link(self, name: str, objects: list[Path], *options: str) -> Path:
        """A shared library of this name."""
        words = [str(one) for one in objects]
        return self.make(
            ".so", objects, "g++", "-shared", f"-Wl,-soname,{name}", *words, *options, "-ldl"
        )

    def write(self, name: str, text: str) -> Path:
        """A generated source in the cache, under a name that has its content's hash."""
        path = self.cache / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}-{name}"
        path.write_text(text, encoding="utf-8")
        return path


def find_source(name: str) -> Path:
    """The source of this name, in C++ or C."""
    path = NATIVE / f"{name}.cpp"
    return path if path.exists() else NATIVE / f"{name}.c"


def list_exports(library: Path) -> tuple[list[str], str]:
    """The functions that a library exports, and its version node ("" without one)."""
    printed = run("nm", "-D", "--defined-only", str(library))
    names = [line.split()[-1] for line in printed.splitlines() if re.search(r" [TW] ", line)]
    node = next((name.split("@@")[1] for name in names if "@@" in name), "")
    return sorted({name.split("@")[0] for name in names}), node


def write_stubs(names: Iterable[str], value: int) -> str:
    """The C source of functions that return ``value`` and, when traced, print their name."""
    lines = [
        "#include <stdio.h>",
        "#include <stdlib.h>",
        '#define STUB(name) __attribute__((visibility("default"))) long name(void) { \\',
        '    if (getenv("LABKIT_SIM_TRACE")) fprintf(stderr, "stub " #name "\\n"); \\',
        f"    return {value}; }}",
        *(f"STUB({name})" for name in names if name.isidentifier()),
    ]
    return "\n".join(lines) + "\n"


def build_library(compiler: Compiler, library: Library) -> Path:
    """One replaced library: what is written by hand, and a stub for each other export."""
    exports, node = list_exports(
        find_real(compiler.environment.nvidia / library.folder / library.name)
    )
    objects = [compiler.compile(find_source(name)) for name in library.sources]
    printed = run("nm", "--defined-only", *map(str, objects))
    written = {line.split()[-1] for line in printed.splitlines() if " T " in line}
    stubs = write_stubs((name for name in exports if name not in written), library.stub)
    objects.append(compiler.compile(compiler.write(f"stubs-{library.name}.c", stubs)))
    script = compiler.write(f"{library.name}.map", f"{node} {{ global: *; }};\n")
    return compiler.link(library.name, objects, f"-Wl,--version-script={script}")


def is_ours(path: Path) -> bool:
    """True if the file is a simulated library: they are small and know the variable for traces."""
    return path.stat().st_size < MOST_BYTES and b"LABKIT_SIM_TRACE" in path.read_bytes()


def find_real(path: Path) -> Path:
    """The real library, or where it was moved."""
    return path.with_name(f"{path.name}.real") if is_ours(path) else path


def install(made: Path, path: Path) -> None:
    """Puts a file at its place at once: writing into a library would crash running processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    shutil.copyfile(made, unfinished)
    unfinished.chmod(0o755)
    unfinished.replace(path)


def build_arithmetic(compiler: Compiler) -> Path:
    """The library with the CPU's arithmetic for torch's CUDA operators; takes a minute."""
    torch = compiler.environment.packages / "torch"
    sources = [NATIVE / "arithmetic.cpp", NATIVE / "fused.cpp"]
    headers = (f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include")
    libraries = (f"-L{torch}/lib", "-ltorch_cpu", "-lc10")
    return compiler.make(
        ".so",
        sources,
        "g++",
        "-shared",
        *ARITHMETIC_FLAGS,
        *headers,
        *map(str, sources),
        *libraries,
    )


def install_entry_point(environment: Environment) -> None:
    """Lets torch load the arithmetic whenever it is imported."""
    information = environment.packages / "labkit_simulated_gpu-1.dist-info"
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text(METADATA, encoding="utf-8")
    (information / "entry_points.txt").write_text(ENTRY_POINT, encoding="utf-8")
    package = environment.packages / "labkit_simulated_gpu"
    package.mkdir(exist_ok=True)
    for source in (HERE / "installed").glob("*.py"):
        shutil.copyfile(source, package / source.name)


def build(environment: Environment, cache: Path) -> None:
    """Builds everything and installs it. Raises BuildError."""
    cache.mkdir(parents=True, exist_ok=True)
    compiler = Compiler(environment, cache)
    made = {library: build_library(compiler, library) for library in REPLACED}
    driver = environment.home / "driver"
    for library, path in made.items():
        place = environment.nvidia / library.folder / library.name
        if not is_ours(place):
            place.replace(place.with_name(f"{place.name}.real"))
        install(path, place)
    nvml = [compiler.compile(find_source(name)) for name in ("machine", "nvml")]
    install(compiler.link("libnvidia-ml.so.1", nvml), driver / "libnvidia-ml.so.1")
    # The driver's functions are in the runtime; this library only leads there.
    runtime = environment.nvidia / REPLACED[0].folder / REPLACED[0].name
    options = ("-Wl,--no-as-needed", str(runtime), f"-Wl,-rpath,{runtime.parent}")
    libcuda = compiler.link("libcuda.so.1", [], *options)
    for name in ("libcuda.so.1", "libcuda.so"):
        install(libcuda, driver / name)
    install(HERE / "nvidia_smi.py", environment.home / "bin" / "nvidia-smi")
    install(build_arithmetic(compiler), environment.home / "libarithmetic.so")
    install_entry_point(environment)


def main(words: list[str]) -> int:
    """``python -m tests.simulated_gpu.build ENVIRONMENT``: 0, or 1 with the reason on stderr."""
    if len(words) != 1:
        print("usage: python -m tests.simulated_gpu.build ENVIRONMENT", file=sys.stderr)
        return 2
    folder = Path(words[0]).resolve()
    cache = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "labkit-simulated-gpu"
    try:
        build(Environment(folder), Path(cache))
    except BuildError as error:
        print(f"cannot build the simulated GPU: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
