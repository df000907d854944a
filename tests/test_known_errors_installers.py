"""What installs packages in a log, uv, conda, pip or a notebook, and who may, chooses the fix."""

from __future__ import annotations

import re

import pytest

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.commands import LogHost
from labkit.known_errors.match import explain_text, format_explanation
from labkit.known_errors.pythons import find_built_package
from tests.fakes.explained import show_first

INDEX = "https://download.pytorch.org/whl/cu130"
BLACKWELL = (
    "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current"
    " PyTorch installation.\n"
)
NO_TORCH = "      ModuleNotFoundError: No module named 'torch'\n"
BUILD = "× Getting requirements to build wheel did not run successfully."
UNKNOWN_MODEL = (
    "ValueError: The checkpoint you are trying to load has model type `x` but Transformers does"
    " not recognize this architecture."
)
NO_HOME = "OSError: CUDA_HOME environment variable is not set.\n"
MISMATCH = (
    "The detected CUDA version (11.5) mismatches the version that was used to compile\n"
    "PyTorch (12.1). Please make sure to use the same CUDA versions."
)
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040).\n"
NO_COMMON_INDEX = (
    "hint: `requests` was found on https://download.pytorch.org/whl/cu121, but not at the"
    " requested version"
)
XFORMERS = (
    "WARNING[XFORMERS]: xFormers can't load C++/CUDA extensions. xFormers was built for:\n"
    "    PyTorch 2.1.0+cu121 with CUDA 1201 (you have 2.1.2+cu118)\n"
)
FP8 = "CompilationError: at 1:0: type fp8e4nv not supported in this architecture"
REDUCTION = "Expected to have finished reduction in the prior iteration\n"


