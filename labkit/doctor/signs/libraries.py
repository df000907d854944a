"""Signs of Python packages and system libraries that do not fit each other."""

from __future__ import annotations

from labkit.doctor.distribution import Fix, packages
from labkit.doctor.signs.sign import Sign

TOGETHER = (
    "pip install --upgrade torch torchvision torchaudio "
    "--index-url https://download.pytorch.org/whl/cu130   # or cpu, cu126"
)

LIBRARY_SIGNS = (
    Sign(
        "cudnn-mismatch",
        (r"cuDNN version incompatibility: PyTorch was compiled against",),
        "another cuDNN is found before the one that came with torch",
        Fix("unset LD_LIBRARY_PATH"),
        otherwise="pip list | grep -i cudnn   # one of them only",
    ),
    Sign(
        "torch-family-mismatch",
        (
            r"operator torchvision::nms does not exist",
            r"torchvision has CUDA Version=[\d.]+",
            r"torchaudio.{0,80}undefined symbol",
            r"torchvision.{0,80}undefined symbol",
        ),
        "torchvision or torchaudio was built for another torch than the one here",
        Fix(TOGETHER),
    ),
    Sign(
        "numpy-2",
        (r"A module that was compiled using NumPy 1\.x cannot be run in",),
        "a package here was built before NumPy 2 came, and does not run with it",
        Fix("pip install --upgrade <the package the traceback names>"),
        otherwise="pip install 'numpy<2'",
    ),
    Sign(
        "openmp-twice",
        (r"OMP: Error #15: Initializing",),
        "two packages brought an OpenMP each, most often one from conda and one from pip",
        Fix("make up RUNTIME=local   # a .venv of its own, without conda's libraries"),
        "likely",
        otherwise="KMP_DUPLICATE_LIB_OK=TRUE hides it, and may give wrong results",
    ),
    Sign(
        "static-tls",
        (r"cannot allocate memory in static TLS block",),
        "a library that must be loaded early is loaded late (mostly on ARM)",
        Fix("export LD_PRELOAD=<the library that the line names>"),
        "likely",
    ),
    Sign(
        "no-libgl",
        (r"lib(?:GL|EGL|gthread-2\.0|SM|Xext)\.so\.\d+: cannot open shared object file",),
        "OpenCV or another package for pictures wants a screen's libraries",
        packages("libgl1", "mesa-libGL", "Mesa-libGL1", "libglvnd", "install libGL"),
        "likely",
        otherwise="pip install opencv-python-headless   # needs none of them",
    ),
    Sign(
        "no-cuda-toolkit",
        (r"CUDA_HOME environment variable is not set", r"nvcc: (?:command )?not found"),
        "a package wants to compile CUDA code; torch brings CUDA's libraries, not its compiler",
        Fix("pip install --only-binary :all: <the package>   # a build of it, not its source"),
        "likely",
        otherwise="install the CUDA toolkit of torch's own version, and set CUDA_HOME",
    ),
    Sign(
        "cuda-toolkit-mismatch",
        (r"The detected CUDA version \([\d.]+\) mismatches the version that was used to compile",),
        "the CUDA compiler here is of another version than the CUDA in torch",
        Fix("python -c 'import torch; print(torch.version.cuda)'   # the toolkit to install"),
    ),
    Sign(
        "no-torch",
        (r"ModuleNotFoundError: No module named '(?:torch|labkit|ipykernel)'",),
        "this Python is not the lab's: another environment, or another kernel in the notebook",
        Fix("make shell   # a shell with the lab's own Python"),
        "likely",
        otherwise="in JupyterLab: Kernel, Change Kernel, Python 3",
    ),
    Sign(
        "python-too-old",
        (r"requires a different Python: [\d.]+ not in",),
        "this Python is too old, or too new, for the package",
        Fix("make up PYTHON=python3.12   # any from 3.10 to 3.14"),
    ),
)
