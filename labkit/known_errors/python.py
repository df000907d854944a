"""Known errors of Python packages, torch.compile, JupyterLab and its kernels."""

from __future__ import annotations

from labkit.host.packages import INSTALL_COMPILER, INSTALL_LIBGL, Fix
from labkit.known_errors.model import KnownError

TOGETHER = (
    "pip install --upgrade torch torchvision torchaudio "
    "--index-url https://download.pytorch.org/whl/cu130   # or cpu, cu126"
)

PYTHON_ERRORS = (
    KnownError(
        "cudnn-mismatch",
        (r"cuDNN version incompatibility: PyTorch was compiled against",),
        "another cuDNN is found before the one that came with torch",
        Fix("unset LD_LIBRARY_PATH"),
        otherwise="pip list | grep -i cudnn   # keep one of them",
    ),
    KnownError(
        "torch-family-mismatch",
        (
            r"operator torchvision::nms does not exist",
            r"torchvision has CUDA Version=[\d.]+",
            r"torchaudio.{0,80}undefined symbol",
            r"torchvision.{0,80}undefined symbol",
        ),
        "torchvision or torchaudio was built for another version of torch",
        Fix(TOGETHER),
    ),
    KnownError(
        "numpy-2",
        (r"A module that was compiled using NumPy 1\.x cannot be run in",),
        "a package was built for NumPy 1 and does not run with NumPy 2",
        Fix("pip install --upgrade <the package the traceback names>"),
        otherwise="pip install 'numpy<2'",
    ),
    KnownError(
        "openmp-twice",
        (r"OMP: Error #15: Initializing",),
        "two packages each load their own OpenMP, usually one from conda and one from pip",
        Fix("make up RUNTIME=local   # a .venv of its own, without conda's libraries"),
        "likely",
        otherwise="KMP_DUPLICATE_LIB_OK=TRUE hides it, and results may be wrong",
    ),
    KnownError(
        "static-tls",
        (r"cannot allocate memory in static TLS block",),
        "a library that must be loaded first is loaded too late (mostly on ARM)",
        Fix("export LD_PRELOAD=<the library that the line names>"),
        "likely",
    ),
    KnownError(
        "no-libgl",
        (r"lib(?:GL|EGL|gthread-2\.0|SM|Xext)\.so\.\d+: cannot open shared object file",),
        "OpenCV or another imaging package needs the libraries of a desktop",
        INSTALL_LIBGL,
        "likely",
        otherwise="pip install opencv-python-headless   # does not need them",
    ),
    KnownError(
        "no-cuda-toolkit",
        (r"CUDA_HOME environment variable is not set", r"nvcc: (?:command )?not found"),
        "a package compiles CUDA code; torch contains CUDA's libraries, but not its compiler",
        Fix("pip install --only-binary :all: <the package>   # a wheel, not the source"),
        "likely",
        otherwise="install the CUDA toolkit of torch's own version, and set CUDA_HOME",
    ),
    KnownError(
        "cuda-toolkit-mismatch",
        (r"The detected CUDA version \([\d.]+\) mismatches the version that was used to compile",),
        "the CUDA compiler and the CUDA in torch have different versions",
        Fix("python -c 'import torch; print(torch.version.cuda)'   # the version to install"),
    ),
    KnownError(
        "no-torch",
        (r"ModuleNotFoundError: No module named '(?:torch|labkit|ipykernel)'",),
        "this is not the lab's Python: another environment, or another kernel in the notebook",
        Fix("make shell   # a shell with the lab's own Python"),
        "likely",
        otherwise="in JupyterLab: Kernel, Change Kernel, Python 3",
    ),
    KnownError(
        "python-too-old",
        (r"requires a different Python: [\d.]+ not in",),
        "this Python is too old, or too new, for the package",
        Fix("make up PYTHON=python3.12   # any from 3.10 to 3.14"),
    ),
    KnownError(
        "host-not-allowed",
        (r"Blocking request with non-local 'Host'",),
        "the page was opened by a host name or address that the lab does not accept",
        Fix("make down && make up BIND=0.0.0.0   # opens it to the network; or use an SSH tunnel"),
    ),
    KnownError(
        "stale-cookie",
        (r"'_xsrf' argument missing from", r"XSRF cookie does not match"),
        "the browser has a cookie of another Jupyter server at this address",
        Fix("make status   # open the URL it prints in a private window, or clear the cookies"),
        "likely",
    ),
    KnownError(
        "kernel-died",
        (
            r"The kernel appears to have died",
            r"Kernel died before replying to kernel_info",
            r"AsyncIOLoopKernelRestarter: restarting kernel",
            r"DeadKernelError",
        ),
        "the kernel's process ended: usually the operating system killed it as memory ran out",
        Fix("sudo dmesg | grep -i 'killed process'   # shows it if memory ran out"),
        "possible",
    ),
    KnownError(
        "class-of-the-notebook",
        (r"Can't get attribute '\w+' on <module '__main__'",),
        "a spawned worker process cannot import what was defined in a cell",
        Fix("put the class or function into a .py file and import it, or use num_workers=0"),
        "likely",
        brings=("worker-exited",),
    ),
    KnownError(
        "no-compiler",
        (
            r"Failed to find C compiler\. Please specify via CC",
            r"No working C\+\+ compiler found",
            r"InvalidCxxCompiler",
            r"\bg\+\+: (?:command )?not found",
            r"\bgcc: (?:command )?not found",
            r"\bcc1plus: (?:command )?not found",
        ),
        "torch.compile needs a compiler, and none is installed (on the CPU: g++, not only gcc)",
        INSTALL_COMPILER,
        otherwise="use the lab's image, which has one: make up RUNTIME=docker",
    ),
    KnownError(
        "no-python-headers",
        (r"Python\.h: No such file or directory", r"'Python\.h' file not found"),
        "Python's headers are missing",
        INSTALL_COMPILER,
    ),
    KnownError(
        "no-openmp-header",
        (r"omp\.h: No such file or directory", r"'omp\.h' file not found"),
        "the compiler was installed without OpenMP's header",
        INSTALL_COMPILER,
    ),
    KnownError(
        "noexec-cache",
        (r"failed to map segment from shared object",),
        "the compile cache is on a noexec mount (such as Docker's tmpfs)",
        Fix("export TORCHINDUCTOR_CACHE_DIR=/cache/inductor   # or mount it as /tmp:exec"),
    ),
    KnownError(
        "ptxas-too-old",
        (
            r"ptxas fatal\s*: Value 'sm_\w+' is not defined",
            r"ptxas.{0,80}sm_\d+a?'? is not defined",
        ),
        "the ptxas in use does not know this GPU: it is too old",
        Fix("export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas   # CUDA 13's"),
    ),
    KnownError(
        "no-libcuda-link",
        (r"libcuda\.so cannot found", r"ld: cannot find -lcuda\b"),
        "Triton looks for libcuda in ldconfig's cache, which does not list it",
        Fix("sudo ldconfig   # in a container: export TRITON_LIBCUDA_PATH=<libcuda.so's folder>"),
        "likely",
    ),
    KnownError(
        "no-triton",
        (r"Cannot find a working triton installation", r"TritonMissing"),
        "torch.compile on a GPU needs Triton, and it is missing or the GPU is too old for it",
        Fix("python -m pip install triton   # needs a GPU of compute capability 7.0 or newer"),
        "likely",
    ),
    KnownError(
        "gpu-too-old-for-triton",
        (r"Found .{1,80} which is too old to be supported by the triton GPU compiler",),
        "Triton needs a GPU of compute capability 7.0 or newer",
        Fix("torch.compile(model, backend='aot_eager')   # or run it uncompiled"),
        brings=("no-triton",),
    ),
    KnownError(
        "triton-kernel-too-large",
        (r"out of resource: shared memory, Required: \d+",),
        "a Triton kernel needs more shared memory than this GPU has",
        Fix("torch.compile(model, options={'max_autotune': False})   # or use smaller blocks"),
        "likely",
    ),
    KnownError(
        "no-architecture",
        (
            r"no kernel image is available for execution on the device",
            r"CUDA capability sm_\d+a? is not compatible with the current PyTorch",
            r"cudaErrorNoKernelImageForDevice",
        ),
        "this torch has no code for the GPU's architecture (Maxwell, Pascal and Volta need the "
        "cu126 build, Blackwell needs cu130)",
        Fix("pip install torch --index-url https://download.pytorch.org/whl/cu126   # or cu130"),
    ),
    KnownError(
        "no-cuda-build",
        (r"Torch not compiled with CUDA enabled",),
        "this torch is a build for the CPU",
        Fix("pip install torch --index-url https://download.pytorch.org/whl/cu130"),
    ),
    KnownError(
        "mixed-cuda-libraries",
        (
            r"(?:Could not load library|Unable to load any of \{)\s?libcudnn",
            r"undefined symbol: _?_?(?:nvJitLink|cublasLt|cudnn|nccl|cusparse)\w*",
            r"lib(?:cudnn|cublas|cudart|cufft|curand|cusolver|cusparse|cupti|nccl|nvJitLink|nvrtc"
            r"|nvToolsExt|nvshmem)[\w.-]*: cannot open shared object file",
        ),
        "the libraries of another CUDA are found before the ones installed with torch",
        Fix("unset LD_LIBRARY_PATH"),
        "likely",
    ),
    KnownError(
        "illegal-instruction",
        (r"Illegal instruction", r"SIGILL"),
        "the program was built for a newer processor than this one",
        Fix("export ATEN_CPU_CAPABILITY=default"),
        "possible",
    ),
)
