"""Estimates of steps of real models, against torch's profiler on the CPU.

They need the packages of docker/locks/models.txt: `pip install --no-deps -r` it beside the lab's.
"""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec

import pytest
import torch

from labkit.cli import main
from labkit.memory.estimate import named
from labkit.memory.estimate.model import NamedPlan
from labkit.memory.estimate.named import make_named_work
from labkit.memory.track.tracker import track_memory
from tests.fakes import tutorial_steps  # noqa: F401 (adds its steps)
from tests.fakes.real_models import BOUNDS, STEPS, WORDS, compare_step, import_torchvision
from tests.fakes.steps import measure_twice

PACKAGES = ("transformers", "timm", "peft", "diffusers", "torchvision")
MISSING = [one for one in PACKAGES if not find_spec(one)]
if MISSING:
    reason = f"needs the packages of docker/locks/models.txt: {', '.join(MISSING)}"
    pytest.skip(reason, allow_module_level=True)

import_torchvision()
pytestmark = [
    pytest.mark.models,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of the packages
]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_within_one_percent_of_the_profiler_or_says_how_it_is_off(name):
    compared = compare_step(name)
    assert compared.holds, compared
    assert compared.flag == BOUNDS.get(name, "")


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
    "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def estimate(capsys, *words):
    """The exit code and the object that ``labkit estimate`` prints."""
    code = main(["estimate", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def count_parameters():
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    return sum(one.numel() for one in model.parameters())


def measure_training(batch, length):
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    ids = torch.zeros(batch, length, dtype=torch.int64)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_model_by_its_configuration_needs_what_its_real_training_needs(config, capsys):
    measure_training(1, 8)
    with track_memory("cpu", tensors=True) as tracked:
        measure_training(4, 128)
    code, found = estimate(
        capsys, f"hf:{config}", "--batch", 4, "--sequence", 128, "--device", "cpu"
    )
    assert found["peak_bytes"] == pytest.approx(tracked.use.find_span("tensors").peak_bytes, 0.01)
    assert code == 0 and found["schema_version"]
    real = count_parameters()
    assert (found["parameter_count"], found["trained_count"]) == (real, real)


def test_the_cache_of_a_generation_is_that_of_its_context(config, capsys):
    words = (f"hf:{config}", "--task", "generate", "--context", 256, "--batch", 2)
    _, found = estimate(capsys, *words, "--dtype", "bf16")
    # Keys and values of 4 layers, 2 heads of 32 numbers, in 2 bytes.
    assert found["cache_bytes"] == 2 * 4 * 2 * 32 * 2 * 256 * 2


def test_quantized_weights_take_the_bytes_of_their_format(config, capsys):
    words = (f"hf:{config}", "--task", "infer", "--sequence", 16, "--dtype", "bf16")
    _, whole = estimate(capsys, *words)
    _, packed = estimate(capsys, *words, "--weights", "nf4")
    linear = 4 * (128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 352)
    saved = whole["kinds"]["parameters"] - packed["kinds"]["parameters"]
    # Each weight has a table too, in a block of 512 bytes.
    assert saved == pytest.approx(linear * 2 - linear * 36 / 64, rel=0.02)


def test_what_does_not_fit_gets_remedies_that_were_computed(config, capsys):
    words = (f"hf:{config}", "--batch", 64, "--sequence", 256, "--device", "1 GiB")
    code, found = estimate(capsys, *words)
    assert code == 1
    saved = [one["saved_bytes"] for one in found["remedies"]]
    assert saved == sorted(saved, reverse=True)
    named = {one["change"]: one for one in found["remedies"]}
    _, changed = estimate(capsys, *words, "--checkpointing")
    assert named["--checkpointing"]["peak_bytes"] == changed["peak_bytes"]
    shared = [one for one in named if one.startswith("with ")]
    assert shared and all("GPUs: --world-size" in one and "fsdp" in one for one in shared)
    _, ranks = estimate(capsys, *words, *shared[0].split(": ")[1].split())
    highest = max(one["peak_bytes"] for one in ranks["ranks"])
    assert named[shared[0]]["peak_bytes"] == highest < found["peak_bytes"]


def test_pairs_are_computed_where_no_change_alone_fits(config, capsys, monkeypatch):
    import transformers

    read = []
    load = transformers.AutoConfig.from_pretrained
    monkeypatch.setattr(
        transformers.AutoConfig,
        "from_pretrained",
        lambda *given, **named: (read.append(given), load(*given, **named))[1],
    )
    named._configs.clear()
    words = (f"hf:{config}", "--batch", 64, "--sequence", 256)
    code, found = estimate(capsys, *words, "--device", "1.1 GiB")
    assert (code, len(read)) == (1, 1)  # the configuration is read once
    alone = [one for one in found["remedies"] if one["change"].count("--") == 1]
    pairs = [one for one in found["remedies"] if one not in alone and "GPUs" not in one["change"]]
    assert alone and not any(one["fits"] for one in alone)
    assert 1 <= len(pairs) <= 3 and all(one["fits"] for one in pairs)
    _, changed = estimate(capsys, *words[:1], *pairs[0]["change"].split(), *_drop(words, pairs[0]))
    assert changed["peak_bytes"] == pairs[0]["peak_bytes"] < min(one["peak_bytes"] for one in alone)
    main(["estimate", *map(str, words), "--device", "4 GiB", "--remedies"])
    lines = [one for one in capsys.readouterr().out.splitlines() if "GPUs" not in one]
    assert not [line for line in lines if line.count("--") > 1]


def _drop(words, pair):
    """The options that the pair does not replace."""
    options = dict(zip(words[1::2], words[2::2], strict=True))
    kept = {name: one for name, one in options.items() if name not in pair["change"]}
    return [each for item in kept.items() for each in item]


def test_a_pair_may_need_its_first_change():
    plan = NamedPlan("hf", "config.json")
    singles = [
        dataclasses.replace(one, saved_bytes=place)
        for place, one in enumerate(named.list_remedies(plan), start=1)
    ]
    pairs = {one.words: one.plan for one in named.list_pairs(plan, singles)}
    both = pairs["--checkpointing --optimizer adamw-8bit"]
    assert (both.checkpointing, both.optimizer) == (True, "adamw-8bit")
    adapted = pairs["--lora r=16 --weights nf4"]
    assert adapted.lora and adapted.weights == "nf4"
    assert len(set(pairs.values())) == len(pairs)
    assert not any(one.split()[0] == one.split()[2] for one in pairs)


EXPERTS = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": WORDS,
}  # fmt: skip


def test_experts_in_mxfp4_take_the_bytes_of_their_blocks(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(EXPERTS))
    words = (f"hf:{path}", "--task", "infer", "--sequence", 16, "--dtype", "bf16")
    words += ("--device", "cpu")
    _, whole = estimate(capsys, *words)
    _, packed = estimate(capsys, *words, "--weights", "mxfp4")
    elements = 2 * 8 * (128 * 512 + 256 * 128)
    saved = whole["kinds"]["parameters"] - packed["kinds"]["parameters"]
    assert saved == elements * 2 - elements * 17 // 32
    assert packed["obstacle"] is None
    path.write_text(json.dumps(EXPERTS | {"quantization_config": {"quant_method": "mxfp4"}}))
    _, found = estimate(capsys, *words)
    assert (found["plan"]["weights"], found["peak_bytes"]) == ("mxfp4", packed["peak_bytes"])
    # Training unpacks what the configuration has packed, and refuses what was asked for.
    adapters = (f"hf:{path}", "--sequence", 16, "--lora", "r=4,targets=q_proj+v_proj")
    _, trained = estimate(capsys, *adapters)
    assert trained["plan"]["weights"] is None
    code, refused = estimate(capsys, *adapters, "--weights", "mxfp4")
    assert (code, "no backward pass" in refused["error"]["cause"]) == (2, True)


def test_a_table_has_a_cell_for_each_batch_and_sequence(config, capsys):
    words = (f"hf:{config}", "--batch", "1,2", "--sequence", "64,128", "--lora", "r=4")
    _, found = estimate(capsys, *words)
    peaks = {(one["batch"], one["sequence"]): one["peak_bytes"] for one in found["table"]}
    assert peaks[1, 64] < peaks[2, 64] < peaks[2, 128]
    main(["estimate", *words])
    assert "sequence 128" in capsys.readouterr().out


def test_a_model_of_timm_by_its_name(capsys):
    code, found = estimate(capsys, "timm:resnet18", "--task", "infer", "--device", "8 GiB")
    assert code == 0 and found["fits"] is True
    words = ("timm:resnet18", "--task", "infer", "--device", "8 GiB", "--dtype", "fp16")
    _, half = estimate(capsys, *words)
    assert half["kinds"]["parameters"] == pytest.approx(found["kinds"]["parameters"] / 2, rel=0.01)
    assert half["peak_bytes"] < 0.6 * found["peak_bytes"]


def change(config, **values):
    """The configuration's file with these values."""
    config.write_text(json.dumps(CONFIG | values))
    return f"hf:{config}"


def test_what_the_estimate_leaves_out_is_a_note(config, capsys):
    words = ("--task", "infer", "--sequence", 16)
    mixture = change(
        config, model_type="mixtral", architectures=["MixtralForCausalLM"], num_local_experts=4
    )
    _, found = estimate(capsys, mixture, *words, "--weights", "nf4")
    assert any("experts stay in float32" in one for one in found["notes"])
    _, found = estimate(capsys, change(config), *words[:-1], 4096)
    assert any("max_position_embeddings, 512" in one for one in found["notes"])


@pytest.mark.parametrize(
    ("values", "words", "said"),
    [
        ({"model_type": "lama9"}, [], "lama9"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, [], "code of its own"),
        ({"architectures": ["BertForMaskedLM"]}, [], "BertForMaskedLM"),
        ({"hidden_size": 127}, [], "127"),
        ({"rope_parameters": "big"}, [], "config.json"),
        ({"model_type": "t5", "architectures": None}, ["--weights", "nf4"], "--lora"),
        ({}, ["--lora", "r=4,targets=nothing"], "nothing"),
        ({}, ["--world-size", "2", "--batch", "1,2"], "several sizes"),
        ({}, ["--sequence", "9999999999"], "too large"),
    ],
)
def test_a_configuration_that_no_model_takes_is_refused_in_words(
    values, words, said, config, capsys
):
    assert main(["estimate", change(config, **values), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "try:" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["timm:resnet19"], "resnet"),
        (["timm:resnet18", "--task", "generate"], "cannot generate"),
        (["timm:resnet18", "--weights", "nf4"], "--lora"),
        (["timm:resnet18", "--lora", "rank=4"], "rank=4"),
        (["timm:resnet18", "--lora", "r=4"], "--lora r=4,targets="),
    ],
)
def test_what_cannot_be_estimated_is_refused_with_a_fix(words, said, capsys):
    assert main(["estimate", *words]) == 2
    assert said in capsys.readouterr().err


SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
WIDTHS = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
EYE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
TEXT = SIZE | {"model_type": "llama"}
WITHOUT_GROUPS = {name: one for name, one in SIZE.items() if name != "num_key_value_heads"}
PATCHES = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 4}
SEEING = {
    "llava": {
        "text_config": TEXT,
        "vision_config": EYE | {"model_type": "clip_vision_model"},
        "image_token_index": 999,
    },
    "llava_next": {
        "text_config": TEXT,
        "vision_config": EYE | {"model_type": "clip_vision_model"},
        "image_token_index": 999,
        "image_grid_pinpoints": [[64, 128], [128, 64], [128, 128]],
    },
    "llava_onevision": {
        "text_config": SIZE | {"model_type": "qwen2"},
        "vision_config": EYE | {"model_type": "siglip_vision_model"},
        "image_token_index": 999,
        "video_token_index": 998,
        "image_grid_pinpoints": [[64, 128], [128, 128]],
    },
    "idefics3": {
        "text_config": TEXT,
        "vision_config": EYE,
        "image_token_id": 999,
        "scale_factor": 2,
    },
    "smolvlm": {
        "text_config": TEXT,
        "vision_config": EYE,
        "image_token_id": 999,
        "scale_factor": 2,
    },
    "idefics2": {
        "text_config": SIZE | {"model_type": "mistral"},
        "vision_config": EYE,
        "image_token_id": 999,
        "perceiver_config": {
            "resampler_n_latents": 8,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
        },
    },
    "kosmos-2": {
        "text_config": {
            "vocab_size": 1000,
            "embed_dim": 64,
            "layers": 2,
            "ffn_dim": 128,
            "attention_heads": 4,
            "max_position_embeddings": 256,
        },
        "vision_config": EYE,
        "latent_query_num": 8,
    },
    "blip-2": {
        "text_config": {
            "model_type": "opt",
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 1000,
            "word_embed_proj_dim": 64,
        },
        "vision_config": EYE,
        "qformer_config": EYE | {"encoder_hidden_size": 48},
        "num_query_tokens": 8,
        "image_token_index": 999,
    },
    "layoutlmv3": WITHOUT_GROUPS
    | {
        "architectures": ["LayoutLMv3ForTokenClassification"],
        "input_size": 64,
        "patch_size": 16,
        "coordinate_size": 10,
        "shape_size": 12,
        "max_2d_position_embeddings": 64,
    },
    "gemma3": {
        "text_config": SIZE | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 32},
        "vision_config": EYE | {"model_type": "siglip_vision_model", "vision_use_head": False},
        "mm_tokens_per_image": 4,
        "image_token_index": 999,
    },
    "qwen2_vl": {
        "text_config": SIZE | {"rope_parameters": WIDTHS},
        "vision_config": PATCHES,
        "image_token_id": 999,
        "video_token_id": 998,
        "vision_start_token_id": 997,
    },
    "clip": {
        "architectures": ["CLIPModel"],
        "text_config": SIZE | {"max_position_embeddings": 77},
        "vision_config": EYE,
        "projection_dim": 32,
    },
    "siglip": {
        "architectures": ["SiglipModel"],
        "text_config": SIZE | {"projection_size": 48},
        "vision_config": EYE,
    },
    "blip": {
        "text_config": SIZE | {"encoder_hidden_size": 48},
        "vision_config": EYE,
        "projection_dim": 32,
    },
}


