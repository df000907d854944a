"""What a log of Python and torch says of them chooses cause and fix: version, build, system."""

from __future__ import annotations

import pytest

from labkit.known_errors.context import compare_versions, suit_python
from labkit.known_errors.match import explain_text
from labkit.known_errors.pythons import find_built_package, find_python_version
from tests.fakes.explained import show_first

NONE = "ERROR: Could not find a version that satisfies the requirement {} (from versions: {})\n"
ASKED = "torch.cuda.is_available()"
HIP = "RuntimeError: HIP error: invalid device function\n"
ABI = "Because torch==2.3.0+cu121 has no wheels with a matching Python ABI tag and you require it"
LISTED = (
    "error: Distribution `torch==2.5.1 @ registry+https://example.org/whl/cu124` can't be installed"
    " because it doesn't have a source distribution or wheel for the current platform\n\nhint: You"
    " only has wheels for the following platform: `linux_aarch64`"
)
TOKENS = (
    'File "/v/transformers/tokenization_utils_base.py", line 1, in'
    " _set_model_specific_special_tokens\n  x = list(special_tokens.keys())\n     ^^^^^^\n"
    "AttributeError: 'list' object has no attribute 'keys'"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"C:\\x>py -3.14 -m pip install torch\n{NONE.format('torch', 'none')}",
            "py -3.12 -m venv",
        ),
        (f"Python 3.13.1\n{NONE.format('torch', 'none')}", "too new for them"),
        (f"Python 3.7.9\n{NONE.format('torch', 'none')}", "too old"),
        (
            f"Python 3.11.2 [MSC v.1934 32 bit (Intel)] on win32\n{NONE.format('torch', 'none')}",
            "winget install --architecture x64 Python.Python.3.12",
        ),
        (NONE.format("torch==1.13.1", "none"), "python3.10 -m venv"),
        (
            f"Looking in indexes: https://download.pytorch.org/whl/cu121\n"
            f"{NONE.format('torch', 'none')}",
            "index cu121 gets no new torch",
        ),
        (f"macOS\n$ uname -m\nx86_64\n{NONE.format('torch', 'none')}", "'torch==2.2.2'"),
        (NONE.format("torch==2.4.0", "2.2.0, 2.2.1, 2.2.2"), "'torch==2.2.2'"),
        (NONE.format("torch==1.13.1", "2.6.0, 2.7.0"), "too new for torch==1.13.1"),
        (NONE.format("torch==2.1.0", "1.0.0, 1.13.1"), "python3.11 -m venv"),
        (NONE.format("scipy==1.5.4", "1.9.2, 1.10.0"), "pip install 'scipy>=1.9.2'"),
        (f"Using Python 3.13.0 environment at .venv\n{ABI}", "uv venv --python 3.12"),
        (LISTED, "uv lock --upgrade-package torch"),
    ],
)
def test_a_torch_that_is_not_there_names_the_python_that_has_it(text, said):
    assert said in show_first(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f">>> {ASKED}\nFalse", "torch sees no GPU"),
        (f">>> print(torch.__version__)\n2.9.1+cpu\n>>> {ASKED}\nFalse", "build for the CPU"),
        (f'print("CUDA:", {ASKED})\nCUDA: False', "torch sees no GPU"),
        (f"{ASKED} always returns False\nDriver Version: 566.36", "the driver works"),
        (f"{ASKED} gives False, I am on Windows", "pip's own index has no other"),
        (f"{ASKED} returns False\n2.9.0+cu130\nDriver Version: 550.54", "too old for this build"),
        (f"MacBook Pro M2: {ASKED} returns False", 'device = "mps"'),
        (f"Radeon RX 6700 XT\n{ASKED} is False", "whl/rocm"),
        (f"$ conda list\npytorch 2.4.0 py3.11_cpu_0\n>>> {ASKED}\nFalse", "conda remove -y"),
        (
            f'$ docker run -it pytorch/pytorch python -c "print({ASKED})"\nFalse',
            "docker run --gpus all",
        ),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_blamed_on_what_the_text_shows(text, said):
    assert said in show_first(text)


