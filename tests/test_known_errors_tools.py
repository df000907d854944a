"""The launcher, installer, engine and program that a log shows choose the commands of its fix."""

from __future__ import annotations

from functools import partial

import pytest

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors.context import Context
from labkit.known_errors.match import explain_text
from tests.fakes.explained import show_first

DEBIAN = Distribution("debian", "debian")
NO_NCCL = "RuntimeError: Distributed package doesn't have NCCL built in"
TAKEN = (
    "torch.distributed.DistNetworkError: The server socket has failed to listen on any local"
    " network address. The server socket has failed to bind to [::]:29500 (errno: 98 - Address"
    " already in use)."
)
UNUSED = "RuntimeError: Expected to have finished reduction in the prior iteration before starting"
LIGHTNING = 'File "/v/pytorch_lightning/trainer/trainer.py", line 1, in fit\n'
NO_CUDA = "  - nothing provides __cuda needed by libtorch-2.6.0-cuda126_generic_h1"
BFLOAT = (
    "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your"
    " Tesla T4 GPU has compute capability 7.5."
)
GATED = "Access to model ann/Big-7B is restricted. You must be authenticated to access it."
NO_HEADER = "/tmp/tmpbe9/cuda_utils.c:5:10: fatal error: Python.h: No such file or directory"
NO_TORCH = "ModuleNotFoundError: No module named 'torch'"
PAGING = "OSError: [WinError 1455] The paging file is too small for this operation to complete."
UNKNOWN_MODEL = "llama_model_load: error loading model: unknown model architecture: 'llama4'"
ASLEEP = "ollama[2]: cuda driver library failed to get device context 999"
HEADER = "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"
FULL_DISK = "Could not install packages due to an OSError: [Errno 28] No space left on device"
NCCL_SHM = (
    "misc/shmutils.cc:88 NCCL WARN Error: failed to extend /dev/shm/nccl-Ab1 to 9637892 bytes,"
    " error: No space left on device (28)"
)
MISMATCH = (
    "      The detected CUDA version (11.8) mismatches the version that was used to compile\n"
    "      PyTorch (12.1). Please make sure to use the same CUDA versions."
)
FLASH = (
    "ImportError: /x/flash_attn_2_cuda.cpython-311-x86_64-linux-gnu.so: undefined symbol:"
    " _ZN3c105ErrorC2ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
)
NO_LINK = "/usr/bin/ld: cannot find -lcuda: No such file or directory"
ROCBLAS = (
    "rocBLAS error: Cannot read /opt/rocm/lib/rocblas/library/TensileLibrary.dat: Illegal seek for"
    " GPU arch : {}\n List of available TensileLibrary Files :\n"
    '"/opt/rocm/lib/rocblas/library/TensileLibrary_lazy_gfx900.dat"\n'
    '"/opt/rocm/lib/rocblas/library/TensileLibrary_lazy_gfx1030.dat"\n'
    '"/opt/rocm/lib/rocblas/library/TensileLibrary_lazy_gfx1100.dat"\n'
)
NO_NCCL_SYMBOL = "ImportError: libtorch_cuda.so: undefined symbol: ncclCommResume"
BOTH_NCCL = f"{NO_NCCL_SYMBOL}\n[pip3] nvidia-nccl-cu12==2.29.3\n[pip3] nvidia-nccl-cu13==2.29.7"
BOTH_CUDNN = (
    "ImportError: libtorch_cuda.so: undefined symbol: cudnnGetVersion, version libcudnn.so.9\n"
    "nvidia-cudnn-cu12==9.10.2.21\nnvidia-cudnn-cu13==9.13.0.50"
)
NO_TRITON = "RuntimeError: Cannot find a working triton installation."
ON_WINDOWS = "OS: Microsoft Windows 11 Pro"
ASSERTED = "RuntimeError: CUDA error: device-side assert triggered"
CUDART = 'msg="Unable to load cudart" library=/x/libcudart.so.11.0 error="cudart init failure: 999"'
NO_CUDART = (
    "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory"
)
OLD_NVCC = "nvcc fatal   : Unsupported gpu architecture 'compute_120'"
OLD_GPU = (
    "Tesla P100-PCIE-16GB with CUDA capability sm_60 is not compatible with the current PyTorch"
)
IN_BUILD = f"Getting requirements to build wheel did not run successfully\n{NO_TORCH}"
WORLD_MODEL = (
    "WeightsUnpickler error: Unsupported global: GLOBAL ultralytics.nn.tasks.WorldModel was not an"
    " allowed global by default."
)
SHAPES = "mat1 and mat2 shapes cannot be multiplied (5376x1280 and 3840x1280)"


