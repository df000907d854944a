"""The checks of the lab "tensors": layouts, memory, broadcasting and views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.lessons.exercises import Case, Exercise, NotThisWay, WrongAnswer


def _scaled_channels_first(images: Tensor) -> Tensor:
    return torch.einsum("nhwc->nchw", images.to(torch.float32)) / 255


def images_to_batch_cases() -> Iterator[Case]:
    """One marked pixel, an oblong color batch, a square one, and a gray one."""
    draw = torch.Generator().manual_seed(1)
    marked = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    marked[0, 1, 2, 0] = 255
    yield Case((marked,), _scaled_channels_first, "one bright pixel")
    for shape, note in [
        ((4, 5, 6, 3), "oblong images"),
        ((2, 3, 3, 3), "as high and as wide as there are channels"),
        ((2, 4, 4, 1), "gray images, one channel"),
    ]:
        images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        yield Case((images,), _scaled_channels_first, note)


class _ReversedWhenCopied(np.ndarray):
    """An array whose copies run backwards; NumPy's own would hand the learner a plain one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> np.ndarray:
        return np.array(self)[::-1]


def _shared_memory(got: Tensor, arguments: tuple[Any, ...]) -> str | None:
    if np.shares_memory(got.numpy(), arguments[0]):
        return "the tensor shares memory with the array: a change of one changes the other"
    return None


def _tensor_after_clearing(array: np.ndarray) -> Tensor:
    tensor = torch.tensor(array.copy(), dtype=torch.float32)
    array[...] = 0
    return tensor


def own_tensor_cases() -> Iterator[Case]:
    """Integers, float64 and float32 arrays, a table, a single number, and a reversed array."""
    for array, note in [
        (np.array([1, 2, 3]), "integers"),
        (np.linspace(0, 1, 5), "float64"),
        (np.array([0.5, 1.5], dtype=np.float32), "an array that is float32 already"),
        (np.arange(6, dtype=np.float32).reshape(2, 3), "a table of float32"),
        (np.array(2.5), "no dimensions"),
        (np.array([True, False]), "booleans"),
        (np.array([1, 2**16 - 1], dtype=np.uint16), "whole numbers without a sign"),
        (np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "a transposed table"),
    ]:
        values = torch.tensor(array.tolist(), dtype=torch.float32)
        yield Case((array,), values, note, judge=_shared_memory)
    backwards = np.arange(4.0).view(_ReversedWhenCopied)
    values = torch.tensor([3.0, 2.0, 1.0, 0.0])
    yield Case((backwards,), values, "a reversed array", judge=_shared_memory)


def row_shares_cases() -> Iterator[Case]:
    """The example, then oblong, square, one row, one column, and float64."""
    draw = torch.Generator().manual_seed(2)
    example = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    yield Case((example,), torch.tensor([[0.25, 0.75], [0.5, 0.5]]), "the example of the text")
    for shape, dtype in [
        ((3, 3), torch.float32),
        ((4, 2), torch.float32),
        ((1, 5), torch.float32),
        ((5, 1), torch.float32),
        ((2, 3), torch.float64),
    ]:
        table = torch.rand(shape, generator=draw, dtype=dtype) + 0.1
        shares = torch.stack([row / row.sum() for row in table])
        yield Case((table,), shares, f"shape {shape}, {str(dtype)[6:]}")


def _pairwise_mean(prediction: Tensor, target: Tensor) -> Tensor:
    pairs = zip(prediction.flatten(), target.flatten(), strict=True)
    return torch.stack([(one - other) ** 2 for one, other in pairs]).mean()