@pytest.mark.parametrize(
    "source",
    [
        f"use = {ASKED}\nloader = DataLoader(data, pin_memory=False)",
        f'device = "cuda" if {ASKED} else "cpu"\nshuffle=False',
        f"{ASKED} is True",
    ],
)
def test_a_program_that_asks_for_a_gpu_is_no_report(source):
    assert explain_text(source).found == ()


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("AMD Radeon RX 7600 XT", "HSA_OVERRIDE_GFX_VERSION=11.0.0"),
        ("RX6600", "HSA_OVERRIDE_GFX_VERSION=10.3.0"),
        ("AMD Radeon RX 9070", "whl/rocm7.0"),
        ("AMD Radeon (TM) Pro WX 5100 Graphics", "--cpu"),
        ("gfx1151", "HSA_OVERRIDE_GFX_VERSION=11.0.0"),
        ("RX 7900 and ollama", "HSA_OVERRIDE_GFX_VERSION=11.0.0 ollama serve"),
    ],
)
def test_an_amd_card_gets_the_code_of_its_own_generation(card, said):
    assert said in show_first(HIP + card).partition("try: ")[2].partition("\n")[0]


def test_a_mac_is_told_to_remove_xformers():
    text = "Error on MPS M2\nNo operator found for `memory_efficient_attention_forward` with inputs"
    assert "pip uninstall -y xformers" in show_first(text)


def test_a_tokenizer_of_transformers_5_is_known_below_the_carets_of_a_new_python():
    assert "transformers>=5" in show_first(TOKENS)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Python version: 3.10.15 (main)", "3.10"),
        ("Found `cpython-3.13.0-windows-x86_64-none`", "3.13"),
        ("I am using Python 3.14 on Arch", "3.14"),
        ("this needs Python 3.10 or newer", None),
        ("Python 3.9.1\n/v/lib/python3.12/site-packages/x.py", "3.12"),
    ],
)
def test_the_python_that_runs_is_read_from_what_it_says_of_itself(text, version):
    assert find_python_version(text) == version


@pytest.mark.parametrize(
    ("wanted", "first", "last", "reason"),
    [
        ("torch==1.13.1", "2.6.0", "2.10.0", "wanted-older"),
        ("torch==2.10.0", "1.0", "2.9.1", "wanted-newer"),
        ("torch==2.7.0", "2.6.0", "2.10.0", None),
        ("torch==2.7.0", "2.2.2", "", "wanted-newer"),
        ("torch", "2.6.0", "2.7.0", None),
    ],
)
def test_a_version_is_compared_with_those_that_are_there(wanted, first, last, reason):
    assert compare_versions({"wanted": wanted, "first": first, "last": last}) == reason


@pytest.mark.parametrize(
    ("wanted", "python"),
    [("torch==1.7.0", "3.8"), ("torch==2.1.2", "3.11"), ("torch==2.13.0", "3.14"), ("x", None)],
)
def test_a_release_of_torch_has_a_newest_python(wanted, python):
    assert suit_python({"wanted": wanted}).get("suits") == python


RETRY = (
    "[rank3]:[W529 10:12:31.113 socket.cpp:755] [c10d] The client socket has failed to connect to"
    " [node0]:29500 (errno: 111 - Connection refused). Retrying...\n"
)


def test_a_rank_that_waits_for_the_first_one_is_no_error_once_the_run_starts():
    assert explain_text(RETRY + "step 1 loss 2.31\n").found == ()
    assert (
        explain_text(RETRY + "torch.OutOfMemoryError: CUDA out of memory. x\n").first.line_number
        == 2
    )
    timed_out = RETRY + "DistNetworkError: The client socket has timed out after 60000ms\n"
    assert explain_text(timed_out).first.error.name == "rendezvous-failed"


def test_two_quoted_errors_are_no_source():
    full, other = (
        "CUDA out of memory. Tried",
        "no kernel image is available for execution on the device",
    )
    text = (
        f'>>>   "torch.cuda.OutOfMemoryError: {full}"\n>>>   "RuntimeError: CUDA error: {other}"\n'
    )
    found = [each.error.name for each in explain_text(text).found]
    assert sorted(found) == ["gpu-memory-full", "no-architecture"]


