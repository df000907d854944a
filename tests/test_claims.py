from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from labkit.errors import UsageError
from labkit.lessons import needs
from labkit.lessons.cards import BAD, GOOD, Card, Detail, card_html, card_text
from labkit.lessons.claims import ClaimFailed, claim, claim_raises
from labkit.lessons.needs import missing_need
from labkit.lessons.value_repr import format_value, same_value
from labkit.notebooks.result import CHECK_MIME, CLAIM_MIME, read_checks, read_claims

NAN = float("nan")


@pytest.fixture
def shown() -> Iterator[list[dict[str, Any]]]:
    """The display bundles that a real IPython shell was given."""
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher()
    bundles: list[dict[str, Any]] = shell.display_pub.outputs
    yield bundles
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(4, 4, id="numbers"),
        pytest.param(torch.tensor([1.0, 2.0]), [1, 2], id="tensor and list"),
        pytest.param(torch.ones(2, dtype=torch.int8), torch.ones(2), id="other dtype"),
        pytest.param(torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]), id="nan in a tensor"),
        pytest.param(NAN, NAN, id="nan"),
        pytest.param(torch.tensor(True), True, id="tensor of one bool"),
        pytest.param(np.array([1, 2]), np.array([1.0, 2.0]), id="arrays"),
        pytest.param(np.array(["a"]), np.array(["a"]), id="arrays of text"),
        pytest.param((torch.ones(2), 3), (torch.ones(2), 3), id="tuple of tensors"),
        pytest.param({"a": torch.ones(2)}, {"a": torch.ones(2)}, id="dict of tensors"),
        pytest.param(torch.ones(2, 3).shape, (2, 3), id="shape"),
        pytest.param(torch.float32, torch.float32, id="dtype"),
        pytest.param(dict, dict, id="a class is not called"),
        pytest.param(lambda: 4, 4, id="a function is called"),
        pytest.param(3, lambda: 3, id="an expected function is called"),
    ],
)
def test_equal_values_hold(seen: object, expected: object, capsys: Any) -> None:
    claim("so it is", seen, expected)

    assert capsys.readouterr().out.startswith("holds: so it is")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(4, 5, id="numbers"),
        pytest.param(torch.ones(2), torch.ones(3), id="shapes"),
        pytest.param(torch.ones(1, 2), torch.ones(2), id="shapes that broadcast"),
        pytest.param(torch.ones(2), True, id="a tensor of many is not a yes"),
        pytest.param(torch.ones(2), "text", id="no tensor at all"),
        pytest.param(np.ones(2), np.zeros(2), id="arrays"),
        pytest.param(np.ones(2), np.ones((1, 2)), id="array shapes"),
        pytest.param((1, 2), (1, 2, 3), id="lengths"),
        pytest.param({"a": 1}, {"b": 1}, id="keys"),
        pytest.param(1.0, NAN, id="nan expected"),
        pytest.param("text", True, id="truth is not enough"),
    ],
)
def test_other_values_do_not_hold(seen: object, expected: object, capsys: Any) -> None:
    with pytest.raises(ClaimFailed):
        claim("so it is not", seen, expected)

    assert capsys.readouterr().out.startswith("does not hold: so it is not")


@pytest.mark.parametrize(
    ("seen", "within", "holds"),
    [
        pytest.param(15.0004, 1e-3, True, id="near"),
        pytest.param(15.01, 1e-3, False, id="far"),
        pytest.param(torch.tensor(15.0004), 1e-3, True, id="tensor near"),
        pytest.param(torch.tensor(15.01), 1e-3, False, id="tensor far"),
        pytest.param(np.float32(15.0004), 1e-3, True, id="numpy near"),
        pytest.param(torch.tensor(NAN), 1e-3, False, id="nan"),
        pytest.param("15", 1e-3, False, id="text"),
    ],
)
def test_within_is_an_absolute_tolerance(seen: object, within: float, holds: bool) -> None:
    assert same_value(seen, 15.0, within) is holds


def test_a_claim_that_fails_says_what_was_expected_and_seen() -> None:
    with pytest.raises(ClaimFailed, match=r"^the slope: expected 15 within 0.1, seen 3$"):
        claim("the slope", 3, 15, within=0.1)


