"""What a text of a training says chooses the cause and fix that a newcomer needs."""

from __future__ import annotations

import pytest

from labkit.host.distribution import UNKNOWN
from labkit.known_errors.match import explain_text, format_explanation


def show(text):
    """What the doctor prints about a text."""
    return format_explanation(explain_text(text), UNKNOWN)


def write_state_error(missing, unexpected, model="Net"):
    """What load_state_dict raises, each list by its first name and another."""
    return (
        f"RuntimeError: Error(s) in loading state_dict for {model}:\n"
        f'\tMissing key(s) in state_dict: "{missing}conv1.weight", "{missing}fc.bias". \n'
        f'\tUnexpected key(s) in state_dict: "{unexpected}conv1.weight", "{unexpected}fc.bias". \n'
    )


LOADED = 'state_dict: "layer.weight". \n\tUnexpected key(s) in state_dict: "epoch", "{}", "lr". \n'


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (
            write_state_error("module.", "", "DataParallel"),
            "model.module.load_state_dict(state)",
        ),
        (write_state_error("", "module."), 'key.removeprefix("module.")'),
        (write_state_error("_orig_mod.", ""), "model._orig_mod.load_state_dict(state)"),
        (write_state_error("", "_orig_mod."), 'key.removeprefix("_orig_mod.")'),
        (
            write_state_error("", "module._orig_mod."),
            'key.replace("_orig_mod.", "").removeprefix("module.")',
        ),
        (write_state_error("", "model."), 'key.removeprefix("model.")'),
        (write_state_error("model.", ""), "model.model.load_state_dict(state)"),
        (write_state_error("model.", "model.a."), "print(list(state)[:5]"),
        (write_state_error("model.", "module.model."), 'key.removeprefix("module.")'),
        (write_state_error("", "base_model.model."), "PeftModel.from_pretrained(base_model"),
        (write_state_error("base_model.model.", ""), "before get_peft_model"),
        (write_state_error("a.", "b."), "print(list(state)[:5]"),
        (
            f"Error(s) in loading state_dict for Net:\n\tMissing key(s) in {LOADED}".format(
                "model_state_dict"
            ),
            '["model_state_dict"])',
        ),
    ],
)
def test_the_side_that_has_a_prefix_chooses_how_weights_are_loaded(text, fix):
    said = show(text)
    assert f"try: {fix}" in said or fix in said.partition("try: ")[2].partition("   #")[0]
    assert ("strict=False would load nothing" in said) is ("print(list" not in fix)


IMPORT = """\
  File "/v/lib/python3.11/site-packages/torch/__init__.py", line 367, in <module>
    from torch._C import *  # noqa: F403
    ^^^^^^^^^^^^^^^^^^^^^^
ImportError: {}: cannot open shared object file: No such file or directory
"""
LOAD = """\
  File "/v/lib/python3.12/site-packages/torch/__init__.py", line 310, in _load_global_deps
    ctypes.CDLL(global_deps_lib_path, mode=ctypes.RTLD_GLOBAL)
  File "/usr/lib/python3.12/ctypes/__init__.py", line 379, in __init__
    self._handle = _dlopen(self._name, mode)
                   ^^^^^^^^^^^^^^^^^^^^^^^^^
OSError: {}: cannot open shared object file: No such file or directory
"""


@pytest.mark.parametrize("place", [IMPORT, LOAD], ids=["import", "load"])
@pytest.mark.parametrize(
    "library",
    ["libcudart.so.12", "libcublas.so.11", "libcudart.so.13", "libcufft.so.11", "libcudnn.so.9"],
)
def test_a_torch_that_does_not_start_is_installed_again(place, library):
    said = show(place.format(library))
    fix = said.partition("try: ")[2].partition("\n")[0]
    assert fix.partition("   #")[0].startswith("pip install --force-reinstall torch torchvision")
    assert "torch itself does not start" in said
    assert f"Error: {library}: cannot open" in said.splitlines()[1]
    assert ("whl/cu126" in said) is (library == "libcudart.so.12")


def test_another_package_that_does_not_start_leaves_torch_as_it_is():
    text = IMPORT.replace("torch/__init__", "flash_attn/__init__").replace("torch._C", "flash._C")
    assert "torch itself" not in show(text.format("libcudart.so.12"))


