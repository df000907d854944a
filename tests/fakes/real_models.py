"""Steps of real models from transformers, timm, peft and diffusers, to judge estimates by.

The models are small and have random weights, so nothing is downloaded. Each entry of ``STEPS`` is a
function without arguments that makes model, optimizer and inputs, and returns the step.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import io
import sys
import tempfile
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from labkit.memory.estimate.play import estimate_memory
from labkit.memory.track.tracker import track_memory

STEPS = {}
BATCH, LENGTH, WORDS = 4, 128, 1000
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
IMAGE = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def import_torchvision():
    """Imports torchvision, which timm and transformers need, on any build of torch.

    The package index has its build for CUDA, whose operators do not load beside torch for the CPU.
    No step uses them, but torchvision looks for two of them.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
        for name in [one for one in sys.modules if one.startswith("torchvision")]:
            del sys.modules[name]
        import torchvision  # noqa: F401


def step(make):
    """Adds a step under its function's name."""
    STEPS[make.__name__] = make
    return make


def make_ids(batch=BATCH, length=LENGTH, words=WORDS):
    return torch.randint(3, words, (batch, length))


def make_images(batch=BATCH, side=64):
    return torch.randn(batch, 3, side, side)


def list_trained(model):
    return [one for one in model.parameters() if one.requires_grad]


def train(model, measure, optimizer=torch.optim.AdamW, **options):
    """A step that lowers ``measure()``, the model's loss, with the optimizer."""
    updates = optimizer(list_trained(model), **{"lr": 1e-3, **options})

    def run():
        updates.zero_grad()
        measure().backward()
        updates.step()

    return run


def make_hf(kind, auto, **options):
    """A model of transformers with random weights, in training mode."""
    import transformers

    config = transformers.AutoConfig.for_model(kind, **options)
    model = getattr(transformers, auto)
    return (model.from_config(config) if auto.startswith("Auto") else model(config)).train()


def make_causal(kind, **options):
    plain = {"gpt2", "bloom", "mamba", "mamba2", "rwkv", "mpt"}
    heads = {} if kind in plain else {"num_key_value_heads": 4}
    return make_hf(kind, "AutoModelForCausalLM", **{**TEXT, **heads, **options})


def train_causal(kind, optimizer=torch.optim.AdamW, batch=BATCH, length=LENGTH, **options):
    model, ids = make_causal(kind, **options), make_ids(batch, length)
    return train(model, lambda: model(input_ids=ids, labels=ids).loss, optimizer)


def train_images(kind, auto="AutoModelForImageClassification", side=64, **options):
    model, images = make_hf(kind, auto, **options), make_images(side=side)
    labels = torch.randint(0, 2, (BATCH,))
    return train(model, lambda: model(pixel_values=images, labels=labels).loss)


# Decoders: attention of many kinds, mixtures of experts, state spaces, recurrences.
SSM = {"vocab_size": WORDS, "hidden_size": 128, "num_hidden_layers": 2}
for kind, options in {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 32},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 32},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 32, "sliding_window": 32},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 32},
    "phi3": {"pad_token_id": 0, "num_key_value_heads": 4},
    "olmo2": {},
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4, "attn_implementation": "eager"},
    "gpt_neox": {},
    "opt": {"ffn_dim": 352, "word_embed_proj_dim": 128},
    "bloom": {"n_layer": 4, "n_head": 4},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "qwen2_moe": {
        "num_experts": 8,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 128,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 32, "state_size": 16, "n_groups": 2, "chunk_size": 32},
    "gemma": {"num_key_value_heads": 2, "head_dim": 32},
    "gemma3n_text": {
        "num_key_value_heads": 2, "head_dim": 32, "num_kv_shared_layers": 1, "laurel_rank": 8,
        "vocab_size_per_layer_input": WORDS, "hidden_size_per_layer_input": 16,
        "activation_sparsity_pattern": None},
    "phi": {},
    "gpt_oss": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
                "sliding_window": 32, "head_dim": 32},
    "mpt": {"d_model": 128, "n_heads": 4, "n_layers": 4},
    "cohere2": {"num_key_value_heads": 2, "sliding_window": 32},
    "granitemoe": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 32, "num_key_value_heads": 2},
    "llama4_text": {"num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 32,
                    "intermediate_size_mlp": 256},
    "minimax": {"num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 32,
                "block_size": 32},
    "deepseek_v3": {
        "n_routed_experts": 8, "moe_intermediate_size": 64, "first_k_dense_replace": 1,
        "kv_lora_rank": 32, "q_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
        "v_head_dim": 32, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2},
    "qwen3_next": {
        "num_key_value_heads": 2, "num_experts": 8, "moe_intermediate_size": 64, "head_dim": 32,
        "num_experts_per_tok": 2, "shared_expert_intermediate_size": 64,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16},
    "bamba": {"num_key_value_heads": 2, "mamba_n_heads": 8, "mamba_d_head": 32,
              "mamba_d_state": 16, "mamba_chunk_size": 32, "attn_layer_indices": [1, 3]},
    "rwkv": {"attention_hidden_size": 128, "context_length": 128},
}.items():  # fmt: skip
    # Torch alone computes a state space token by token.
    short = {"length": 32} if kind in {"mamba", "rwkv"} else {}
    STEPS[kind] = functools.partial(train_causal, kind, **options, **short)


