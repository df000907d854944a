"""What names a model and its work: sources, configurations, tasks, optimizers, formats of weights.

The command line reads and checks these before it imports anything that takes time.

The sizes of the formats are those of public sources, read in November 2026:

- bitsandbytes (``functional.py``, ``nn/modules.py``): 4 bits, and for 64 elements a scale of 4
  bytes; each weight keeps its table of 16 numbers. Double quantization: one byte for such a scale,
  4 bytes for 256 of them, their mean, and a second table of 256 numbers. 8 bits: a scale of 4 bytes
  for each row.
- GPTQ (AutoGPTQ, ``qlinear_cuda.py``) and AWQ (AutoAWQ, ``linear/gemm.py``): 4 bits, and for 128
  inputs of one output a scale of 2 bytes and a zero of 4 bits; GPTQ has each input's group as well.
- ggml (``ggml-common.h``): the sizes of its blocks. They run along a row; a row that is not whole
  blocks of 256 gets a format of blocks of 32, as llama.cpp's quantization chooses it.
- fp8 (README_WEIGHTS.md of DeepSeek-V3; FineGrainedFP8Config of transformers): a byte, and for each
  tile of 128 by 128 a scale of 4 bytes.
- mxfp4 (OCP's microscaling formats; openai/gpt-oss) and nvfp4 (ModelOpt's checkpoints): 4 bits, and
  a scale of one byte for 32 and for 16 elements; nvfp4 has one more of 4 bytes for each weight.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import UsageError
from labkit.process import name_python
from labkit.text import format_bytes, near_match

LIBRARIES = {"hf": "transformers", "timm": "timm"}
TASKS = ("train", "infer", "generate")
DTYPES = {
    "float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16",
}  # fmt: skip


class Format(NamedTuple):
    """How a quantized weight of (rows, columns) is stored: ``bits`` each, and scales for blocks.

    A block has ``tall`` rows and ``wide`` columns, and what is left over is a block too; with
    ``flat`` the rows are one sequence. 256 blocks share ``shared_bytes``. ``fallback`` replaces the
    format where the columns are not whole blocks.
    """

    bits: int
    wide: int
    scale_bytes: float
    tall: int = 1
    flat: bool = False
    shared_bytes: int = 0
    column_bytes: int = 0
    weight_bytes: int = 0
    fallback: str | None = None

    def count_bytes(self, rows: int, columns: int) -> int:
        """The bytes of a weight of this shape.

        >>> FORMATS["nf4"].count_bytes(2, 64), FORMATS["q4_k"].count_bytes(1, 64)
        (136, 44)
        """
        if self.fallback and columns % self.wide:
            return FORMATS[self.fallback].count_bytes(rows, columns)
        if self.flat:
            blocks = -(-rows * columns // self.wide)
        else:
            blocks = -(-rows // self.tall) * -(-columns // (self.wide or columns))
        scales = blocks * self.scale_bytes + -(-blocks // 256) * self.shared_bytes
        packed = rows * columns * self.bits / 8
        return math.ceil(packed + scales) + columns * self.column_bytes + self.weight_bytes


FORMATS = {
    "nf4": Format(4, 64, 4, flat=True, weight_bytes=64),
    "nf4-double": Format(4, 64, 1, flat=True, shared_bytes=4, weight_bytes=64 + 4 + 1024),
    "int8": Format(8, 0, 4),  # a block is a row
    "gptq-int4": Format(4, 128, 2.5, column_bytes=4),
    "awq-int4": Format(4, 128, 2.5),
    "q8_0": Format(8, 32, 2),
    "q6_k": Format(6, 256, 18, fallback="q8_0"),
    "q5_k": Format(5, 256, 16, fallback="q5_1"),
    "q5_1": Format(5, 32, 4),
    "q5_0": Format(5, 32, 2),
    "q4_k": Format(4, 256, 16, fallback="q5_0"),
    "q4_0": Format(4, 32, 2),
    "fp8": Format(8, 128, 4, tall=128),
    "mxfp4": Format(4, 32, 1),
    "nvfp4": Format(4, 16, 1, weight_bytes=4),
}
# The elements that share a scale, where the formats above fix it.
GROUP = 128


def find_format(settings: Any) -> str | None:
    """The one of FORMATS that a configuration's quantization_config names; None for another.

    >>> find_format({"quant_method": "gptq", "bits": 4, "group_size": 128})
    'gptq-int4'
    >>> find_format({"quant_method": "gptq", "bits": 3, "group_size": 128})
    """
    if not isinstance(settings, dict):
        return None
    method = settings.get("quant_method")
    if method == "bitsandbytes" or (method is None and settings.get("load_in_4bit")):
        if settings.get("load_in_8bit"):
            return "int8"
        return "nf4-double" if settings.get("bnb_4bit_use_double_quant") else "nf4"
    if method in ("gptq", "awq"):
        usual = (settings.get("bits", 4), settings.get("group_size", GROUP)) == (4, GROUP)
        return f"{method}-int4" if usual else None
    if method == "mxfp4":
        return "mxfp4"
    tiles = settings.get("weight_block_size")
    return "fp8" if method == "fp8" and tiles in ([GROUP, GROUP], None) else None


OPTIMIZERS = ("adamw", "adam", "sgd", "sgd-momentum", "adafactor", "lion", "adamw-8bit")


def parse_source(word: str) -> tuple[str, str] | None:
    """Library and name of ``hf:NAME`` or ``timm:NAME``; None for another word.

    Raises UsageError where nothing follows the colon.

    >>> parse_source("timm:resnet50"), parse_source("train.py:make_step")
    (('timm', 'resnet50'), None)
    """
    library, colon, name = word.partition(":")
    library = library.lower()
    if not colon or library not in LIBRARIES:
        return None
    if not name:
        raise UsageError(
            f"{word!r} names no model",
            cause="a config.json, its folder or a name on Hugging Face follows hf:, and the name"
            " of a model follows timm:",
            fix=f"labkit estimate {'hf:config.json' if library == 'hf' else 'timm:resnet50'}",
        )
    return library, name


# peft's option, the type of its value, and what a valid value is.
LORA: dict[str, tuple[str, Any, str]] = {
    "r": ("r", int, "a whole number, at least 1"),
    "alpha": ("lora_alpha", float, "a number above 0"),
    "dropout": ("lora_dropout", float, "a number from 0 to 1"),
    "dora": ("use_dora", bool, "true or false"),
    "targets": ("target_modules", str, "names of modules, such as q_proj+v_proj, or all-linear"),
}
LORA_EXAMPLE = "--lora r=16,alpha=32,targets=q_proj+v_proj"


def parse_lora(word: str | None) -> tuple[tuple[str, Any], ...] | None:
    """peft's options from ``r=16,alpha=32,targets=q_proj+v_proj``; None stays None.

    Raises UsageError for an unknown option or an invalid value.

    >>> parse_lora("r=16,targets=q_proj+v_proj")
    (('r', 16), ('target_modules', ['q_proj', 'v_proj']))
    """
    if word is None:
        return None
    options: dict[str, Any] = {}
    for part in word.split(","):
        name, equals, text = part.partition("=")
        if name not in LORA or not equals:
            raise UsageError(
                f"invalid --lora {word!r}: {part!r} is not an option",
                cause=f"the options are {', '.join(LORA)}, each with its value",
                fix=LORA_EXAMPLE,
            )
        option, kind, meaning = LORA[name]
        value = _parse_option(name, kind, text)
        if value is None:
            raise UsageError(
                f"invalid --lora {word!r}: {text!r} is not a value of {name}",
                cause=f"{name} is {meaning}",
                fix=LORA_EXAMPLE if name != "dora" else "--lora r=16,dora=true",
            )
        options[option] = value
    return tuple(options.items())


def _parse_option(name: str, kind: Any, text: str) -> Any:
    """The value of an option of ``--lora``; None if it is invalid."""
    if kind is str:
        parts = text.split("+")
        return None if not all(parts) else text if text == "all-linear" else parts
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    try:
        value = float(text)
    except ValueError:
        return None
    if kind is int:
        return int(value) if value.is_integer() and value >= 1 else None
    valid = 0 <= value <= 1 if name == "dropout" else 0 < value < math.inf
    return value if valid else None


# A name on Hugging Face, and what the names of files end in.
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
FILE_NAME = re.compile(r"\.(json|gz|zip|gguf|safetensors|bin|pt|pth|txt|ya?ml|py)$", re.IGNORECASE)
# A larger file has weights.
MOST_CONFIG_BYTES = 64 * 2**20
# What decides a model's size, by the names that configurations give it.
SIZES = frozenset(
    """hidden_size d_model n_embd dim intermediate_size d_ff num_hidden_layers num_layers n_layer
    n_layers encoder_layers decoder_layers num_attention_heads num_heads n_head n_heads
    num_key_value_heads head_dim vocab_size max_position_embeddings n_positions image_size
    patch_size num_channels""".split()  # noqa: SIM905
)
MAY_BE_ZERO = frozenset({"encoder_layers", "decoder_layers"})
FETCH = "labkit estimate hf:ORG/NAME, which reads it from Hugging Face"


def check_config(name: str) -> str:
    """The name, file or folder for transformers; nothing is imported or fetched.

    Raises UsageError for a path without a model's configuration. A name on Hugging Face passes.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        _check_values(_find_config(path))
        return str(path)
    if path.exists():
        _check_values(path)
        return str(path)
    if HUB_NAME.fullmatch(name) and not FILE_NAME.search(name):
        return name
    folder = path.parent
    there = sorted(one.name for one in folder.glob("*.json")) if folder.is_dir() else []
    near = "config.json" if "config.json" in there else near_match(path.name, there)
    lists = f"the JSON files in {folder} are: {', '.join(there[:8]) or 'none'}"
    raise UsageError(
        f"{path} does not exist",
        cause=lists if folder.is_dir() else f"there is no folder {folder}",
        fix=f"labkit estimate hf:{folder / near}" if near else FETCH,
    )


