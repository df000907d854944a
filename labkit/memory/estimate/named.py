"""Steps of models that are named instead of written: Hugging Face's and timm's, without weights.

``make_named_work`` builds the model from its configuration on fake tensors and returns its
training, inference or generation step; ``list_remedies`` names the changes that need less memory.
Transformers, timm and peft are imported if the model needs them, and are not required by labkit.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import UsageError
from labkit.memory.estimate.formats import FORMATS, check_config, find_format
from labkit.memory.estimate.model import NamedPlan
from labkit.memory.estimate.named_inputs import (
    Image,
    find_image,
    find_text_limit,
    get_base,
    make_inputs,
    sees_and_writes,
)
from labkit.process import name_python
from labkit.text import first_line, format_bytes, near_match, shorten


def import_library(name: str) -> Any:
    """The library; raises UsageError with the next command where it is missing or damaged."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise refuse_library(name, error) from error


def refuse_library(name: str, error: BaseException) -> UsageError:
    """The error for a library that cannot be imported, as a whole or in part."""
    if find_spec(name) is None:
        return UsageError(
            f"{name} is not installed",
            cause="models by name need it, and labkit does not require it",
            fix=f"{name_python()} -m pip install {name}",
        )
    first = error
    while (deeper := first.__cause__ or first.__context__) is not None:
        first = deeper
    said = first_line(str(first)) or type(first).__name__
    broken = re.search(r"\b(torchvision|torchaudio|timm|accelerate)\b", said)
    return UsageError(
        f"{name} cannot be imported: {said}",
        cause="it is installed, but something that it imports does not suit this torch",
        fix=f'{name_python()} -c "import {broken[1] if broken else name}"',
    )


class NamedWork(NamedTuple):
    """A function of the batch size and these arguments, which makes the step.

    ``cache`` gets the cache's size in bytes, as "bytes", when a generation has run; ``notes`` gets
    what the estimate assumes. A model that sees gets the ``image``; it ``is_blind`` if what it
    needs beside text is not known, or was not wanted.
    """

    make_step: Callable[..., Callable[[], object]]
    arguments: tuple[Any, ...]
    cache: dict[str, int]
    notes: list[str]
    image: Image | None = None
    is_blind: bool = False


def make_named_work(plan: NamedPlan, *, shows_images: bool = True) -> NamedWork:
    """The plan's work; reads the configuration, and makes the model on the meta device.

    So the peak has no unquantized weights. Timm's models ask for values while they are made: they
    are made on fake tensors. Raises UsageError if the library, the model or the configuration is
    not found, the model cannot be built, or it cannot do the task.
    """
    if plan.library == "hf":
        plan = dataclasses.replace(plan, name=check_config(plan.name))
    make_model = _find_hf(plan) if plan.library == "hf" else _find_timm(plan)
    import torch

    if plan.lora is not None:
        import_library("peft")
    cache: dict[str, int] = {}
    notes: list[str] = []
    image: Image | None = None

    def prepare() -> Any:
        model = make_model()
        if plan.weights:
            _quantize(model, plan, notes)
        if plan.checkpointing:
            _checkpoint(model)
        return model if plan.lora is None else _adapt(model, dict(plan.lora))

    def make_step(batch: int, made: Any = None) -> Callable[[], object]:
        model = prepare() if made is None else made
        inputs = make_inputs(model, plan, batch, image)
        if plan.task == "train":
            return _train(model, inputs, plan.optimizer)
        model.eval()
        if plan.task == "generate":
            return functools.partial(_generate, model, inputs, cache)
        return lambda: model(**inputs)

    make_step.__name__ = Path(plan.name).name  # for messages
    if plan.library == "timm":
        return NamedWork(make_step, (), cache, notes)
    try:
        with torch.device("meta"):
            made = prepare()
    except UsageError:
        raise
    except Exception as error:  # whatever the model's code raises for this configuration
        raise UsageError(
            f"{plan.name} cannot be built: {type(error).__name__}: {first_line(str(error))}",
            cause="values of the configuration do not suit each other, or not the options",
            fix="the same command with --debug, which shows the traceback",
        ) from error
    _note_limits(made, plan, notes)
    sees = sees_and_writes(made)
    image = find_image(made, getattr(torch, plan.dtype)) if sees and shows_images else None
    if image is not None:
        notes.append(_describe_image(image, plan))
    return NamedWork(make_step, (made,), cache, notes, image, sees and image is None)