@step
def llama_checkpointed():
    model, ids = make_causal("llama"), make_ids(8)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return train(model, lambda: model(input_ids=ids, labels=ids).loss, torch.optim.SGD)


@step
def llama_padded():
    """Half of each sequence is padding, so attention has a mask."""
    model, ids = make_causal("llama"), make_ids()
    mask = torch.ones_like(ids)
    mask[1:, : LENGTH // 2] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return train(model, lambda: model(input_ids=ids, attention_mask=mask, labels=labels).loss)


@step
def bert_masked_words():
    model, ids = make_hf("bert", "AutoModelForMaskedLM", **TEXT), make_ids()
    chosen = torch.rand(ids.shape) < 0.15
    labels = ids.masked_fill(~chosen, -100)
    mask = torch.ones_like(ids)
    return train(
        model,
        lambda: (
            model(input_ids=ids.masked_fill(chosen, 1), attention_mask=mask, labels=labels).loss
        ),
    )


def train_words(kind, auto="AutoModelForMaskedLM", **options):
    """An encoder that guesses masked words, or the class of each text."""
    given = {**TEXT, **options}
    model = make_hf(kind, auto, **{name: one for name, one in given.items() if one is not None})
    ids, classes = make_ids(), torch.randint(0, 2, (BATCH,))
    labels = classes if auto == CLASSES else ids
    return train(model, lambda: model(input_ids=ids, labels=labels).loss)


# Encoders: attention that is relative, local, sparse, approximated, or none.
CLASSES = "AutoModelForSequenceClassification"
for kind, options in {
    "albert": {"embedding_size": 64},
    "big_bird": {"block_size": 16, "num_random_blocks": 1},
    "canine": {"auto": CLASSES, "num_hash_buckets": 512, "downsampling_rate": 4},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "electra": {"embedding_size": 64},
    "fnet": {},
    "longformer": {"auto": CLASSES, "attention_window": 32},
    "modernbert": {"local_attention": 32, "pad_token_id": 0},
    "nystromformer": {"num_landmarks": 16, "segment_means_seq_len": 128},
    "xlnet": {"auto": CLASSES, "d_model": 128, "n_layer": 4, "n_head": 4, "d_inner": 256,
              "max_position_embeddings": None},
}.items():  # fmt: skip
    STEPS[kind] = functools.partial(train_words, kind, **options)


@step
def roberta_accumulates():
    import transformers

    model = make_hf("roberta", "AutoModelForSequenceClassification", num_labels=3, **TEXT)
    ids, labels = make_ids(8), torch.randint(0, 3, (8,))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 10, 100)

    def run():
        for part, answers in zip(ids.chunk(4), labels.chunk(4), strict=True):
            (model(input_ids=part, labels=answers).loss / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return run


@step
def distilbert_questions():
    model = make_hf(
        "distilbert", "AutoModelForQuestionAnswering", vocab_size=WORDS, dim=128, hidden_dim=352,
        n_layers=4, n_heads=4,
    )  # fmt: skip
    ids, place = make_ids(), torch.randint(0, LENGTH, (BATCH,))
    return train(
        model, lambda: model(input_ids=ids, start_positions=place, end_positions=place).loss
    )


@step
def deberta_tokens():
    model = make_hf(
        "deberta-v2", "AutoModelForTokenClassification", relative_attention=True,
        pos_att_type=["p2c", "c2p"], num_labels=5, **TEXT,
    )  # fmt: skip
    ids, labels = make_ids(), torch.randint(0, 5, (BATCH, LENGTH))
    return train(model, lambda: model(input_ids=ids, labels=labels).loss)


T5 = {
    "decoder_start_token_id": 0,
    "vocab_size": WORDS,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 352,
    "num_layers": 3,
    "num_heads": 4,
}


@step
def t5_adafactor():
    import transformers

    model, ids = make_hf("t5", "AutoModelForSeq2SeqLM", **T5), make_ids()
    return train(
        model,
        lambda: model(input_ids=ids, labels=ids[:, :64].contiguous()).loss,
        transformers.Adafactor, relative_step=False, scale_parameter=False,
    )  # fmt: skip


@step
def bart_label_smoothing():
    model = make_hf(
        "bart", "AutoModelForSeq2SeqLM", vocab_size=WORDS, d_model=128, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=256, decoder_ffn_dim=256, max_position_embeddings=256,
    )  # fmt: skip
    ids = make_ids()

    def measure():
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
        return functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), label_smoothing=0.1)

    return train(model, measure)


def train_translator(kind, **options):
    model, ids = make_hf(kind, "AutoModelForSeq2SeqLM", **options), make_ids()
    return train(model, lambda: model(input_ids=ids, labels=ids[:, :64].contiguous()).loss)