show_on_debian = partial(show_first, distribution=DEBIAN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{LIGHTNING}{NO_NCCL}", 'try: Trainer(strategy=DDPStrategy(process_group_backend="gloo'),
        (
            f"C:\\v\\pytorch_lightning\\accelerators\\gpu.py\n{NO_NCCL}",
            'try: set "PL_TORCH_DISTRIBUTED_BACKEND=gloo"',
        ),
        (f"$ accelerate launch train.py\n{NO_NCCL}", "accelerate launch --num_processes=1"),
        (NO_NCCL, 'try: init_process_group("gloo")'),
        (f"C:\\v\\torch\n{NO_NCCL}", "NCCL does not exist for Windows"),
        (f"{LIGHTNING}{UNUSED}", 'strategy="ddp_find_unused_parameters_true"'),
        (UNUSED, "try: DistributedDataParallel(model, find_unused_parameters=True)"),
        (TAKEN, "try: torchrun --standalone"),
        (f"$ tune run --nproc_per_node 2 x --config y\n{TAKEN}", "try: tune run --rdzv-backend"),
        (f"$ accelerate launch train.py\n{TAKEN}", "try: accelerate launch --main_process_port"),
        (f"$ deepspeed --num_gpus 2 train.py\n{TAKEN}", "try: deepspeed --master_port 29511"),
        (f"{LIGHTNING}{TAKEN}", "try: MASTER_PORT=29511 python your_program.py"),
        (
            f"{LIGHTNING}Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 2000",
            'try: Trainer(accelerator="gpu"',
        ),
        ("Duplicate GPU detected : rank 0 and rank 1", 'remove a fixed device ("cuda:0"'),
        (NCCL_SHM, "else: NCCL_SHM_DISABLE=1"),
        ("killed by signal: Bus error\nultralytics/data/build.py", "else: --workers 0"),
        (PAGING, "else: fewer workers: DataLoader(num_workers=0)"),
        (f"D:\\yolov5\\train.py\n{PAGING}", "else: fewer workers: --workers 0"),
    ],
)
def test_the_launcher_that_a_log_shows_is_the_one_of_its_fix(text, said):
    assert said in show_on_debian(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"$ micromamba install -c conda-forge pytorch-gpu\n{NO_CUDA}",
            "try: CONDA_OVERRIDE_CUDA=12.9 micromamba install -c conda-forge pytorch-gpu ",
        ),
        (
            f"$ conda env create -f gpu.yml\n{NO_CUDA}",
            "try: CONDA_OVERRIDE_CUDA=12.9 conda env create -f gpu.yml ",
        ),
        (f"micromamba 2.0\n{NO_CUDA}", "=12.9 micromamba create -f environment.yml"),
        (NO_CUDA, "else: the build without a GPU: conda install -c conda-forge pytorch-cpu"),
        (f"$ poetry run python scripts/setup\n{GATED}", "try: poetry run hf auth login"),
        (GATED, "license at https://huggingface.co/ann/Big-7B"),
        (f"<ipython-input-1-a>\n{GATED}", "notebook_login()"),
        (f"<ipython-input-1-a>\n{NO_TORCH}", "try: in the notebook: Kernel, Change Kernel"),
        (f"/content/x.py\n{NO_TORCH}", "try: %pip install torch torchvision"),
        (f"C:\\x>python a.py\n{NO_TORCH}", "--index-url https://download.pytorch.org/whl/cu130"),
        (
            f"gcc -L/app/.venv/lib\n{NO_HEADER}",
            "try: apt-get update && apt-get install -y g++ python3-dev   # as root; in the image",
        ),
        (NO_HEADER, "try: sudo apt-get install g++ python3-dev"),
        (FULL_DISK, "try: mkdir -p $HOME/tmp && TMPDIR=$HOME/tmp pip install"),
        (f"#9 [3/5] RUN pip install torch\n{FULL_DISK}", "try: docker system df"),
        (f"$ git clone https://huggingface.co/a/b\n{HEADER}", "try: sudo apt-get install git-lfs"),
        (HEADER, "try: rm <the file>"),
        (f"llama_cpp_python 0.3.8\n{UNKNOWN_MODEL}", 'try: CMAKE_ARGS="-DGGML_CUDA=on" pip'),
        (f"ollama serve\n{UNKNOWN_MODEL}", "try: curl -fsSL https://ollama.com/install.sh"),
        (f"ggml_cuda_init: found 1\n{UNKNOWN_MODEL}", "try: git pull && cmake -B build"),
    ],
)
def test_the_installer_that_a_log_shows_is_the_one_of_its_fix(text, said):
    assert said in show_on_debian(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"vllm/worker/worker.py\n{BFLOAT}", "try: --dtype half"),
        (f"/v/vllm/entrypoints/llm.py\n{BFLOAT}", 'try: LLM(model, dtype="half")'),
        (BFLOAT, "else: a GPU of compute capability 8.0"),
        (f"the machine was suspended\n{ASLEEP}", "try: sudo systemctl stop ollama && sudo rmmod"),
        (f"the machine was suspended\n{ASLEEP}", "NVreg_PreserveVideoMemoryAllocations=1"),
        (MISMATCH, "export CUDA_HOME=/usr/local/cuda-12.1"),
        (f"$ conda activate x\n{MISMATCH}", "conda install -y -c nvidia cuda-toolkit=12.1"),
        (
            f"Getting requirements to build editable\n{MISMATCH}",
            "whl/cu118 && pip install --no-build-isolation",
        ),
        (
            "ValueError: fp16 mixed precision requires a GPU (not 'cpu').",
            "else: without a GPU: TrainingArguments(fp16=False, bf16=False)",
        ),
        ("MisconfigurationException: No supported gpu backend found!", "try: pip install --force"),
        ("/content/x\nUnsloth: No NVIDIA GPU found", "try: choose a GPU for this notebook"),
        ("RuntimeError: 0 active drivers ([]). There should only be one.", "try: pip install"),
        ("vllm\nRuntimeError: 0 active drivers ([]). There should only be one.", "vLLM brings"),
        ("RuntimeError: Error building extension 'fused_adam'", "try: export CUDA_HOME="),
        ("gguf_init_from_file_impl: invalid magic characters: '<htm'", "try: hf download"),
        (
            "srun: error: Unable to allocate resources: Invalid generic resource (gres)"
            " specification",
            "try: #SBATCH --partition=<one with GPUs>",
        ),
        (f"{FLASH}\ntorch==2.6.0\nflash_attn==2.8.0.post2", "'flash-attn==2.7.4.post1'"),
        (
            f"{FLASH}\ntorch==2.7.0\nflash_attn==2.8.0.post2",
            "takes the release's wheel for this torch",
        ),
        (NO_LINK, "try: sudo ldconfig && sudo ln -s libcuda.so.1 /usr/lib/x86_64-linux-gnu/"),
        (f"ann@fedora:~$ make\n{NO_LINK}", "ln -s libcuda.so.1 /usr/lib64/libcuda.so"),
        (f"microsoft-standard-WSL2\n{NO_LINK}", "LIBRARY_PATH=/usr/lib/wsl/lib"),
        (f"nvcc -c a.cu\n{NO_LINK}", "LIBRARY_PATH=/usr/local/cuda/lib64/stubs"),
        (f"llama.cpp\n{ROCBLAS.format('gfx1103')}", "try: HSA_OVERRIDE_GFX_VERSION=11.0.0"),
        (f"llama.cpp\n{ROCBLAS.format('gfx1031')}", "try: HSA_OVERRIDE_GFX_VERSION=10.3.0"),
        (ROCBLAS.format("gfx803"), "no build of torch for ROCm"),
        (
            "sbatch: error: Gres format wrong, specify --gres=gpu:TYPE:NUM\nsbatch: error: Batch"
            " job submission failed: Invalid generic resource (gres) specification",
            "try: #SBATCH --gres=gpu:<type>:<number>",
        ),
        (f"**Node Type:** TextEncodeQwenImageEdit\n{SHAPES}", "mmproj file"),
        (
            "Could not find the bitsandbytes CUDA binary at PosixPath('/x/bitsandbytes-0.43.2.dev0-"
            "py3.10-linux-x86_64.egg/bitsandbytes/libbitsandbytes_cuda121.so')",
            "else: cmake -DCOMPUTE_BACKEND=cuda",
        ),
        (
            "modified by an inplace operation: [torch.cuda.FloatTensor [4, 8]], which is output 0"
            " of ReluBackward0, is at version 1; expected version 0 instead",
            "try: x = x + y instead of x += y",
        ),
    ],
)
def test_a_fact_of_the_log_chooses_the_fix(text, said):
    assert said in show_on_debian(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOTH_NCCL, "try: pip uninstall -y nvidia-nccl-cu12 && pip install --force-reinstall"),
        (BOTH_NCCL, "nvidia-nccl-cu13==2.29.7"),
        (f"torch 2.8.0+cu128\n{BOTH_NCCL}", "try: pip uninstall -y nvidia-nccl-cu13 && "),
        (f"torch 2.8.0+cu128\n{BOTH_NCCL}", "nvidia-nccl-cu12==2.29.3"),
        (BOTH_CUDNN, "try: pip uninstall -y nvidia-cudnn-cu12 && "),
        (f"torch 2.8.0+cu128\n{BOTH_CUDNN}", "try: pip uninstall -y nvidia-cudnn-cu13 && "),
        (f"{NO_NCCL_SYMBOL}\nnvidia-nccl-cu13==2.29.7", "try: unset LD_LIBRARY_PATH; "),
        (f"{NO_TRITON}\nPyTorch version: 2.4.1+cu124\n{ON_WINDOWS}", '"triton-windows==3.1.*"'),
        (f"{NO_TRITON}\nPyTorch version: 2.7.0+cu128\n{ON_WINDOWS}", '"triton-windows==3.3.*"'),
        (f"{NO_TRITON}\n{ON_WINDOWS}", "which has no official package for Windows"),
        (f"{NO_TRITON}\n{ON_WINDOWS}", "else: torch._dynamo.config.suppress_errors = True"),
        (NO_TRITON, "it is missing or the GPU is too old for it"),
        (f"libtorch_hip.so: {NO_NCCL_SYMBOL}", "whl/rocm"),
        (
            "xFormers was built for:\n    PyTorch 2.10.0+cu128 with CUDA (you have 2.11.0+cu130)",
            "xformers --index-url https://download.pytorch.org/whl/cu130",
        ),
        (
            '  File "/x/site-packages/peft/peft_model.py", line 37, in a\nImportError: cannot'
            " import name 'EncoderDecoderCache' from 'transformers'",
            "pip install 'peft<0.14'",
        ),
        ("C:\\x> python a.py\nOMP: Error #15: Initializing libiomp5md.dll", "where /r"),
        (
            "Could not find a version that satisfies the requirement torch==2.5.1 (from versions:"
            ' 2.6.0+cu124)\n  File "C:\\Python313\\Lib\\subprocess.py", line 419, in check_call',
            "py -3.12",
        ),
        (
            "C:\\x> pip install torch\nOSError: [Errno 28] No space left on device",
            "pip cache purge",
        ),
        ('Unable to find cuda lib under the names ["cuda", "nvcuda"].', "/usr/lib/wsl/lib"),
        (
            "!!! Exception during processing !!! No package metadata was found for bitsandbytes",
            "pip install -U bitsandbytes",
        ),
        (
            "hint: This error likely indicates that `flash-attn@2.8.1` depends on `torch`, but",
            "uv pip install --no-build-isolation flash-attn",
        ),
        (
            "The batch size is already 1.\nCUDA out of memory. Tried to allocate 100.00 MiB (GPU 0;"
            " 23.68 GiB total capacity; 21.67 GiB already allocated; 85.06 MiB free; 21.92 GiB"
            " reserved in total by PyTorch)",
            "try: a smaller model",
        ),
        (
            "site-packages/pytorchvideo/transforms/augmentations.py\nNo module named"
            " 'torchvision.transforms.functional_tensor'",
            "which pytorchvideo imports",
        ),
        (
            "Caused by ProxyError('Unable to connect to proxy', NewConnectionError('<x>: Failed'",
            "unset http_proxy https_proxy",
        ),
        ("ollama\nrocBLAS error: Cannot read /x/TensileLibrary.dat", "else: OLLAMA_VULKAN=1"),
        (
            "[BUG]: IProgress not found. Please update jupyter & ipywidgets",
            "pip install --upgrade ip",
        ),
        ("RTX5060TI\nAssertionError: Torch not compiled with CUDA enabled", "cu128 an older one"),
        ("bash: python3: command not found", "try: sudo apt-get install python3-venv"),
        ("zsh: command not found: python3", "try: sudo apt-get install python3-venv"),
        ("zsh: command not found: python", "a script that calls python: python3"),
        ("zsh: command not found: pip", "ensurepip"),
        ("[Errno 28] No space left on device: '/x'", "try: df -h; df -i   #"),
        (f"$ ./start.sh\n{FULL_DISK}", "try: mkdir -p $HOME/tmp && TMPDIR=$HOME/tmp ./start.sh"),
        (
            f"curl -fsSL https://x.org/install.sh\n{FULL_DISK}",
            "try: mkdir -p $HOME/tmp && TMPDIR=$HOME/tmp pip install",
        ),
        (f"{FULL_DISK}\nbut there's over 50GB available", "cause: the folder in which pip unpacks"),
        (f"{FULL_DISK}\nonly 2GB left", "cause: a file system that pip writes to is full"),
        (f"F.one_hot(true_masks, net.n_classes)\n{ASSERTED}", "try: print(torch.unique(masks))"),
        (f"F.one_hot(true_masks, net.n_classes)\n{ASSERTED}", "(Image.NEAREST)"),
        (ASSERTED, "try: CUDA_LAUNCH_BLOCKING=1"),
        (f"after gentoo linux sleep, only the CPU\n{CUDART}", "try: sudo systemctl stop ollama"),
        (f"after gentoo linux sleep, only the CPU\n{CUDART}", "OpenRC (Gentoo): sudo rc-service"),
        ("after sleep(5)\ncudaSetDevice err: 999", "after a suspend, a driver update"),
        (f"vllm 0.5.4\n{NO_CUDART}", "try: pip install --force-reinstall 'vllm==<its version>'"),
        (NO_CUDART, "try: pip install --force-reinstall torch"),
        (
            f"$ cmake --build build\n{OLD_NVCC}",
            "else: cmake -B build-86 -DCMAKE_CUDA_ARCHITECTURES",
        ),
        (OLD_NVCC, 'else: TORCH_CUDA_ARCH_LIST="8.6+PTX"'),
        (OLD_GPU, "its build leaves out GPUs as old as this one"),
        (OLD_GPU, "on Kaggle rather: Settings, Accelerator, GPU T4 x2"),
        (IN_BUILD, "else: a ready wheel needs no build"),
        (NO_TORCH, "else: in JupyterLab: Kernel, Change Kernel"),
        (WORLD_MODEL, "Windows: set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"),
        ("Last error:\nBootstrap : no socket interface found", "line 2: Bootstrap"),
        ("Last error:\nBootstrap : no socket interface found", "take its export out of the script"),
        ("RuntimeError: Cannot re-initialize CUDA in forked subprocess", "or num_workers=0"),
        ("unet.add_adapter(x)\ndiffusers\nAttempting to unscale FP16 gradients.", "fp16-gradients"),
        ("diffusers\nAttempting to unscale FP16 gradients.", "# after unet.add_adapter(...)"),
        ("x.so: undefined symbol: iJIT_NotifyEvent", "it stops at a missing one"),
        ("libcusparse.so.12: undefined symbol: __nvJitLinkAddData_12_1", "uv pip list"),
    ],
)
def test_what_is_installed_and_how_it_was_started_chooses_the_fix(text, said):
    assert said in show_on_debian(text)