def _find_config(folder: Path) -> Path:
    path = folder / "config.json"
    if path.is_file():
        return path
    below = sorted(folder.glob("*/config.json"))
    cause = "a folder of a model has its config.json beside the weights"
    if (folder / "model_index.json").is_file():
        cause = "it is a pipeline of diffusers, whose models have a folder each"
    below = [one for one in below if '"model_type"' in one.read_text(errors="replace")]
    raise UsageError(
        f"{folder} has no config.json",
        cause=cause,
        fix=f"labkit estimate hf:{below[0].parent}" if below else FETCH,
    )


def _check_values(path: Path) -> None:
    """Raises UsageError if a size in the configuration is not a whole number above zero."""
    for name, value in _load_config(path).items():
        if name not in SIZES or value is None or isinstance(value, list | dict):
            continue
        least = 0 if name in MAY_BE_ZERO else 1
        if type(value) is not int or value < least:
            raise UsageError(
                f"{path}: {name} is {json.dumps(value)}",
                cause=f"it is a whole number, at least {least}",
                fix=f"correct {name} in {path}",
            )
        if value >= 2**40:
            raise UsageError(
                f"{path}: {name} is {value}",
                cause="no tensor can be that large",
                fix=f"correct {name} in {path}",
            )


def _load_config(path: Path) -> dict[str, Any]:
    """The configuration's JSON object; raises UsageError if the file is not one."""
    quoted = shlex.quote(str(path))
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_CONFIG_BYTES and path.is_file() else None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}",
            cause="its permissions",
            fix=f"ls -l {quoted}",
        ) from error
    if not data:
        words = "is empty" if data is not None else f"is not a config.json ({format_bytes(size)})"
        raise UsageError(
            f"{path} {words}",
            cause="a copy or a download that stopped" if data is not None else "a config is small",
            fix=FETCH,
        )
    if data.startswith(b"\x1f\x8b"):
        raise UsageError(
            f"{path} is compressed",
            cause="transformers reads plain JSON",
            fix=f"gunzip --keep {quoted}" if path.suffix == ".gz" else f"file {quoted}",
        )
    if data.startswith(b"GGUF"):
        raise UsageError(
            f"{path} has weights in GGUF, not a configuration",
            cause="the config.json of the model that it was made from is needed",
            fix="labkit estimate hf:config.json --task generate --weights q4_k",
        )
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not JSON: {error}",
            cause="the file is damaged, or is not a model's config.json",
            fix=f"{name_python()} -m json.tool {quoted}",
        ) from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise _refuse_config(path, config)
    return config


