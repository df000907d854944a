"""What names a model: sources, configurations, options of LoRA, and the bytes of each format."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pytest

from labkit.cli import main
from labkit.errors import UsageError
from labkit.memory.estimate.formats import FORMATS, check_config, parse_lora, parse_source

LLAMA = {"model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "said", "fix"),
    [
        ("config.json", b"", "is empty", "hf:ORG"),
        ("config.json", b'{"model_type": "lla', "is not JSON", "json.tool"),
        ("config.json", b"\xff\xfe\x00binary", "is not JSON", "json.tool"),
        ("config.json", b"[" * 200_000, "is not JSON", "json.tool"),
        ("config.json", [1, 2], "has a list", "hf:ORG"),
        ("config.json", {"hidden_size": 3}, "has no model_type", "hf:ORG"),
        # Without the time: it would be in the test's name, which all workers must agree on.
        ("config.json.gz", gzip.compress(b"{}", mtime=0), "is compressed", "gunzip"),
        ("model.gguf", b"GGUF\x03\x00", "GGUF", "--weights q4_k"),
        ("adapter.json", {"peft_type": "LORA", "r": 8}, "an adapter", "--lora r=8"),
        ("unet.json", {"_class_name": "UNet2DModel"}, "UNet2DModel", "make_step"),
        ("timm.json", {"architecture": "resnet18"}, "of timm", "timm:resnet18"),
        ("config.json", LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers is 0", "correct"),
        ("config.json", LLAMA | {"hidden_size": -128}, "hidden_size is -128", "correct"),
        ("config.json", LLAMA | {"hidden_size": "big"}, 'is "big"', "correct"),
        ("config.json", LLAMA | {"num_attention_heads": 2.5}, "is 2.5", "correct"),
        ("config.json", LLAMA | {"vocab_size": 10**14}, "vocab_size is 1000", "correct"),
    ],
    ids=lambda one: one if isinstance(one, str) and "json" not in one else None,
)
def test_a_file_that_is_no_configuration_is_refused_by_what_it_is(
    name, content, said, fix, tmp_path
):
    path = write(tmp_path / name, content)
    with pytest.raises(UsageError) as caught:
        check_config(str(path))
    assert said in caught.value.what and str(path) in caught.value.what
    assert fix in caught.value.fix and caught.value.cause


def test_a_missing_file_names_the_files_that_are_there(tmp_path):
    write(tmp_path / "config.json", LLAMA)
    with pytest.raises(UsageError, match="does not exist") as caught:
        check_config(str(tmp_path / "confg.json"))
    assert f"hf:{tmp_path / 'config.json'}" in caught.value.fix
    with pytest.raises(UsageError, match="does not exist") as caught:
        check_config(str(tmp_path / "nothing" / "config.json"))
    assert str(tmp_path / "nothing") in caught.value.cause


def test_a_folder_needs_its_configuration(tmp_path):
    with pytest.raises(UsageError, match=r"has no config\.json"):
        check_config(str(tmp_path))
    write(tmp_path / "text_encoder" / "config.json", LLAMA)
    with pytest.raises(UsageError) as caught:
        check_config(str(tmp_path))
    assert caught.value.fix.endswith("text_encoder")
    assert check_config(str(tmp_path / "text_encoder")) == str(tmp_path / "text_encoder")


def test_a_name_on_hugging_face_passes_and_a_path_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_config("org/model-7B.v2") == "org/model-7B.v2"
    for name in ("../../etc", "./model", "a/b/c", "model.json", "weights.safetensors"):
        with pytest.raises(UsageError, match="does not exist"):
            check_config(name)


def test_the_file_is_checked_before_transformers_is_asked_for(tmp_path, capsys):
    path = write(tmp_path / "config.json", b"")
    assert main(["estimate", f"hf:{path}"]) == 2
    assert "is empty" in capsys.readouterr().err
    code = "import sys, labkit.memory.estimate.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_source_without_a_name_says_what_follows():
    for word in ("hf:", "timm:", "HF:"):
        with pytest.raises(UsageError, match="names no model"):
            parse_source(word)
    assert parse_source("HF:config.json") == ("hf", "config.json")
    assert parse_source("train.py:make_step") is None


@pytest.mark.parametrize(
    "word",
    ["", "16", "r=0", "r=-1", "r=1.5", "r=x", "r=true", "r=nan", "rank=4", "alpha=0", "alpha=inf",
     "dropout=2", "dora=5", "targets=", "targets=a++b", "r=4,"],
)  # fmt: skip
def test_an_invalid_option_of_lora_is_refused_with_its_value(word):
    with pytest.raises(UsageError, match=r"invalid --lora") as caught:
        parse_lora(word)
    assert repr(word) in caught.value.what and "--lora r=16" in caught.value.fix


@pytest.mark.parametrize(
    "words",
    [
        ["--batch", "1,x"], ["--batch", ","], ["--batch", "1,,2"], ["--batch", "0"],
        ["--batch", "-3"], ["--batch", "9" * 20], ["--sequence", "0"], ["--sequence", "2.5"],
        ["--world-size", "0"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_invalid_size_is_refused_by_its_option(words, tmp_path, capsys):
    path = write(tmp_path / "config.json", LLAMA)
    assert main(["estimate", f"hf:{path}", *words]) == 2
    said = capsys.readouterr().err
    assert f"invalid {words[0]}" in said and words[1] in said


def test_a_configuration_without_its_prefix_gets_the_prefix(tmp_path, capsys):
    path = write(tmp_path / "config.json", LLAMA)
    for word in (path, tmp_path):
        assert main(["estimate", str(word)]) == 2
        assert f"hf:{word}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        # Bits of each element, then what its blocks, rows or tiles have beside them.
        ("nf4", (256, 512), 256 * 512 // 2 + 256 * 512 // 64 * 4 + 64),
        ("nf4-double", (256, 512), 256 * 512 // 2 + 2048 + 8 * 4 + 64 + 4 + 1024),
        ("int8", (256, 512), 256 * 512 + 256 * 4),
        ("gptq-int4", (256, 512), 256 * 512 // 2 + 4 * 256 * 5 // 2 + 512 * 4),
        ("awq-int4", (256, 512), 256 * 512 // 2 + 4 * 256 * 5 // 2),
        ("q8_0", (256, 512), 256 * 512 // 32 * 34),
        ("q6_k", (256, 512), 256 * 512 // 256 * 210),
        ("q5_k", (256, 512), 256 * 512 // 256 * 176),
        ("q4_k", (256, 512), 256 * 512 // 256 * 144),
        ("q4_0", (256, 512), 256 * 512 // 32 * 18),
        ("fp8", (256, 512), 256 * 512 + 2 * 4 * 4),
        ("mxfp4", (256, 512), 256 * 512 // 32 * 17),
        ("nvfp4", (256, 512), 256 * 512 // 16 * 9 + 4),
        # What is left over is a block too.
        ("nf4", (3, 50), 75 + 3 * 4 + 64),
        ("fp8", (200, 130), 200 * 130 + 4 * 4),
        ("gptq-int4", (8, 130), 8 * 65 + 2 * 8 * 5 // 2 + 130 * 4),
        # llama.cpp takes a format of smaller blocks for such rows.
        ("q4_k", (8, 96), 8 * 3 * 22),
        ("q6_k", (8, 96), 8 * 3 * 34),
    ],
)
def test_a_format_takes_the_bytes_of_its_blocks(name, shape, expected):
    assert FORMATS[name].count_bytes(*shape) == expected