TRANSLATOR = {
    "vocab_size": WORDS, "d_model": 128, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256, "max_position_embeddings": 256,
}  # fmt: skip
for kind, options in {
    "pegasus": TRANSLATOR,
    "m2m_100": {**TRANSLATOR, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
    "led": {**TRANSLATOR, "attention_window": 32, "max_encoder_position_embeddings": 256,
            "max_decoder_position_embeddings": 256},
    "longt5": {**T5, "local_radius": 16, "global_block_size": 16},
    "switch_transformers": {**T5, "num_experts": 4},
    "prophetnet": {"vocab_size": WORDS, "hidden_size": 128, "num_encoder_layers": 2,
                   "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
                   "num_decoder_attention_heads": 4, "encoder_ffn_dim": 256,
                   "decoder_ffn_dim": 256, "ngram": 2},
}.items():  # fmt: skip
    STEPS[kind] = functools.partial(train_translator, kind, **options)


WHISPER = {
    "vocab_size": WORDS, "d_model": 128, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256, "num_mel_bins": 40, "max_source_positions": 100, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None,
    "begin_suppress_tokens": None,
}  # fmt: skip


@step
def whisper():
    model = make_hf("whisper", "WhisperForConditionalGeneration", **WHISPER)
    sounds, ids = torch.randn(BATCH, 40, 200), make_ids(length=32)
    return train(model, lambda: model(input_features=sounds, labels=ids).loss)


@step
def wav2vec2_letters():
    model = make_hf(
        "wav2vec2", "AutoModelForCTC", vocab_size=32, hidden_size=128, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=256, conv_dim=(64,) * 4, conv_kernel=(10, 3, 3, 2),
        conv_stride=(5, 2, 2, 2), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0, layerdrop=0.0, pad_token_id=0,
    )  # fmt: skip
    sounds, letters = torch.randn(2, 8000), torch.randint(1, 32, (2, 20))
    return train(model, lambda: model(input_values=sounds, labels=letters).loss)


def train_letters(kind, **options):
    model = make_hf(
        kind, "AutoModelForCTC", vocab_size=32, hidden_size=128, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=256, conv_dim=(64,) * 4, conv_kernel=(10, 3, 3, 2),
        conv_stride=(5, 2, 2, 2), num_feat_extract_layers=4, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, pad_token_id=0, layerdrop=0.0, **options,
    )  # fmt: skip
    sounds, letters = torch.randn(2, 8000), torch.randint(1, 32, (2, 20))
    return train(model, lambda: model(input_values=sounds, labels=letters).loss)


STEPS["hubert_letters"] = functools.partial(train_letters, "hubert", mask_time_prob=0.0)
STEPS["wavlm_letters"] = functools.partial(train_letters, "wavlm", mask_time_prob=0.0)
STEPS["wav2vec2_masks"] = functools.partial(
    train_letters, "wav2vec2", mask_time_prob=0.3, mask_time_length=2
)


@step
def vits_speaks():
    model = make_hf(
        "vits", "VitsModel", vocab_size=40, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=2, ffn_dim=128, flow_size=64, spectrogram_bins=65,
        upsample_initial_channel=64, use_stochastic_duration_prediction=False,
        prior_encoder_num_flows=2, posterior_encoder_num_wavenet_layers=2,
        prior_encoder_num_wavenet_layers=2,
    ).eval()  # fmt: skip
    ids = torch.randint(1, 40, (1, 24))

    @torch.no_grad()
    def run():
        model(input_ids=ids)

    return run


@step
def encodec():
    model = make_hf(
        "encodec", "EncodecModel", num_filters=8, hidden_size=32, codebook_size=64,
        codebook_dim=32, upsampling_ratios=[4, 4, 2], num_lstm_layers=1,
    )  # fmt: skip
    sounds = torch.randn(2, 1, 4000)
    return train(model, lambda: model(sounds).audio_values.square().mean())


@step
def series_with_layerdrop():
    """Each layer is left out at random."""
    model = make_hf(
        "time_series_transformer", "TimeSeriesTransformerForPrediction", prediction_length=8,
        context_length=24, lags_sequence=[1, 2, 3], num_time_features=2, d_model=32,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    given = {
        "past_values": torch.randn(8, 27), "past_observed_mask": torch.ones(8, 27),
        "past_time_features": torch.randn(8, 27, 2), "future_values": torch.randn(8, 8),
        "future_time_features": torch.randn(8, 8, 2),
    }  # fmt: skip
    return train(model, lambda: model(**given).loss)


@step
def patchtst_forecasts():
    model = make_hf(
        "patchtst", "PatchTSTForPrediction", num_input_channels=4, context_length=128,
        prediction_length=24, d_model=64, num_hidden_layers=3, num_attention_heads=4, ffn_dim=128,
    )  # fmt: skip
    past, future = torch.randn(16, 128, 4), torch.randn(16, 24, 4)
    return train(model, lambda: model(past_values=past, future_values=future).loss)


# Vision in transformers.
for kind, options in {
    "vit": IMAGE,
    "dinov2": IMAGE,
    "beit": {**IMAGE, "use_relative_position_bias": True},
    "swin": {"image_size": 64, "patch_size": 2, "embed_dim": 32, "depths": [2, 2],
             "num_heads": [2, 4], "window_size": 4},
    "convnext": {"hidden_sizes": [32, 64, 128], "depths": [1, 2, 1], "num_stages": 3},
    "resnet": {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [2, 2]},
    "segformer": {"hidden_sizes": [32, 64], "depths": [1, 1], "num_encoder_blocks": 2,
                  "num_attention_heads": [1, 2], "sr_ratios": [4, 2], "patch_sizes": [7, 3],
                  "strides": [4, 2], "mlp_ratios": [2, 2]},
    "swinv2": {"image_size": 64, "patch_size": 2, "embed_dim": 32, "depths": [2, 2],
               "num_heads": [2, 4], "window_size": 4},
    "convnextv2": {"hidden_sizes": [32, 64], "depths": [1, 2], "num_stages": 2},
    "mobilevit": {"image_size": 64, "hidden_sizes": [32, 48, 64],
                  "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 128]},
    "focalnet": {"image_size": 64, "embed_dim": 32, "depths": [1, 1]},
}.items():  # fmt: skip
    STEPS[f"hf_{kind}"] = functools.partial(train_images, kind, **options)


@step
def vit_masked_autoencoder():
    model = make_hf(
        "vit_mae", "ViTMAEForPreTraining", decoder_hidden_size=64, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4, decoder_intermediate_size=128, **IMAGE,
    )  # fmt: skip
    images = make_images(16)
    return train(model, lambda: model(pixel_values=images).loss)


SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
         "num_attention_heads": 4}  # fmt: skip
SEEN = {**SMALL, "image_size": 64, "patch_size": 8}
SAID = {**SMALL, "vocab_size": WORDS, "max_position_embeddings": 64}


@step
def clip():
    model = make_hf("clip", "AutoModel", projection_dim=64, text_config=SAID, vision_config=SEEN)
    ids, images = make_ids(16, 32), make_images(16)
    return train(model, lambda: model(input_ids=ids, pixel_values=images, return_loss=True).loss)


@step
def sam_masks():
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = make_hf(
        "sam", "SamModel",
        vision_config={**small, "image_size": 128, "patch_size": 8, "output_channels": 32,
                       "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 128,
                       "num_pos_feats": 16},
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 8,
                               "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 2,
                             "num_attention_heads": 4, "iou_head_hidden_dim": 32},
    )  # fmt: skip
    images, points = make_images(2, 128), torch.rand(2, 1, 3, 2) * 128

    def measure():
        masks = model(pixel_values=images, input_points=points, multimask_output=False).pred_masks
        return functional.binary_cross_entropy_with_logits(masks, torch.ones_like(masks))

    return train(model, measure)


@step
def siglip():
    model = make_hf("siglip", "AutoModel", text_config=SAID, vision_config=SEEN)
    ids, images = make_ids(8, 32), make_images(8)
    return train(model, lambda: model(input_ids=ids, pixel_values=images, return_loss=True).loss)


@step
def blip_captions():
    model = make_hf(
        "blip", "BlipForConditionalGeneration", projection_dim=64, vision_config=SEEN,
        text_config={**SAID, "projection_dim": 64, "encoder_hidden_size": 128},
    )  # fmt: skip
    ids, images = make_ids(8, 32), make_images(8)
    return train(model, lambda: model(input_ids=ids, pixel_values=images, labels=ids).loss)


@step
def vilt_answers():
    model = make_hf(
        "vilt", "ViltForQuestionAnswering", image_size=64, patch_size=16, num_labels=8, **TEXT
    )
    ids, images, scores = make_ids(4, 32), make_images(4), torch.rand(4, 8)
    mask = torch.ones(4, 64, 64, dtype=torch.int64)
    return train(
        model,
        lambda: model(input_ids=ids, pixel_values=images, pixel_mask=mask, labels=scores).loss,
    )


@step
def detr_finds():
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1] * 4, out_features=["stage4"]
    )
    model = make_hf(
        "detr", "DetrForObjectDetection", backbone_config=backbone, num_labels=5, d_model=64,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, num_queries=10,
    )  # fmt: skip
    images = make_images(2, 128)

    def measure():
        made = model(pixel_values=images)
        return made.logits.square().mean() + made.pred_boxes.mean()

    return train(model, measure)