def _refuse_config(path: Path, config: Any) -> UsageError:
    """The error for JSON that is not the configuration of a model of transformers."""
    if not isinstance(config, dict):
        kind = "a list" if isinstance(config, list) else "a value"
        return UsageError(
            f"{path} has {kind}, not an object", cause="it is not a model's config.json", fix=FETCH
        )
    what, cause, fix = "has no model_type", "it is not the config.json of a model", FETCH
    beside = path.parent / "config.json"
    if "_class_name" in config:
        what = f"is the configuration of {config['_class_name']}, of diffusers"
        cause = "hf: estimates the models of transformers"
        fix = "labkit estimate train.py:make_step, where make_step makes the model"
    elif "peft_type" in config:
        what = "is the configuration of an adapter"
        cause = "the model that it adapts is needed"
        rank = config.get("r") or 16
        base = config.get("base_model_name_or_path") or "config.json"
        fix = f"labkit estimate hf:{base} --lora r={rank}"
    elif "architecture" in config:
        what, cause = "is the configuration of a model of timm", "timm builds it by its name"
        fix = f"labkit estimate timm:{config['architecture']}"
    elif beside.is_file() and not beside.samefile(path):
        fix = f"labkit estimate hf:{beside}"
    return UsageError(f"{path} {what}", cause=cause, fix=fix)
