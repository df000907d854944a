"""Steps of models that are named instead of written: Hugging Face's and timm's, without weights.

``parse_source("hf:config.json")`` finds the library; ``make_named_work`` builds the model from its
configuration on fake tensors and returns its training, inference or generation step;
``list_remedies`` names the changes that need less memory. Transformers, timm and peft are imported
if the model needs them, and are not required by labkit.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import UsageError
from labkit.memory.estimate.formats import FORMATS, LIBRARIES, Format
from labkit.text import near_match


@dataclass(frozen=True)
class NamedPlan:
    """What to estimate: a model by name, its task, and how it is trained or run.

    ``lora`` has peft's options, such as {"r": 16}; None trains all weights. ``weights`` is one of
    FORMATS, None for unquantized ones. ``sequence`` is in tokens; for "generate" it is the length
    of the cache at the end.
    """

    library: str
    name: str
    task: str = "train"
    optimizer: str = "adamw"
    dtype: str = "float32"
    batch: int = 1
    sequence: int = 512
    lora: tuple[tuple[str, Any], ...] | None = None
    weights: str | None = None
    checkpointing: bool = False

    @property
    def title(self) -> str:
        """The work in words: ``llama, train, adamw, bfloat16, sequence 2048``."""
        words = [Path(self.name).name if self.library == "hf" else self.name, self.task]
        if self.task == "train":
            words.append(self.optimizer)
        words += [self.dtype, f"sequence {self.sequence}"]
        if self.weights:
            words.append(f"weights {self.weights}")
        if self.lora is not None:
            words.append("lora " + " ".join(f"{name}={value}" for name, value in self.lora))
        if self.checkpointing:
            words.append("checkpointing")
        return ", ".join(words)


def parse_source(word: str) -> tuple[str, str] | None:
    """Library and name of ``hf:NAME`` or ``timm:NAME``; None for another word.

    >>> parse_source("timm:resnet50"), parse_source("train.py:make_step")
    (('timm', 'resnet50'), None)
    """
    library, colon, name = word.partition(":")
    return (library, name) if colon and library in LIBRARIES and name else None


def parse_lora(word: str | None) -> tuple[tuple[str, Any], ...] | None:
    """peft's options from ``r=16,alpha=32,targets=q_proj+v_proj``.

    Raises UsageError for an unknown option.

    >>> parse_lora("r=16,targets=q_proj+v_proj")
    (('r', 16), ('target_modules', ['q_proj', 'v_proj']))
    """
    if word is None:
        return None
    names = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "dora": "use_dora",
             "targets": "target_modules"}  # fmt: skip
    options: dict[str, Any] = {}
    for part in word.split(","):
        name, equals, text = part.partition("=")
        if name not in names or not equals:
            raise UsageError(
                f"invalid --lora {word!r}: {part!r} is not an option",
                cause=f"the options are {', '.join(names)}",
                fix="--lora r=16,alpha=32,targets=q_proj+v_proj",
            )
        if name == "targets":
            options[names[name]] = text if text == "all-linear" else text.split("+")
            continue
        try:
            options[names[name]] = json.loads(text.lower())
        except json.JSONDecodeError as error:
            raise UsageError(
                f"invalid --lora {word!r}: {text!r} is not a number",
                cause=f"{name} is a number, or true for dora",
                fix="--lora r=16",
            ) from error
    return tuple(options.items())


def import_library(name: str) -> Any:
    """The library; raises UsageError with the command that installs it where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{name} cannot be imported: {error}",
            cause="this Python environment does not have it, and labkit does not require it",
            fix=f"pip install {name}",
        ) from error


class NamedWork(NamedTuple):
    """A function of the batch size and these arguments, which makes the step.

    ``cache`` gets the cache's size in bytes, as "bytes", when a generation has run.
    """

    make_step: Callable[..., Callable[[], object]]
    arguments: tuple[Any, ...]
    cache: dict[str, int]


def make_named_work(plan: NamedPlan) -> NamedWork:
    """The plan's work; reads the configuration, and makes the model on the meta device.

    So the peak has no unquantized weights. Timm's models ask for values while they are made: they
    are made on fake tensors. Raises UsageError if the library, the model or the configuration is
    not found, or the model cannot do the task.
    """
    import torch

    make_model = _find_hf(plan) if plan.library == "hf" else _find_timm(plan)
    if plan.lora is not None:
        import_library("peft")
    cache: dict[str, int] = {}

    def prepare() -> Any:
        model = make_model()
        if plan.weights:
            _quantize(model, FORMATS[plan.weights])
        if plan.checkpointing:
            _checkpoint(model)
        return model if plan.lora is None else _adapt(model, dict(plan.lora))

    def make_step(batch: int, made: Any = None) -> Callable[[], object]:
        model = prepare() if made is None else made
        inputs = _make_inputs(model, plan, batch)
        if plan.task == "train":
            return _train(model, inputs, plan.optimizer)
        model.eval()
        if plan.task == "generate":
            return functools.partial(_generate, model, inputs, cache)
        return lambda: model(**inputs)

    if plan.library == "timm":
        return NamedWork(make_step, (), cache)
    with torch.device("meta"):
        return NamedWork(make_step, (prepare(),), cache)