@step
def dpt_depth():
    model = make_hf(
        "dpt", "DPTForDepthEstimation", neck_hidden_sizes=[16, 32, 64, 64], fusion_hidden_size=32,
        backbone_out_indices=[0, 1, 2, 3], is_hybrid=False, reassemble_factors=[4, 2, 1, 0.5],
        **{**IMAGE, "patch_size": 16},
    )  # fmt: skip
    images = make_images(2)
    return train(model, lambda: model(pixel_values=images).predicted_depth.square().mean())


@step
def paligemma():
    model = make_hf(
        "paligemma", "PaliGemmaForConditionalGeneration", image_token_index=2, projection_dim=128,
        text_config={"model_type": "gemma", **SMALL, "vocab_size": WORDS,
                     "num_key_value_heads": 1, "head_dim": 32},
        vision_config={"model_type": "siglip_vision_model", **SEEN, "image_size": 32},
    )  # fmt: skip
    ids, images = make_ids(2, 64), make_images(2, 32)
    ids[:, 1:17] = 2
    kinds = torch.zeros_like(ids)
    return train(
        model,
        lambda: model(input_ids=ids, pixel_values=images, token_type_ids=kinds, labels=ids).loss,
    )


@step
def llava():
    model = make_hf(
        "llava", "AutoModelForImageTextToText", image_token_index=2,
        text_config={"model_type": "llama", **SMALL, "vocab_size": WORDS},
        vision_config={"model_type": "clip_vision_model", **SMALL, "image_size": 32,
                       "patch_size": 8},
    )  # fmt: skip
    ids = make_ids(2, 64)
    ids[:, 1:17] = 2
    images = make_images(2, 32)
    return train(model, lambda: model(input_ids=ids, pixel_values=images, labels=ids).loss)


