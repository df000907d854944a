"""Small proofs that torch works here, run in a Python of their own: it may hang or die.

The one thing they leave behind is what torch.compile puts in its own cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def try_allocation() -> str:
    """Allocates 64 MiB on the best device and returns where."""
    import torch

    from labkit.devices.torch_devices import best_device

    device = best_device()
    tensor = torch.ones(16 * 2**20, device=device)
    if int(tensor.sum(dtype=torch.float64).item()) != tensor.numel():
        raise RuntimeError(f"what was written to {device} is not what is read from it")
    return f"64 MiB on {device}"


def try_matmul() -> str:
    """Multiplies (256, 256) matrices on the best device and compares with the CPU's float64."""
    import torch

    from labkit.devices.torch_devices import best_device

    device = best_device()
    maker = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=maker) for _ in range(2))
    exact = left.double() @ right.double()
    error = ((left.to(device) @ right.to(device)).cpu().double() - exact).abs().max().item()
    if not error < 0.5:  # TF32 stays below it; a broken card does not
        raise RuntimeError(f"a matmul on {device} is {error:.3g} away from the exact product")
    return f"a matmul on {device} is within {error:.1g} of the exact product"


def try_compile() -> str:
    """Compiles a small function for the best device and compares with the plain one."""
    import torch

    from labkit.devices.torch_devices import best_device

    device = best_device()

    def plain(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) * 2 + 1

    x = torch.linspace(0, 1, 64, device=device)
    torch.testing.assert_close(torch.compile(plain)(x), plain(x))
    return f"torch.compile on {device} gives what the plain function gives"


TRIALS = {"allocation": try_allocation, "matmul": try_matmul, "compile": try_compile}


def main(names: Sequence[str]) -> None:
    """Makes the trials in order and prints a line for each that holds; the first that does not
    ends the program with its traceback."""
    for name in names:
        # Said at once: whoever ends a compile that takes too long has heard of the others.
        print(f"{name}: {TRIALS[name]()}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
