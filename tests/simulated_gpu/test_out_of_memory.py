"""The page of an out-of-memory error, for each cause, from errors of torch's real allocator.

The simulated A100 has 4096 MiB, of which the driver keeps 256 and a context takes 400.
"""

from __future__ import annotations

import textwrap

import pytest

pytestmark = pytest.mark.simulated

EXPANDABLE = "expandable_segments"
# Runs the case, and says its page and the order of what would help.
CASE = """
from labkit.jupyter.cells import explain_out_of_memory
names = {}
def case():
%s
try:
    case()
except torch.OutOfMemoryError as error:
    page = explain_out_of_memory(error, names)
    failure = page.failure
    say(repr(page).split("the balance after")[0], failure.asked_bytes, failure.device)
"""


def run_case(host, body, **variables):
    """The page as text, what was asked for in MiB, and the device."""
    script = CASE % textwrap.indent(textwrap.dedent(body).strip(), "    ")
    text, asked, device = host.run_script(script, **variables).json()
    return text, asked and asked // 2**20, device


def first_measure(text):
    """The first line of what would help."""
    return next(line for line in text.splitlines() if line.strip().startswith("1."))


def test_names_and_sizes_of_what_holds_the_memory(a100):
    text, asked, device = run_case(
        a100,
        """
        names["held"] = [new(500) for _ in range(6)]
        names["more"] = new(900)
        """,
    )
    assert (asked, device) == (900, "cuda:0")
    assert "held" in first_measure(text)


def test_more_than_the_device_has_is_helped_by_no_freeing(a100):
    text, asked, _ = run_case(a100, 'names["keep"] = new(64); new(8000)')
    assert abs(asked - 8000) < 80  # the text rounds to GiB
    assert "no freeing helps" in first_measure(text)


PIECES = """
big = new(3000); del big
pieces = [new(100) for _ in range(30)]
names["kept"] = pieces[::2]; del pieces
new(1000)
"""


def test_pieces_are_helped_by_expandable_segments(a100):
    text, _, _ = run_case(a100, PIECES)
    assert EXPANDABLE in text


def test_expandable_segments_are_not_advised_where_they_are_on(a100):
    text, _, _ = run_case(
        a100,
        """
        gone = []
        names["held"] = held = []
        try:
            while True: held.append(new(11)); gone.append(new(8))
        except torch.OutOfMemoryError: gone.clear()
        new(600)
        """,
        PYTORCH_ALLOC_CONF="expandable_segments:True",
    )
    assert EXPANDABLE not in text


def test_the_drivers_pool_has_a_page_too(a100):
    text, asked, device = run_case(
        a100,
        """
        names["held"] = [new(500) for _ in range(6)]
        new(900)
        """,
        PYTORCH_ALLOC_CONF="backend:cudaMallocAsync",
    )
    assert (asked, device) == (900, "cuda:0")
    assert "held" in text


def test_the_private_pool_of_a_graph_is_said_and_advised_on(a100):
    text, _, _ = run_case(
        a100,
        """
        static = torch.zeros(8, device="cuda")
        names["graph"] = graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph): big = new(2500); result = static + 1
        del big
        new(1500)
        """,
    )
    assert "private pools" in first_measure(text)
    assert "(graph)" in first_measure(text)


def test_a_free_block_of_another_stream_is_explained(a100):
    text, _, _ = run_case(
        a100,
        """
        with torch.cuda.stream(torch.cuda.Stream()):
            big = new(2500); del big; names["small"] = new(100)
        new(1500)
        """,
    )
    assert "own stream" in first_measure(text)


def test_a_fraction_comes_before_other_processes(a100):
    with a100.other_process(1000):
        text, _, _ = run_case(
            a100,
            """
            torch.cuda.set_per_process_memory_fraction(0.3)
            names["keep"] = new(700); new(700)
            """,
        )
    assert "process" not in first_measure(text) or "fraction" in first_measure(text)


def test_another_process_is_named(a100):
    with a100.other_process(2500) as other:
        text, asked, _ = run_case(a100, 'names["keep"] = new(100); new(900)')
    assert asked == 900
    assert str(other.pid) in text or "other processes" in text


def test_a_full_gpu_says_so_at_the_first_tensor(full_gpu):
    text, asked, _ = run_case(full_gpu, "new(200)")
    assert asked == 200
    assert "process" in text