def measure_named(plan):
    """The peak of the plan's real step, made and run twice on the CPU."""
    work = make_named_work(plan)
    with torch.inference_mode(plan.task != "train"):
        return measure_twice(lambda: work.make_step(plan.batch))


@pytest.mark.parametrize("task", ["train", "generate"])
@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_sees_gets_images(name, task, tmp_path, capsys):
    if task == "generate" and name in ("clip", "siglip", "layoutlmv3"):
        pytest.skip("it does not generate")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SEEING[name] | {"model_type": name}))
    words = (f"hf:{path}", "--task", task, "--batch", 2, "--sequence", 64, "--device", "cpu")
    _, found = estimate(capsys, *words)
    plan = NamedPlan("hf", str(path), task=task, batch=2, sequence=64)
    assert found["peak_bytes"] == pytest.approx(measure_named(plan), rel=0.005)
    assert found["obstacle"] is None
    notes = " ".join(found["notes"])
    writes = name not in ("clip", "siglip", "layoutlmv3")
    assert ("each sample has one image" in notes) is writes


def test_a_model_whose_images_are_not_known_has_a_lower_bound(tmp_path, capsys):
    path = tmp_path / "config.json"
    texts = {"text_config": SIZE | {"model_type": "mistral", "head_dim": 16}}
    sights = {"vision_config": EYE | {"model_type": "pixtral", "head_dim": 12}}
    path.write_text(json.dumps(texts | sights | {"model_type": "mistral3"}))
    words = (f"hf:{path}", "--sequence", 64, "--device", "80 GiB")
    code, found = estimate(capsys, *words)
    assert (code, found["fits"], found["complete"]) == (1, None, False)
    assert "text alone" in found["obstacle"]["reason"]


