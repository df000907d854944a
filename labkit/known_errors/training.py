"""Known errors of a running program: memory, worker processes, GPU kernels, several GPUs."""

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
        "/dev/shm is too small for the data that worker processes share",  # noqa: S108
        Fix("LABKIT_SHM_SIZE=8g make down up"),
        otherwise="DataLoader(num_workers=0), or fewer workers",
        brings=("worker-exited",),
    ),
    KnownError(
        "worker-exited",
        (r"DataLoader worker \(pid(?:\(s\))?\s*[\d,\s]+\) exited unexpectedly",),
        "a worker process died; its own error, above this line, says why",
        Fix("DataLoader(num_workers=0)   # the error then appears in the main process"),
        "possible",
    ),
    KnownError(
        "cuda-after-fork",
        (r"Cannot re-initialize CUDA in forked subprocess",),
        "CUDA was used before the process forked, which CUDA does not support",
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
        "the GPU's memory is full: this process or others use it",
        Fix("labkit memory   # shows what uses it"),
        otherwise="a smaller batch, or: export PYTORCH_ALLOC_CONF=expandable_segments:True",
        brings=("cudnn-not-initialized",),
    ),
    KnownError(
        "cudnn-not-initialized",
        (r"CUDNN_STATUS_NOT_INITIALIZED", r"CUBLAS_STATUS_NOT_INITIALIZED"),
        "the library could not start, usually because the GPU's memory is full",
        Fix("labkit memory   # shows what uses it"),
        "possible",
    ),
    KnownError(
        "device-assert",
        (r"device-side assert triggered",),
        "a kernel found a bad value, most often an index or class label out of range",
        Fix("CUDA_LAUNCH_BLOCKING=1 python your_program.py   # shows the line; then restart"),
    ),
    KnownError(
        "illegal-access",
        (
            r"an illegal memory access was encountered",
            r"unspecified launch failure",
            r"CUDA error: misaligned address",
        ),
        "a kernel accessed memory outside its own; the error often appears in a later line",
        Fix("CUDA_LAUNCH_BLOCKING=1 python your_program.py   # shows the line; then restart"),
        "likely",
    ),
    KnownError(
        "nccl-unreachable",
        (r"ncclSystemError", r"ncclRemoteError", r"NCCL.{0,80}unhandled system error"),
        "the processes cannot reach each other: shared memory, network interface or firewall",
        Fix("NCCL_DEBUG=INFO torchrun your_program.py   # shows which call failed"),
        "possible",
    ),
    KnownError(
        "too-many-files",
        (r"\[Errno 24\] Too many open files", r"received 0 items of ancdata"),
        "the process reached its limit of open files",
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
        "the memory of the machine (or of the container) is full",
        Fix("free -h   # then load less, or give the lab more: LABKIT_MEMORY=16g make down up"),
        brings=("worker-exited",),
    ),
    KnownError(
        "kernel-timed-out",
        (r"the launch timed out and was terminated",),
        "a kernel ran longer than the driver allows on a card that also drives a screen",
        Fix("use a smaller batch, or a card without a screen: CUDA_VISIBLE_DEVICES=1"),
        "likely",
    ),
    KnownError(
        "nccl-timeout",
        (
            r"Watchdog caught collective operation timeout",
            r"collective operation timeout: WorkNCCL",
        ),
        "one of the processes did not reach a collective step: it died, or skipped the step",
        Fix("TORCH_NCCL_TRACE_BUFFER_SIZE=2000 torchrun your_program.py   # shows which one"),
        "possible",
    ),
    KnownError(
        "torchrun-port-taken",
        (r"The server socket has failed to listen on any local network address",),
        "another torchrun uses the rendezvous port",
        Fix("torchrun --rdzv-endpoint=localhost:0 your_program.py   # takes any free port"),
        brings=("port-taken",),
    ),
    KnownError(
        "gpu-file-on-cpu",
        (r"Attempting to deserialize object on (?:a )?CUDA device",),
        "the file contains tensors of a GPU, and this program has no GPU",
        Fix("torch.load(path, map_location='cpu')"),
    ),
    KnownError(
        "weights-only",
        (r"Weights only load failed",),
        "since torch 2.6 torch.load reads only tensors by default, and this file contains more",
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
        "PYTORCH_ALLOC_CONF sets expandable_segments, which this system (WSL2?) does not support",
        Fix("unset PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF"),
    ),
    KnownError(
        "not-on-mps",
        (r"is not currently implemented for the MPS device",),
        "torch has no code for this operation on Apple's GPU",
        Fix("export PYTORCH_ENABLE_MPS_FALLBACK=1   # runs it on the CPU"),
    ),
    KnownError(
        "nvml-unreachable",
        (r"NVML_SUCCESS == r INTERNAL ASSERT FAILED",),
        "torch ran out of GPU memory, or lost the driver, and could not find out which",
        Fix("nvidia-smi   # if it works, the memory was full: labkit memory"),
        "possible",
    ),
)