COULD_NOT = "RuntimeError: Couldn't install torch.\n"
INPLACE = (
    "RuntimeError: one of the variables needed for gradient computation has been modified by an"
    " inplace operation: [torch.cuda.FloatTensor [4, 4]] is at version 4; expected version 3\n"
)
STEP = "RuntimeError: GemmaRMSNorm failed with error code no kernel image is available for"
NO_KERNEL = "no kernel image is available for execution on the device\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"C:\\sd\\launch.py\n{COULD_NOT}", "& rmdir /s /q venv & py -3.10 -m venv venv"),
        (COULD_NOT, "python3.10 -m venv venv && ./webui.sh"),
        ("RuntimeError: Couldn't clone Stable Diffusion.", "STABLE_DIFFUSION_REPO=https"),
        ("Unable to load cuSPARSE. Is it installed?\njax_plugins/xla_cuda12/x", "'jax[cuda12]'"),
        (f"trained by DistributedDataParallel\n{INPLACE}", "broadcast_buffers=False"),
        (INPLACE, "an optimizer took its step"),
        (
            "T.__init__() got an unexpected keyword argument 'eval_strategy'",
            "before transformers 4.41",
        ),
        (f"RTX 2080\n{STEP} execution on the device", "torch is not to blame"),
        (f"torch 2.7.1+cu128 on an RTX 5090\n{NO_KERNEL}", "a compiled package beside it"),
        (f"torch 2.6.0+cu126 on an RTX 5090\n{NO_KERNEL}", "this torch has no code for sm_120"),
        ("torch==2.7.1+xpu\nProcess finished with exit code -1073741819 (0xC0000005)", "whl/xpu"),
        ("DLL load failed while importing _ctypes: not found.", "a part of Python itself"),
        ("GRID A100-40C\nRuntimeError: NCCL error: unhandled cuda error", "enable_uvm"),
    ],
)
def test_what_else_the_text_says_names_the_cause(text, said):
    assert said in show_first(text)


NO_HOME = (
    "OSError: CUDA_HOME environment variable is not set. Please set it to your install root.\n"
)
LOW = "ValueError: Free memory on device ({}/79.3 GiB) on startup is less than desired GPU memory"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"{NO_HOME}Cuda compilation tools, release 12.6, V12.6.20",
            "CUDA_HOME=/usr/local/cuda-12.6",
        ),
        (f"$ python setup.py install\n{NO_HOME}", "export CUDA_HOME=/usr/local/cuda PATH"),
        (
            f"/opt/miniconda3/x\n$ pip install -v .\n{NO_HOME}",
            "conda install -y -c nvidia cuda-tool",
        ),
        (NO_HOME, "--only-binary"),
        (
            "llama-cpp-python on Tesla P100\nCUDA kernel flash_attn_tile has no device code"
            " compatible with CUDA arch 520.\nCUDA error: unspecified launch failure",
            "-DCMAKE_CUDA_ARCHITECTURES=60",
        ),
        ("/b/llama.cpp/ggml/src/ggml-cuda/fattn.cu:328: fatal error", "--flash-attn off"),
        ("expected mat1 and mat2 to have the same dtype, but got: c10::Half != float", "dtype"),
        (
            "ImportError: cannot import name 'LocalEntryNotFoundError' from 'huggingface_hub'",
            "--upgrade huggingface_hub",
        ),
        ("torch 2.3.1+cu121\nCould not locate cudnn_ops64_9.dll.", "wants cuDNN 9"),
        ("torch 2.6.0+cu124\nCould not locate cudnn_ops64_9.dll.", "nvidia/cudnn/lib"),
        (
            "nvcr.io/nvidia/pytorch:23.07-py3\nValueError: FSDP requires PyTorch >= 2.1.0",
            "counts as older than 2.1.0",
        ),
        (f"{LOW.format('0.49')} utilization", "end those that are yours (a server"),
        (f"{LOW.format('40.1')} utilization", "--gpu-memory-utilization 0.48"),
    ],
)
def test_what_is_there_is_named_before_what_is_to_be_installed(text, said):
    assert said in show_first(text)


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("ERROR: Failed to build 'flash-attn' when getting requirements to build", "flash-attn"),
        (
            'File "/tmp/pip-install-v8s9w7i/causal_conv1d_67edd227d98e40fdb7686c3e/setup.py"',
            "causal-conv1d",
        ),
        ("ERROR: Failed building wheel for llama-cpp-python\nx", "llama-cpp-python"),
        ("Failed to build installable wheels for some based projects (a-b)", "a-b"),
        ("  x-1.0.tar.gz\n  y_z-2.1.tar.gz\n  Preparing metadata ... error\n w-3.tar.gz", "y-z"),
        ("Failed to build the image", None),
    ],
)
def test_the_package_whose_build_fails_is_named(text, package):
    assert find_built_package(text) == package


