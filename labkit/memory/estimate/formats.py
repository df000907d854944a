"""What a model that is named can be estimated for: tasks, types, optimizers, formats of weights.

The command line reads these for its options, so this imports nothing that takes time.
"""

from __future__ import annotations

from typing import NamedTuple

LIBRARIES = {"hf": "transformers", "timm": "timm"}
TASKS = ("train", "infer", "generate")
DTYPES = {
    "float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16",
}  # fmt: skip


class Format(NamedTuple):
    """How a quantized weight is stored: ``block_bytes`` for each ``block`` of its elements."""

    block: int
    block_bytes: float


# bitsandbytes: 4 bits and a scale of 4 bytes for 64 elements (with double quantization one byte,
# and 4 for 256 such bytes), 8 bits and a scale for each row. GPTQ and AWQ: 4 bits, with a scale of
# 2 bytes and a zero of 4 bits for 128. ggml: the sizes of its block structures.
FORMATS = {
    "nf4": Format(64, 36),
    "nf4-double": Format(64 * 256, (33 * 256) + 4),
    "int8": Format(0, 0),
    "gptq-int4": Format(128, 66.5),
    "awq-int4": Format(128, 66.5),
    "q8_0": Format(32, 34),
    "q6_k": Format(256, 210),
    "q5_k": Format(256, 176),
    "q4_k": Format(256, 144),
    "q4_0": Format(32, 18),
    "fp8": Format(128 * 128, 128 * 128 + 4),
}
OPTIMIZERS = ("adamw", "adam", "sgd", "sgd-momentum", "adafactor", "lion", "adamw-8bit")