@pytest.mark.parametrize(
    ("command", "written"),
    [
        (
            f"pip install --upgrade torch torchvision --index-url {INDEX}",
            f"uv add 'torch>=2.9' torchvision --index pytorch={INDEX}",
        ),
        (
            f"pip install --force-reinstall torch==2.9.1 --index-url {INDEX}   # then: x",
            f"uv add torch==2.9.1 --index pytorch={INDEX}   # then: x",
        ),
        (
            "pip install --upgrade peft transformers",
            "uv lock --upgrade-package peft --upgrade-package transformers && uv sync",
        ),
        ("pip install 'numpy<2'", "uv add 'numpy<2'"),
        (
            "MAX_JOBS=4 pip install flash-attn --no-build-isolation",
            "MAX_JOBS=4 uv add flash-attn --no-build-isolation",
        ),
        ("pip install --no-deps x", "uv pip install --no-deps x"),
        (
            f"pip install --no-deps torchvision==0.24.1 --index-url {INDEX}",
            f"uv add torchvision==0.24.1 --index pytorch={INDEX}",
        ),
        ("pip install -f https://x.org/y x", "uv pip install -f https://x.org/y x"),
    ],
)
def test_a_project_of_uv_gets_what_its_file_keeps(command, written):
    assert LogHost(signs=frozenset({"uv", "uv-project"}), driver=580).write(command) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("$ uv run train.py\n", "uv add 'torch>=2.9'"),
        ("$ uv pip install torch && uv run main.py\n", "uv pip install --upgrade torch"),
        ("$ uv run --with torch x.py\n", "uv pip install --upgrade torch"),
        ("$ uv sync\n$ uv pip list\n", "uv add 'torch>=2.9'"),
    ],
)
def test_only_a_project_is_changed_by_uv_add(text, said):
    assert said in show_first(f"{text}{BLACKWELL}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"$ pip install flash-attn\n{NO_TORCH}{BUILD}", "pip install flash-attn --no-build"),
        (f"$ uv pip install flash-attn\n{NO_TORCH}{BUILD}", "no-build-isolation-package ="),
        (f"Google Colab\n{UNKNOWN_MODEL}", "then restart the kernel"),
        (f"in a Jupyter notebook\n{UNKNOWN_MODEL}", "%pip install --upgrade transformers"),
        (f"/opt/miniconda3/envs/x/bin/python\n{NO_HOME}", "conda install -y -c nvidia cuda-"),
        (f"deepspeed/ops/op_builder/builder.py\n{NO_HOME}", "DS_BUILD_OPS=0"),
        (MISMATCH, "CUDA_HOME=/usr/local/cuda-12.1"),
        (f"(base) user@x:~/miniconda3$\n{MISMATCH}", "cuda-toolkit=12.1"),
        (f"{OLD_DRIVER}I have no root access", "torch==2.7.1 torchvision==0.22.1"),
        (f"$ uv pip install x\n{NO_COMMON_INDEX}", "--index-strategy unsafe-best-match"),
        (XFORMERS, f"xformers==0.0.23.post1 --index-url {INDEX[:-5]}cu118"),
        (
            "C:\\x>conda install pytorch -c pytorch\nTorch not compiled with CUDA enabled",
            "conda remove -y --force pytorch torchvision",
        ),
        ("$ poetry add torch\nTorch not compiled with CUDA enabled", "poetry add --source pytorch"),
        ("Torch not compiled with CUDA enabled", "must say +cu and True"),
        ("Radeon RX 7900 XT\nTorch not compiled with CUDA enabled", "whl/rocm"),
        ("Command 'nvcc' not found, but can be installed with:", "nvcc --version"),
        ("libGL.so.1: cannot open shared object file", "sudo apt-get install libgl1 libglib2.0-0"),
        (
            "torch 2.5.1+cu124\nRuntimeError: operator torchvision::nms does not exist",
            f"torchvision==0.20.1 torchaudio==2.5.1 --index-url {INDEX[:-5]}cu124",
        ),
        (
            f"ERROR: Failed to build 'detectron2' when getting requirements to build\n{NO_TORCH}",
            "pip install git+https://github.com/facebookresearch/detectron2.git --no-build",
        ),
        (
            "(base) u@h:~$ pip install x\nRuntimeError: FlashAttention is only supported on CUDA"
            " 11.7 and above.  Note: make sure nvcc has a supported version by running nvcc -V.",
            "conda install -y -c nvidia cuda-toolkit=",
        ),
        (
            "hint: This error likely indicates that `flash-attn@2.7` depends on `torch`, but",
            "match-runtime = true",
        ),
        (
            "Cuda extensions are being compiled with a version of Cuda that does not match the"
            " version used to compile Pytorch binaries.  Pytorch binaries were compiled with Cuda"
            " 11.8.\n",
            "CUDA_HOME=/usr/local/cuda-11.8",
        ),
        ("C:\\x>pip\nFailed to build flash_attn", "mjun0812/flash-attention-prebuild-wheels"),
        ("packages/vllm/_C.abi3.so: undefined symbol: _ZNK3c106x", "--force-reinstall vllm"),
        ("No module named 'triton.ops'", "pip install --upgrade bitsandbytes"),
        (
            "> x\\python_embeded\\a\ntcc.exe', 'x'] returned non-zero exit status 1",
            "libs of a full",
        ),
        ("C:\\x>a\nNo module named 'sageattention'", "pip install -U triton-windows sageattention"),
        ("AssertionError: Unable to pre-compile async_io", "DS_BUILD_OPS=0 pip install"),
        (
            "(base) C:\\x>conda list\npytorch  2.5.1  cpu_mkl_py312h1  conda-forge\n"
            '(base) C:\\x>python -c "import torch; print(torch.__version__,'
            ' torch.cuda.is_available())"\n2.5.1 False',
            "conda remove -y --force pytorch",
        ),
        (
            "C:\\x>pip install y\nerror: Microsoft Visual C++ 14.0 or greater is required.",
            "Microsoft.VisualStudio.Workload.VCTools",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied:"
            " 'C:\\\\v\\\\Lib\\\\site-packages\\\\~orch'",
            "end every program that runs on this Python",
        ),
        (
            "$ uv sync\nRuntimeError: operator torchvision::nms does not exist",
            "uv add 'torchvision==<its partner>' --index pytorch=https://download.pytorch.org/whl/<the"
            " build>",
        ),
        (
            "HTTPSConnectionPool(host='files.packages.example', port=443): Read timed out.",
            "--default-timeout=1000",
        ),
        (
            "Could not fetch URL https://index.example/simple/torch/: SSLError(certificate verify"
            " failed: self signed certificate in certificate chain)",
            "pip config set global.cert",
        ),
    ],
)
def test_the_fix_is_for_what_installed_the_packages(text, said):
    assert said in show_first(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"RTX 3090 ComfyUI\n{FP8}", "fp8_e5m2"),
        (FP8, "use bfloat16 or float16 weights"),
        (f"{REDUCTION}Lightning 2.4", "ddp_find_unused_parameters_true"),
        ("wsl\nld: cannot find -lcuda: No such file", "LIBRARY_PATH=/usr/lib/wsl/lib"),
        (
            "ld: cannot find -lcuda: No such file",
            "sudo ln -s libcuda.so.1 /usr/lib/x86_64",
        ),
        ("NCCL WARN Call to posix_fallocate failed : No space left on device", "shm_size: 8g"),
        (
            'Failed to pull image "nvcr.io/nim/x:1": failed to fetch oauth token: 401',
            "kubectl create secret docker-registry ngc-secret",
        ),
        (
            "open-webui | HTTPConnectionPool(host='localhost', port=11434): Max retries exceeded",
            "OLLAMA_BASE_URL",
        ),
        ("wsl\nKilled", ".wslconfig"),
        (f" => ERROR [5/8] RUN pip install x\n{NO_HOME}", "-devel"),
        (
            " => ERROR [4/7] RUN pip\nerror: command 'gcc' failed: No such file or directory",
            "RUN apt",
        ),
        ("Error: crun: cannot find `/dev/nvidia0`: No such file or directory", "nvidia-ctk cdi"),
        (
            "error: Failed to fetch: `https://files.example/x.whl`\n  Caused by:"
            " operation timed out",
            "UV_HTTP_TIMEOUT=600",
        ),
        (
            "C:\\x>pip install vllm\nERROR: Failed to build 'vllm' when getting requirements to"
            " build",
            "uv pip install vllm --torch-backend=auto",
        ),
        ("C:\\x>pip\nCMAKE_C_COMPILER not set, after EnableLanguage", "Workload.VCTools"),
        (
            "/causal_conv1d_cuda.cpython-310-x86_64.so: undefined symbol: _ZN3c107WarningC1E",
            "the wheel of causal-conv1d's releases",
        ),
        ("Failed to find C compiler. Please specify via CC environment", "a Dockerfile: RUN apt"),
        (
            "docker run ollama/ollama\nno compatible GPUs were discovered",
            "docker run -d --gpus all",
        ),
        (
            "docker run n8n\nconnect ECONNREFUSED 127.0.0.1:11434",
            "http://host.docker.internal:11434",
        ),
        ("$ nvidia-smi\nFailed to initialize NVML: Insufficient Permissions", "usermod -aG"),
        ("Found no NVIDIA driver on your system.", "nvidia-smi   # fails"),
        ("$ docker run x python a.py\nFound no NVIDIA driver on your system.", "--gpus all"),
        ("Cannot re-initialize CUDA in forked subprocess", 'multiprocessing_context="spawn"'),
        ("error: externally-managed-environment", "apt-get install python3-venv"),
        ("[WinError 1455] The paging file is too small", "then restart Windows"),
        (f"vllm serve x\n{UNKNOWN_MODEL}", "pip install --upgrade vllm transformers"),
        ("BadZipFile: Bad CRC-32 for file 'torch/lib/x.so'", "pip cache purge"),
        ("C:\\x>pip\nERROR: Cannot find command 'git'", "winget install Git.Git"),
        ("fatal: detected dubious ownership in repository at '/w/x'", "safe.directory /w/x"),
        ("error: RPC failed; curl 92", "git clone --depth 1"),
        ("MIOpen(HIP): Warning [SQLiteBase] Missing system database file: x", "ignore it"),
        ("CondaHTTPError: HTTP 000 CONNECTION FAILED for url <x>", "proxy_servers.https"),
        (
            "module must have its parameters and buffers on device cuda:0 (device_ids[0])",
            'DataParallel(model.to("cuda:0")',
        ),
        ("PermissionError: Permission denied: '/home/jovyan/work'", "NB_UID=$(id -u)"),
        ("kubelet\nrequirement error: unsatisfied condition: cuda>=12.4", "helm upgrade"),
        ("C:\\x>a\nUnicodeDecodeError: 'charmap' codec can't decode byte 0x9d", '"PYTHONUTF8=1"'),
        (
            "/kaggle/working\nTesla P100-PCIE-16GB with CUDA capability sm_60 is not compatible"
            " with the current PyTorch installation",
            "GPU T4 x2",
        ),
        ("podman run x\nerror executing hook `/x/nvidia-container-toolkit`", "nvidia.com/gpu=all"),
        (
            "#8 W: GPG error: https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2004/"
            "x86_64  InRelease: NO_PUBKEY A4B469963BF863CC",
            "RUN rm -f /etc/apt/sources.list.d/cuda*.list",
        ),
        ("Bad return status for module build on kernel: 6.14.0-24-generic", "ubuntu-drivers inst"),
        ("Command 'nvidia-smi' not found, but can be installed with:", "sudo ubuntu-drivers inst"),
        (
            "couldn't communicate with the NVIDIA driver.\n$ prime-select query\nintel",
            "sudo prime-select on-demand",
        ),
        (
            "docker run x\nError 803: system has unsupported display driver",
            "/tmp/ && ldconfig",
        ),
        ("mat1 and mat2 shapes cannot be multiplied (32x512 and 1024x10)", "nn.Linear(512, 10)"),
        ("[ERROR]: Install of driver component failed. Consult the", "/var/log/cuda-installer.log"),
        ("RTX 5090\nRuntimeError: NCCL error: unhandled cuda error", "nvidia-nccl-cu12"),
        (
            "The quantization method mxfp4 is not supported for the current GPU. Minimum"
            " capability: 80. Current capability: 75.",
            "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=",
        ),
        ("docker run x\nYou are trying to access a gated repo.", "docker run -e HF_TOKEN="),
        ("docker run x\nAssertionError: libcuda.so cannot found!", "'ldconfig && exec"),
        ("https://registry.ollama.ai/v2/x: x509: unknown", "sudo systemctl restart ollama"),
        ("ValueError: fp16 mixed precision requires a GPU (not 'mps').\nMacBook", "precision no"),
        ("OSError: Not enough disk space. Needed: 37.11 GiB (download: 18 GiB)", "export HF_HOME"),
        ("HfHubHTTPError: 429 Client Error: Too Many Requests", "a login has a larger share"),
        ("LocalEntryNotFoundError: outgoing traffic has been disabled", "env -u HF_HUB_OFFLINE"),
        ("Memory access fault by GPU node-1 on address 0x7f", "HIP_VISIBLE_DEVICES=0"),
    ],
)
def test_the_first_step_is_of_this_program_and_host(text, said):
    assert said in show_first(text)


