"""Signs of a running program: memory, workers, and errors that a GPU tells of late."""

from __future__ import annotations

from labkit.host.packages import Fix
from labkit.known_errors.model import KnownError

TRAINING_ERRORS = (
    KnownError(
        "shared-memory-full",
        (
            r"killed by signal: Bus error",
            r"out of shared memory",
            r"insufficient shared memory \(shm\)",
            r"Error while creating shared memory segment /dev/shm/nccl",
            r"unable to (?:write to file|mmap \d+ bytes from file|allocate shared memory)"
            r".{0,20}</?torch_",
            r"/dev/shm/\S* .{0,80}no space left on device",  # noqa: S108
        ),
        "/dev/shm is too small for what worker processes hand over in it",  # noqa: S108
        Fix("LABKIT_SHM_SIZE=8g make down up"),
        otherwise="DataLoader(num_workers=0), or fewer workers",
        brings=("worker-exited",),
    ),
    KnownError(
        "worker-exited",
        (r"DataLoader worker \(pid(?:\(s\))?\s*[\d,\s]+\) exited unexpectedly",),
        "a worker process died; its own last words, above this line, say why",
        Fix("DataLoader(num_workers=0)   # the error then shows itself in the main process"),
        "possible",
    ),
    KnownError(
        "cuda-after-fork",
        (r"Cannot re-initialize CUDA in forked subprocess",),
        "CUDA was used before the process forked, and does not survive that",
        Fix("torch.multiprocessing.set_start_method('spawn')   # before CUDA is first used"),
        brings=("worker-exited",),
    ),
    KnownError(
        "gpu-memory-full",
        (
            r"(?:CUDA|HIP) out of memory",
            r"OutOfMemoryError:\x20\S",
            r"CUBLAS_STATUS_ALLOC_FAILED",
            r"CUDA error: out of memory",
            r"cudaErrorMemoryAllocation",
        ),
        "the GPU's memory is used up, by this process or by others",
        Fix("labkit memory   # shows where all of it is"),
        otherwise="a smaller batch, or: export PYTORCH_ALLOC_CONF=expandable_segments:True",
        brings=("cudnn-not-initialized",),
    ),
    KnownError(
        "cudnn-not-initialized",
        (r"CUDNN_STATUS_NOT_INITIALIZED", r"CUBLAS_STATUS_NOT_INITIALIZED"),
        "the library could not start: mostly because the GPU's memory is full",
        Fix("labkit memory   # shows where all of it is"),
        "possible",
    ),
    KnownError(
        "device-assert",
        (r"device-side assert triggered",),
        "a kernel found a bad value, most often an index or class label out of range",
        Fix("CUDA_LAUNCH_BLOCKING=1 python your_program.py   # names the line; then restart"),
    ),
    KnownError(
        "illegal-access",
        (
            r"an illegal memory access was encountered",
            r"unspecified launch failure",
            r"CUDA error: misaligned address",
        ),
        "a kernel read or wrote outside its memory; the line shown is often a later one",
        Fix("CUDA_LAUNCH_BLOCKING=1 python your_program.py   # names the line; then restart"),
        "likely",
    ),
    KnownError(
        "nccl-unreachable",
        (r"ncclSystemError", r"ncclRemoteError", r"NCCL.{0,80}unhandled system error"),
        "the processes cannot reach each other: shared memory, network interface or firewall",
        Fix("NCCL_DEBUG=INFO torchrun your_program.py   # says which call failed"),
        "possible",
    ),
    KnownError(
        "too-many-files",
        (r"\[Errno 24\] Too many open files", r"received 0 items of ancdata"),
        "the process has as many files open as it may",
        Fix("torch.multiprocessing.set_sharing_strategy('file_system')"),
        otherwise="ulimit -n 65535",
        brings=("worker-exited",),
    ),
    KnownError(
        "memory-full",
        (
            r"DefaultCPUAllocator: (?:not enough memory|can't allocate memory)",
            r"\[Errno 12\] Cannot allocate memory",
            r"numpy\S*ArrayMemoryError",
        ),
        "the machine's (or the container's) own memory is used up",
        Fix("free -h   # then load less, or give the lab more: LABKIT_MEMORY=16g make down up"),
        brings=("worker-exited",),
    ),
    KnownError(
        "kernel-timed-out",
        (r"the launch timed out and was terminated",),
        "a kernel ran for longer than the driver lets it on a card that also drives a screen",
        Fix("a smaller batch, or a card without a screen: CUDA_VISIBLE_DEVICES=1"),
        "likely",
    ),
    KnownError(
        "nccl-timeout",
        (
            r"Watchdog caught collective operation timeout",
            r"collective operation timeout: WorkNCCL",
        ),
        "one process of several did not come to a step that all must take: it died, or went on",
        Fix("TORCH_NCCL_TRACE_BUFFER_SIZE=2000 torchrun your_program.py   # says who was missing"),
        "possible",
    ),
    KnownError(
        "torchrun-port-taken",
        (r"The server socket has failed to listen on any local network address",),
        "another torchrun holds the port that the processes meet on",
        Fix("torchrun --rdzv-endpoint=localhost:0 your_program.py   # any port that is free"),
        brings=("port-taken",),
    ),
    KnownError(
        "gpu-file-on-cpu",
        (r"Attempting to deserialize object on (?:a )?CUDA device",),
        "the file holds tensors of a GPU, and this program has none",
        Fix("torch.load(path, map_location='cpu')"),
    ),
    KnownError(
        "weights-only",
        (r"Weights only load failed",),
        "since torch 2.6 torch.load reads tensors alone unless told, and this file has more in it",
        Fix(
            "torch.load(path, weights_only=False)   # only for a file that you trust: it runs code"
        ),
    ),
    KnownError(
        "tensors-apart",
        (r"Expected all tensors to be on the same device, but found at least two",),
        "one tensor is on the CPU and another on the GPU, or they are on two GPUs",
        Fix("x = x.to(model_device)   # inputs, targets and model: all on one device"),
    ),
    KnownError(
        "no-expandable-segments",
        (r"expandable_segments not supported on this platform",),
        "PYTORCH_ALLOC_CONF asks for growing segments, which this system (WSL2?) does not have",
        Fix("unset PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF"),
    ),
    KnownError(
        "not-on-mps",
        (r"is not currently implemented for the MPS device",),
        "Apple's GPU has no code in torch for this operation",
        Fix("export PYTORCH_ENABLE_MPS_FALLBACK=1   # the CPU then does what the GPU cannot"),
    ),
    KnownError(
        "nvml-unreachable",
        (r"NVML_SUCCESS == r INTERNAL ASSERT FAILED",),
        "torch ran out of GPU memory, or lost the driver, and could not ask which of the two",
        Fix("nvidia-smi   # where it works the memory was full: labkit memory"),
        "possible",
    ),
)