PIECES = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
    " capacity of 24.00 GiB of which 1.00 GiB is free. Of the allocated memory 19.00 GiB is"
    " allocated by PyTorch, and 3.00 GiB is reserved by PyTorch but unallocated.\n"
)
ADVISED = "If reserved but unallocated memory is large try setting {}=expandable_segments:True\n"
DEPRECATED = "Warning: PYTORCH_CUDA_ALLOC_CONF is deprecated, use PYTORCH_ALLOC_CONF instead\n"


@pytest.mark.parametrize(
    ("text", "variable"),
    [
        (PIECES, "PYTORCH_CUDA_ALLOC_CONF"),
        (PIECES + ADVISED.format("PYTORCH_CUDA_ALLOC_CONF"), "PYTORCH_CUDA_ALLOC_CONF"),
        (PIECES + ADVISED.format("PYTORCH_ALLOC_CONF"), "PYTORCH_ALLOC_CONF"),
        (PIECES + ADVISED.format("PYTORCH_HIP_ALLOC_CONF"), "PYTORCH_HIP_ALLOC_CONF"),
        (PIECES + DEPRECATED, "PYTORCH_CUDA_ALLOC_CONF"),
        ("torch 2.10.0+cu128\n" + PIECES, "PYTORCH_ALLOC_CONF"),
        ("torch 2.9.1+cu128\n" + PIECES, "PYTORCH_CUDA_ALLOC_CONF"),
        ("torch 2.6.0+rocm6.2.4\n" + PIECES, "PYTORCH_HIP_ALLOC_CONF"),
    ],
)
def test_the_allocators_settings_have_the_name_that_this_torch_reads(text, variable):
    assert f"try: export {variable}=expandable_segments:True" in show(text)


def test_windows_joins_free_pieces_in_its_own_way():
    said = show('File "C:\\ai\\train.py", line 3\n' + PIECES)
    assert 'try: set "PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync"' in said


CUBLAS = "RuntimeError: CUDA error: CUBLAS_STATUS_{} when calling `cublasCreate(handle)`\n"


@pytest.mark.parametrize("status", ["ALLOC_FAILED", "NOT_INITIALIZED"])
def test_a_library_that_does_not_start_may_have_another_cause_than_full_memory(status):
    found = explain_text(CUBLAS.format(status)).found
    assert [(each.error.name, each.error.certainty) for each in found] == [
        ("cudnn-not-initialized", "possible")
    ]
    fix, otherwise = found[0].write_fixes(UNKNOWN)
    assert fix.startswith("a smaller batch")
    assert "CUDA_LAUNCH_BLOCKING=1" in otherwise
    assertion = "indexSelectLargeIndex: Assertion `srcIndex < srcSelectDimSize` failed.\n"
    ranked = explain_text(assertion + CUBLAS.format(status)).found
    assert ranked[0].error.name == "index-out-of-range"
    full = explain_text("CUDA out of memory. Tried\n" + CUBLAS.format(status)).found
    assert (full[0].error.name, full[0].error.certainty) == ("gpu-memory-full", "certain")


@pytest.mark.parametrize(
    "text",
    [
        "ClassNLLCriterion.cu:108: Assertion `t >= 0 && t < n_classes` failed.\n",
        "Loss.cu:245: nll_loss: Assertion `cur_target >= 0 && cur_target < n_classes` failed.\n",
        "IndexError: Target 10 is out of bounds.\n",
        "RuntimeError: Class values must be smaller than num_classes.\n",
    ],
)
def test_a_label_out_of_range_is_not_called_a_token(text):
    said = show(text + "RuntimeError: CUDA error: device-side assert triggered\n")
    assert said.startswith("index-out-of-range")
    assert "try: print(labels.min(), labels.max(), outputs.shape)" in said
    assert "embedding" not in said.partition("\n\n")[0]


def test_an_index_of_a_tensor_is_not_called_a_token():
    text = 'Assertion `-sizes[i] <= index && index < sizes[i] && "index out of bounds"` failed.'
    assert "try: print(index.min(), index.max(), x.shape)" in show(text)