@pytest.mark.parametrize(
    ("cause", "result"),
    [
        ("signed-by-conflict", "apt-source-malformed"),
        ("torchrun-port-taken", "rendezvous-failed"),
        ("gpu-off-the-bus", "illegal-access"),
        ("vs-compiler-missing", "wheel-build-failed"),
        ("nvcc-unsupported-gcc", "ninja-missing"),
        ("openmp-twice", "kernel-died"),
        ("rocm-no-device", "torch-sees-no-gpu"),
        ("no-torch", "flash-attn-build"),
        ("ipykernel-in-venv", "no-torch"),
        ("no-package-source", "package-unknown"),
        ("no-cuda-toolkit", "program-missing"),
        ("ollama-pull-failed", "changed-certificate"),
        ("nvcc-arch-unsupported", "ninja-missing"),
        ("setuptools-missing", "webui-install"),
    ],
)
def test_a_result_is_not_shown_as_a_cause_of_its_own(cause, result):
    from labkit.known_errors import KNOWN_ERRORS

    brings = {error.name: error.brings for error in KNOWN_ERRORS}
    assert result in brings[cause]


def test_what_another_program_says_of_its_gpu_support_is_not_ollamas():
    text = "The installed version of bitsandbytes was compiled without GPU support."
    assert "llama-cpp-no-gpu" not in format_explanation(explain_text(text), UNKNOWN)