def test_a_build_without_torch_names_its_package_in_the_fix():
    text = (
        "  Using cached flash_attn-2.8.3.tar.gz (8 MB)\n  Getting requirements to build ... error\n"
    )
    assert "pip install flash-attn --no-build-isolation" in show_first(
        f"{text}  ModuleNotFoundError: No module named 'torch'\nerror: metadata-generation-failed"
    )


FULL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 3.95 GiB total capacity; 2.90 GiB"
    " already allocated; 15.19 MiB free; 2.98 GiB reserved in total by PyTorch)"
)
NO_DRIVER = (
    "RuntimeError: Found no NVIDIA driver on your system. Please check that you have a GPU\n"
)
NOT_THERE = (
    "PackagesNotFoundError: The following packages are not available from current channels:\n\n"
)
SIZES = (
    "RuntimeError: The size of tensor a ({}) must match the size of tensor b ({}) at non-singleton"
)

APART = (
    "RuntimeError: Expected all tensors to be on the same device, but found at least two devices,"
)
SAME = "RuntimeError: mat1 and mat2 must have the same dtype"
PORT = "The server socket has failed to listen on any local network address"
SIZE_CHANGED = "ValueError: numpy.dtype size changed, may indicate binary incompatibility."
OTHER_SIZE = (
    "size mismatch for img_in.weight: copying a param with shape torch.Size([3072, 384]) from"
    " checkpoint, the shape in current model is torch.Size([3072, 64])."
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"it fails in the validation step\n{FULL}", "torch.no_grad()"),
        (f"after 2048 steps:\n{FULL}", "total += loss.item()"),
        (FULL, "a smaller batch"),
        (f"](https://localhost:8080/#) in f()\n{NO_DRIVER}", "Change runtime type"),
        (f"C:\\x>python a.py\n{NO_DRIVER}", "install NVIDIA's driver (nvidia.com/drivers)"),
        (f"MacBook\n{NO_DRIVER}", 'device = "mps"'),
        (
            f"{NOT_THERE}  - cudatoolkit==10.1.243\n\n  - https://x.org/pytorch/osx-64",
            "CUDA is not for macOS",
        ),
        (f"{SIZES.format(4, 3)} dimension 0", 'convert("RGB")'),
        (f"{SIZES.format(40, 38)} dimension 1", "print(x.shape)"),
        (
            "stack expects each tensor to be equal size, but got [1, 6, 6] at entry"
            " 0 and [3, 6, 6]",
            'convert("RGB")',
        ),
        (
            "stack expects each tensor to be equal size, but got [3, 6, 6] at entry"
            " 0 and [3, 5, 6]",
            "resize or pad",
        ),
        (
            "Given groups=1, weight of size [64, 7, 7, 7], expected input[1, 9, 512, 512] to have 7"
            " channels, but got 9 channels instead",
            "the layer takes 7 channels and gets 9",
        ),
        (
            "C:\\x>\nTriton only supports CUDA 10.0 or higher, but got CUDA version: 12.8",
            "triton-windows",
        ),
        ("ptxas.exe -v --gpu-name=sm_75 x.ptx\n`ptxas` failed with error code 4294967295", "sdpa"),
        ("llama runner process has terminated: exit status 0xc0000022", "virus scanner"),
        ("llama runner process has terminated: CUDA error: out of memory", "OLLAMA_CONTEXT_LENGTH"),
        (f"torchrun --nproc_per_node=2 a.py --local_rank 0\n{PORT}", "without --local_rank"),
        (f"torchrun --standalone a.py\n{PORT}", "init_process_group"),
        (f"{PORT}. port: 29512, useIpv6: false", "sport = :29512"),
        (f'File "/Users/me/a.py", line 3\n{PORT}. port: 29512', "lsof -nP -iTCP:29512"),
        (f"{SIZE_CHANGED} Expected 96 from C header, got 88", "numpy<2"),
        (f"{SIZE_CHANGED} Expected 88 from C header, got 96", "numpy>=2"),
        (
            f"Cell In[3], line 1\n{SIZE_CHANGED} Expected 88 from C header, got 96",
            "restart the kernel",
        ),
        (
            "401 Client Error: Unauthorized for url: https://hf-mirror.com/a/b/resolve/main/c.json",
            "the mirror has no accounts",
        ),
        (f"**Node Type:** UNETLoader\n{OTHER_SIZE}", "update ComfyUI"),
        (f"Error(s) in loading state_dict for Resampler:\n\t{OTHER_SIZE}", "CLIP Vision"),
        ("'Qwen2Model' object has no attribute 'rotary_emb'", "transformers>=4.48"),
        ("'LlamaAttention' object has no attribute 'rotary_emb'", "transformers<4.48"),
        (
            'OSError: [WinError 126] Error loading "C:\\x\\torch\\lib\\fbgemm.dll" or one of its',
            "torch>=2.4.1",
        ),
        ("RuntimeError: GPUs with compute capability below 7.0 are not supported.", "llama.cpp"),
        (
            "RuntimeError: HIP error: invalid device function\nRadeon 5700XT",
            "torch==1.13.1+rocm5.2",
        ),
        (
            "torch 2.4.1+cu121\nC:\\x>\nNo module named 'triton.runtime.jit'",
            "triton-windows==3.1.*",
        ),
        ("error loading model: unknown model architecture: 'clip'", "--mmproj"),
        ("error loading model: unknown model architecture: 'flux'", "ComfyUI-GGUF"),
        ("error loading model: unknown model architecture: ''", "the file's page"),
        (
            "error loading model: unknown model architecture: 'glm9'",
            "a newer version of the program",
        ),
        (
            "MPS backend out of memory (MPS allocated: 0 bytes, other allocations: 0 bytes, max",
            'device = "cpu"',
        ),
        ("f=~/Library/x.json\nThe kernel appears to have died.", "Activity Monitor"),
        (
            "cannot import name '_x' from 'unsloth_zoo.loss_utils'",
            "--no-deps unsloth unsloth_zoo",
        ),
        ("mat1 and mat2 must have the same dtype, but got Half and Float8_e4m3fn", "weight_dtype"),
        (f"File /x/ComfyUI/a.py\n{SAME}, but got Float and Half", "--force-fp16"),
        (f"File /x/sd_scripts/a.py\n{SAME}, but got Float and Half", "--no_half_vae"),
        (
            f"File /x/a.py, line 3, in evaluate\n{SAME}, but got Float and Half",
            "trainer.evaluate()",
        ),
        (f"{SAME}, but got Float and Half", "next(model.parameters()).dtype"),
        ("NCCL WARN Net : Connect to 10.0.0.9<5426> failed : No route to host", "firewall-cmd"),
        (
            "NCCL WARN socketStartConnect: Connect to fe80::96:8cf0%ib1<17> failed : Software"
            " caused connection abort",
            "the interface ib1",
        ),
        (
            "Cannot import /x/custom_nodes/foo module for custom nodes: No module named"
            " 'node_helpers'",
            "update ComfyUI, then the node",
        ),
        (
            "Cannot import /x/custom_nodes/foo module for custom nodes: No module named 'bar'",
            "pip install bar",
        ),
        ("cannot import name 'f' from 'utils' (/x/utils/__init__.py)", "not pip install utils"),
        ("RuntimeError: No XPU devices are available.", "-aG render"),
        ("C:\\x>\nRuntimeError: No XPU devices are available.", "newest graphics driver"),
        ("Failed to get device capability: SM 12.x requires CUDA >= 12.9.", "cuda-toolkit-12-9"),
        ("FlashInfer requires GPUs with sm75 or higher", "TRITON_ATTN"),
        ("No supported CUDA architectures found for major versions [9, 10]", "--moe-runner"),
        ("WARNING: No NVIDIA GPU detected. Ollama will run in CPU-only mode.", "driver first"),
        ('msg="compatible gpu libraries" compatible=[]', "ollama.com/install.sh"),
        ("/x/vllm/a.py\nCUDA error: an illegal memory access was encountered", "--enforce-eager"),
        ("ImportError: IntProgress not found. Please update jupyter and ipywidgets.", "ipywidgets"),
        (
            "  return type(tensors)(nested_concat(t, n) for t, n in zip(tensors, new_tensors))\n"
            f"{FULL}",
            "eval_accumulation_steps=1",
        ),
        (
            "invalid accelerator name: `accelerator='ddp'`. Available names are: cpu",
            'strategy="ddp"',
        ),
        ("MacBook\nMisconfigurationException: No supported gpu backend found!", '"auto"'),
        (
            "MisconfigurationException: You requested GPUs: [0]\n But your machine only has: []",
            "cu130",
        ),
        ("ValueError: Total available GPUs 8.0 is less than total desired GPUs 16", "has 8 GPUs"),
        (f"File /x/ComfyUI/a.py\n{APART} cuda:0 and cpu!", "update the node and ComfyUI"),
        (
            "(-216:No CUDA support) OpenCV was not built to work with the selected device.",
            "CUDA_ARCH_BIN",
        ),
    ],
)
def test_where_the_program_is_and_runs_chooses_the_fix(text, said):
    assert said in show_first(text)