@pytest.mark.parametrize(
    "text",
    [
        "error loading model: unknown model architecture: 'clip'",
        "`ddp_find_unused_parameters` needs to be set as False for LoRA in DDP training.",
        "RuntimeError: Expected A.dtype() == at::kBFloat16 to be true, but got false.",
    ],
    ids=["a projector", "LoRA", "4 bits"],
)
def test_a_second_fix_of_another_cause_is_left_out(text):
    assert "else:" not in show_on_debian(text)


@pytest.mark.parametrize(
    ("text", "causes"),
    [
        (
            f"[c10d] The server socket has failed to listen on any local network address.\n{TAKEN}",
            {"rendezvous-failed": "torchrun-port-taken"},
        ),
        (
            "PTXASError: PTXAS error: Internal Triton PTX codegen error\n"
            "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'",
            {"compile-worker-died": "ptxas-too-old"},
        ),
        (
            f"{NO_HEADER}\nCommand '['/usr/bin/gcc', '/tmp/t/cuda_utils.c', '-lcuda', '-o', 'x']'"
            " returned non-zero exit status 1.",
            {"triton-compile-failed": "no-python-headers"},
        ),
        (
            f"{NO_LINK}\nCommand '['/usr/bin/gcc', '/tmp/t/main.c', '-lcuda', '-o', 'x']' returned"
            " non-zero exit status 1.",
            {"triton-compile-failed": "no-libcuda-link"},
        ),
        (
            f"error: subprocess-exited-with-error\n{MISMATCH}",
            {"wheel-build-failed": "cuda-toolkit-mismatch"},
        ),
        (f"{ASLEEP}\ncudaSetDevice err: 999", {"error-999": "ollama-gpu-library"}),
        (f"cudaSetDevice err: 999\n{CUDART}", {"error-999": "ollama-gpu-library"}),
        (f"{FULL_DISK}\n{NO_TORCH}", {"no-torch": "disk-full"}),
    ],
)
def test_what_follows_from_the_cause_has_no_fix_of_its_own(text, causes):
    found = explain_text(text).found
    assert causes.items() <= {each.error.name: each.caused_by for each in found}.items()