def test_the_command_names_the_package_that_is_built():
    assert find_built_package(f"(x) u@h:~$ pip install causal_conv1d\n{BUILD}") == "causal-conv1d"
    assert find_built_package("$ pip install a\n$ pip install b\nbuild wheel: error") is None


SRUN = "srun: error: gpu01: task 3: Exited with exit code 1"
OF_SRUN = {
    "a variable": (
        "PYTORCH_CUDA_ALLOC_CONF: reserved but unallocated memory is large\n"
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB of"
        " which 1.00 GiB is free. Of the allocated memory 60 GiB is allocated by PyTorch, and 15.2"
        " GiB is reserved by PyTorch but unallocated.",
        r"^export PYTORCH_CUDA_ALLOC_CONF=\S+   # in the job's script, before srun;",
    ),
    "a command with a variable": (
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        r"^export CUDA_LAUNCH_BLOCKING=1 && srun --export=ALL python your_program\.py",
    ),
    "no variables of torch": (
        "ValueError: Error initializing torch.distributed using env:// rendezvous: environment"
        " variable RANK expected, but not set",
        r"RANK=\$SLURM_PROCID WORLD_SIZE=\$SLURM_NTASKS LOCAL_RANK=\$SLURM_LOCALID",
    ),
    "a port": (
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local"
        " network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE",
        r"^export MASTER_PORT=\$\(\(20000 \+ SLURM_JOB_ID % 20000\)\)   # in the job's script",
    ),
    "each one's output": (
        "store->get('0') got error: Connection reset by peer, ncclUniqueId from [0] via c10d",
        r"srun --output=%x-%j-%t\.log",
    ),
}