# Generation, with a cache.
def generate(model, **inputs):
    model.eval()
    return lambda: model.generate(
        **inputs, max_new_tokens=16, min_new_tokens=16, pad_token_id=0, use_cache=True
    )


@step
def llama_generates():
    model = make_causal("llama", num_key_value_heads=2)
    return generate(model, input_ids=make_ids(), do_sample=False)


@step
def qwen3_samples():
    model = make_causal("qwen3", head_dim=32)
    return generate(model, input_ids=make_ids(), do_sample=True, top_k=20, temperature=0.7)


@step
def llama_static_cache():
    model = make_causal("llama")
    return generate(model, input_ids=make_ids(), do_sample=False, cache_implementation="static")


@step
def t5_generates():
    model = make_hf("t5", "AutoModelForSeq2SeqLM", **T5)
    return generate(model, input_ids=make_ids(), do_sample=False)


@step
def gpt2_beams():
    model = make_causal("gpt2", n_embd=128, n_layer=4, n_head=4)
    return generate(model, input_ids=make_ids(2, 64), num_beams=3, do_sample=False)


@step
def llama_decodes_by_hand():
    model, ids = make_causal("llama").eval(), make_ids()

    @torch.inference_mode()
    def run():
        made = model(input_ids=ids, use_cache=True)
        for _ in range(8):
            chosen = made.logits[:, -1:].argmax(-1)
            made = model(input_ids=chosen, past_key_values=made.past_key_values, use_cache=True)

    return run


# timm
def make_timm(name, **options):
    import timm

    return timm.create_model(name, num_classes=10, **options)


def train_timm(name, optimizer=torch.optim.AdamW, batch=BATCH, side=64, **options):
    model, images = make_timm(name, **options), make_images(batch, side)
    labels = torch.randint(0, 10, (batch,))
    return train(model, lambda: functional.cross_entropy(model(images), labels), optimizer)


VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
for name, options in {
    "convnext_atto": {"drop_path_rate": 0.1},
    "efficientnet_b0": {},
    "vit_tiny_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": {
        "img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    "resnet18": {},
    "resnetv2_50": {"layers": (1, 1, 1, 1)},
    "mobilenetv3_small_100": {},
    "regnety_002": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "gmixer_24_224": {"img_size": 64},
    "eva02_tiny_patch14_224": {
        "img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4},
    "coatnet_nano_rw_224": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "poolformer_s12": {},
    "repvgg_a0": {},
    "convnextv2_atto": {},
    "beit_base_patch16_224": {"img_size": 64, "embed_dim": 128, "depth": 2, "num_heads": 4},
    "mambaout_femto": {},
    "mixer_s32_224": {"img_size": 64},
}.items():  # fmt: skip
    STEPS[f"timm_{name}"] = functools.partial(train_timm, name, **options)


@step
def timm_resnet_with_average():
    """An average of the weights, mixup and a learning-rate schedule, as timm's recipes have."""
    from timm.utils import ModelEmaV3

    model, images = make_timm("resnet18"), make_images(8)
    average, optimizer = ModelEmaV3(model), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    targets = torch.softmax(torch.randn(8, 10), 1)

    def run():
        optimizer.zero_grad()
        mixed = images.mul(0.7).add_(images.flip(0).mul(0.3))
        functional.cross_entropy(model(mixed), targets).backward()
        optimizer.step()
        average.update(model)

    return run


@step
def timm_vit_evaluated():
    model, images = make_timm("vit_tiny_patch16_224", **VIT).eval(), make_images(16)

    @torch.no_grad()
    def run():
        right = 0
        for part in images.split(4):
            right += (model(part).argmax(1) == 0).sum().item()

    return run


# peft
def train_peft(config, kind="llama", **options):
    import peft

    model = peft.get_peft_model(make_causal(kind, **options), config)
    ids = make_ids()
    return train(model, lambda: model(input_ids=ids, labels=ids).loss)


@step
def lora():
    import peft

    return train_peft(peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.05))


@step
def dora_on_all_layers():
    import peft

    return train_peft(peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True))


@step
def prefix_tuning():
    import peft

    return train_peft(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16))


@step
def ia3():
    import peft

    config = peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    return train_peft(config)


# diffusers
UNET = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}