def follow_config(plan: NamedPlan) -> NamedPlan:
    """The plan with the format of weights that the configuration names, if the task can have it.

    Quantized weights are not trained: without adapters the plan stays as it is. So it does where
    the configuration cannot be read, which ``make_named_work`` explains.
    """
    is_trained = plan.task == "train" and plan.lora is None
    if plan.library != "hf" or plan.weights or is_trained:
        return plan
    transformers = import_library("transformers")
    try:
        config = _read_config(transformers, check_config(plan.name))
    except Exception:  # its checks have exceptions of their own
        return plan
    found = find_format(getattr(config, "quantization_config", None))
    if found == "mxfp4" and plan.task == "train":  # which transformers unpacks
        return plan
    return dataclasses.replace(plan, weights=found)


def _read_config(transformers: Any, name: str) -> Any:
    """The configuration of a name or a file, of which a command reads each once."""
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    status = path.stat() if path.exists() else None
    key = (name, status and (status.st_mtime_ns, status.st_size, status.st_ino))
    if key not in _configs:
        _configs.clear()
        # Code that a model brings along is not run.
        found = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        _configs[key] = found
    return copy.deepcopy(_configs[key])  # a model changes its configuration


# The configuration that was read last, by its name and the file's status.
_configs: dict[Any, Any] = {}


def _find_hf(plan: NamedPlan) -> Callable[[], Any]:
    transformers = import_library("transformers")
    try:
        config = _read_config(transformers, plan.name)
        cls = _choose_class(transformers, config, plan)
    except UsageError:
        raise
    except ImportError as error:
        raise refuse_library("transformers", error) from error
    except Exception as error:  # its checks have exceptions of their own
        raise _refuse_name(transformers, plan.name, error) from error
    import torch

    dtype = getattr(torch, plan.dtype)
    build = getattr(cls, "from_config", None) or cls._from_config
    return lambda: build(config, dtype=dtype).train()


def _refuse_name(transformers: Any, name: str, error: Exception) -> UsageError:
    """The error for a configuration that transformers does not take."""
    said = shorten(" ".join(str(error).split()), 240) or type(error).__name__
    own = "labkit estimate train.py:make_step, where make_step makes the model"
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return UsageError(
            f"{name} needs code of its own, which is not in transformers",
            cause="labkit does not run code that a model brings along",
            fix=own,
        )
    unknown = re.search(r"model type `(.+?)`", said)
    if unknown:
        known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        near = near_match(unknown[1], known)
        return UsageError(
            f"transformers {transformers.__version__} does not know the model_type {unknown[1]!r}",
            cause=f"near it is {near!r}" if near else "the model is newer, or not of transformers",
            fix=own,
        )
    if Path(name).exists():
        return UsageError(
            f"transformers does not take {name}: {said}",
            cause="a value of the configuration does not suit its model_type",
            fix="the same command with --debug, which shows the traceback",
        )
    return UsageError(
        f"{name} was not read from Hugging Face: {said}",
        cause="it is no file here; the name is wrong or needs a login, or there is no network",
        fix="labkit estimate hf:config.json, with a copy of the model's config.json",
    )


def _describe_image(image: Image, plan: NamedPlan) -> str:
    if not image.tokens:
        return f"each sample has one image of {image.height} x {image.width} pixels"
    needed = image.tokens + 2
    longer = f"; the sequence is therefore {needed}" if needed > plan.sequence else ""
    return (
        f"each sample has one image of {image.height} x {image.width} pixels, which is"
        f" {image.tokens} tokens of its sequence{longer}"
    )


