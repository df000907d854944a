"""Logs with no error in them."""

from __future__ import annotations

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