NO_CODE = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
OF_CPU = "AssertionError: Torch not compiled with CUDA enabled"


@pytest.mark.parametrize("text", [NO_CODE, OF_CPU])
@pytest.mark.parametrize(
    ("card", "command"),
    [
        ("Tesla K80", "torch==2.3.1 torchvision==0.18.1 'numpy<2' --index-url {}/cu118"),
        ("Tesla K40m", "torch==1.2.0 torchvision==0.4.0"),
        ("NVIDIA GeForce GTX 780 Ti", "torch==1.2.0 torchvision==0.4.0"),
        ("Quadro K2200", "torch torchvision --index-url {}/cu126"),
        ("NVIDIA GeForce GTX 750 Ti", "torch torchvision --index-url {}/cu126"),
    ],
)
def test_an_old_card_gets_the_newest_torch_that_has_code_for_it(card, command, text):
    fix = explain_text(f"|   0  {card}  Off |\n{text}").describe()["found"][0]["fix"]
    index = "https://download.pytorch.org/whl"
    assert fix.partition("   #")[0] == f"pip install --force-reinstall {command.format(index)}"


@pytest.mark.parametrize("text", [NO_CODE, OF_CPU])
def test_a_card_without_any_torch_gets_no_build_for_cuda(text):
    fix = explain_text(f"|   0  GeForce GTX 680  Off |\n{text}").describe()["found"][0]["fix"]
    assert "/cu1" not in fix