@step
def unet_denoises():
    import diffusers

    model = diffusers.UNet2DModel(
        sample_size=32, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), **UNET,
    )  # fmt: skip
    schedule = diffusers.DDPMScheduler(num_train_timesteps=100)
    images = make_images(8, 32)

    def measure():
        noise = torch.randn_like(images)
        moments = torch.randint(0, 100, (8,))
        noisy = schedule.add_noise(images, noise, moments)
        return functional.mse_loss(model(noisy, moments).sample, noise)

    return train(model, measure)


@step
def unet_with_text():
    import diffusers

    model = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **UNET,
    )  # fmt: skip
    model.enable_gradient_checkpointing()
    latents, words = torch.randn(4, 4, 16, 16), torch.randn(4, 16, 32)
    moments = torch.randint(0, 100, (4,))
    return train(model, lambda: functional.mse_loss(model(latents, moments, words).sample, latents))


@step
def diffusion_transformer():
    import diffusers

    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, num_layers=4, sample_size=16, patch_size=2,
        num_embeds_ada_norm=100, out_channels=4,
    )  # fmt: skip
    latents, moments = torch.randn(8, 4, 16, 16), torch.randint(0, 100, (8,))
    labels = torch.randint(0, 100, (8,))

    def measure():
        made = model(latents, timestep=moments, class_labels=labels).sample
        return functional.mse_loss(made, latents)

    return train(model, measure)


def train_transformer(model, shape, **given):
    """A denoiser of diffusers on latents of the shape, with a batch of two."""
    latents = torch.randn(2, *shape)
    return train(model, lambda: model(latents, **given).sample.square().mean())


@step
def stable_diffusion_3():
    import diffusers

    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=64,
        pooled_projection_dim=48, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    return train_transformer(
        model, (4, 16, 16), encoder_hidden_states=torch.randn(2, 20, 32),
        pooled_projections=torch.randn(2, 48), timestep=torch.randint(0, 100, (2,)),
    )  # fmt: skip


@step
def flux():
    import diffusers

    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    model.enable_gradient_checkpointing()
    return train_transformer(
        model, (64, 16), encoder_hidden_states=torch.randn(2, 24, 32), timestep=torch.rand(2),
        pooled_projections=torch.randn(2, 32), img_ids=torch.zeros(64, 3),
        txt_ids=torch.zeros(24, 3),
    )  # fmt: skip


@step
def pixart():
    import diffusers

    model = diffusers.PixArtTransformer2DModel(
        sample_size=16, num_layers=3, patch_size=2, attention_head_dim=16, num_attention_heads=4,
        in_channels=4, cross_attention_dim=64, caption_channels=32, out_channels=8,
        use_additional_conditions=False,
    )  # fmt: skip
    return train_transformer(
        model, (4, 16, 16), encoder_hidden_states=torch.randn(2, 20, 32),
        timestep=torch.randint(0, 100, (2,)),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    )  # fmt: skip


@step
def autoencoder():
    import diffusers

    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64), norm_num_groups=8,
    )  # fmt: skip
    images = make_images(4, 32)

    def measure():
        latents = model.encode(images).latent_dist
        made = model.decode(latents.sample()).sample
        return functional.l1_loss(made, images) + 1e-6 * latents.kl().mean()

    return train(model, measure)


@step
def unet_samples():
    import diffusers

    model = diffusers.UNet2DModel(
        sample_size=32, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        **UNET,
    ).eval()  # fmt: skip
    schedule = diffusers.DDIMScheduler(num_train_timesteps=100)
    schedule.set_timesteps(3)

    @torch.no_grad()
    def run():
        images = make_images(4, 32)
        for moment in schedule.timesteps:
            images = schedule.step(model(images, moment).sample, moment, images).prev_sample

    return run


# Optimizers, as people write them.
class Lion(torch.optim.Optimizer):
    """The sign of a mixture of the gradient and its average."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            one, two = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.data.mul_(1 - group["lr"] * group["weight_decay"])
                state = self.state[weight]
                if not state:
                    state["average"] = torch.zeros_like(weight)
                average = state["average"]
                update = average.clone().mul_(one).add(weight.grad, alpha=1 - one).sign_()
                weight.add_(update, alpha=-group["lr"])
                average.mul_(two).add_(weight.grad, alpha=1 - two)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal by five steps of Newton and Schulz."""

    def __init__(self, params, lr=0.02, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if "average" not in state:
                    state["average"] = torch.zeros_like(weight)
                state["average"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["average"], group["momentum"])
                if update.ndim == 2:
                    update = self.orthogonalize(update)
                weight.add_(update, alpha=-group["lr"])

    @staticmethod
    def orthogonalize(matrix):
        tall = matrix.size(0) > matrix.size(1)
        matrix = matrix.T if tall else matrix
        matrix = matrix / (matrix.norm() + 1e-7)
        for _ in range(5):
            square = matrix @ matrix.T
            matrix = 3.4445 * matrix + (-4.775 * square + 2.0315 * square @ square) @ matrix
        return matrix.T if tall else matrix


for name, (optimizer, kind) in {
    "lion": (Lion, "llama"),
    "muon_by_hand": (Muon, "qwen2"),
    "sgd_nesterov": (functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True), "qwen2"),
    "adamw_fused": (functools.partial(torch.optim.AdamW, fused=True), "llama"),
    "adafactor": (torch.optim.Adafactor, "llama"),
    "nadam_foreach": (functools.partial(torch.optim.NAdam, foreach=True), "gpt2"),
}.items():
    STEPS[f"{kind}_{name}"] = functools.partial(train_causal, kind, optimizer)


