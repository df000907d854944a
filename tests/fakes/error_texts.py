"""Error texts as programs print them, and logs with no error in them."""

from __future__ import annotations

# The texts as programs print them, by the known error that each must give.
TEXTS = [
    (
        "toolkit-too-old",
        "nvidia-container-cli: container error: cgroup subsystem devices not found: unknown",
    ),
    ("no-nvidia-smi", "zsh: command not found: nvidia-smi"),
    ("driver-too-old", "CudaAPIError: [222] cuLinkAddData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
    ("driver-too-old", "the provided PTX was compiled with an unsupported toolchain."),
    ("out-of-memory-killed", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0."),
    ("out-of-memory-killed", "Some of the step tasks have been OOM Killed."),
    ("secure-boot", "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service"),
    ("secure-boot", "modprobe: ERROR: could not insert 'nvidia': Required key not available"),
    ("gpu-off-the-bus", "NVRM: Xid (PCI:0000:41:00): 79, pid=2212, GPU has fallen off the bus."),
    (
        "driver-library-mismatch",
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95",
    ),
    (
        "driver-library-mismatch",
        "nvidia-container-cli: initialization error: nvml error: driver/library "
        "version mismatch: unknown",
    ),
    (
        "driver-library-mismatch",
        "NVRM: API mismatch: the client has the version 580.95.05, but\nNVRM: this "
        "kernel module has the version 580.65.06.",
    ),
    (
        "driver-not-loaded",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA "
        "driver. Make sure that the latest NVIDIA driver is installed and running.",
    ),
    (
        "driver-not-loaded",
        "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown",
    ),
    ("no-devices", "No devices were found"),
    ("torch-without-driver", "RuntimeError: Found no NVIDIA driver on your system."),
    ("torch-without-driver", "RuntimeError: No CUDA GPUs are available"),
    (
        "wsl-blocked",
        "Failed to initialize NVML: GPU access blocked by the operating "
        "system\nFailed to properly shut down NVML: GPU access blocked by the "
        "operating system",
    ),
    (
        "driver-too-old",
        "RuntimeError: The NVIDIA driver on your system is too old (found version "
        "12040). Please update your GPU driver by downloading and installing a new "
        "version",
    ),
    ("driver-too-old", "CUDA error: CUDA driver version is insufficient for CUDA runtime version"),
    (
        "error-803",
        "Error 803: system has unsupported display driver / cuda driver combination "
        "(Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:109.)",
    ),
    (
        "error-804",
        "UserWarning: CUDA initialization: Unexpected error from "
        "cudaGetDeviceCount(). Error 804: forward compatibility was attempted on non "
        "supported HW",
    ),
    (
        "fabric-manager",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system "
        "not yet initialized",
    ),
    ("fabric-manager", "cuda runtime error (802) : system not yet initialized at THCGeneral.cpp"),
    (
        "nvidia-uvm",
        "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up "
        "environment, e.g. changing env variable CUDA_VISIBLE_DEVICES after program "
        "start.",
    ),
    ("gpu-busy", "CUDA error: all CUDA-capable devices are busy or unavailable"),
    ("ecc-error", "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
    (
        "no-gpu-driver-in-engine",
        'docker: Error response from daemon: could not select device driver "" with '
        "capabilities: [[gpu]].",
    ),
    (
        "no-gpu-driver-in-engine",
        'Error response from daemon: could not select device driver "nvidia" with '
        "capabilities: [[gpu]]",
    ),
    (
        "unknown-nvidia-runtime",
        "docker: Error response from daemon: unknown or invalid runtime name: nvidia.",
    ),
    ("no-cdi-spec", "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all"),
    ("no-cdi-spec", "Error: stat nvidia.com/gpu=0: no such file or directory"),
    (
        "stale-cdi-spec",
        "Error: setting up CDI devices: failed to inject devices: failed to stat CDI "
        'host device "/dev/dri/renderD129": no such file or directory',
    ),
    (
        "no-driver-library",
        "nvidia-container-cli: initialization error: load library failed: "
        "libnvidia-ml.so.1: cannot open shared object file: no such file or "
        "directory: unknown.",
    ),
    (
        "driver-requirement",
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, "
        "please update your driver to a newer version, or use an earlier cuda "
        "container: unknown.",
    ),
    ("nvml-unknown-error", "Failed to initialize NVML: Unknown Error"),
    ("nvml-permissions", "Failed to initialize NVML: Insufficient Permissions"),
    (
        "rootless-cgroups",
        "nvidia-container-cli: mount error: failed to add device rules: unable to "
        "find any existing device filters attached to the cgroup: "
        "bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted",
    ),
    ("unknown-device", "nvidia-container-cli: device error: 3: unknown device: unknown"),
    ("unknown-device", "RuntimeError: CUDA error: invalid device ordinal"),
    ("gpu-device-refused", "cannot open: Permission denied: '/dev/nvidia0'"),
    (
        "daemon-not-running",
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the "
        "docker daemon running?",
    ),
    (
        "daemon-refuses",
        "permission denied while trying to connect to the Docker daemon socket at "
        "unix:///var/run/docker.sock",
    ),
    (
        "daemon-refuses",
        "permission denied while trying to connect to the docker API at "
        "unix:///var/run/docker.sock",
    ),
    ("no-compose", "docker: 'compose' is not a docker command.\nSee 'docker --help'"),
    ("no-compose", "unknown flag: --profile\nSee 'docker --help'."),
    ("no-compose", "docker-compose version 1.29.2, build unknown"),
    ("no-compose", "Error: looking up compose provider failed"),
    ("compose-file-too-new", "Unsupported config option for services.cpu: 'profiles'"),
    ("port-taken", "Bind for 127.0.0.1:8888 failed: port is already allocated"),
    ("port-taken", "listen tcp4 127.0.0.1:8888: bind: address already in use"),
    ("token-rejected", "[W ServerApp] Invalid credentials"),
    ("work-folder-refused", "PermissionError: [Errno 13] Permission denied: '/work'"),
    (
        "missing-bind-source",
        'invalid mount config for type "bind": bind source path does not exist: /home/ada/work',
    ),
    ("read-only", "OSError: [Errno 30] Read-only file system: '/opt/lab/lib/x'"),
    ("no-user-name", "KeyError: 'getpwuid(): uid not found: 1234'"),
    ("no-user-name", "OSError: getpwuid(): uid not found: 1234"),
    ("wrong-architecture", "exec /usr/bin/tini: exec format error"),
    ("out-of-memory-killed", "DataLoader worker (pid 77) is killed by signal: Killed."),
    ("out-of-memory-killed", "Out of memory: Killed process 4711 (python) total-vm:81234kB"),
    ("out-of-memory-killed", "g++: fatal error: Killed signal terminated program cc1plus"),
    ("too-many-watches", "OSError: [Errno 28] inotify watch limit reached"),
    ("disk-full", "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"),
    ("disk-full", "OSError: [Errno 28] No space left on device"),
    ("no-name-server", "curl: (6) Could not resolve host: index.example"),
    ("no-name-server", "dial tcp: lookup registry.example on 10.0.0.2:53: no such host"),
    ("no-name-server", "[Errno -3] Temporary failure in name resolution"),
    (
        "changed-certificate",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self signed "
        "certificate in certificate chain",
    ),
    ("changed-certificate", "tls: failed to verify: x509: certificate signed by unknown authority"),
    ("proxy-refuses", "OSError: Tunnel connection failed: 407 Proxy Authentication Required"),
    ("index-unreachable", "Get https://registry.example/v2/: net/http: TLS handshake timeout"),
    ("hashes-differ", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."),
    ("no-build", "ERROR: No matching distribution found for torch==2.13.0+cpu"),
    ("no-venv", "The virtual environment was not created: ensurepip is not available."),
    ("pull-limit", "toomanyrequests: You have reached your unauthenticated pull rate limit."),
    ("image-not-there", "pull access denied for labkit, repository does not exist"),
    ("unreadable-archive", "failed to register layer: unexpected EOF"),
    ("externally-managed", "error: externally-managed-environment"),
    ("old-libc", "/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found"),
    (
        "no-compiler",
        "RuntimeError: Failed to find C compiler. Please specify via CC environment "
        "variable or set triton.knobs.build.impl.",
    ),
    (
        "no-compiler",
        "torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found in "
        "torch._inductor.config.cpp.cxx: (None, 'g++')",
    ),
    ("no-python-headers", "main.c:5:10: fatal error: Python.h: No such file or directory"),
    ("no-openmp-header", "fatal error: omp.h: No such file or directory"),
    (
        "noexec-cache",
        "ImportError: /tmp/torchinductor_lab/x.so: failed to map segment from shared object",
    ),
    ("ptxas-too-old", "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'"),
    ("no-libcuda-link", "AssertionError: libcuda.so cannot found!"),
    ("no-libcuda-link", "/usr/bin/ld: cannot find -lcuda: No such file or directory"),
    ("no-triton", "TritonMissing: Cannot find a working triton installation."),
    (
        "gpu-too-old-for-triton",
        "GPUTooOldForTriton: Found Quadro P2000 which is too old to be supported by "
        "the triton GPU compiler, which is used as the backend.",
    ),
    (
        "no-architecture",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    ),
    (
        "no-architecture",
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with "
        "the current PyTorch installation.",
    ),
    ("no-cuda-build", "AssertionError: Torch not compiled with CUDA enabled"),
    (
        "mixed-cuda-libraries",
        "libcusparse.so.12: undefined symbol: __nvJitLinkComplete_12_4, version libnvJitLink.so.12",
    ),
    ("mixed-cuda-libraries", "ImportError: libcudnn.so.9: cannot open shared object file"),
    ("illegal-instruction", "Illegal instruction (core dumped)"),
    (
        "shared-memory-full",
        "RuntimeError: DataLoader worker (pid 12) is killed by signal: Bus error. It "
        "is possible that dataloader's workers are out of shared memory. Please try "
        "to raise your shared memory limit.",
    ),
    (
        "shared-memory-full",
        "Error while creating shared memory segment /dev/shm/nccl-Xy12Ab (size "
        "9637888), error: No space left on device (28)",
    ),
    (
        "shared-memory-full",
        "RuntimeError: unable to write to file </torch_29_17_0>: No space left on device (28)",
    ),
    ("worker-exited", "RuntimeError: DataLoader worker (pid(s) 31, 32) exited unexpectedly"),
    (
        "cuda-after-fork",
        "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA "
        "with multiprocessing, you must use the 'spawn' start method",
    ),
    ("gpu-memory-full", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    ("cudnn-not-initialized", "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    ("device-assert", "RuntimeError: CUDA error: device-side assert triggered"),
    ("illegal-access", "CUDA error: an illegal memory access was encountered"),
    ("nccl-unreachable", "ncclSystemError: System call (e.g. socket, malloc) failed"),
    ("too-many-files", "OSError: [Errno 24] Too many open files"),
    (
        "needs-open-modules",
        "NVRM: installed in this system requires use of the NVIDIA open kernel modules.",
    ),
    (
        "gpu-off-the-bus",
        "Unable to determine the device handle for GPU0: 0000:01:00.0: Unknown Error",
    ),
    (
        "gpu-firmware-hung",
        "NVRM: Xid (PCI:0000:41:00): 119, pid=1, Timeout after 6s of waiting for RPC "
        "response from GPU0 GSP!",
    ),
    ("gpu-init-failed", "NVRM: GPU 0000:02:00.0: RmInitAdapter failed! (0x22:0x56:884)"),
    (
        "gpu-program-fault",
        "NVRM: Xid (PCI:0000:01:00): 31, pid=7, name=python, MMU Fault: ENGINE GRAPHICS",
    ),
    (
        "no-module-for-kernel",
        "modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.12.0-3-amd64",
    ),
    (
        "no-kernel-headers",
        "Error! Your kernel headers for kernel 6.12.0-3-amd64 cannot be found at /lib/modules/6.12",
    ),
    ("no-nvidia-smi", "bash: nvidia-smi: command not found"),
    (
        "docker-cdi-off",
        'docker: Error response from daemon: could not select device driver "cdi" '
        "with capabilities: [].",
    ),
    ("no-nvidia-smi-inside", 'exec: "nvidia-smi": executable file not found in $PATH: unknown.'),
    (
        "no-nvidia-smi-inside",
        "Error: crun: executable file `nvidia-smi` not found in $PATH: No such file or directory",
    ),
    (
        "driver-files-in-image",
        "nvidia-container-cli: mount error: file creation failed: "
        "/var/lib/docker/overlay2/ab/merged/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1: "
        "file exists: unknown.",
    ),
    (
        "wrong-ldconfig",
        "nvidia-container-cli: ldcache error: open failed: /sbin/ldconfig.real: no "
        "such file or directory",
    ),
    ("no-buildx", "ERROR: BuildKit is enabled but the buildx component is missing or broken."),
    (
        "no-buildx",
        "the --mount option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/",
    ),
    (
        "credential-helper-gone",
        'error getting credentials - err: exec: "docker-credential-desktop.exe": '
        "executable file not found in $PATH, out: ``",
    ),
    (
        "address-pools-used-up",
        "could not find an available, non-overlapping IPv4 address pool among the "
        "defaults to assign to the network",
    ),
    (
        "firewall-chain-gone",
        "(iptables failed: iptables --wait -t nat -A DOCKER -p tcp: iptables: No "
        "chain/target/match by that name.",
    ),
    (
        "name-in-use",
        'Conflict. The container name "/labkit-cuda-1" is already in use by container "3f1c".',
    ),
    (
        "no-subordinate-ids",
        "potentially insufficient UIDs or GIDs available in user namespace "
        "(requested 0:42 for /etc/gshadow)",
    ),
    (
        "short-image-name",
        'short-name "debian:bookworm-slim" did not resolve to an alias and no '
        "unqualified-search registries are defined",
    ),
    (
        "clock-wrong",
        "tls: failed to verify certificate: x509: certificate has expired or is not "
        "yet valid: current time 2019-01-01",
    ),
    ("no-package-source", "E: Unable to locate package nvidia-container-toolkit"),
    ("no-package-source", "Error: Unable to find a match: nvidia-container-toolkit"),
    ("index-unreachable", 'Get "https://registry.example/v2/": context deadline exceeded'),
    (
        "mixed-cuda-libraries",
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
    ),
    (
        "mixed-cuda-libraries",
        "Unable to load any of {libcudnn_graph.so.9.1.0, libcudnn_graph.so.9}",
    ),
    (
        "triton-kernel-too-large",
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, "
        "Required: 114688, Hardware limit: 101376.",
    ),
    (
        "cudnn-mismatch",
        "RuntimeError: cuDNN version incompatibility: PyTorch was compiled  against "
        "(9, 10, 2) but found runtime version (8, 9, 0).",
    ),
    ("torch-family-mismatch", "RuntimeError: operator torchvision::nms does not exist"),
    (
        "numpy-2",
        "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.4.0 as it may crash.",
    ),
    (
        "openmp-twice",
        "OMP: Error #15: Initializing libiomp5.so, but found libomp.so already initialized.",
    ),
    (
        "static-tls",
        "OSError: /usr/lib/aarch64-linux-gnu/libgomp.so.1: cannot allocate memory in "
        "static TLS block",
    ),
    (
        "no-libgl",
        "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
    ),
    (
        "no-cuda-toolkit",
        "OSError: CUDA_HOME environment variable is not set. Please set it to your "
        "CUDA install root.",
    ),
    (
        "cuda-toolkit-mismatch",
        "The detected CUDA version (12.4) mismatches the version that was used to "
        "compile PyTorch (13.0).",
    ),
    ("no-torch", "ModuleNotFoundError: No module named 'torch'"),
    (
        "python-too-old",
        "ERROR: Package 'labkit' requires a different Python: 3.9.2 not in '>=3.10'",
    ),
    (
        "memory-full",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. "
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        "80000000000 bytes.",
    ),
    ("memory-full", "OSError: [Errno 12] Cannot allocate memory"),
    ("kernel-timed-out", "RuntimeError: CUDA error: the launch timed out and was terminated"),
    (
        "nccl-timeout",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, "
        "OpType=ALLREDUCE)",
    ),
    (
        "torchrun-port-taken",
        "The server socket has failed to listen on any local network address. port: "
        "29500, useIpv6: false",
    ),
    (
        "gpu-file-on-cpu",
        "RuntimeError: Attempting to deserialize object on a CUDA device but "
        "torch.cuda.is_available() is False.",
    ),
    (
        "weights-only",
        "_pickle.UnpicklingError: Weights only load failed. This file can still be loaded",
    ),
    (
        "tensors-apart",
        "RuntimeError: Expected all tensors to be on the same device, but found at "
        "least two devices, cuda:0 and cpu!",
    ),
    (
        "no-expandable-segments",
        "UserWarning: expandable_segments not supported on this platform (Triggered "
        "internally at c10)",
    ),
    (
        "not-on-mps",
        "NotImplementedError: The operator 'aten::_linalg_eigh' is not currently "
        "implemented for the MPS device.",
    ),
    (
        "nvml-unreachable",
        'RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":963',
    ),
    (
        "host-not-allowed",
        "[W 2026-11-24 10:00:00.000 ServerApp] Blocking request with non-local "
        "'Host' lab.example (lab.example:8888).",
    ),
    (
        "stale-cookie",
        "[W 2026-11-24 10:00:00.000 ServerApp] 403 POST /api/kernels: '_xsrf' "
        "argument missing from POST",
    ),
    (
        "kernel-died",
        "[W ServerApp] AsyncIOLoopKernelRestarter: restarting kernel (1/5), keep random ports",
    ),
    (
        "class-of-the-notebook",
        "AttributeError: Can't get attribute 'Digits' on <module '__main__' (built-in)>",
    ),
    ("gpu-memory-full", "RuntimeError: CUDA error: out of memory"),
    (
        "gpu-memory-full",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ),
    (
        "cudnn-not-initialized",
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling "
        "`cublasCreate(handle)`",
    ),
    ("illegal-access", "RuntimeError: CUDA error: misaligned address"),
    (
        "out-of-memory-killed",
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=ab,task=python,pid=71,uid=1000",
    ),
    (
        "out-of-memory-killed",
        "Memory cgroup out of memory: Killed process 71 (python) total-vm:81234kB",
    ),
    (
        "old-libc",
        "/usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by x.so)",
    ),
]

# The facts' own page of errors, text by text; what stands for a figure there stands here too.
FACTS = [
    (1, "no-gpu-driver-in-engine", 'could not select device driver "" with capabilities: [[gpu]]'),
    (
        1,
        "no-gpu-driver-in-engine",
        'could not select device driver "nvidia" with capabilities: [[gpu]]',
    ),
    (2, "nvml-unknown-error", "Failed to initialize NVML: Unknown Error"),
    (3, "nvml-permissions", "Failed to initialize NVML: Insufficient Permissions"),
    (4, "wsl-blocked", "GPU access blocked by the operating system"),
    (
        5,
        "no-driver-library",
        "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1",
    ),
    (6, "driver-requirement", "requirement error: unsatisfied condition: cuda>=12.8"),
    (7, "driver-too-old", "The NVIDIA driver on your system is too old (found version 12040)"),
    (8, "no-architecture", "no kernel image is available for execution on the device"),
    (
        8,
        "no-architecture",
        "CUDA capability sm_120 is not compatible with the current PyTorch installation",
    ),
    (9, "error-803", "Error 803: system has unsupported display driver / cuda driver combination"),
    (10, "error-804", "Error 804: forward compatibility was attempted on non supported HW"),
    (11, "nvidia-uvm", "CUDA unknown error - this may be due to an incorrectly set up environment"),
    (12, "driver-library-mismatch", "Driver/library version mismatch"),
    (
        13,
        "shared-memory-full",
        "DataLoader worker ... killed by signal: Bus error ... out of shared memory",
    ),
    (13, "shared-memory-full", "Error while creating shared memory segment /dev/shm/nccl-"),
    (14, "no-compiler", "Failed to find C compiler. Please specify via CC"),
    (14, "no-compiler", "InvalidCxxCompiler: No working C++ compiler found"),
    (15, "no-python-headers", "fatal error: Python.h: No such file or directory"),
    (16, "noexec-cache", "failed to map segment from shared object"),
    (17, "no-user-name", "KeyError: 'getpwuid(): uid not found: N'"),
    (17, "no-user-name", "OSError: getpwuid(): uid not found: N"),
    (
        18,
        "work-folder-refused",
        "PermissionError: [Errno 13] Permission denied: 'work/notes.ipynb'",
    ),
    (19, "port-taken", "port is already allocated"),
    (19, "port-taken", "address already in use"),
    (20, "ptxas-too-old", "ptxas fatal : Value 'sm_121a' is not defined"),
    (21, "disk-full", "no space left on device"),
    (22, "daemon-not-running", "Cannot connect to the Docker daemon"),
    (22, "daemon-refuses", "permission denied while trying to connect to the Docker daemon socket"),
    (23, "cuda-after-fork", "Cannot re-initialize CUDA in forked subprocess"),
    (24, "no-compose", "unknown flag: --profile"),
    (24, "no-compose", "docker: 'compose' is not a docker command"),
    (24, "no-compose", "compose 1.x"),
]


# What goes well, or wrong in a way of its own: no line of it may be taken for a known error.
ORDINARY = {
    "pip": """\
Collecting torch==2.13.0 (from -r torch-cpu.txt (line 3))
  Downloading torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl (192.0 MB)
Collecting nvidia-cudnn-cu13==9.13.0.50
  Using cached nvidia_cudnn_cu13-9.13.0.50-py3-none-manylinux_2_27_x86_64.whl (412.9 MB)
Requirement already satisfied: certifi>=2017.4.17 in ./.venv/lib (2026.10.18)
WARNING: Running pip as the 'root' user can result in broken permissions
Installing collected packages: nvidia-nccl-cu13, triton, torch
Successfully installed nvidia-nccl-cu13-2.28.3 torch-2.13.0 triton-3.5.0
""",
    "pytest": """\
tests/test_oom_page.py::test_cuda_is_out_of_memory_page PASSED                 [ 33%]
tests/test_ports.py::test_a_port_that_is_in_use PASSED                         [ 66%]
tests/test_gpu.py::test_kernel SKIPPED (needs cuda: no CUDA device here)       [100%]
=========================== short test summary info ============================
SKIPPED [1] tests/test_gpu.py:9: needs cuda: no CUDA device here
2 passed, 1 skipped in 4.02s
""",
    "JupyterLab": """\
[I 2026-11-24 09:12:01.204 ServerApp] jupyterlab | extension was successfully linked.
[I 2026-11-24 09:12:01.611 ServerApp] Serving notebooks from local directory: /work
[I 2026-11-24 09:12:01.611 ServerApp] Jupyter Server 2.21.1 is running at:
[I 2026-11-24 09:12:01.611 ServerApp] http://127.0.0.1:8888/lab?token=...
[W 2026-11-24 09:12:04.118 LabApp] Could not determine jupyterlab build status without nodejs
[I 2026-11-24 09:12:20.944 ServerApp] Kernel started: 6f1c0a9e
[I 2026-11-24 09:12:21.533 ServerApp] Connecting to kernel 6f1c0a9e.
[I 2026-11-24 09:14:00.002 ServerApp] Saving file at /tensors.ipynb
[W 2026-11-24 09:15:07.410 ServerApp] 404 GET /api/contents/work.txt (@127.0.0.1) 3.02ms
""",
    "a build": """\
#7 [python 3/5] RUN apt-get update && apt-get install -y g++ python3-dev
#7 2.104 Get:1 http://mirror.example bookworm InRelease [151 kB]
#7 9.811 Setting up g++ (4:12.2.0-3) ...
#7 9.930 debconf: delaying package configuration, since apt-utils is not installed
#7 DONE 10.4s
#8 exporting layers 12.1s done
#8 naming to docker.io/library/labkit:cpu done
""",
    "docker compose": """\
 Network labkit-1f_default  Created
 Container labkit-1f-cpu-1  Started
 Container labkit-1f-cpu-1  Healthy
""",
    "nvidia-smi": """\
| NVIDIA-SMI 580.95.05       Driver Version: 580.95.05     CUDA Version: 13.0     |
| GPU  Name          Persistence-M | Bus-Id     Disp.A | Volatile Uncorr. ECC     |
|   0  NVIDIA H200             On  |   00000000:41:00.0 Off |                    0 |
|  No running processes found                                                     |
""",
    "the kernel's log": """\
[    3.213] nvidia: loading out-of-tree module taints kernel.
[    3.214] nvidia: module verification failed: signature and/or required key missing
[    3.401] nvidia-nvlink: Nvlink Core is being initialized, major device number 237
[    3.512] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build
[    4.020] [drm] Initialized nvidia-drm 0.0.0 for 0000:01:00.0 on minor 0
[    9.874] docker0: port 1(veth3f) entered forwarding state
""",
    "a training run": """\
epoch 1/3  loss 0.412  lr 3e-04  gpu memory 11.2 GiB of 23.6 GiB
UserWarning: The given NumPy array is not writable, and PyTorch does not support it
saved checkpoint to /data/runs/best.pt
epoch 2/3  loss 0.318
Traceback (most recent call last):
ValueError: expected 4 classes, got 3
KeyboardInterrupt
""",
}
