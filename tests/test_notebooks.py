from __future__ import annotations

from pathlib import Path

import pytest

from labkit.errors import LabkitError
from labkit.lessons.catalog import Lab, listed_labs
from labkit.lessons.learner import count_claims, find_answer, find_check_calls
from labkit.lessons.notebooks import (
    digest_notebook,
    find_solutions,
    keep_solutions,
    make_learner_notebook,
    make_reference_notebook,
    notebook_bytes,
    notebook_to_lesson,
    read_digests,
    read_percent,
    strip_solutions,
)
from labkit.notebooks.result import SOLUTION_NOTE, hide_solutions
from tests.fakes.small_labs import LESSON, write_labs

PATH = Path("labs/small/lesson.py")
STUB = 'raise NotImplementedError("write your code here")'


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return listed_labs(write_labs(tmp_path))[0]


def test_a_solution_becomes_a_stub_at_its_indentation() -> None:
    text = (
        "def f():\n    if 1:\n        ### BEGIN SOLUTION\n        x = 1\n        ### END SOLUTION\n"
    )

    assert strip_solutions(text, PATH) == f"def f():\n    if 1:\n        {STUB}\n"
    assert keep_solutions(text, PATH) == "def f():\n    if 1:\n        x = 1\n"


def test_two_solutions_of_one_function_each_become_a_stub() -> None:
    region = "    ### BEGIN SOLUTION\n    pass\n    ### END SOLUTION\n"

    assert strip_solutions(f"def f():\n{region}    y = 1\n{region}", PATH) == (
        f"def f():\n    {STUB}\n    y = 1\n    {STUB}\n"
    )


def test_solutions_are_found_with_their_lines() -> None:
    first, second = find_solutions(LESSON, PATH)

    assert LESSON.splitlines()[first.line - 1].strip() == "### BEGIN SOLUTION"
    assert first.lines == ("    means = x.mean(dim=0, keepdim=True)", "    return x - means")
    assert second.lines == ("    return x * scale",)


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        pytest.param("### BEGIN SOLUTION\nx\n", 1, "it is never closed", id="unclosed"),
        pytest.param(
            "x\n### END SOLUTION\n", 2, "there is no '### BEGIN SOLUTION' before it", id="stray"
        ),
        pytest.param(
            "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION\n",
            2,
            "it is nested in the solution of line 1",
            id="nested",
        ),
        pytest.param(
            "### BEGIN SOLUTION\n\n# %%\n### END SOLUTION\n",
            1,
            "it is not closed in its cell",
            id="over two cells",
        ),
        pytest.param(
            "## begin solution\n",
            1,
            "it must read exactly '### BEGIN SOLUTION' or '### END SOLUTION'",
            id="misspelt",
        ),
    ],
)
def test_a_mark_out_of_place_is_an_error_with_file_and_line(
    text: str, line: int, cause: str
) -> None:
    with pytest.raises(LabkitError) as caught:
        strip_solutions(text, PATH)

    assert caught.value.what == f"labs/small/lesson.py:{line}: a solution's mark is out of place"
    assert caught.value.cause == cause


def test_the_learners_notebook_has_stubs_and_no_solution(lab: Lab) -> None:
    text = notebook_bytes(make_learner_notebook(lab)).decode()

    assert text.count("write your code here") == 2
    for left in ("SOLUTION", "keepdim", "x * scale"):
        assert left not in text


def test_the_reference_has_solutions_and_no_marks(lab: Lab) -> None:
    notebook = make_reference_notebook(lab)
    text = "\n".join(cell.source for cell in notebook.cells)

    assert "keepdim" in text
    assert "SOLUTION" not in text and "write your code" not in text


def test_a_run_folder_gets_the_learners_cells_for_those_of_the_reference(lab: Lab) -> None:
    shown = hide_solutions(make_reference_notebook(lab))
    learners = make_learner_notebook(lab)

    assert "keepdim" not in notebook_bytes(shown).decode()
    for cell, learner in zip(shown.cells, learners.cells, strict=True):
        assert cell.source.removeprefix(f"{SOLUTION_NOTE}\n") == learner.source


def test_the_same_lesson_gives_the_same_bytes(lab: Lab) -> None:
    assert notebook_bytes(make_learner_notebook(lab)) == notebook_bytes(make_learner_notebook(lab))


def test_the_notebook_carries_its_lab_and_python3(lab: Lab) -> None:
    notebook = make_learner_notebook(lab)

    assert notebook.metadata["labkit"]["lab"] == "small"
    assert len(notebook.metadata["labkit"]["version"]) == 12
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids) == 7


def test_tags_survive_and_jupytexts_own_notes_do_not(tmp_path: Path) -> None:
    lesson = LESSON.replace("# %%\nimport torch", '# %% tags=["setup"]\nimport torch')
    notebook = make_learner_notebook(listed_labs(write_labs(tmp_path, lesson=lesson))[0])

    assert [dict(cell.metadata) for cell in notebook.cells if cell.metadata] == [
        {"tags": ["setup"]}
    ]