@step
def vit_lbfgs():
    model, images = make_timm("vit_tiny_patch16_224", **{**VIT, "depth": 1}), make_images()
    labels = torch.randint(0, 10, (BATCH,))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, history_size=4)

    def measure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return lambda: optimizer.step(measure)


# Ways to train.
@step
def llama_autocast():
    model, ids = make_causal("llama"), make_ids()

    def measure():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(input_ids=ids, labels=ids).loss

    return train(model, measure)


def train_autocast(model, measure):
    def measure_in_16_bits():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return measure()

    return train(model, measure_in_16_bits)


@step
def vit_autocast():
    model, images = make_hf("vit", "AutoModelForImageClassification", **IMAGE), make_images()
    labels = torch.randint(0, 2, (BATCH,))
    return train_autocast(model, lambda: model(pixel_values=images, labels=labels).loss)


@step
def resnet_autocast():
    model, images = make_timm("resnet18"), make_images()
    labels = torch.randint(0, 10, (BATCH,))
    return train_autocast(model, lambda: functional.cross_entropy(model(images), labels))


@step
def mixtral_bfloat16():
    model = make_causal("mixtral", num_local_experts=4, num_key_value_heads=2).to(torch.bfloat16)
    ids = make_ids()
    return train(model, lambda: model(input_ids=ids, labels=ids).loss)


@step
def bert_checkpointed():
    model, ids = make_hf("bert", "AutoModelForMaskedLM", **TEXT), make_ids(8)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return train(model, lambda: model(input_ids=ids, labels=ids).loss)


@step
def qwen2_compiled():
    model, ids = make_causal("qwen2", num_hidden_layers=2), make_ids()
    compiled = torch.compile(model)
    return train(model, lambda: compiled(input_ids=ids, labels=ids).loss)


@step
def distillation():
    model, ids = make_causal("llama", num_hidden_layers=2), make_ids()
    teacher = make_causal("llama").eval()

    def measure():
        with torch.no_grad():
            aim = functional.softmax(teacher(input_ids=ids).logits / 2, -1)
        made = functional.log_softmax(model(input_ids=ids).logits / 2, -1)
        return functional.kl_div(made, aim, reduction="batchmean")

    return train(model, measure)


@step
def preferences():
    """Direct preference optimization: a model and its frozen copy on two answers."""
    model, good, bad = make_causal("qwen2"), make_ids(), make_ids()
    fixed = copy.deepcopy(model).requires_grad_(False).eval()

    def score(net, ids):
        logits = net(input_ids=ids).logits[:, :-1].log_softmax(-1)
        return logits.gather(-1, ids[:, 1:, None]).squeeze(-1).sum(-1)

    def measure():
        with torch.no_grad():
            before = score(fixed, good) - score(fixed, bad)
        return -functional.logsigmoid(score(model, good) - score(model, bad) - before).mean()

    return train(model, measure)


@step
def gan_with_gradient_penalty():
    maker = nn.Sequential(
        nn.ConvTranspose2d(64, 64, 4, 2, 0), nn.BatchNorm2d(64), nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 4, 0), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    critic = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1),
        nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64 * 8 * 8, 1),
    )  # fmt: skip
    first, second = (torch.optim.Adam(one.parameters(), 2e-4) for one in (maker, critic))
    images = torch.randn(16, 3, 32, 32)

    def run():
        noise = torch.randn(16, 64, 1, 1)
        made = maker(noise).detach()
        share = torch.rand(16, 1, 1, 1)
        mixed = (share * images + (1 - share) * made).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        penalty = (slope.flatten(1).norm(2, 1) - 1).square().mean()
        second.zero_grad()
        (critic(made).mean() - critic(images).mean() + 10 * penalty).backward()
        second.step()
        first.zero_grad()
        (-critic(maker(noise)).mean()).backward()
        first.step()

    return run


@step
def evaluation():
    model = make_hf("bert", "AutoModelForSequenceClassification", **TEXT).eval()
    ids, labels = make_ids(16), torch.randint(0, 2, (16,))

    @torch.no_grad()
    def run():
        total = 0.0
        for part, answers in zip(ids.split(4), labels.split(4), strict=True):
            made = model(input_ids=part, labels=answers)
            total += made.loss.item()
            (made.logits.argmax(-1) == answers).float().mean().item()

    return run


@step
def checkpointed_by_hand():
    blocks = nn.ModuleList(make_timm("convnext_atto").stages[0] for _ in range(3))
    values = torch.randn(8, 40, 32, 32)

    def measure():
        made = values
        for block in blocks:
            made = checkpoint(block, made, use_reentrant=False)
        return made.square().mean()

    return train(blocks, measure)