HUGE = "out of memory. Tried to allocate {} GiB."
CARD_FULL = (
    f"CUDA {HUGE} GPU 0 has a total capacity of 23.64 GiB of which 20.00 GiB is free. Of the"
    " allocated memory 2.00 GiB is allocated by PyTorch, and 12.00 MiB is reserved by PyTorch"
)


@pytest.mark.parametrize(
    "text",
    [
        CARD_FULL.format("130674.00"),
        CARD_FULL.format("200.00"),
        f"torch.OutOfMemoryError: CUDA {HUGE}".format("130674.00"),
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes.",
        "MemoryError: Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)",
    ],
)
def test_a_tensor_larger_than_any_batch_has_a_wrong_shape(text):
    said = show(text)
    assert "a wrong shape" in said
    assert "try: print(x.shape, y.shape)" in said


@pytest.mark.parametrize(
    "text",
    [
        CARD_FULL.format("21.00"),
        f"CUDA {HUGE}".format("40.00"),
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 80000000000 bytes.",
    ],
)
def test_a_large_tensor_may_be_right(text):
    assert "a wrong shape" not in show(text)


NUMPY = (
    "_pickle.UnpicklingError: Weights only load failed.\n\tWeightsUnpickler error: Unsupported"
    " global: GLOBAL {} was not an allowed global by default. Please use"
)


@pytest.mark.parametrize(
    "text",
    [
        NUMPY.format("numpy.core.multiarray.scalar"),
        NUMPY.format("numpy._core.multiarray._reconstruct"),
        "types allowlisted via `add_safe_globals`, but got <class 'numpy.dtypes.Float64DType'>",
    ],
)
def test_numpys_numbers_in_a_file_are_allowed_by_name(text, tmp_path):
    torch, numpy = pytest.importorskip("torch"), pytest.importorskip("numpy")
    found = explain_text(f"Weights only load failed.\n{text}").first
    fix, otherwise = found.write_fixes(UNKNOWN)
    assert "weights_only=False" in otherwise
    torch.save({"best": numpy.float64(0.5), "state": numpy.arange(3)}, tmp_path / "last.pt")
    before = torch.serialization.get_safe_globals()
    try:
        exec(fix.partition("   #")[0], {"numpy": numpy, "torch": torch})
        assert torch.load(tmp_path / "last.pt", weights_only=True)["best"] == 0.5
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    assert "numpy._core" not in show(NUMPY.format("models.yolo.Model"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "RuntimeError: MPS backend out of memory (MPS allocated: 17.03 GB, other: 1 GB).",
            "mps-memory-full",
        ),
        ("TypeError: Cannot convert a MPS Tensor to float64 dtype as the MPS", "mps-no-float64"),
        ("RuntimeError: The MPS backend is supported on MacOS 14.0+.", "mps-macos-too-old"),
    ],
)
def test_the_name_on_the_screen_is_that_of_the_error(text, name):
    assert show(text).startswith(f"{name} (")


def test_a_huge_tensor_on_a_mac_has_a_wrong_shape():
    text = "MPS backend out of memory (MPS allocated: 1.03 GB, max allowed: 18 GB). Tried to"
    assert "a wrong shape" in show(f"{text} allocate 130674.00 GB on private pool.")