@pytest.mark.parametrize(("text", "pattern"), OF_SRUN.values(), ids=OF_SRUN.keys())
@pytest.mark.parametrize("sign", [SRUN, "$ srun --ntasks=4 python train.py", "SLURM_PROCID=3"])
def test_processes_of_srun_get_its_own_commands(sign, text, pattern):
    found = explain_text(f"{sign}\n{text}")
    shown = found.describe()["found"][0]
    assert re.search(pattern, shown["fix"]), shown["fix"]
    assert "torchrun --standalone" not in shown["fix"]


def test_a_torchrun_under_srun_stays():
    text = f"{SRUN}\n$ srun torchrun --nnodes=2 train.py\n{OF_SRUN['no variables of torch'][0]}"
    assert explain_text(text).describe()["found"][0]["fix"].startswith("torchrun --nproc-per-node")


NONE = "  × No solution found when resolving dependencies:\n  ╰─▶ Because "


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (
            "$ uv add torch==1.6.0+cu101 --index https://download.pytorch.org/whl/torch_stable.html\n"
            f"{NONE}there is no version of torch==1.6.0+cu101 and your project depends on it",
            "uv pip install -f https://download.pytorch.org/whl/torch_stable.html",
        ),
        (
            "$ uv pip install torch==2.3.1 --index-url https://download.pytorch.org/whl/cpu\n"
            f"{NONE}torch==2.3.1 has no wheels are available with a matching Python",
            "uv pip install torch==2.3.1+cpu --index-url https://download.pytorch.org/whl/cpu",
        ),
    ],
)
def test_uv_gets_its_own_way_to_an_old_torch(text, fix):
    assert explain_text(text).describe()["found"][0]["fix"].startswith(fix)


