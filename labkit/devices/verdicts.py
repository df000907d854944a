"""Verdicts on devices: from what a trial printed and how it ended, to one sentence and a command.

Everything here is made of facts that are given: nothing is run, and torch is not imported.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from labkit.commands import CommandResult
from labkit.devices.detect import HIDING, Device, explain_old_driver
from labkit.devices.torch_devices import TorchDevice, TorchFacts, has_kernels

# Torch starts CUDA and is given no GPU: what it says where they are hidden from it.
NO_GPUS = "No CUDA GPUs are available"
STEPS = ("import", "allocate", "compute", "compile")
FAILURES = {
    "import": "torch cannot be imported",
    "allocate": "it cannot allocate",
    "compute": "it does not compute",
    "compile": "torch.compile fails on it",
}
FORKED = "CUDA was started before this process was forked, and does not survive that"


class Advice(NamedTuple):
    """What an error text comes from, and the command that mends it (None: not known)."""

    cause: str
    fix: str | None = None


# Turns what torch said into its cause; None where the text is not known.
Explain = Callable[[str], "Advice | None"]


class Step(NamedTuple):
    """One step of a trial: how long it took, what it found, or why it was skipped."""

    name: str
    seconds: float | None = None
    words: str | None = None
    skipped: str | None = None


class Verdict(NamedTuple):
    """Whether a device computes, and if not, why, in one sentence.

    ``listed``: torch lists it, so it was tried. ``broken``: what is wrong lies below torch or in
    its build, and is not what somebody has set so.
    """

    kind: str
    torch_name: str | None
    name: str | None
    uuid: str | None
    verified: bool
    listed: bool = True
    steps: tuple[Step, ...] = ()
    cause: str | None = None
    fix: str | None = None
    broken: bool = False


def read_events(text: str) -> list[dict[str, Any]]:
    """The events that a trial printed, a JSON object a line; a line cut short is left out."""
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def judge_trial(
    device: TorchDevice,
    answer: CommandResult,
    limit_seconds: float,
    architectures: tuple[str, ...],
    explain: Explain,
) -> Verdict:
    """The verdict on a device that was tried, from what its process printed and how it ended."""
    events = {event.get("step"): event for event in read_events(answer.stdout)}
    error = next((event["error"] for event in events.values() if "error" in event), None)
    steps = tuple(
        Step(name, event.get("seconds"), event.get("words"), event.get("skipped"))
        for name in STEPS
        if (event := events.get(name)) is not None and "error" not in event
    )
    advice = None
    if error is not None or "end" not in events:
        failing = STEPS[len(steps)] if len(steps) < len(STEPS) else STEPS[-1]
        advice = (
            explain_error(error, failing, explain)
            if error is not None
            else explain_end(answer, limit_seconds, failing, explain)
        )
        if not has_kernels(device.compute_capability, architectures):
            advice = advice._replace(cause=_name_gap(device, architectures))
    return Verdict(
        kind=device.torch_name.partition(":")[0],
        torch_name=device.torch_name,
        name=device.name,
        uuid=device.uuid,
        verified=advice is None,
        steps=steps,
        cause=advice.cause if advice else None,
        fix=advice.fix if advice else None,
    )


def _name_gap(device: TorchDevice, architectures: tuple[str, ...]) -> str:
    capability, built = device.compute_capability, ", ".join(architectures)
    return f"torch has no kernel for its compute capability {capability}, only for {built}"


def explain_error(error: str, step: str, explain: Explain) -> Advice:
    """What torch's error in a step comes from, with torch's first line where it is not known."""
    known = explain(error)
    if known:
        return known._replace(cause=f"{FAILURES[step]}: {known.cause}")
    return Advice(f"{FAILURES[step]}: {_shorten(error)}")


def explain_end(answer: CommandResult, limit_seconds: float, step: str, explain: Explain) -> Advice:
    """Why a trial ended before it was through: it hung, died of a signal, or raised."""
    failure = FAILURES[step]
    if "No module named 'torch'" in answer.stderr:
        return Advice("torch is not installed in this Python", "python -m pip install torch")
    if answer.timed_out or "Timeout (" in answer.stderr:
        return Advice(f"{failure}: no end after {limit_seconds:g} s, the driver or a library hangs")
    known = explain(answer.stderr)
    if known:
        return known._replace(cause=f"{failure}: {known.cause}")
    if answer.exit_code is not None and answer.exit_code < 0:
        return Advice(f"{failure}: the process was ended by {_name_signal(-answer.exit_code)}")
    return Advice(f"{failure}: {_shorten(answer.message)}")


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def judge_driver(trouble: str) -> Verdict:
    """The verdict on an NVIDIA driver that is here and does not answer: its GPUs are unknown."""
    return Verdict(
        "cuda", None, None, None, verified=False, listed=False, cause=trouble, broken=True
    )


def judge_unlisted(
    device: Device,
    facts: TorchFacts | None,
    advice: Advice | None,
    explain: Explain,
    environment: Mapping[str, str],
) -> Verdict:
    """Why a device that is here is not one of torch's, in one sentence.

    ``advice`` is why torch told of no facts.
    """
    reason = _explain_unlisted(device, facts, advice, explain, environment)
    return Verdict(
        kind=device.kind,
        torch_name=None,
        name=device.name,
        uuid=device.uuid,
        verified=False,
        listed=False,
        cause=reason.cause,
        fix=reason.fix,
        broken=reason.broken,
    )


class Reason(NamedTuple):
    """Why torch does not list a device: cause, command that mends it, whether it is a defect."""

    cause: str
    fix: str | None = None
    broken: bool = True


def _explain_unlisted(
    device: Device,
    facts: TorchFacts | None,
    advice: Advice | None,
    explain: Explain,
    environment: Mapping[str, str],
) -> Reason:
    if device.trouble:
        return Reason(device.trouble)
    if facts is None:
        return Reason(*(advice or Advice(FAILURES["import"])))
    known = explain(facts.refusal or "")
    fix = known.fix if known else None
    mismatch = _explain_mismatch(device, facts, fix)
    if mismatch:
        return mismatch
    hidden = _explain_hidden(device, environment)
    # Where torch ought to see the device, or says something else, it is not the variable.
    if hidden and device.torch_name is None and NO_GPUS in (facts.refusal or NO_GPUS):
        return hidden
    if known:
        return Reason(known.cause, fix)
    said = _shorten(facts.refusal or "")
    return Reason(f"torch says: {said}" if said else "torch does not list it, and says not why")


def _explain_mismatch(device: Device, facts: TorchFacts, fix: str | None) -> Reason | None:
    """What this torch lacks for the device, or this process; None where nothing is known."""
    build = facts.build
    built = {"cuda": build.cuda, "rocm": build.hip, "xpu": build.xpu}
    if device.kind in built and not built[device.kind]:
        return Reason(build.describe(), broken=False)
    if facts.forked:
        return Reason(FORKED, fix, broken=False)
    old = explain_old_driver(device.driver, device.cuda, build) if device.kind == "cuda" else None
    return Reason(old, fix) if old else None


def _explain_hidden(device: Device, environment: Mapping[str, str]) -> Reason | None:
    """Which variable keeps a device from torch; None where none is set."""
    if device.parent_uuid:
        words = "CUDA gives a process one MIG slice, and it is another one"
        return Reason(words, f"export CUDA_VISIBLE_DEVICES={device.uuid}", broken=False)
    for name in HIDING.get(device.kind, ()):
        if name in environment:
            words = f"it is hidden by {name}={environment[name]!r}"
            return Reason(words, f"unset {name}", broken=False)
    return None


def _shorten(text: str) -> str:
    """The first line of a text that somebody else wrote, cut where it is long."""
    return next(iter(text.strip().splitlines()), "")[:200]