def test_a_function_that_raises_makes_the_claim_fail_with_its_cause() -> None:
    with pytest.raises(ClaimFailed, match="seen ZeroDivisionError: division by zero") as caught:
        claim("it divides", lambda: 1 / 0, 1)

    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_is_needed_and_missing_is_never_called(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(needs.NEEDS, "cuda", lambda: False)

    claim("on the device", lambda: 1 / 0, needs="cuda")
    claim_raises("on the device", ValueError, lambda: 1 / 0, needs="cuda")

    assert capsys.readouterr().out == "skipped: on the device (needs CUDA)\n" * 2


def test_what_is_needed_and_there_is_called(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(needs.NEEDS, "cuda", lambda: True)

    claim("on the device", lambda: 2, 2, needs="cuda")

    assert capsys.readouterr().out == "holds: on the device (seen 2)\n"


def test_an_unknown_need_is_an_error_with_the_near_match() -> None:
    with pytest.raises(UsageError) as caught:
        missing_need("cude")

    assert caught.value.fix == "needs='cuda'"


def test_the_compiler_is_the_one_that_cxx_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    assert missing_need("cpu_compiler") == "needs cpu_compiler"


@pytest.mark.parametrize("gap", ["Triton needs compute capability 7.0", None], ids=str)
def test_a_gpu_without_a_compiler_leaves_that_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, gap: str | None
) -> None:
    monkeypatch.setattr(needs, "has_cuda", lambda: True)
    monkeypatch.setattr(
        "labkit.devices.self_test.find_compiler_gap",
        lambda torch, device: gap if device == "cuda" else None,
    )

    assert needs.has_cuda_compiler() is (gap is None)
    assert needs.has_compiler()


def test_claim_raises_holds_for_the_error_and_shows_its_text(capsys: Any) -> None:
    claim_raises("it divides not", ZeroDivisionError, lambda: 1 / 0, match="by zero")

    assert capsys.readouterr().out == (
        "holds: it divides not (seen ZeroDivisionError: division by zero)\n"
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        pytest.param(lambda: 3, "no error: it gave 3", id="no error"),
        pytest.param(lambda: 1 / 0, "ZeroDivisionError: division by zero", id="another error"),
        pytest.param(lambda: int("x"), "invalid literal", id="another text"),
    ],
)
def test_claim_raises_fails_otherwise(call: Any, said: str) -> None:
    with pytest.raises(ClaimFailed, match=said):
        claim_raises("it raises", ValueError, call, match="nothing like it")


def test_in_ipython_a_claim_shows_html_text_and_its_record(shown: list[dict[str, Any]]) -> None:
    claim("two <b> make `four`", 2 + 2, 4)

    (bundle,) = (output["data"] for output in shown)
    assert bundle["text/plain"] == "holds: two <b> make `four` (seen 4)"
    assert "two &lt;b&gt; make <code" in bundle["text/html"]
    assert bundle[CLAIM_MIME] == {
        "statement": "two <b> make `four`",
        "held": True,
        "skipped": None,
        "expected": "4",
        "seen": "4",
    }


def test_in_ipython_a_failing_claim_is_shown_before_it_raises(shown: list[dict[str, Any]]) -> None:
    with pytest.raises(ClaimFailed):
        claim("no", 1, 2)

    assert shown[0]["data"][CLAIM_MIME]["held"] is False


def test_records_are_read_back_from_a_notebooks_outputs() -> None:
    cells = [
        {"cell_type": "markdown", "source": ""},
        {
            "cell_type": "code",
            "outputs": [
                {"output_type": "stream", "text": "x"},
                {"output_type": "display_data", "data": {CLAIM_MIME: {"held": True}}},
                {"output_type": "display_data", "data": {CHECK_MIME: {"status": "passed"}}},
            ],
        },
    ]

    assert read_claims({"cells": cells}) == [{"held": True}]
    assert read_checks({"cells": cells}) == [{"status": "passed"}]


def test_a_cards_colours_come_from_the_theme_alone() -> None:
    html = card_html(
        Card(
            BAD,
            "wrong",
            "a `b`",
            "so",
            (Detail("hint", "look\ntwice"), Detail("got", "[1\n 2]", True)),
        )
    )

    assert "var(--jp-content-font-color1, currentColor)" in html
    assert "background: transparent" in html
    assert "hint:</span> look<br>twice" in html
    assert "white-space: pre-wrap" in html and "[1\n 2]</span>" in html
    for fixed in ("color: black", "color: white", "color: #", "background: #"):
        assert fixed not in html


def test_a_cards_text_indents_what_goes_over_a_line() -> None:
    card = Card(GOOD, "passed", "all", details=(Detail("got", "one\ntwo"), Detail("hint", "three")))

    assert card_text(card) == "passed: all\n  got: one\n    two\n  hint: three"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(torch.ones(2, requires_grad=True), "tensor([1., 1.])", id="small tensor"),
        pytest.param(torch.ones(5, 5), "tensor of shape (5, 5), float32", id="large tensor"),
        pytest.param(np.ones(2), "array([1., 1.])", id="small array"),
        pytest.param(np.ones((9, 9)), "array of shape (9, 9), float64", id="large array"),
        pytest.param((torch.ones(1), 2), "(tensor([1.]), 2)", id="tuple"),
        pytest.param([torch.ones(1)], "[tensor([1.])]", id="list"),
        pytest.param(torch.Tensor, "Tensor", id="class"),
        pytest.param(SimpleNamespace(a="x" * 300), "namespace(a='" + "x" * 146 + "…", id="long"),
    ],
)
def test_values_are_put_into_few_words(value: object, text: str) -> None:
    assert format_value(value) == text


def test_a_tensor_without_values_is_no_match_and_no_crash():
    meta = torch.empty(2, device="meta")

    assert not same_value(meta, torch.zeros(2))
    assert not same_value(torch.zeros(2), meta)
    assert same_value(meta, torch.empty(2, device="meta"))
