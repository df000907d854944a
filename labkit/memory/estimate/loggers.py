"""What a simulated step logs to files and experiment trackers is dropped: its numbers are not real.

A log file, a writer of TensorBoard or a run of Weights & Biases or MLflow from before the step
would have them among those of the training. A run that the step begins is one that W&B calls
disabled.
"""

from __future__ import annotations

import contextlib
import functools
import logging.handlers
import sys
from collections.abc import Callable, Iterator
from typing import Any

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.state import list_handlers

# Methods that take what is logged: module, class, name.
METHODS = (
    ("torch.utils.tensorboard.writer", "FileWriter", "add_event"),
    ("tensorboardX.writer", "FileWriter", "add_event"),
    ("wandb.sdk.wandb_run", "Run", "_log"),
    *(
        ("mlflow.tracking._tracking_service.client", "TrackingServiceClient", name)
        for name in (
            "log_metric", "log_param", "log_batch", "log_inputs", "log_outputs", "log_artifact",
            "log_artifacts", "_log_artifact_async", "log_model_params", "log_model_artifact",
            "log_model_artifacts", "set_tag", "delete_tag", "set_logged_model_tags", "update_run",
            "set_terminated",
        )
    ),
)  # fmt: skip


@contextlib.contextmanager
def drop_logs(is_step: Callable[[], bool]) -> Iterator[None]:
    """Drops what is logged where ``is_step()``, by what has been imported, until exit."""
    with contextlib.ExitStack() as stack:
        # The step's own handlers write to the layer of files.
        handlers = list_handlers()
        for handler in (logging.FileHandler, logging.handlers.BaseRotatingHandler):
            emit = _drop(handler.emit, is_step, {id(one) for one in handlers})
            stack.enter_context(replace_attributes(handler, emit=emit))
        for module, kind, name in METHODS:
            owner = getattr(sys.modules.get(module), kind, None)
            if hasattr(owner, name):
                made = _drop(getattr(owner, name), is_step)
                stack.enter_context(replace_attributes(owner, **{name: made}))
        wandb: Any = sys.modules.get("wandb")
        if hasattr(wandb, "init"):
            runs: list[Any] = []
            stack.callback(lambda: [one.finish() for one in runs])
            begin = _begin_disabled(wandb, runs, is_step)
            stack.enter_context(replace_attributes(wandb, init=begin))
        yield


def _drop(
    act: Callable[..., Any], is_step: Callable[[], bool], owners: set[int] | None = None
) -> Callable[..., Any]:
    """A method that does nothing for the step, on these owners, by id, or on all."""

    @functools.wraps(act)
    def answer(owner: Any, *arguments: Any, **named: Any) -> Any:
        drops = (owners is None or id(owner) in owners) and is_step()
        return None if drops else act(owner, *arguments, **named)

    return answer


def _begin_disabled(wandb: Any, runs: list[Any], is_step: Callable[[], bool]) -> Callable[..., Any]:
    begin = wandb.init

    @functools.wraps(begin)
    def answer(*arguments: Any, **named: Any) -> Any:
        if not is_step() or getattr(wandb, "run", None) is not None:
            return begin(*arguments, **named)  # a run that goes on is the same one
        runs.append(begin(*arguments, **{**named, "mode": "disabled"}))
        return runs[-1]

    return answer