def _note_limits(model: Any, plan: NamedPlan, notes: list[str]) -> None:
    """Notes what the configuration says and the simulation does not follow."""
    config = getattr(model, "config", None)
    for name in ("max_position_embeddings", "max_target_positions"):
        longest = getattr(config, name, None)
        if isinstance(longest, int) and 0 < longest < plan.sequence:
            notes.append(
                f"the sequence of {plan.sequence} is longer than the model's {name}, {longest}"
            )
            break
    longest = find_text_limit(model)
    if longest is not None and longest < plan.sequence:
        notes.append(f"the text beside an image has {longest} tokens, the most that it can have")
    settings = getattr(config, "quantization_config", None)
    if settings and not plan.weights:
        notes.append(
            f"the configuration's quantization_config is not applied: the weights are in"
            f" {plan.dtype}; --weights packs them"
        )
    elif settings and plan.weights == find_format(settings):
        notes.append(f"weights in {plan.weights}: the configuration's quantization_config")


# In this order: the first one that has the model's type.
HF_CLASSES = {
    "generate": ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText"),
    "train": (
        "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM",
        "AutoModelForImageClassification", "AutoModelForSpeechSeq2Seq", "AutoModelForCTC",
        "AutoModelForImageTextToText", "AutoModel",
    ),
}  # fmt: skip


def _choose_class(transformers: Any, config: Any, plan: NamedPlan) -> Any:
    names = getattr(config, "architectures", None)
    named = names[0] if isinstance(names, list) and names else None
    cls = getattr(transformers, named, None) if isinstance(named, str) else None
    expected = getattr(cls, "config_class", None)
    if expected is not None and not isinstance(config, expected):
        raise UsageError(
            f"{plan.name} names {named}, but its model_type is {config.model_type!r}",
            cause=f"{named} takes a {expected.__name__}",
            fix=f"correct architectures or model_type in {plan.name}",
        )
    if cls is not None and (plan.task != "generate" or cls.can_generate()):
        return cls
    for name in HF_CLASSES["generate" if plan.task == "generate" else "train"]:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto
    raise UsageError(
        f"{plan.name} ({config.model_type}) cannot {plan.task}",
        cause="transformers has no class of that model for this task",
        fix=f"labkit estimate hf:{plan.name} --task infer"
        if plan.task == "generate"
        else "labkit estimate train.py:make_step, where make_step makes the model",
    )


def _find_timm(plan: NamedPlan) -> Callable[[], Any]:
    timm = import_library("timm")
    import torch

    if plan.task == "generate":
        raise UsageError(
            f"{plan.name} cannot generate",
            cause="timm's models see images",
            fix=f"labkit estimate timm:{plan.name} --task infer",
        )
    if not timm.is_model(plan.name):
        near = near_match(plan.name.lower(), timm.list_models())
        raise UsageError(
            f"timm has no model {plan.name!r}",
            cause="timm.list_models() has the names",
            fix=f"labkit estimate timm:{near or 'resnet50'}",
        )
    dtype = getattr(torch, plan.dtype)

    def build() -> Any:
        # Not made in float32 first, whose weights would be the peak.
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return timm.create_model(plan.name, pretrained=False).to(dtype).train()
        finally:
            torch.set_default_dtype(before)

    return build


def _measure_loss(output: Any) -> Any:
    """The cross entropy of a model's logits, else the mean square of its first result."""
    import torch
    from torch.nn import functional

    if isinstance(output, torch.Tensor):
        logits = output
    elif getattr(output, "loss", None) is not None:
        return output.loss
    else:
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor):
            return _find_result(output).float().square().mean()
    # As transformers computes it: in float32, with one target for each row.
    rows = logits.float().flatten(0, -2) if logits.dim() > 1 else logits.float()[None]
    return functional.cross_entropy(rows, torch.zeros(len(rows), dtype=torch.int64))


