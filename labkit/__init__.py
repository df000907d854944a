"""labkit: a GPU lab for PyTorch that reports the device it uses and proves what it teaches."""

# This file and __main__.py must parse on any Python 3, so that an old Python prints an error
# message instead of a SyntaxError. Importing them may load the standard library only.
__version__ = "0.1.0"

# The module of each public name, which is imported at the first access.
_EXPORTS = {
    "check": "labkit.lessons.checks",
    "claim": "labkit.lessons.claims",
    "claim_raises": "labkit.lessons.claims",
    "best_device": "labkit.devices.torch_devices",
    "estimate_memory": "labkit.memory.estimate.play",
    "LabkitError": "labkit.errors",
    "load_ipython_extension": "labkit.jupyter.extension",
    "memory": "labkit.memory",
    "plot_memory": "labkit.memory.sample.sampler",
    "predict": "labkit.lessons.predictions",
    "record_allocations": "labkit.memory.allocations.record",
    "run_on_ranks": "labkit.notebooks.ranks",
    "sample_memory": "labkit.memory.sample.sampler",
    "solution": "labkit.lessons.checks",
    "track_memory": "labkit.memory.track.tracker",
    "unload_ipython_extension": "labkit.jupyter.extension",
    "watch_memory": "labkit.jupyter.panel",
}

__all__ = [
    "LabkitError",
    "__version__",
    "best_device",
    "check",
    "claim",
    "claim_raises",
    "estimate_memory",
    "load_ipython_extension",
    "memory",
    "plot_memory",
    "predict",
    "record_allocations",
    "run_on_ranks",
    "sample_memory",
    "solution",
    "track_memory",
    "unload_ipython_extension",
    "watch_memory",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError("module 'labkit' has no attribute %r" % (name,))  # noqa: UP031
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list:  # type: ignore[type-arg]
    return sorted(__all__)