SHADOWED = """\
  File "/home/u/p/logging.py", line 4, in <module>
    logging.basicConfig(level=logging.INFO)
AttributeError: partially initialized module 'logging' has no attribute 'basicConfig' (most likely\
 due to a circular import)
"""
RENAMED = (
    "AttributeError: module 'random' has no attribute 'seed' (consider renaming '/p/random.py'"
    " since it has the same name as the standard library module named 'random' and the import"
    " system gives it precedence)"
)
LOG_FILE = """\
    return open_func(self.baseFilename, self.mode,
                     encoding=self.encoding, errors=self.errors)
FileNotFoundError: [Errno 2] No such file or directory: '/run/logs/train.log'
"""
RESULTS = """\
    with open("out/metrics.json", "w") as file:
         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
FileNotFoundError: [Errno 2] No such file or directory: 'out/metrics.json'
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SHADOWED, "/home/u/p/logging.py, has the name of Python's logging"),
        (RENAMED, "/p/random.py, has the name of Python's random"),
        (
            "AttributeError: module 'logging' has no attribute 'getLogger'",
            "print(logging.__file__)",
        ),
        (LOG_FILE, "try: mkdir -p '/run/logs'"),
        (RESULTS, "try: mkdir -p 'out'"),
        (
            "in __getitem__\n    raise KeyError(key)\nKeyError: 'formatters'\n",
            "fileConfig did not find its file",
        ),
        (
            '    data = json.load(open("conf.json"))\nFileNotFoundError: [Errno 2] No such file or'
            " directory: 'conf.json'",
            "try: pwd; ls -l 'conf.json'",
        ),
    ],
)
def test_the_file_that_is_wrong_is_named(text, said):
    assert said in show(text)


IN_PLACE = (
    "RuntimeError: a leaf Variable that requires grad is being used in an in-place operation."
)
NAN = "RuntimeError: Function '{}' returned nan values in its 0th output."
INPUT = "Input type (torch.{}FloatTensor) and weight type (torch.{}FloatTensor) should be the same"
TARGET = "Using a target size (torch.Size([32])) that is different to the input size ([32, 1])"
FORWARD = "TypeError: Net.forward() takes 2 positional arguments but 3 were given"


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (IN_PLACE, "tensor-changed-in-place", "with torch.no_grad(): weight -="),
        (
            "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn",
            "no-gradient",
            "print(loss.grad_fn",
        ),
        (
            "RuntimeError: grad can be implicitly created only for scalar outputs",
            "backward-not-scalar",
            "try: loss.mean().backward()",
        ),
        (
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x400 and 256x120)",
            "tensor-shape",
            "try: nn.Linear(400, 120)",
        ),
        (
            "ValueError: Expected input batch_size (32) to match target batch_size (64).",
            "tensor-shape",
            "try: x = x.flatten(1)",
        ),
        (
            "RuntimeError: Tensors must have same number of dimensions: got 3 and 4",
            "tensor-shape",
            "t.unsqueeze(0)",
        ),
        (
            f"UserWarning: {TARGET}. This will likely lead to incorrect results",
            "tensor-shape",
            "try: loss(output.squeeze(1), target)",
        ),
        (
            f"ValueError: {TARGET} is deprecated.",
            "tensor-shape",
            "try: loss(output.squeeze(1), target)",
        ),
        (
            "RuntimeError: expected scalar type Long but found Float",
            "tensor-dtype",
            "try: target = target.long()",
        ),
        (
            "RuntimeError: \"nll_loss_forward_no_reduce_cuda\" not implemented for 'Int'",
            "tensor-dtype",
            "try: target = target.long()",
        ),
        (
            "RuntimeError: Found dtype Long but expected Float",
            "tensor-dtype",
            "try: loss(output, target.float())",
        ),
        (INPUT.format("cuda.", ""), "tensors-apart", 'try: model = model.to("cuda")'),
        (INPUT.format("", "cuda."), "tensors-apart", "try: x = x.to(next("),
        (
            "TypeError: cross_entropy_loss(): argument 'input' (position 1) must be Tensor, not"
            " ImageClassifierOutput",
            "torch-argument-type",
            "try: loss(outputs.logits, labels)",
        ),
        (
            "FileNotFoundError: Found no valid file for the classes .ipynb_checkpoints. Supported"
            " extensions are: .jpg, .png",
            "empty-dataset",
            "-name .ipynb_checkpoints",
        ),
        (
            "AttributeError: Can't pickle local object 'main.<locals>.<lambda>'\n"
            "EOFError: Ran out of input",
            "spawn-pickle",
            "try: define it at the top of a file",
        ),
        (FORWARD, "arguments-changed", "inspect.signature(model.forward)"),
        (
            "AttributeError: cannot assign module before Module.__init__() call",
            "module-before-init",
            "try: super().__init__()",
        ),
        (NAN.format("LogBackward0"), "nan-output", "try: torch.log(x.clamp_min(1e-8))"),
        (NAN.format("MulBackward0"), "nan-output", "try: use bfloat16 or float32"),
        (
            "TypeError: img should be PIL Image. Got <class 'numpy.ndarray'>",
            "collate-type",
            "transforms.ToPILImage(), ...",
        ),
        (
            "AttributeError: 'list' object has no attribute 'to'",
            "collate-type",
            "try: inputs = [x.to(device) for x in inputs]",
        ),
        (
            "RuntimeError: result type Float can't be cast to the desired output type Long",
            "tensor-dtype",
            "try: x = x.float()",
        ),
        (
            "TypeError: conv2d() received an invalid combination of arguments - got (list, Tensor",
            "torch-argument-type",
            "try: x = torch.stack(x)",
        ),
        (
            "TypeError: empty() received an invalid combination of arguments - got (tuple,"
            " dtype=NoneType, device=NoneType), but expected one of:",
            "torch-argument-type",
            "n // 2 in place of n / 2",
        ),
        (
            "    b, t, c = x.shape\nValueError: not enough values to unpack (expected 3, got 2)",
            "unpack-count",
            "x.unsqueeze(0)",
        ),
        (
            "ImportError: cannot import name 'load_state_dict_from_url' from 'torchvision.models'",
            "name-removed",
            "try: from torch.hub import",
        ),
        (
            "ModuleNotFoundError: No module named 'torchvision.models.utils'",
            "name-removed",
            "try: from torch.hub import",
        ),
        (
            "RuntimeError: Legacy autograd function with non-static forward method is deprecated.",
            "name-removed",
            "try: write it with @staticmethod",
        ),
        (
            "UserWarning: Detected call of `lr_scheduler.step()` before `optimizer.step()`.",
            "scheduler-before-optimizer",
            "try: optimizer.step(); scheduler.step()",
        ),
    ],
)
def test_what_a_beginner_meets_is_named_and_mended_by_its_own_line(text, name, said):
    screen = show(text)
    assert screen.startswith(f"{name} (")
    assert said in screen


def test_a_type_of_numpy_is_not_joined_to_a_word():
    said = show("TypeError: can't convert np.ndarray of type numpy.object_. The only supported")
    assert "typeobject_" not in said
    assert "rows of different lengths" in said


def write_crash(frame, error="Segmentation fault"):
    return (
        f"Fatal Python error: {error}\n\n"
        "Thread 0x00007f2b (most recent call first):\n"
        '  File "/usr/lib/python3.12/threading.py", line 359 in wait\n\n'
        "Current thread 0x00007f1c [python] (most recent call first):\n"
        f'  File "{frame}", line 12 in f\n  File "/home/a/train.py", line 3 in <module>\n'
        f"{error} (core dumped)\n"
    )


PACKAGES = "/home/a/venv/lib/python3.12/site-packages"
CRASHES = {
    "torch": (f"{PACKAGES}/torch/nn/modules/conv.py", "torch.utils.collect_env"),
    "OpenCV": (f"{PACKAGES}/cv2/__init__.py", "pip list | grep -i opencv"),
    "NumPy": (f"{PACKAGES}/numpy/linalg/_linalg.py", "numpy.show_config()"),
    "another one": (f"{PACKAGES}/sentencepiece/__init__.py", "pip show sentencepiece"),
    "one of another name": (f"{PACKAGES}/sklearn/cluster/_k.py", "pip show scikit-learn"),
    "a script": ("/home/a/model.py", "gdb -batch"),
}


@pytest.mark.parametrize("error", ["Segmentation fault", "Aborted"])
@pytest.mark.parametrize(("frame", "command"), CRASHES.values(), ids=CRASHES.keys())
def test_a_crash_with_its_lines_names_the_innermost_ones_package(frame, command, error):
    found = explain_text(write_crash(frame, error))
    assert found.first.error.name == "native-crash-traced"
    fix = found.describe()["found"][0]["fix"]
    assert command in fix
    assert "faulthandler" not in fix


def test_a_crash_of_windows_with_its_lines_names_the_package():
    text = (
        "Windows fatal exception: access violation\n\nCurrent thread 0x00001f (most recent call"
        ' first):\n  File "C:\\ai\\venv\\Lib\\site-packages\\onnxruntime\\capi\\x.py", line 3 in r'
    )
    fix = explain_text(text).describe()["found"][0]["fix"]
    assert "pip show onnxruntime" in fix


def test_a_crash_without_lines_asks_for_them():
    fix = explain_text("Segmentation fault (core dumped)").describe()["found"][0]["fix"]
    assert "-X faulthandler" in fix


INDEXED = (
    "Indexing.cu:1292: indexSelectLargeIndex: block: [84,0,0], thread: [64,0,0] Assertion"
    " `srcIndex < srcSelectDimSize` failed.\nRuntimeError: CUDA error: device-side assert triggered"
)
IN_EMBEDDING = (
    "torch/nn/functional.py line 2233, in embedding\nIndexError: index out of range in self"
)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (
            "Token indices sequence length is longer than the specified maximum sequence length"
            f" for this model (1543 > 1024). Running this\n{INDEXED}",
            "1024",
        ),
        (f"will exceed the model's predefined maximum length (1024). Depending\n{INDEXED}", "1024"),
        (f"max_position_embeddings=512; the longest text has 870 tokens\n{INDEXED}", "512"),
        (f'"max_position_embeddings": 514\nposition_embeddings(position_ids)\n{INDEXED}', "512"),
        (f'"n_positions": 1024\ntorch.Size([1, 1300])\n{IN_EMBEDDING}', "1024"),
        (f"    position_embeds = self.wpe(position_ids)\n{IN_EMBEDDING}", "model.config"),
        (f"    x = self.embed_positions(input)\n{IN_EMBEDDING}", "model.config"),
        (
            "RuntimeError: The expanded size of the tensor (870) must match the existing size"
            " (512) at non-singleton dimension 1.  Target sizes: [1, 870].  Tensor sizes: [1, 512]",
            "512",
        ),
    ],
)
def test_a_text_with_more_tokens_than_positions_is_truncated(text, length):
    first = show(text).partition("\n\n")[0]
    assert f"truncation=True, max_length={length}" in first
    assert "num_embeddings" not in first


@pytest.mark.parametrize(
    "text",
    [
        f'"n_positions": 1024\ntorch.Size([1, 300])\n{IN_EMBEDDING}',
        f'"n_positions": 1024, "vocab_size": 50257\n{IN_EMBEDDING}',
        f"    x = self.word_embeddings(input_ids)\n{INDEXED}",
        IN_EMBEDDING,
    ],
)
def test_an_index_in_a_text_that_is_not_too_long_is_of_the_vocabulary(text):
    assert "num_embeddings" in show(text).partition("\n\n")[0]


TABPFN = 'File "/v/lib/python3.12/site-packages/tabpfn/classifier.py", line 531, in predict\n'


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: expected mat1 and mat2 to have the same dtype, but got: float != c10::Half",
        "RuntimeError: \"LayerNormKernelImpl\" not implemented for 'Half'",
        "RuntimeError: Index put requires the source and destination dtypes match, got Half for",
        'ValueError: You specified `inference_precision="autocast"`, however one or more of the',
        "ValueError: You specified `fp16_inference=True`, however`torch.amp.autocast_mode` is",
    ],
)
def test_tabpfn_is_told_its_precision(error):
    assert 'try: TabPFNClassifier(inference_precision="auto")' in show(TABPFN + error)
    assert "TabPFN" not in show(error).replace("TabPFNClassifier", "") or "You specified" in error


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB", "a smaller batch"),
        ("RuntimeError: \"addmm_impl_cpu_\" not implemented for 'Half'", "model = model.float()"),
        (
            "comfyui\nRuntimeError: \"addmm_impl_cpu_\" not implemented for 'Half'",
            "python main.py --cpu --force-fp32",
        ),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
            "rm <the file>",
        ),
        ("model is corrupted or incomplete", "rm <the file> && hf download"),
        ("RuntimeError: NCCL error: unhandled cuda error (run with", "NCCL_P2P_DISABLE=1"),
        (
            "$ docker run vllm/vllm-openai\nRuntimeError: Failed to infer device type",
            "docker run --gpus all",
        ),
        ("bash: Bind for 127.0.0.1:8888 failed: port is already allocated", "--port 8890"),
        ("docker: Bind for 127.0.0.1:8888 failed: port is already allocated", "docker run -p 8890"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend.", "sudo apt-get -o DPkg::Lock::Timeo"),
    ],
)
def test_the_first_fix_mends_before_it_looks(text, fix):
    assert show(text).partition("try: ")[2].startswith(fix)