def _find_result(output: Any) -> Any:
    """The first tensor of the output that can be differentiated."""
    from labkit.memory.track.storages import list_tensors

    parts = list(output.values()) if hasattr(output, "values") else output
    return next(one for one in list_tensors(parts) if one.requires_grad)


def _train(model: Any, inputs: dict[str, Any], name: str) -> Callable[[], object]:
    optimizer = make_optimizer(name, [one for one in model.parameters() if one.requires_grad])

    def step() -> None:
        _measure_loss(model(**inputs)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _measure_cache(cache: Any) -> int:
    """The bytes of the tensors that a cache of transformers keeps for the next token."""
    parts = (
        (cache.self_attention_cache, cache.cross_attention_cache)
        if hasattr(cache, "cross_attention_cache")
        else (cache,)
    )
    layers = [layer for one in parts for layer in getattr(one, "layers", ())]
    from labkit.memory.track.storages import list_tensors

    kept = list_tensors([list(vars(layer).values()) for layer in layers])
    return sum(
        {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in kept}.values()
    )


def _generate(model: Any, inputs: dict[str, Any], cache: dict[str, int]) -> Any:
    """Fills the cache with all tokens but one, as ``generate`` does, and makes the last one."""
    given = dict(inputs)
    base = get_base(model)
    if hasattr(base, "text_decoder") and "pixel_values" in given:  # it gets the image's features
        seen = base.vision_model(pixel_values=given.pop("pixel_values"))[0]
        given["encoder_hidden_states"], model = seen, base.text_decoder
    name = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    ids = given[name]
    given[name] = ids[:, :-1]
    last: dict[str, Any] = {"input_ids": ids[:, -1:]}
    for kinds in given.keys() & {"token_type_ids", "mm_token_type_ids"}:
        last[kinds], given[kinds] = given[kinds][:, -1:], given[kinds][:, :-1]
    last |= {name: given[name] for name in given.keys() & {"encoder_hidden_states"}}
    writer = model
    pixels = inspect.signature(base.forward).parameters.get("pixel_values")
    if pixels is not None and pixels.default is pixels.empty and hasattr(base, "language_model"):
        writer = base.language_model
    if "image_embeds_position_mask" in given:
        given["image_embeds_position_mask"] = given["image_embeds_position_mask"][:, :-1]
        writer = base.text_model
    made = model(**given, use_cache=True, **({} if "decoder" in name else {"logits_to_keep": 1}))
    if name == "decoder_input_ids":
        encoded = getattr(made, "encoder_last_hidden_state", None)
        last = {"encoder_outputs": (encoded,), "decoder_input_ids": ids[:, -1:]}
    made = getattr(made, "language_model_outputs", made)
    made = writer(**last, past_key_values=made.past_key_values, use_cache=True)
    cache["bytes"] = _measure_cache(made.past_key_values)
    return made


def _checkpoint(model: Any) -> None:
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)


def _adapt(model: Any, options: dict[str, Any]) -> Any:
    peft = import_library("peft")
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    except ValueError as error:
        linear = {
            name.rpartition(".")[2]
            for name, one in model.named_modules()
            if type(one).__name__ in {"Linear", "Conv1D"}
        }
        rank = options.get("r", 16)
        raise UsageError(
            f"peft cannot adapt {type(model).__name__}: {first_line(str(error))}",
            cause=f"its linear modules are {', '.join(sorted(linear)[:12]) or 'none'}",
            fix=f"--lora r={rank},targets={'+'.join(sorted(linear)[:2]) or 'all-linear'}",
        ) from error
    if getattr(model, "is_gradient_checkpointing", False):
        model.enable_input_require_grads()
    return adapted