@pytest.mark.parametrize(
    ("fix", "written"),
    [
        ("--dtype half --enforce-eager", 'LLM(model, dtype="half", enforce_eager=True)'),
        ("--max-model-len 8192", "LLM(model, max_model_len=8192)"),
        (
            "--limit-mm-per-prompt '{\"image\": 4}'   # more",
            'LLM(model, limit_mm_per_prompt={"image": 4})   # more',
        ),
        ("--mem-fraction-static 0.7", "--mem-fraction-static 0.7"),
        ("--dtype half or not", "--dtype half or not"),
    ],
)
def test_options_of_vllm_are_arguments_where_python_makes_the_engine(fix, written):
    assert Context({"vllm-python"}).describe_host(UNKNOWN).write(fix) == written


@pytest.mark.parametrize(
    ("launcher", "written"),
    [
        ("accelerate-launch", "accelerate launch --log_dir logs --tee 3 your_program.py"),
        ("deepspeed-launch", "deepspeed --enable_each_rank_log=logs your_program.py"),
        ("tune-run", "tune run --log-dir logs --tee 3 <the recipe and its options>"),
    ],
)
def test_each_launcher_writes_a_log_for_each_process(launcher, written):
    fix = "torchrun --log-dir logs --tee 3 your_program.py"
    assert Context({launcher}).describe_host(UNKNOWN).write(fix) == written