def paired_loss_cases() -> Iterator[Case]:
    """The example, then every mixture of (n,) and (n, 1), and a single pair."""
    draw = torch.Generator().manual_seed(3)
    example = torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [4.0]])
    yield Case(example, torch.tensor(2.0), "the example of the text")
    for shapes in [((5,), (5,)), ((5,), (5, 1)), ((5, 1), (5,)), ((5, 1), (5, 1)), ((1,), (1, 1))]:
        arguments = tuple(torch.randn(shape, generator=draw) for shape in shapes)
        yield Case(arguments, _pairwise_mean, f"prediction {shapes[0]}, target {shapes[1]}")


def _stack_windows(signal: Tensor, size: int) -> Tensor:
    return torch.stack([signal[at : at + size] for at in range(len(signal) - size + 1)])


def _not_a_view(got: Tensor, arguments: tuple[Any, ...]) -> str | None:
    # Not the storage's address: NumPy's views of a signal begin where the signal does.
    if got.data_ptr() != arguments[0].data_ptr():
        return NotThisWay("they are a copy: the windows must be views of the signal")
    return None


def windows_cases() -> Iterator[Case]:
    """The example, the smallest and largest window, and signals that are views themselves."""
    draw = torch.Generator().manual_seed(4)
    signal = torch.randn(12, generator=draw)
    table = torch.randn(6, 4, generator=draw)
    for values, size, note in [
        (torch.tensor([1.0, 2.0, 3.0, 4.0]), 3, "the example of the text"),
        (signal, 1, "windows of one value"),
        (signal, 12, "one window, as long as the signal"),
        (torch.arange(5), 2, "integers"),
        (signal[2:9], 3, "a signal that begins inside of another"),
        (signal[::2], 4, "every second value of a longer signal"),
        (table[:, 1], 2, "a column of a table"),
    ]:
        yield Case((values, size), _stack_windows, note, judge=_not_a_view)