def _quantize(model: Any, plan: NamedPlan, notes: list[str]) -> None:
    """Replaces the weights of all linear layers, except the head's, by packed ones."""
    import torch
    from torch import nn

    form = FORMATS[plan.weights or ""]
    if plan.weights == "mxfp4" and _pack_experts(model, plan, notes):
        return
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None

    class Dequantize(torch.autograd.Function):  # type: ignore[misc]
        """Unpacks the weight for the product, and again for the gradient, as libraries do."""

        @staticmethod
        def forward(context: Any, values: Any, packed: Any, shape: Any) -> Any:
            context.save_for_backward(packed)
            context.shape = shape
            return values @ packed.new_empty(shape, dtype=values.dtype).mT

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            (packed,) = context.saved_tensors
            (gradient,) = gradients
            return gradient @ packed.new_empty(context.shape, dtype=gradient.dtype), None, None

    def multiply(layer: Any, values: Any) -> Any:
        made = Dequantize.apply(values, layer.weight, (layer.out_features, layer.in_features))
        return made if layer.bias is None else made + layer.bias

    for layer in list(model.modules()):
        if type(layer) is not nn.Linear or layer is head:
            continue
        size = form.count_bytes(layer.out_features, layer.in_features)
        packed = torch.empty(size, dtype=torch.uint8)
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.forward = functools.partial(multiply, layer)
    # transformers keeps the experts of a layer in one tensor, which the libraries pack or not.
    whole = sum(
        held.numel() * held.element_size()
        for module in model.modules()
        for held in module._parameters.values()
        if held is not None and held.dim() == 3 and "Conv" not in type(module).__name__
    )
    if whole:
        notes.append(
            f"--weights {plan.weights} packs linear layers: {format_bytes(whole)} of experts stay"
            f" in {plan.dtype}"
        )


def _pack_experts(model: Any, plan: NamedPlan, notes: list[str]) -> bool:
    """Packs the experts of GPT-OSS, whose other layers stay; False for other models.

    As in transformers' ``Mxfp4GptOssExperts``, whose kernels multiply by packed weights.
    """
    import torch
    from torch import nn

    layers = [one for one in model.modules() if type(one).__name__ == "GptOssExperts"]
    if layers and plan.task == "train":
        raise UsageError(
            "experts in mxfp4 cannot be trained, nor adapters beside them",
            cause="the kernels for packed experts have no backward pass",
            fix="--weights nf4 --lora r=16, or --dtype bf16 --lora r=16 without --weights",
        )

    def multiply(layer: Any, states: Any, indices: Any = None, *_: Any, **__: Any) -> Any:
        rows = states.numel() // states.shape[-1] * indices.shape[-1]
        inner = states.new_empty(rows, layer.intermediate_size)
        outer = inner.new_empty(rows, states.shape[-1])
        del inner
        return outer.new_empty(states.shape)

    for layer in layers:
        for name in ("gate_up_proj", "down_proj"):
            count, columns, rows = getattr(layer, name).shape
            size = count * FORMATS["mxfp4"].count_bytes(rows, columns)
            packed = torch.empty(size, dtype=torch.uint8)
            setattr(layer, name, nn.Parameter(packed, requires_grad=False))
        layer.forward = functools.partial(multiply, layer)
    if layers:
        notes.append(f"--weights mxfp4 packs experts: other layers stay in {plan.dtype}")
    return bool(layers)


def make_optimizer(name: str, weights: list[Any]) -> Any:
    """The optimizer of OPTIMIZERS for the weights, with its usual options."""
    import torch

    if name == "lion":
        return _make_stateful(weights, lambda one: [torch.empty_like(one)])
    if name == "adamw-8bit":
        return _make_stateful(weights, _make_8bit_state)
    optimizers: dict[str, Callable[..., Any]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "sgd-momentum": functools.partial(torch.optim.SGD, momentum=0.9),
        "adafactor": torch.optim.Adafactor,
    }
    return optimizers[name](weights, lr=1e-3)