def test_a_driver_of_another_machine_is_named_so():
    text = "load library failed: libnvidia-ml.so.1: cannot open shared object file: no such file"
    found = explain_text(f"nvidia-container-cli: initialization error: {text}")
    fix = found.describe(Distribution("Debian 12", "debian"))["found"][0]["fix"]
    assert "on Debian, as on this machine" in fix
    assert "Alpine" not in fix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "LibMambaUnsatisfiableError: Encountered problems while solving:\n"
            "  - package libgcc-ng-11.2.0-h1234567_1 is excluded by strict repo priority",
            "conda config --set channel_priority flexible",
        ),
        (
            "LibMambaUnsatisfiableError: Encountered problems while solving:\n"
            "  - package torchaudio-2.0.2-py310_cu117 requires pytorch-cuda 11.7.*, but none",
            "pytorch-cuda=11.7 in the command",
        ),
        (
            "UnsatisfiableError: The following specifications were found to be in conflict:\n",
            "conda create -n lab",
        ),
    ],
)
def test_condas_conflicts_are_told_apart(text, said):
    assert explain_text(text).describe()["found"][0]["fix"].startswith(said)


def test_a_vllm_that_waits_for_its_other_gpu_is_known_from_the_persons_words():
    log = (
        "INFO 04-11 13:14:22 [pynccl.py:69] vLLM is using nccl==2.21.5\n"
        "It hangs there for ever with --tensor-parallel-size 2; the other GPUs idle."
    )
    assert explain_text(log).first.error.name == "vllm-starts-not-in-words"
    assert explain_text(log.partition("\n")[0]).first is None


def test_a_torch_named_with_its_cuda_gets_pytorchs_index_of_it():
    text = (
        "Pip subprocess error:\nERROR: Could not find a version that satisfies the requirement"
        " torch==1.12.1+cu113 (from versions: 1.7.1, 1.13.1, 2.0.0)\n"
        "ERROR: No matching distribution found for torch==1.12.1+cu113"
    )
    fix = explain_text(text).describe()["found"][0]["fix"]
    index = "--extra-index-url https://download.pytorch.org/whl/cu113"
    assert fix.startswith(f"pip install torch==1.12.1+cu113 {index}")


BUILDS = {
    "flash-attn": "FLASH_ATTENTION_TRITON_AMD_ENABLE=TRUE {} flash-attn --no-build-isolation",
    "xformers": "{} xformers --index-url https://download.pytorch.org/whl/rocm6.3",
    "bitsandbytes": "{} --upgrade bitsandbytes",
    "apex": "git clone https://github.com/ROCm/apex && cd apex && {} . --no-build-isolation",
    "deepspeed": "DS_BUILD_OPS=0 {} deepspeed --no-build-isolation",
    "vllm": "uv venv --python 3.12 && uv pip install vllm --extra-index-url",
}
BUILD_ERRORS = {
    "no compiler": "OSError: CUDA_HOME environment variable is not set. Please set it to your",
    "no nvcc": "RuntimeError: {} is only supported on CUDA 11.7 and above.  Note: make sure nvcc",
    "mismatch": "Cuda extensions are being compiled with a version of Cuda that does not match the"
    " version used to compile Pytorch binaries.",
    "operations": "op_builder.MissingCUDAException: CUDA_HOME does not exist, unable to compile",
    "isolated": "ModuleNotFoundError: No module named 'torch'\nPreparing metadata",
    "any": "error: command failed",
}


@pytest.mark.parametrize("error", BUILD_ERRORS.values(), ids=BUILD_ERRORS)
@pytest.mark.parametrize("package", BUILDS)
def test_a_package_for_rocm_comes_in_rocms_way(package, error):
    failed = f"\n{error.format(package)}\nerror: subprocess-exited-with-error\n"
    built = {
        "pip": f"$ pip install {package}{failed}ERROR: Failed building wheel for {package}",
        "uv pip": f"$ uv pip install {package}\n  × Failed to build `{package}==1.0`{failed}",
    }
    for tool, text in built.items():
        found = explain_text(f"torch 2.7.1+rocm6.3\n{text}")
        fix = found.found[0].write_fixes(UNKNOWN)[0]
        assert fix.startswith(BUILDS[package].format(f"{tool} install"))
        assert "CUDA_HOME" not in fix.partition("   #")[0]
        assert [each.error.name for each in found.found if not each.caused_by] == [
            found.found[0].error.name
        ]


REPORT = "ROCM used to build PyTorch: N/A\nHIP runtime version: N/A\nMIOpen runtime version: N/A\n"