def _find_hf(plan: NamedPlan) -> Callable[[], Any]:
    transformers = import_library("transformers")
    path = Path(plan.name)
    if path.suffix == ".json" and not path.is_file():
        raise UsageError(
            f"{path} does not exist",
            cause="hf: takes a config.json, a folder with one, or a name on Hugging Face",
            fix="labkit estimate hf:path/to/config.json",
        )
    try:
        config = transformers.AutoConfig.from_pretrained(plan.name)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"transformers cannot read the configuration of {plan.name}:"
            f" {str(error).splitlines()[0]}",
            cause="a name is fetched from Hugging Face; a file has to be a model's config.json",
            fix="labkit estimate hf:path/to/config.json",
        ) from error
    import torch

    cls = _choose_class(transformers, config, plan)
    dtype = getattr(torch, plan.dtype)
    build = getattr(cls, "from_config", None) or cls._from_config
    return lambda: build(config, dtype=dtype).train()


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
    named = (getattr(config, "architectures", None) or [None])[0]
    cls = getattr(transformers, named, None) if named else None
    if cls is not None and (plan.task != "generate" or cls.can_generate()):
        return cls
    for name in HF_CLASSES["generate" if plan.task == "generate" else "train"]:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto
    raise UsageError(
        f"{plan.name} ({config.model_type}) cannot {plan.task}",
        cause="transformers has no class of that model for this task",
        fix=f"labkit estimate hf:{plan.name} --task infer",
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
        near = near_match(plan.name, timm.list_models())
        raise UsageError(
            f"timm has no model {plan.name!r}",
            cause="timm.list_models() has the names",
            fix=f"labkit estimate timm:{near or 'resnet50'}",
        )
    dtype = getattr(torch, plan.dtype)
    return lambda: timm.create_model(plan.name, pretrained=False).to(dtype).train()


def _make_inputs(model: Any, plan: NamedPlan, batch: int) -> dict[str, Any]:
    """Inputs of the model's own kind, by the names of its arguments."""
    import torch

    dtype = getattr(torch, plan.dtype)
    if plan.library == "timm":
        channels, height, width = model.default_cfg["input_size"]
        return {"x": torch.zeros(batch, channels, height, width, dtype=dtype)}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, main = base.config, base.main_input_name
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        side = getattr(vision, "image_size", 224)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        channels = getattr(vision, "num_channels", 3)
        return {main: torch.zeros(batch, channels, height, width, dtype=dtype)}
    if main == "input_features":
        length = 2 * getattr(config, "max_source_positions", 1500)
        sounds = torch.zeros(batch, getattr(config, "num_mel_bins", 80), length, dtype=dtype)
        ids = torch.zeros(batch, plan.sequence, dtype=torch.int64)
        return {main: sounds, "decoder_input_ids": ids}
    if main == "input_values":
        return {main: torch.zeros(batch, 16_000, dtype=dtype)}
    ids = torch.zeros(batch, plan.sequence, dtype=torch.int64)
    given = {"input_ids": ids}
    if getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids
    words = ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM", "LMHeadModel")
    if plan.task == "train" and type(base).__name__.endswith(words):
        given["labels"] = ids  # the model computes its own loss
    return given


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
        if logits is None:
            return output[0].float().square().mean()
    # As transformers computes it: in float32, with one target for each row.
    rows = logits.float().flatten(0, -2) if logits.dim() > 1 else logits.float()[None]
    return functional.cross_entropy(rows, torch.zeros(len(rows), dtype=torch.int64))


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
    name = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    ids = given[name]
    given[name] = ids[:, :-1]
    made = model(**given, use_cache=True, **({} if "decoder" in name else {"logits_to_keep": 1}))
    if name == "decoder_input_ids":
        encoded = getattr(made, "encoder_last_hidden_state", None)
        last = {"encoder_outputs": (encoded,), "decoder_input_ids": ids[:, -1:]}
    else:
        last = {"input_ids": ids[:, -1:]}
    made = model(**last, past_key_values=made.past_key_values, use_cache=True)
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
        raise UsageError(
            f"peft cannot adapt {type(model).__name__}: {str(error).splitlines()[0]}",
            cause="peft does not know which of its modules to adapt, or there are no such modules",
            fix="--lora r=16,targets=all-linear",
        ) from error
    if getattr(model, "is_gradient_checkpointing", False):
        model.enable_input_require_grads()
    return adapted


def _quantize(model: Any, form: Format) -> None:
    """Replaces the weights of all linear layers, except the head's, by packed ones."""
    import torch
    from torch import nn

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
        count, rows = layer.weight.numel(), layer.out_features
        size = math.ceil(count / form.block * form.block_bytes) if form.block else count + 4 * rows
        packed = torch.empty(size, dtype=torch.uint8)
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.forward = functools.partial(multiply, layer)


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
