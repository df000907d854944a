"""A torch that is played: GPUs that compute with numpy, or fail as real ones do, from a script.

The script is the JSON in FAKE_TORCH. ``gpus``: a list, each with what it tells of itself and what
its steps come to: ``{"compute": {"raise": TEXT}}``, ``{"die": SIGNAL}``, ``{"hang": true}`` or
``{"wrong": true}``. ``import``: the same for the import. ``kind``: cuda, xpu or mps. ``build``,
``architectures``, ``refusal`` and ``forked`` as labkit reads them. It is for --verify alone.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy

BUILD = {"version": "2.13.0+cu130", "cuda": "13.0", "hip": None, "xpu": None}
NO_GPUS = "No CUDA GPUs are available"


def install_torch(folder: Path) -> None:
    """Makes the played torch the one that is imported where the folder is on the path."""
    (folder / "torch").mkdir(exist_ok=True)
    (folder / "torch/__init__.py").write_text(
        "import sys\nfrom tests.fakes.played_torch import load\nsys.modules['torch'] = load()\n"
    )


def load() -> SimpleNamespace:
    """The module that the script describes."""
    return make_torch(json.loads(os.environ["FAKE_TORCH"]))


def make_torch(script: dict) -> SimpleNamespace:
    """What stands in for the torch module; raises or dies where the import is to."""
    _take("import", script)
    gpus, kind = script.get("gpus", []), script.get("kind", "cuda")
    build = {**BUILD, **script.get("build", {})}
    driver = Driver(gpus)
    cuda = SimpleNamespace(
        get_arch_list=lambda: script.get("architectures", ["sm_80", "sm_90"]),
        get_device_capability=lambda device: driver.find(device)["capability"],
        init=lambda: _refuse(script),
        _is_in_bad_fork=lambda: script.get("forked", False),
    )
    module = SimpleNamespace(get_device_properties=driver.describe) if kind != "mps" else cuda
    return SimpleNamespace(
        __version__=build["version"],
        version=SimpleNamespace(**build),
        accelerator=SimpleNamespace(
            is_available=lambda: bool(gpus),
            current_accelerator=lambda: SimpleNamespace(type=kind),
            device_count=lambda: len(gpus),
        ),
        get_device_module=lambda kind: module,
        cuda=cuda,
        int32="int32",
        Generator=lambda: SimpleNamespace(manual_seed=numpy.random.default_rng),
        full=lambda size, value, dtype, device: driver.allocate(size, value, device),
        randn=lambda *size, generator: Tensor(generator.standard_normal(size, "float32"), driver),
        linspace=lambda *ends: Tensor(numpy.linspace(*ends), driver),
        sin=lambda x: x._apply(numpy.sin),
        compile=lambda function: lambda x: driver.compile(function, x),
    )


def _refuse(script: dict) -> None:
    refusal = script.get("refusal", NO_GPUS)
    if refusal:
        raise RuntimeError(refusal)


def _take(step: str, script: dict) -> bool:
    """Comes to what the script has for the step; False where its result is to be wrong."""
    told = script.get(step, {})
    if "raise" in told:
        raise RuntimeError(told["raise"])
    if "die" in told:
        os.kill(os.getpid(), signal.Signals[told["die"]])
    if told.get("hang"):
        signal.pause()
    return not told.get("wrong")


class Driver:
    """The played GPUs, by torch's names for them."""

    def __init__(self, gpus: list[dict]) -> None:
        self._gpus = gpus

    def find(self, device: str) -> dict:
        kind, _, index = device.partition(":")
        return {"capability": (0, 0)} if kind == "cpu" else self._gpus[int(index)]

    def describe(self, index: int) -> SimpleNamespace:
        told = self._gpus[index]
        major, minor = told.get("capability", (9, 0))
        facts = {key: told[key] for key in ("name", "uuid", "gcnArchName") if key in told}
        return SimpleNamespace(**facts, major=major, minor=minor, total_memory=2**30)

    def allocate(self, size: tuple, value: int, device: str) -> Tensor:
        sound = _take("allocate", self.find(device))
        return Tensor(numpy.full(size, value if sound else 0, "int32"), self, device)

    def compile(self, function, x: Tensor) -> Tensor:
        drawn = function(x)
        return drawn if _take("compile", self.find(x.device)) else drawn * 2


class Tensor:
    """As much of a tensor as the self-tests use."""

    def __init__(self, values, driver: Driver, device: str = "cpu") -> None:
        self.values, self.driver, self.device = values, driver, device

    def _apply(self, function) -> Tensor:
        return Tensor(function(self.values), self.driver, self.device)

    def to(self, device: str) -> Tensor:
        return Tensor(self.values, self.driver, device)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def double(self) -> Tensor:
        assert self.device == "cpu", "not every device has float64"
        return self._apply(lambda values: values.astype("float64"))

    def abs(self) -> Tensor:
        return self._apply(abs)

    def max(self) -> Tensor:
        return self._apply(numpy.max)

    def all(self) -> Tensor:
        return self._apply(numpy.all)

    def item(self):
        return self.values.item()

    def __matmul__(self, other: Tensor) -> Tensor:
        sound = _take("compute", self.driver.find(self.device))
        return self._apply(lambda values: values @ other.values + (0 if sound else 1))

    def __sub__(self, other: Tensor) -> Tensor:
        return self._apply(lambda values: values - other.values)

    def __mul__(self, factor: float) -> Tensor:
        return self._apply(lambda values: values * factor)

    def __add__(self, summand: float) -> Tensor:
        return self._apply(lambda values: values + summand)

    def __eq__(self, value) -> Tensor:  # type: ignore[override]
        return self._apply(lambda values: values == value)

    __hash__ = None  # type: ignore[assignment]
