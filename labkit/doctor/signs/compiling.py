"""Signs of torch.compile: compiler, headers, caches and Triton."""

from __future__ import annotations

from labkit.doctor.distribution import INSTALL_COMPILER, Fix
from labkit.doctor.signs.sign import Sign

COMPILING_SIGNS = (
    Sign(
        "no-compiler",
        (
            r"Failed to find C compiler\. Please specify via CC",
            r"No working C\+\+ compiler found",
            r"InvalidCxxCompiler",
            r"(?:g\+\+|gcc|cc1plus): (?:command )?not found",
        ),
        "there is no compiler here, and torch.compile needs one (on the CPU: g++, not gcc alone)",
        INSTALL_COMPILER,
        otherwise="use the lab's image, which has it: make up RUNTIME=docker",
    ),
    Sign(
        "no-python-headers",
        (r"Python\.h: No such file or directory", r"'Python\.h' file not found"),
        "Python's headers are missing",
        INSTALL_COMPILER,
    ),
    Sign(
        "no-openmp-header",
        (r"omp\.h: No such file or directory", r"'omp\.h' file not found"),
        "the compiler came without OpenMP's header",
        INSTALL_COMPILER,
    ),
    Sign(
        "noexec-cache",
        (r"failed to map segment from shared object",),
        "the compile cache is on a mount that forbids running programs (Docker's tmpfs does)",
        Fix("export TORCHINDUCTOR_CACHE_DIR=/cache/inductor   # or mount it as /tmp:exec"),
    ),
    Sign(
        "ptxas-too-old",
        (
            r"ptxas fatal\s*: Value 'sm_\w+' is not defined",
            r"ptxas.{0,80}sm_\d+a?'? is not defined",
        ),
        "the ptxas in use is older than this GPU",
        Fix("export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas   # CUDA 13's"),
    ),
    Sign(
        "no-libcuda-link",
        (r"libcuda\.so cannot found", r"ld: cannot find -lcuda\b"),
        "Triton finds libcuda through ldconfig, whose cache does not list it",
        Fix("sudo ldconfig   # in a container: export TRITON_LIBCUDA_PATH=<libcuda.so's folder>"),
        "likely",
    ),
    Sign(
        "no-triton",
        (r"Cannot find a working triton installation", r"TritonMissing"),
        "torch.compile on a GPU needs Triton, and it is missing or the GPU is too old for it",
        Fix("python -m pip install triton   # needs a GPU of compute capability 7.0 or newer"),
        "likely",
    ),
    Sign(
        "gpu-too-old-for-triton",
        (r"Found .{1,80} which is too old to be supported by the triton GPU compiler",),
        "Triton needs a GPU of compute capability 7.0 or newer",
        Fix("torch.compile(model, backend='aot_eager')   # or run it uncompiled"),
        brings=("no-triton",),
    ),
    Sign(
        "triton-kernel-too-large",
        (r"out of resource: shared memory, Required: \d+",),
        "a Triton kernel wants more of the GPU's fast memory than this card has",
        Fix("torch.compile(model, options={'max_autotune': False})   # or smaller blocks"),
        "likely",
    ),
    Sign(
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
    Sign(
        "no-cuda-build",
        (r"Torch not compiled with CUDA enabled",),
        "this torch is a build for the CPU",
        Fix("pip install torch --index-url https://download.pytorch.org/whl/cu130"),
    ),
    Sign(
        "mixed-cuda-libraries",
        (
            r"(?:Could not load library|Unable to load any of \{)\s?libcudnn",
            r"undefined symbol: _?_?(?:nvJitLink|cublasLt|cudnn|nccl|cusparse)\w*",
            r"lib(?:cudnn|cublas|cudart|cufft|curand|cusolver|cusparse|cupti|nccl|nvJitLink|nvrtc"
            r"|nvToolsExt|nvshmem)[\w.-]*: cannot open shared object file",
        ),
        "libraries of another CUDA are found before the ones that came with torch",
        Fix("unset LD_LIBRARY_PATH"),
        "likely",
    ),
    Sign(
        "illegal-instruction",
        (r"Illegal instruction", r"SIGILL"),
        "the program was built for a newer processor than this one",
        Fix("export ATEN_CPU_CAPABILITY=default"),
        "possible",
    ),
)
