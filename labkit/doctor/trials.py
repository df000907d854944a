"""The doctor's proofs that torch works on the best device, in a Python of their own: it may hang.

The steps are those of ``labkit devices --verify``. The one thing they leave behind is what
torch.compile puts in its own cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from labkit.devices.self_test import allocate, compile_curve, compute
from labkit.devices.torch_devices import best_device


class Trial(NamedTuple):
    """A step, and the sentence that says what it found: of its words and the device."""

    step: Callable[[Any, str], str]
    sentence: str


# The step that compiles is taken even where a compiler is known to be missing: what torch says
# then is what the doctor has a cause and a fix for.
TRIALS = {
    "allocation": Trial(allocate, "{words} on {device}"),
    "matmul": Trial(compute, "a product on {device} is {words}"),
    "compile": Trial(compile_curve, "a compiled function on {device} gives {words}"),
}


def main(names: Sequence[str]) -> None:
    """Makes the trials in order and prints a line for each that holds; the first that does not
    ends the program with its traceback."""
    import torch

    device = str(best_device())
    for name in names:
        trial = TRIALS[name]
        words = trial.step(torch, device)
        # Said at once: whoever ends a compile that takes too long has heard of the others.
        print(f"{name}: {trial.sentence.format(words=words, device=device)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