@step
def per_sample_gradients():
    from torch.func import functional_call, grad, vmap

    model, images = make_timm("vit_tiny_patch16_224", **VIT), make_images(8)
    weights = {name: one.detach() for name, one in model.named_parameters()}

    def measure(given, image):
        return functional_call(model, given, (image[None],)).logsumexp(-1).mean()

    return lambda: vmap(grad(measure), (None, 0))(weights, images)


def open_group():
    """A process group of this process alone."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@step
def gpt2_ddp():
    open_group()
    model, ids = make_causal("gpt2", n_embd=128, n_layer=4, n_head=4), make_ids()
    wrapped = nn.parallel.DistributedDataParallel(model)
    return train(wrapped, lambda: wrapped(input_ids=ids, labels=ids).loss)


@step
def llama_fsdp2():
    from torch.distributed.fsdp import fully_shard

    open_group()
    model, ids = make_causal("llama"), make_ids()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    return train(model, lambda: model(input_ids=ids, labels=ids).loss)


@step
def trainer_that_saves():
    """Transformers' own loop: batches of padded samples, a schedule, and a checkpoint each step."""
    import transformers

    folder = tempfile.TemporaryDirectory(prefix="labkit-trainer-")
    ids = make_ids(1, 64)[0]
    samples = [{"input_ids": ids[:length], "labels": ids[:length]} for length in (64, 48) * 8]

    def pad(batch):
        return {
            name: nn.utils.rnn.pad_sequence([one[name] for one in batch], batch_first=True)
            for name in batch[0]
        }

    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "report_to": []}
    arguments = transformers.TrainingArguments(
        folder.name, max_steps=2, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True,
        logging_strategy="no", **options,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=make_causal("llama"), args=arguments, train_dataset=samples, data_collator=pad
    )
    trainer.folder = folder  # removed with it

    def run():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train()

    return run


# Recurrences and graphs, in torch alone.
@step
def gru_classifier():
    model, head = nn.GRU(64, 128, 2, batch_first=True), nn.Linear(128, 10)
    values, labels = torch.randn(16, 48, 64), torch.randint(0, 10, (16,))
    both = nn.ModuleList([model, head])
    return train(both, lambda: functional.cross_entropy(head(model(values)[0][:, -1]), labels))


@step
def lstm_words():
    words, model, head = nn.Embedding(WORDS, 64), nn.LSTM(64, 128, 2), nn.Linear(128, WORDS)
    ids, both = make_ids(32, 16), nn.ModuleList([words, model, head])

    def measure():
        return functional.cross_entropy(head(model(words(ids))[0]).flatten(0, 1), ids.flatten())

    return train(both, measure)


@step
def graph_network():
    first, second = nn.Linear(64, 128), nn.Linear(128, 64)
    values, edges = torch.randn(2000, 64), torch.randint(0, 2000, (2, 10_000))

    def measure():
        made = values
        for layer in (first, second):
            sent = layer(made)[edges[0]]
            made = torch.zeros(2000, sent.size(1)).index_add(0, edges[1], sent).relu()
        return made.square().mean()

    return train(nn.ModuleList([first, second]), measure)


# How the estimates that are not exact say so.
BOUNDS = {
    **dict.fromkeys(("vit_lbfgs", "llama_fsdp2"), "upper bound"),
    "vits_speaks": "lower bound",
    **dict.fromkeys(("switch_transformers", "series_with_layerdrop"), "interval"),
    "qwen2_compiled": "upper bound",
}  # fmt: skip


class Comparison(NamedTuple):
    """An estimate beside what the profiler measured, in bytes, and how the estimate is flagged."""

    name: str
    estimated_bytes: int
    measured_bytes: int
    lowest_bytes: int
    flag: str

    @property
    def off(self):
        """The share by which the estimate is too high."""
        return self.estimated_bytes / self.measured_bytes - 1

    @property
    def holds(self):
        """True if it is within one percent, or off in the direction that it names."""
        low = self.lowest_bytes / self.measured_bytes - 1
        at_most, at_least = self.off <= 0.01, self.off >= -0.01
        return {
            "": at_most and at_least,
            "upper bound": at_least,
            "lower bound": at_most,
            "interval": at_least and low <= 0.01,
        }[self.flag]


def compare_step(name):
    """Estimates a step, and measures it: making it, and running it twice."""

    def make_step():
        torch.manual_seed(0)
        return STEPS[name]()

    def run():
        step = make_step()
        step()
        step()

    estimate = estimate_memory(make_step)
    run()  # what is loaded or kept once
    gc.collect()
    with track_memory("cpu", tensors=True) as tracked:
        run()
    lowest = estimate.peak_bytes if estimate.lowest_bytes is None else estimate.lowest_bytes
    # An interval within the one percent that is allowed needs no flag.
    flag = "interval" if lowest < 0.99 * estimate.peak_bytes else ""
    flag = "lower bound" if estimate.obstacle else "upper bound" if estimate.excess else flag
    measured = tracked.use.find_span("tensors").peak_bytes
    return Comparison(name, estimate.peak_bytes, measured, lowest, flag)