def test_a_lesson_survives_the_way_to_a_notebook_and_back(lab: Lab) -> None:
    notebook = make_reference_notebook(lab)
    again = read_percent(notebook_to_lesson(notebook))

    assert [cell.source for cell in again.cells] == [cell.source for cell in notebook.cells]


def test_a_lab_without_a_lesson_is_an_error(lab: Lab) -> None:
    lab.lesson.unlink()

    with pytest.raises(LabkitError, match="the lab small has no lesson that can be read"):
        make_learner_notebook(lab)


CELLS = '{"cells": [%s], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
META = '"metadata"'
CODE = '{"cell_type": "code", "source": "x = 1\\ny", "metadata": {}, "outputs": []}'


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param(CODE.replace('"x = 1\\ny"', '["x = 1\\n", "y"]'), id="source as lines"),
        pytest.param(CODE.replace("[]", '[{"output_type": "stream"}]'), id="outputs"),
        pytest.param(CODE.replace("{}", '{"collapsed": true}'), id="cell metadata"),
        pytest.param(CODE.replace(META, f'"id": "ab", "execution_count": 3, {META}'), id="ids"),
        pytest.param(CODE + ', {"cell_type": "code", "source": ""}', id="an empty cell added"),
    ],
)
def test_what_running_and_saving_does_is_no_change(cells: str) -> None:
    assert (
        digest_notebook((CELLS % cells).encode()).content
        == digest_notebook((CELLS % CODE).encode()).content
    )


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param(CODE.replace("x = 1", "x = 2"), id="source"),
        pytest.param(CODE.replace('"code"', '"markdown"'), id="kind"),
        pytest.param(f"{CODE}, {CODE}", id="a cell more"),
        pytest.param(
            CODE.replace(META, f'"attachments": {{"a.png": {{}}}}, {META}'), id="a picture"
        ),
        pytest.param("", id="nothing left"),
    ],
)
def test_what_a_person_writes_is_a_change(cells: str) -> None:
    assert (
        digest_notebook((CELLS % cells).encode()).content
        != digest_notebook((CELLS % CODE).encode()).content
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(CELLS % CODE[:-1], id="hand-broken"),
        pytest.param((CELLS % CODE)[:40], id="truncated"),
        pytest.param("", id="empty"),
        pytest.param("[]", id="a list"),
        pytest.param('{"worksheets": []}', id="an old format"),
        pytest.param(CELLS % "3", id="a cell that is none"),
        pytest.param(CELLS % '{"cell_type": "code", "source": 3}', id="a source that is none"),
    ],
)
def test_what_is_no_whole_notebook_has_no_digest(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(text)

    assert read_digests(path) is None


def test_links_and_folders_have_no_digest(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text(CELLS % CODE)
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "a.ipynb")

    assert read_digests(tmp_path / "a.ipynb") is not None
    assert read_digests(tmp_path / "link.ipynb") is None
    assert read_digests(tmp_path) is None
    assert read_digests(tmp_path / "gone") is None


def run_answer(*sources: str) -> object:
    statements, calls = find_check_calls(sources)
    return find_answer(statements, calls[-1])


def test_an_answer_is_made_from_what_it_needs_and_no_more() -> None:
    function = run_answer(
        "import math\nlimit = 3",
        "raise RuntimeError('never run')",
        "x = 1 / 0",
        "limit += 1",
        "table = {}\ntable['a'] = math.floor(2.5)",
        "def f(x):\n    return x + limit + table['a'] + later()",
        "def later():\n    return 100",
        "check('lab.f', f)",
    )

    assert function(10) == 116  # type: ignore[operator]


def test_the_last_definition_before_the_check_counts() -> None:
    assert run_answer("def f(): return 1", "def f(): return 2", "check('a.f', f)")() == 2  # type: ignore
    assert run_answer("def f(): return 1", "check('a.f', f)", "def f(): return 2")() == 1  # type: ignore


def test_magics_do_not_stand_in_the_way() -> None:
    assert run_answer("%time 3\n!ls", "def f(): return 1", "check('a.f', lambda: f())")() == 1  # type: ignore


def test_an_answer_that_cannot_be_made_says_why() -> None:
    with pytest.raises(LabkitError) as caught:
        run_answer("x = 1 / 0", "check('a.f', lambda: 1, )", "check('a.g', x)")

    assert caught.value.what == "the answer to a.g cannot be evaluated"
    assert caught.value.cause == "ZeroDivisionError: division by zero"


def test_claims_are_counted_where_they_stand() -> None:
    source = "claim('a', 1)\nif x:\n    labkit.claim_raises('b', E, f)\nclaims(3)"

    assert count_claims([source, "# claim('no')"]) == 2