def _make_8bit_state(weight: Any) -> list[Any]:
    """Two moments as bitsandbytes keeps them: a byte each, and a scale for 256 elements.

    Weights of less than 4,096 elements have moments in float32.
    """
    import torch

    if weight.numel() < 4096:
        return [torch.empty_like(weight, dtype=torch.float32) for _ in range(2)]
    blocks = -(-weight.numel() // 256)
    moments = [torch.empty_like(weight, dtype=torch.uint8) for _ in range(2)]
    return moments + [weight.new_empty(blocks, dtype=torch.float32) for _ in range(2)]


def _make_stateful(weights: list[Any], make_state: Callable[[Any], list[Any]]) -> Any:
    """An optimizer that updates in place, in one kernel, and keeps this state for each weight."""
    import torch

    class Stateful(torch.optim.Optimizer):  # type: ignore[misc]
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None and not self.state[weight]:
                        self.state[weight]["kept"] = make_state(weight)

    return Stateful(weights, {})


@dataclass(frozen=True)
class Remedy:
    """A change of the plan, and the peak that it has instead, in bytes."""

    words: str
    plan: NamedPlan = field(repr=False)
    peak_bytes: int = 0
    saved_bytes: int = 0
    fits: bool | None = None


MOST_PAIRS, PAIRS_SHOWN = 8, 3


def list_pairs(plan: NamedPlan, singles: Sequence[Remedy]) -> Iterator[Remedy]:
    """Two changes of the plan at once, each as a plan to estimate, the most promising first.

    ``singles`` are those that save memory alone, computed. The second change of a pair may be one
    that only the first makes possible, such as quantized weights beside adapters.
    """
    saved = {one.words: one.saved_bytes for one in singles}
    found: dict[NamedPlan, tuple[int, Remedy]] = {}
    for first in list_remedies(plan):
        if first.words not in saved:
            continue
        for second in list_remedies(first.plan):
            is_new = all(second.words != one.words for one in list_remedies(plan))
            # Half of a half is not another change.
            if second.words.split()[0] == first.words.split()[0]:
                continue
            if second.words in saved or is_new:
                promise = saved[first.words] + saved.get(second.words, 0)
                # What is new is not known alone: it is tried with what saves most.
                promise += is_new * max(saved.values())
                words = f"{first.words} {second.words}"
                found.setdefault(second.plan, (promise, Remedy(words, second.plan)))
    ordered = sorted(found.values(), key=lambda one: -one[0])
    yield from (one for _, one in ordered)


def list_remedies(plan: NamedPlan) -> Iterator[Remedy]:
    """The changes that can need less memory, each as a plan to estimate."""
    change = functools.partial(dataclasses.replace, plan)
    if plan.task == "train":
        if not plan.checkpointing:
            yield Remedy("--checkpointing", change(checkpointing=True))
        if plan.optimizer in {"adam", "adamw"}:
            yield Remedy("--optimizer adamw-8bit", change(optimizer="adamw-8bit"))
        if plan.lora is None and plan.library == "hf":
            yield Remedy("--lora r=16", change(lora=(("r", 16), ("target_modules", "all-linear"))))
        elif plan.weights is None and plan.library == "hf":
            yield Remedy("--weights nf4", change(weights="nf4"))
    elif plan.weights is None and plan.library == "hf":
        yield Remedy("--weights int8", change(weights="int8"))
        yield Remedy("--weights nf4", change(weights="nf4"))
    if plan.dtype == "float32":
        yield Remedy("--dtype bf16", change(dtype="bfloat16"))
    if plan.batch > 1:
        yield Remedy(f"--batch {plan.batch // 2}", change(batch=plan.batch // 2))
    if plan.library == "hf" and plan.sequence > 1:
        word = "context" if plan.task == "generate" else "sequence"
        yield Remedy(f"--{word} {plan.sequence // 2}", change(sequence=plan.sequence // 2))