EXERCISES = (
    Exercise(
        name="images_to_batch",
        title="A batch for the model",
        hints=(
            "Three things change: the order of the dimensions, the dtype, and the range. "
            "Which method gives dimensions a new order without tearing a pixel apart?",
            "List the old dimensions by number, in the order in which the result has them. "
            "Then compare the largest value of the result with the largest that is allowed.",
        ),
        cases=images_to_batch_cases,
        wrong_answers=(
            WrongAnswer(
                "reshapes where it should permute, which mixes up the pixels",
                lambda x: x.reshape(x.shape[0], x.shape[3], x.shape[1], x.shape[2]).float() / 255,
                "wrong_values",
            ),
            WrongAnswer(
                "forgets the range", lambda x: x.permute(0, 3, 1, 2).float(), "wrong_values", hint=1
            ),
            WrongAnswer(
                "leaves the channels last", lambda x: x.float() / 255, "wrong_shape", hint=1
            ),
            WrongAnswer(
                "swaps height and width",
                lambda x: x.permute(0, 3, 2, 1) / 255,
                "wrong_shape",
                hint=1,
            ),
            WrongAnswer(
                "divides whole numbers",
                lambda x: x.permute(0, 3, 1, 2) // 255,
                "wrong_dtype",
                hint="uint8 has no fractions: make it float32, and divide then.",
            ),
        ),
    ),
    Exercise(
        name="own_tensor",
        title="A tensor of its own",
        hints=(
            "Which of the ways into PyTorch always copies? And what did PyTorch say about arrays "
            "that run backwards?",
            "`.float()` copies only where it has to convert, so it cannot be relied on. Let the "
            "array make its copy first, and name the dtype you want.",
        ),
        cases=own_tensor_cases,
        wrong_answers=(
            WrongAnswer("keeps the array's dtype", torch.from_numpy, "wrong_dtype", hint=1),
            WrongAnswer(
                "thinks that .float() always copies",
                lambda x: torch.from_numpy(x).float(),
                "wrong_values",
                hint=1,
            ),
            WrongAnswer(
                "forgets reversed arrays", lambda x: torch.tensor(x, dtype=torch.float32), "raised"
            ),
            WrongAnswer("stays in NumPy", lambda x: x.astype(np.float32), "wrong_type"),
            WrongAnswer(
                "clears the array",
                _tensor_after_clearing,
                "changed_argument",
                hint="The array is the caller's: copy its values, and leave it as it is.",
            ),
        ),
    ),
    Exercise(
        name="row_shares",
        title="Shares of a row",
        hints=(
            "Look at the shape of the sums. Aligned at the right, do they stand beside the rows "
            "or above the columns?",
            "The sums need the shape (n, 1). A reduction can keep its dimension.",
        ),
        cases=row_shares_cases,
        restrictions=("loop",),
        sized=lambda n: (torch.rand(n, n) + 0.1,),
        wrong_answers=(
            WrongAnswer(
                "forgets keepdim: a square table gives no error",
                lambda x: x / x.sum(dim=1),
                "wrong_values",
                hint=1,
            ),
            WrongAnswer(
                "sums the columns", lambda x: x / x.sum(dim=0, keepdim=True), "wrong_values"
            ),
            WrongAnswer(
                "divides in place",
                lambda x: x.div_(x.sum(1, True)),
                "changed_argument",
                hint="`x /= sums` writes into the caller's tensor; `x / sums` makes a new one.",
            ),
            WrongAnswer(
                "returns the sums",
                lambda x: x.sum(dim=1, keepdim=True),
                "wrong_shape",
                hint="The sums are what each row is divided by.",
            ),
            WrongAnswer(
                "goes row by row",
                lambda x: torch.stack([row / row.sum() for row in x]),
                "forbidden",
                hint="One division is enough for all rows, if the sums stand beside them.",
            ),
        ),
    ),
    Exercise(
        name="paired_loss",
        title="A loss that pairs",
        hints=(
            "Print the shape of the difference for the example. How many values should it have?",
            "Bring both to one shape before you subtract, whichever of the two they came in.",
        ),
        cases=paired_loss_cases,
        wrong_answers=(
            WrongAnswer(
                "subtracts as they come: every prediction against every target",
                lambda p, t: ((p - t) ** 2).mean(),
                "wrong_values",
            ),
            WrongAnswer(
                "sums instead of taking the mean",
                lambda p, t: ((p.flatten() - t.flatten()) ** 2).sum(),
                "wrong_values",
                hint="The text asks for the mean of the squared differences.",
            ),
            WrongAnswer(
                "returns a Python number",
                lambda p, t: ((p.flatten() - t.flatten()) ** 2).mean().item(),
                "wrong_type",
                hint="Leave it a tensor: a loss must keep its graph.",
            ),
            WrongAnswer(
                "leaves one value a pair",
                lambda p, t: (p.flatten() - t.flatten()) ** 2,
                "wrong_shape",
                hint="One number for all pairs: the mean of the squares.",
            ),
        ),
    ),
    Exercise(
        name="windows",
        title="Windows on a signal",
        hints=(
            "One step to the right in the result is the next value of the signal. And one step "
            "down? Write the two strides for the example first.",
            "Both strides are how far the signal itself steps from value to value. That need not "
            "be 1: ask the signal.",
        ),
        cases=windows_cases,
        wrong_answers=(
            WrongAnswer(
                "stacks slices: right, but copied",
                _stack_windows,
                "forbidden",
            ),
            WrongAnswer(
                "takes it that every signal has stride 1",
                lambda x, size: torch.as_strided(x, (len(x) - size + 1, size), (1, 1)),
                "wrong_values",
                hint=1,
            ),
            WrongAnswer(
                "cuts the signal into pieces that do not overlap",
                lambda x, size: x[: len(x) // size * size].view(-1, size),
                "wrong_shape",
            ),
            WrongAnswer(
                "forgets the last window",
                lambda x, size: x.unfold(0, size, 1)[:-1],
                "wrong_shape",
                hint="The result has n - size + 1 rows: the last window ends with the last value.",
            ),
        ),
    ),
)