def test_what_is_shorter_or_longer_than_asked_is_a_note(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SEEING["clip"] | {"model_type": "clip"}))
    _, found = estimate(capsys, f"hf:{path}", "--task", "infer", "--sequence", 512)
    assert any("has 77 tokens" in one for one in found["notes"])
    sounds = {"model_type": "whisper", "d_model": 384, "encoder_layers": 1, "decoder_layers": 1}
    path.write_text(json.dumps(sounds | {"max_source_positions": 100}))
    _, found = estimate(capsys, f"hf:{path}", "--task", "infer", "--sequence", 512)
    assert any("max_target_positions, 448" in one for one in found["notes"])


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}


def test_weights_are_those_of_the_configuration(config, capsys):
    words = ("--task", "infer", "--sequence", 16, "--dtype", "fp16")
    _, plain = estimate(capsys, change(config), *words, "--weights", "awq-int4")
    quantized = change(config, quantization_config=AWQ)
    _, found = estimate(capsys, quantized, *words)
    assert found["peak_bytes"] == plain["peak_bytes"]
    assert found["plan"]["weights"] == "awq-int4"
    assert any("awq-int4: the configuration's" in one for one in found["notes"])
    _, trained = estimate(capsys, quantized, "--sequence", 16)
    assert trained["plan"]["weights"] is None
    assert any("is not applied" in one for one in trained["notes"])
    _, other = estimate(capsys, change(config, quantization_config=AWQ | {"bits": 3}), *words)
    assert any("is not applied" in one for one in other["notes"])
