"""Inputs for a model that is named: tensors by the names of its arguments, without their values.

A model that reads text and sees images gets one image for each sample, and the tokens that stand
for it in the sequence. Its size is the configuration's; models that take images of any size get
one of about 448 pixels.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from labkit.memory.estimate.model import NamedPlan

SIDE = 448
ENCODERS = ("vision_config", "encoder")
# The words that end the names of classes whose forward computes a loss from labels.
WITH_LABELS = ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM", "LMHeadModel")


class Image(NamedTuple):
    """An image: its pixels and the tokens that stand for it.

    ``shape`` is that of a sample's pixels. ``grid`` is (time, height, width) in patches, where the
    model takes images of any size; its pixels are then rows of patches. ``has_size``: the model
    gets the image's size too.
    """

    height: int
    width: int
    tokens: int
    token: int
    shape: tuple[int, ...]
    grid: tuple[int, int, int] | None = None
    has_size: bool = False


def list_arguments(model: Any) -> set[str]:
    """The names of the arguments that the model's forward takes."""
    return set(inspect.signature(get_base(model).forward).parameters)


def sees_and_writes(model: Any) -> bool:
    """True for a model that generates text from text and images."""
    base = get_base(model)
    wanted = {"input_ids", "pixel_values"} <= list_arguments(model)
    return bool(wanted and hasattr(base, "can_generate") and base.can_generate())


def find_image(model: Any, dtype: Any) -> Image | None:
    """The image that the model sees in each sample; None if its inputs are not known.

    The model is on the meta device.
    """
    config = get_base(model).config
    tokens = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    token = next((one for one in tokens if isinstance(one, int) and one >= 0), None)
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return None
    if token is None:
        return _find_tokenless(model, vision)
    try:
        if "image_grid_thw" in list_arguments(model):
            return _cut_image(vision, token)
        if "pixel_attention_mask" in list_arguments(model):
            return _take_one_tile(config, token)
        tiled = bool(getattr(config, "image_grid_pinpoints", None))
        return (_tile_image if tiled else _ask_model)(model, vision, token, dtype)
    except Exception:  # whatever the code of a model of another kind raises
        return None


def _find_tokenless(model: Any, vision: Any) -> Image | None:
    """The image of a model without a token for it, whose place in the sequence a mask names."""
    shape, parameters = _find_pixels(vision), inspect.signature(get_base(model).forward).parameters
    if "image_embeds_position_mask" in parameters:
        return Image(shape[1], shape[2], get_base(model).config.latent_query_num, 0, shape)
    is_required = parameters["pixel_values"].default is inspect.Parameter.empty
    return Image(shape[1], shape[2], 0, 0, shape) if is_required else None