LIBRARIES = [
    "libcudnn.so.9",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libcudart.so.12",
    "libcufft.so.11",
    "libcurand.so.10",
    "libcusolver.so.11",
    "libcusparse.so.12",
    "libcusparseLt.so.0",
    "libnccl.so.2",
    "libnvrtc.so.12",
    "libnvJitLink.so.12",
    "libcupti.so.12",
    "libnvToolsExt.so.1",
    "libnvshmem_host.so.3",
    "libcufile.so.0",
    "libcublas.so.13",
    "libcudart.so.13",
    "libcudss.so.0",
]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_is_installed_though_pip_counts_it_as_installed(library):
    text = f"ImportError: {library}: cannot open shared object file: No such file or directory"
    fix = explain_text(text).describe()["found"][0]["fix"]
    assert "pip install --force-reinstall" in fix


def test_a_known_nccl_is_installed_again_in_its_version():
    text = "nvidia-nccl-cu12   2.21.5\nImportError: libnccl.so.2: cannot open shared object file"
    fix = explain_text(text).describe()["found"][0]["fix"]
    assert "--force-reinstall --no-deps nvidia-nccl-cu12==2.21.5" in fix


def test_a_torch_for_another_cuda_is_forced():
    text = (
        "torch 2.9.1+cu130\nImportError: libcudart.so.12: cannot open shared object file: No such"
        " file or directory"
    )
    fix = explain_text(text).describe()["found"][0]["fix"]
    assert fix.startswith("pip install --force-reinstall torch==2.9.1 torchvision")
    assert "/whl/cu126" in fix
