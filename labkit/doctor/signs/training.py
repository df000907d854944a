"""Signs of a running program: memory, workers, and errors that a GPU tells of late."""

from __future__ import annotations

from labkit.doctor.distribution import Fix
from labkit.doctor.signs.sign import Sign

TRAINING_SIGNS = (
    Sign(
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
    Sign(
        "worker-exited",
        (r"DataLoader worker \(pid(?:\(s\))?\s*[\d,\s]+\) exited unexpectedly",),
        "a worker process died; its own last words, above this line, say why",
        Fix("DataLoader(num_workers=0)   # the error then shows itself in the main process"),
        "possible",
    ),
    Sign(
        "cuda-after-fork",
        (r"Cannot re-initialize CUDA in forked subprocess",),
        "CUDA was used before the process forked, and does not survive that",
        Fix("torch.multiprocessing.set_start_method('spawn')   # before CUDA is first used"),
        brings=("worker-exited",),
    ),
    Sign(
        "gpu-memory-full",
        (r"CUDA out of memory", r"torch\.OutOfMemoryError", r"CUBLAS_STATUS_ALLOC_FAILED"),
        "the GPU's memory is used up, by this process or by others",
        Fix("labkit memory   # shows where all of it is"),
        otherwise="a smaller batch, or: export PYTORCH_ALLOC_CONF=expandable_segments:True",
        brings=("cudnn-not-initialized",),
    ),
    Sign(
        "cudnn-not-initialized",
        (r"CUDNN_STATUS_NOT_INITIALIZED", r"CUBLAS_STATUS_NOT_INITIALIZED"),
        "the library could not start: mostly because the GPU's memory is full",
        Fix("labkit memory   # shows where all of it is"),
        "possible",
    ),
    Sign(
        "device-assert",
        (r"device-side assert triggered",),
        "a kernel found a bad value, most often an index or class label out of range",
        Fix("CUDA_LAUNCH_BLOCKING=1 python your_program.py   # names the line; then restart"),
    ),
    Sign(
        "illegal-access",
        (r"an illegal memory access was encountered", r"unspecified launch failure"),
        "a kernel read or wrote outside its memory; the line shown is often a later one",
        Fix("CUDA_LAUNCH_BLOCKING=1 python your_program.py   # names the line; then restart"),
        "likely",
    ),
    Sign(
        "nccl-unreachable",
        (r"ncclSystemError", r"ncclRemoteError", r"NCCL.{0,80}unhandled system error"),
        "the processes cannot reach each other: shared memory, network interface or firewall",
        Fix("NCCL_DEBUG=INFO torchrun your_program.py   # says which call failed"),
        "possible",
    ),
    Sign(
        "too-many-files",
        (r"\[Errno 24\] Too many open files", r"received 0 items of ancdata"),
        "the process has as many files open as it may",
        Fix("torch.multiprocessing.set_sharing_strategy('file_system')"),
        otherwise="ulimit -n 65535",
        brings=("worker-exited",),
    ),
)