def _cut_image(vision: Any, token: int) -> Image:
    """An image in patches, which the model merges into tokens."""
    patch, merged = vision.patch_size, vision.spatial_merge_size
    count = max(1, round(SIDE / (patch * merged))) * merged
    depth = getattr(vision, "temporal_patch_size", 1)
    channels = vision.in_channels if hasattr(vision, "in_channels") else vision.in_chans
    shape = (count * count, channels * depth * patch * patch)
    side = count * patch
    return Image(side, side, (count // merged) ** 2, token, shape, (1, count, count))


def _ask_model(model: Any, vision: Any, token: int, dtype: Any) -> Image:
    """An image of the configuration's size, and the number of features that the model makes."""
    import torch

    base, shape = get_base(model), _find_pixels(vision)
    queries = getattr(base.config, "num_query_tokens", None)  # one feature for each
    if isinstance(queries, int):
        return Image(shape[1], shape[2], queries, token, shape)
    asked = inspect.signature(base.get_image_features).parameters.get("image_sizes")
    has_size = asked is not None and asked.default is inspect.Parameter.empty
    given = {"image_sizes": torch.tensor([shape[1:]])} if has_size else {}
    count = _count_features(model, shape, dtype, **given)
    return Image(shape[1], shape[2], count, token, shape, None, has_size)


def _tile_image(model: Any, vision: Any, token: int, dtype: Any) -> Image:
    """An image of the largest size that the configuration has tiles for, and it as a whole."""
    import torch

    sizes = get_base(model).config.image_grid_pinpoints
    high, wide = max(sizes, key=lambda size: size[0] * size[1])
    channels, height, width = _find_pixels(vision)
    shape = (-(-high // height) * -(-wide // width) + 1, channels, height, width)
    given = {"image_sizes": torch.tensor([[high, wide]])}
    return Image(
        high, wide, _count_features(model, shape, dtype, **given), token, shape, None, True
    )


def _take_one_tile(config: Any, token: int) -> Image:
    """An image of a single tile, of which each sample may have several."""
    vision = config.vision_config
    shape = _find_pixels(vision)
    resampled = getattr(config, "perceiver_config", None)
    merged = getattr(config, "scale_factor", 1) ** 2
    patches = (shape[1] // vision.patch_size) * (shape[2] // vision.patch_size)
    count = resampled.resampler_n_latents if resampled else patches // merged
    return Image(shape[1], shape[2], count, token, (1, *shape))


def _count_features(model: Any, shape: tuple[int, ...], dtype: Any, **given: Any) -> int:
    """How many tokens the model, which is on the meta device, makes of an image."""
    import torch

    from labkit.memory.track.storages import list_tensors

    with torch.no_grad():
        pixels = torch.empty(1, *shape, dtype=dtype, device="meta")
        made = get_base(model).get_image_features(pixel_values=pixels, **given)
    features = getattr(made, "pooler_output", made)
    return sum(one.numel() // one.shape[-1] for one in list_tensors(features))


def _find_pixels(vision: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images of this configuration."""
    side = getattr(vision, "image_size", None) or getattr(vision, "input_size", 224)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return getattr(vision, "num_channels", 3), height, width


def make_inputs(model: Any, plan: NamedPlan, batch: int, image: Image | None) -> dict[str, Any]:
    """Inputs of the model's own kind, by the names of its arguments."""
    import torch

    dtype = getattr(torch, plan.dtype)
    if plan.library == "timm":
        channels, height, width = model.default_cfg["input_size"]
        return {"x": torch.zeros(batch, channels, height, width, dtype=dtype)}
    base = get_base(model)
    config, main, names = base.config, base.main_input_name, list_arguments(model)
    writes = sees_and_writes(model)
    if main == "input_features":
        length = 2 * getattr(config, "max_source_positions", 1500)
        sounds = torch.zeros(batch, getattr(config, "num_mel_bins", 80), length, dtype=dtype)
        ids = torch.zeros(batch, plan.sequence, dtype=torch.int64)
        return {main: sounds, "decoder_input_ids": ids}
    if main == "input_values":
        return {main: torch.zeros(batch, *_find_sound(config), dtype=dtype)}
    given: dict[str, Any] = {}
    if "pixel_values" in names and not writes:
        # An encoder beside a decoder of its own has the configuration "encoder".
        vision = next(
            (one for one in (getattr(config, key, None) for key in ENCODERS) if one), config
        )
        given["pixel_values"] = torch.zeros(batch, *_find_pixels(vision), dtype=dtype)
    if main == "pixel_values" and "input_ids" not in names:
        if "decoder_input_ids" in names:
            ids = torch.zeros(batch, plan.sequence, dtype=torch.int64)
            given["decoder_input_ids"] = ids
        return given
    ids = torch.zeros(batch, _find_length(model, plan, image), dtype=torch.int64)
    given["input_ids"] = ids
    if "bbox" in names:
        given["bbox"] = torch.zeros(*ids.shape, 4, dtype=torch.int64)
    if given.keys() > {"input_ids"}:  # an encoder of images beside one of text
        return given | ({"return_loss": True} if "return_loss" in names else {})
    if writes and image is not None:
        given |= _show(image, batch, ids, dtype, names)
    if getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids
    if plan.task == "train" and type(base).__name__.endswith(WITH_LABELS):
        given["labels"] = ids  # the model computes its own loss
    return given


def find_text_limit(model: Any) -> int | None:
    """The most tokens of an encoder of text beside one of images; None for other models."""
    config = get_base(model).config
    is_pair = {"input_ids", "pixel_values"} <= list_arguments(model) and not sees_and_writes(model)
    longest = getattr(getattr(config, "text_config", None), "max_position_embeddings", None)
    return longest if is_pair and isinstance(longest, int) else None


def _find_length(model: Any, plan: NamedPlan, image: Image | None) -> int:
    """The tokens of a sequence: at least the image's and two of text."""
    longest = find_text_limit(model)
    if longest is not None:
        return min(plan.sequence, longest)
    return max(plan.sequence, image.tokens + 2 if image else 0)


def _find_sound(config: Any) -> tuple[int, ...]:
    """The shape of a second of sound, or of the spectrogram that the configuration names."""
    length, bins = (getattr(config, name, None) for name in ("max_length", "num_mel_bins"))
    if isinstance(length, int) and isinstance(bins, int):
        return (length, bins)
    channels = getattr(config, "audio_channels", None)
    return (channels, 16_000) if isinstance(channels, int) else (16_000,)


def _show(image: Image, batch: int, ids: Any, dtype: Any, names: set[str]) -> dict[str, Any]:
    """The image's pixels, with its tokens put into the ids."""
    import torch

    ids[:, : image.tokens] = image.token
    kinds = (ids == image.token).to(torch.int64)
    shape = (
        (batch, *image.shape) if image.grid is None else (batch * image.shape[0], image.shape[1])
    )
    # An image of zeros is padding for some models.
    given = {"pixel_values": torch.ones(shape, dtype=dtype)}
    if image.grid is not None:
        given["image_grid_thw"] = torch.tensor([list(image.grid)] * batch)
    if image.has_size:
        given["image_sizes"] = torch.tensor([[image.height, image.width]] * batch)
    if "image_embeds_position_mask" in names:
        given["image_embeds_position_mask"] = (
            torch.arange(ids.shape[1]).expand(ids.shape) < image.tokens
        )
    return given | {
        name: kinds for name in ("token_type_ids", "mm_token_type_ids") if name in names
    }


def get_base(model: Any) -> Any:
    """The model within peft's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