@pytest.mark.parametrize(
    ("text", "is_rocm"),
    [
        (REPORT, False),
        ("ROCm platform is not available because: No module named 'amdsmi'", False),
        ("torch.version.hip is None", False),
        ("torch.version.hip: None", False),
        ("ROCM used to build PyTorch: 6.3.42131", True),
        ("HIP runtime version: 6.3.42131", True),
        ("torch==2.7.1+rocm6.3", True),
        ("AMD Instinct MI300X", True),
        ("Name: gfx90a", True),
    ],
)
def test_a_report_that_names_rocm_as_absent_is_not_of_rocm(text, is_rocm):
    assert ("rocm" in explain_text(text).context.signs) is is_rocm


@pytest.mark.parametrize("tool", ["pip", "uv pip"])
def test_flash_attn_without_a_compiler_has_one_cause_and_its_ready_wheel(tool):
    found = explain_text(
        f"$ {tool} install flash-attn --no-build-isolation\n"
        "  × Failed to build `flash-attn==2.8.3`\nThe build backend returned an error\n"
        "OSError: CUDA_HOME environment variable is not set.\n"
        "ERROR: Failed building wheel for flash-attn\n"
    ).found
    assert [each.error.name for each in found if not each.caused_by] == ["no-cuda-toolkit"]
    fix = found[0].write_fixes(UNKNOWN)[0]
    assert fix.startswith(f"FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE {tool} install flash-attn")


OWN_PIP = re.compile(r"(?<!uv )(?<!-m )(?<![\w./%-])pip (?:install|uninstall -y|list|show) (?!-e)")


def test_in_a_log_of_uv_no_command_is_pips():
    host = LogHost(signs=frozenset({"uv", "uv-pip"}))
    plain = [error.adapt((), {}) for error in KNOWN_ERRORS]
    fixes = [fix for error in plain for fix in (error.fix.anywhere, error.otherwise) if fix]
    written = [host.write(fix) for fix in fixes]
    assert [fix for fix in written if OWN_PIP.search(fix)] == []


def test_every_cause_of_a_failed_build_explains_flash_attns():
    apart = {"flash-attn-build", "no-name-server", "unknown-host-name", "index-unreachable"}
    for error in KNOWN_ERRORS:
        if "wheel-build-failed" in error.brings and error.name not in apart:
            assert "flash-attn-build" in error.brings, error.name


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (
            "ModuleNotFoundError: No module named 'flash_attn_2_cuda'",
            "FLASH_ATTENTION_TRITON_AMD_ENABLE=TRUE <the command>",
        ),
        (
            "ModuleNotFoundError: No module named 'flash_attn'",
            "FLASH_ATTENTION_TRITON_AMD_ENABLE=TRUE pip install flash-attn",
        ),
        (
            "WARNING[XFORMERS]: xFormers can't load C++/CUDA extensions. xFormers was built for:",
            "pip install --force-reinstall --no-deps xformers --index-url https://download.pytorch"
            ".org/whl/rocm6.3",
        ),
        (
            "RuntimeError: Method 'cquantize_blockwise_fp16' not available in CPU-only version of"
            " bitsandbytes.",
            "pip install --upgrade bitsandbytes && python -m bitsandbytes",
        ),
        (
            "MissingCUDAException: CUDA_HOME does not exist, unable to compile CUDA op(s)",
            "export ROCM_HOME=/opt/rocm",
        ),
        ("OSError: CUDA_HOME environment variable is not set.", "export ROCM_HOME=/opt/rocm"),
        (
            "import vllm\nImportError: libcudart.so.12: cannot open shared object file",
            "uv venv --python 3.12 && uv pip install vllm --extra-index-url",
        ),
    ],
)
def test_a_package_that_fails_under_rocm_gets_rocms_advice(error, fix):
    found = explain_text(f"torch 2.7.1+rocm6.3, deepspeed\n{error}").found[0]
    assert found.write_fixes(UNKNOWN)[0].startswith(fix)
    plain = explain_text(error).found[0].write_fixes(UNKNOWN)[0]
    assert "rocm" not in plain.partition("   #")[0].lower() and "AMD" not in plain