API = "wandb: ERROR Error while calling W&B API:"
TRACKERS = {
    "no project": (f"{API} project not found (<Response [404]>)", "entity="),
    "no right": (f"{API} permission denied (<Response [403]>)", "entity="),
    "no entity": (f"{API} entity ann not found during upsertBucket", "entity="),
    "no login": (f"{API} user is not logged in (<Response [401]>)", "wandb login --relogin"),
    "a wrong key": ("wandb: ERROR API key must be 40 characters long, yours was 86", "--relogin"),
    "no run": ("wandb.errors.CommError: run ann/lab/3f2a not found", "wandb.Api().run("),
    "too many": ("wandb: 429 encountered (Filestream rate limit exceeded)", "every 50 steps"),
    "no network": ("wandb: Network error (ConnectTimeout), entering retry loop.", "wandb sync"),
    "MLflow": (
        "mlflow.exceptions.MlflowException: API request to endpoint /api/2.0/mlflow/runs/create"
        " failed with error code 403 != 200. Response body: Forbidden",
        "MLFLOW_TRACKING_USERNAME",
    ),
    "no server of MLflow": (
        "API request to http://127.0.0.1:5000/api/2.0/mlflow/experiments/get-by-name failed with"
        " exception HTTPConnectionPool(host='127.0.0.1', port=5000): Max retries exceeded",
        "MLFLOW_TRACKING_URI",
    ),
    "Comet": ("COMET ERROR: The given API key abc is invalid on www.comet.com", "COMET_API_KEY"),
    "Neptune": ("neptune.exceptions.NeptuneMissingApiTokenException", "NEPTUNE_API_TOKEN"),
    "ClearML": ("It seems ClearML is not configured on this machine!", "clearml-init"),
    "the hub, to write": (
        "huggingface_hub.errors.HfHubHTTPError: 403 Forbidden: You don't have the rights to create"
        ' a model under the namespace "ann".\nCannot access content at: https://huggingface.co/a',
        "hf auth whoami",
    ),
    "the hub, a second time": ("You already created this model repo", "exist_ok=True"),
    "the hub's credits": ("You have exceeded your monthly included credits", "next month"),
    "the hub's git": ("Your push was rejected because it contains binary files", "hf upload"),
    "half a file": (
        "HfHubHTTPError: 416 Client Error: Requested Range Not Satisfiable for url: https://x",
        "--force-download",
    ),
    "a gated model": (
        "403 Forbidden: Please enable access to public gated repositories in your fine-grained"
        " token settings to view this repository.\nCannot access content at: https://"
        "huggingface.co/a/b/resolve/main/config.json.\nMake sure your token has the correct"
        " permissions.",
        "gated repo",
    ),
}


@pytest.mark.parametrize(("text", "said"), TRACKERS.values(), ids=TRACKERS.keys())
def test_what_a_tracker_or_a_hub_refuses_is_known(text, said):
    shown = explain_text(text).describe()["found"][0]
    assert said in f"{shown['fix']} {shown['otherwise']}"
