"""Quarto documents are read without Quarto: cells, kernel, options."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from labkit.cli import main
from labkit.errors import UsageError
from labkit.notebooks.quarto import read_quarto
from labkit.notebooks.sources import Source, find_label, load_notebook, note_not_run

DOCUMENT = """---
title: "Losses"
execute:
  echo: false
jupyter: python3
---

Text with `{python} 1 + 1` in a line.

```{python}
#| label: rate
#| tags: [parameters]
rate = 0.5
```

````{python}
fence = '''
```
'''
print(rate, len(fence))
````

```{.python}
shown = 1 / 0
```

```python
shown = 2 / 0
```

1. in a list

   ```{python}
   if rate:
       print("indented")
   ```

```{python}
#| eval: false
1 / 0
```

```{python}
#| error: true
1 / 0
```

```{mermaid}
graph
```

```{r}
summary(cars)
```

~~~{=html}
<b>
~~~
"""


def list_code(notebook):
    return [
        (cell.source, cell.metadata.get("tags"))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_blocks_with_the_kernels_language_are_cells():
    notebook = read_quarto(DOCUMENT)
    assert notebook.metadata.kernelspec.name == "python3"
    assert list_code(notebook) == [
        ("#| label: rate\n#| tags: [parameters]\nrate = 0.5", ["parameters"]),
        ("fence = '''\n```\n'''\nprint(rate, len(fence))", None),
        ('if rate:\n    print("indented")', None),
        ("#| eval: false\n1 / 0", ["skip-execution"]),
        ("#| error: true\n1 / 0", ["raises-exception"]),
    ]
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for shown in ("shown = 1 / 0", "shown = 2 / 0", "```{mermaid}", "```{r}\nsummary(cars)\n```"):
        assert shown in text


@pytest.mark.parametrize(
    ("header", "name", "language"),
    [
        ("jupyter: my-env", "my-env", "python"),
        ("jupyter:\n  kernelspec:\n    name: my-env\n    language: python", "my-env", "python"),
        ("format: html", "python3", "python"),
        ("jupyter: true", "python3", "python"),
    ],
)
def test_the_header_names_the_kernel(header, name, language):
    notebook = read_quarto(f"---\n{header}\n---\n\n```{{python}}\n1\n```\n")
    spec = notebook.metadata.kernelspec
    assert (spec.name, spec.language) == (name, language)
    assert len(list_code(notebook)) == 1


def test_documents_of_other_languages_name_their_kernel():
    spec = read_quarto("```{r}\nsummary(cars)\n```\n").metadata.kernelspec
    assert (spec.name, spec.language) == ("ir", "r")


def test_the_header_can_turn_execution_off_and_a_cell_on():
    header = "---\nexecute:\n  eval: false\n---\n"
    text = header + "```{python}\n1\n```\n```{python}\n#| eval: true\n2\n```"
    assert [tags for _, tags in list_code(read_quarto(text))] == [["skip-execution"], None]


@pytest.mark.parametrize("text", ["", "\n\n", "---\ntitle: x\n", "no code", "```{python}\n1"])
def test_documents_without_a_whole_cell_are_read(text):
    assert len(list_code(read_quarto(text))) == text.startswith("```")


def test_invalid_yaml_is_an_invalid_notebook(tmp_path):
    path = tmp_path / "one.qmd"
    path.write_text("---\na: [\n---\n```{python}\n1\n```\n")
    with pytest.raises(UsageError, match="not a notebook"):
        load_notebook(Source("one", path))


@pytest.mark.slow
def test_a_document_runs_without_quarto(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.qmd").write_text(DOCUMENT)
    assert main(["run", "one.qmd", "-p", "rate", "2", "--output", "out"]) == 0
    assert "2 5" in (tmp_path / "out/one.ipynb").read_text()
    shown = capsys.readouterr()
    assert "passed, 5 of 6 cells run" in shown.out
    note = "not run: 1 cell of {r} (line 52); the document's kernel runs python"
    assert f"note: {note}" in shown.out
    (result,) = json.loads((tmp_path / "out/result.json").read_text())["notebooks"]
    assert any(one.startswith(note) for one in result["notes"])
    labels = [cell["first_line"] for cell in result["cells"]]
    assert (labels[0], labels[3], labels[5]) == ("rate", "if rate:", "1 / 0")


def test_the_blocks_of_other_languages_are_counted():
    blocks = ("python", "r", "c++", "r", "mermaid", ".python", "=html", "bash -e")
    text = "\n".join(f"```{{{one}}}\n1\n```" for one in blocks)
    (note,) = note_not_run(read_quarto(text))
    counts = "2 cells of {r} (lines 4, 10), 1 cell of {c++} (line 7), 1 cell of {bash} (line 22)"
    why = "the document's kernel runs python, {r} needs a kernel of its own"
    assert note == f"not run: {counts}; {why}"
    assert note_not_run(read_quarto("```{python}\n1\n```\n")) == []


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("\n  x = 1\ny = 2", "x = 1"),
        ("#| echo: false\n#| fig-cap: a plot\n\nplot()", "plot()"),
        ("#| echo: false\n#| label: fig-loss\nplot()", "fig-loss"),
        ('#| label: "fig-loss"\nplot()', "fig-loss"),
        ("// | not an option", "// | not an option"),
        ("//| label: cells\nclass A {};", "cells"),
        ("# the data\n#| label: no", "# the data"),
        ("#| eval: false", "#| eval: false"),
        ("", ""),
    ],
)
def test_a_cell_is_called_by_its_label_or_its_first_line_of_code(source, label):
    assert find_label(source) == label


MINE = "{name: mine, display_name: Mine, language: R}"


@pytest.mark.parametrize(
    ("name", "text", "kernel"),
    [
        ("a.Rmd", "```{r}\nx <- c(1, 2)\n```\n", "ir"),
        ("a.Rmd", "```{julia}\nx = 1\n```\n", "julia"),
        ("a.md", "```js\nlet x = 1\n```\n", "js"),
        ("a.Rmd", "```{python}\n1\n```\n", None),
        ("a.Rmd", f"---\njupyter:\n  kernelspec: {MINE}\n---\n```{{r}}\n1\n```\n", "mine"),
    ],
)
def test_a_document_of_another_language_does_not_run_as_python(tmp_path, name, text, kernel):
    (tmp_path / name).write_text(text)
    notebook = load_notebook(Source("a", tmp_path / name))
    assert notebook.metadata.get("kernelspec", {}).get("name") == kernel


def test_blocks_of_another_language_are_text_unless_the_document_loads_their_magic(tmp_path):
    page = tmp_path / "a.Rmd"
    page.write_text("```{python}\n1\n```\n\n```{r}\nx <- 1\n```\n")
    notebook = load_notebook(Source("a", page))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        ("code", "1"),
        ("markdown", "```r\nx <- 1\n```"),
    ]
    (note,) = note_not_run(notebook)
    assert note.startswith("not run: 1 cell of {r} (line 5); the document's kernel runs python")
    page.write_text("```{python}\n%load_ext rpy2.ipython\n```\n\n```{r}\nx <- 1\n```\n")
    loaded = load_notebook(Source("a", page))
    assert loaded.cells[1].source == "%%R\nx <- 1"
    assert note_not_run(loaded) == []
    page.write_text("```{python}\n%load_ext sql\n```\n\n```{sql}\nselect 1\n```\n")
    assert load_notebook(Source("a", page)).cells[1].source == "%%sql\nselect 1"


@pytest.mark.parametrize(
    ("first", "kernel"),
    [("zsh", "python3"), ("bash", "python3"), ("Rcpp", "python3"), ("r", "ir"), ("julia", "julia")],
)
def test_the_first_language_with_a_kernel_names_the_kernel(tmp_path, first, kernel):
    page = tmp_path / "a.qmd"
    page.write_text(f"```{{{first}}}\nx\n```\n\n```{{python}}\n1\n```\n")
    assert load_notebook(Source("a", page)).metadata["kernelspec"]["name"] == kernel


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\ntitle: a: b\n---\n", r"in line 2 \(title: a: b\): mapping values"),
        (
            "---\ntitle: a\n---\n\n```{python}\n#| label: a: b\n1\n```\n",
            r"in line 6 \(label: a: b\): mapping values",
        ),
        (
            "---\ntitle: a\n---\n\n```{python}\n#| echo: false\n#| classes: [a\n1\n```\n",
            r"in line 7 \(classes: \[a\): expected",
        ),
    ],
)
def test_invalid_yaml_is_named_with_its_line(text, found):
    with pytest.raises(ValueError, match=found):
        read_quarto(text)


def write_document(folder, suffix, header):
    fence = "```python" if suffix == ".md" else "```{python}"
    path = folder / f"one{suffix}"
    path.write_text(f"---\n{header}\n---\n\n{fence}\nprint(1)\n```\n")
    return Source("one", path)


HEADERS = {
    "sign": ("title: @x\njupyter: python3", r"line 2 \(title: @x\)", 'title: "@x"'),
    "sign alone": ("title: @x", r"line 2 \(title: @x\)", 'title: "@x"'),
    "sign and number": (
        "title: @x\njupyter:\n  kernelspec: 3",
        r"line 2 \(title: @x\)",
        'title: "@x"',
    ),
    "colon": ("title: a: b", r"line 2 \(title: a: b\): mapping", 'title: "a: b"'),
    "quotes": ('title: "a" b: c', r"line 2 \(", "title: '\"a\" b: c'"),
    "open quote": ('title: "a\nx: 1', r"line 2 \(title: \"a\): its quote", 'title: "a"'),
    "no colon": ("title a\nb: c", r"line 2 \(title a\): it has no colon", "title: a"),
    "indented": ("title: a\n  b: c", r"line 3 \(b: c\)", "do not indent it: b: c"),
    "tab": ("title:\n\t- a", r"line 3 \(- a\)", "blanks, not with tabs"),
    "bracket": ("title: [a\nb: c", r"line 2 \(title: \[a\)", "title: [a]"),
    "alias": ("title: *x", r"line 2 \(title: \*x\)", 'title: "*x"'),
    "date": ("a: 1\nd: 2024-13-45", r"line 3 \(d: 2024-13-45\)", 'd: "2024-13-45"'),
    "blank after the colon": ("title:a\nb: c", r"line 2 \(title:a\): it has no blank", "title: a"),
    "no key": ("A text.\nb: c", r"line 2 \(A text.\): it has no colon", "A: text."),
    "no-break space": (
        "a: 1\ntitle:\xa0x\nb: 2",
        r"line 3 \(title:\xa0x\): it has U\+00A0, which is not a blank",
        "type a colon and a blank: title: x",
    ),
    "wide colon": ("title\uff1ax\nb: 2", r"line 2 .*U\+FF1A, which is not a colon", ": title: x"),
    "line separator": (
        "a: x\u2028y\nb: 2",
        r"line 2 .*U\+2028 ends a line",
        "line 2: type a blank",
    ),
    "form feed": ("a: 1\nb: x\x0cy", r"line 3 .*U\+000C", "line 3: delete it: b: xy"),
    "escape": ('a: "\\d+"', r"line 2 .*a backslash begins an escape", r"single quotes: a: '\d+'"),
    "quote in quotes": ("title: 'it's'", r"line 2 \(title: 'it's'\)", 'quotes: title: "it\'s"'),
    "template": ("title: {{ x }}", r"line 2 \(title: {{ x }}\)", 'title: "{{ x }}"'),
    "key that is a mapping": ("{a: b}: c", r"line 2 \({a: b}: c\)", "write it as `key: value`"),
    "control": ("title: a\x01b", r"line 2 .*U\+0001", "delete it: title: ab"),
    "number": (
        "jupyter:\n  kernelspec: 3",
        r"line 3 \(kernelspec: 3\): kernelspec is the number 3",
        "kernelspec: {name: python3, display_name: Python 3}",
    ),
    "number as name": (
        "jupyter:\n  kernelspec:\n    name: 3\n    display_name: x",
        r"line 4 \(name: 3\): name is the number 3",
        "name: python3",
    ),
}
OF_JUPYTEXT = {
    "no display name": (
        "jupyter:\n  kernelspec:\n    name: python3",
        r"line 4 \(name: python3\): its kernelspec has no display_name",
        "line 4: add a line below it:     display_name: python3",
    ),
    "no name": (
        "jupyter:\n  kernelspec:\n    language: python",
        r"line 4 \(language: python\): its kernelspec has no name",
        "    name: python3",
    ),
    "jupytext": ("jupyter:\n  jupytext: 3", r"line 3 \(jupytext: 3\)", "line 3: delete it"),
}


@pytest.mark.parametrize("suffix", [".qmd", ".Rmd", ".md"])
@pytest.mark.parametrize("name", HEADERS)
def test_a_wrong_header_is_named_with_its_line_and_the_edit(tmp_path, suffix, name):
    header, cause, fix = HEADERS[name]
    source = write_document(tmp_path, suffix, header)
    with pytest.raises(UsageError, match="not a notebook") as raised:
        load_notebook(source)
    assert re.search(cause, raised.value.cause)
    assert fix in raised.value.fix
    assert raised.value.fix.startswith(f"edit {source.path}, line ")


@pytest.mark.parametrize("suffix", [".Rmd", ".md", ".py"])
@pytest.mark.parametrize("name", OF_JUPYTEXT)
def test_what_jupyter_needs_of_a_header_is_named_with_the_edit(tmp_path, suffix, name):
    header, cause, fix = OF_JUPYTEXT[name]
    source = write_document(tmp_path, suffix, header)
    if suffix == ".py":
        lines = "".join(f"# {line}\n" for line in header.split("\n"))
        source.path.write_text(f"# ---\n{lines}# ---\n\n# %%\nprint(1)\n")
    with pytest.raises(UsageError, match="not a notebook") as raised:
        load_notebook(source)
    assert re.search(cause, raised.value.cause)
    assert fix in raised.value.fix


OF_JUPYTEXT_ALONE = {
    "tag": (
        "a: 1\nd: !expr 1 + 1",
        r"line 3 \(d: !expr 1 \+ 1\): the tag !expr",
        'd: "!expr 1 + 1"',
    ),
    "tag of YAML": ("d: !!python/tuple [1]", r"line 2 .*the tag !!python/tuple", '"!!python/tuple'),
    "tab": ("a: 1\ntitle:\tx", r"line 3 ", "line 3: type a blank instead of the tab: title: x"),
    "no-break space alone": ("title:\xa0x", r"line 2 .*U\+00A0", "a colon and a blank: title: x"),
}


@pytest.mark.parametrize("suffix", [".md", ".myst"])
@pytest.mark.parametrize("name", OF_JUPYTEXT_ALONE)
def test_what_jupytext_alone_refuses_is_named_with_its_line(tmp_path, capsys, suffix, name):
    header, cause, fix = OF_JUPYTEXT_ALONE[name]
    source = write_document(tmp_path, suffix, header)
    with pytest.raises(UsageError, match="not a notebook") as raised:
        load_notebook(source)
    assert re.search(cause, raised.value.cause)
    assert fix in raised.value.fix
    assert main(["run", str(source.path), "--no-output"]) == 2


def test_a_header_without_an_end_is_named_with_the_edit(tmp_path):
    source = write_document(tmp_path, ".md", "")
    source.path.write_text("---\ntitle: a\nb: 1\n\n```python\nprint(1)\n```\n")
    with pytest.raises(UsageError) as raised:
        load_notebook(source)
    assert "line 1 (---) and has no end" in raised.value.cause
    assert raised.value.fix.endswith("line 3: add a line below it: ---")


FENCES = {
    ".md": "```python",
    ".myst": "```{code-cell}",
    ".qmd": "```{python}",
    ".Rmd": "```{python}",
}
TEXT_AT_TOP = {
    "break": "---\n\nIt's: *here*\n",
    "two breaks": "---\n\nIt's: *here*\n\n---\n",
    "break above keys": "---\n\ntitle: x\n---\n",
    "long break": "-----\ntitle: x\n-----\n",
    "break with blanks": "---  \n  \nText\n",
}
TEXT_IN_MARKDOWN = {
    "text": "---\njust text\n---\n",
    "list": "---\n- a\n- b\n---\n",
    "flow list": "---\n[a, b]\n---\n",
    "number": "---\n3\n---\n",
    "no keys, no end": "---\nSome text\n",
}


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        *[(suffix, text) for suffix in FENCES for text in TEXT_AT_TOP.values()],
        *[(suffix, text) for suffix in (".md", ".myst") for text in TEXT_IN_MARKDOWN.values()],
    ],
)
def test_a_thematic_break_at_the_top_is_text(tmp_path, suffix, text):
    path = tmp_path / f"one{suffix}"
    path.write_text(f"{text}\n{FENCES[suffix]}\nprint(1)\n```\n")
    first, *_, last = load_notebook(Source("one", path)).cells
    assert (first.cell_type, last.source) == ("markdown", "print(1)")
    assert first.source.startswith(text.partition("\n")[0].rstrip())


@pytest.mark.parametrize("header", ["", "\n", "# a comment\n", "# one\n\n# two\n"])
@pytest.mark.parametrize("suffix", FENCES)
def test_an_empty_header_is_none(tmp_path, suffix, header):
    path = tmp_path / f"one{suffix}"
    text = "```{python}\nprint(1)\n```\n"
    path.write_text(f"---\n{header}---\n\n{text.replace('```{python}', FENCES[suffix])}")
    cells = load_notebook(Source("one", path)).cells
    assert [cell.source for cell in cells if cell.cell_type == "code"] == ["print(1)"]


@pytest.mark.parametrize("suffix", [".md", ".Rmd"])
def test_jupytexts_own_keys_make_a_header_of_any_text(tmp_path, suffix):
    spec = "jupyter:\n  kernelspec:\n    display_name: A\n    name: a"
    for text in ("\nA text: of: two parts.", "A text."):
        notebook = load_notebook(write_document(tmp_path, suffix, f"{text}\n{spec}"))
        assert notebook.metadata.kernelspec.name == "a"


def test_a_header_of_myst_needs_no_display_name_and_no_values(tmp_path):
    path = tmp_path / "one.md"
    head = "author:\n  name:\ntitle:   # later\nfile_format: mystnb\nkernelspec:\n  name: python3"
    path.write_text(f"---\n{head}\n---\n\n```{{code-cell}}\nprint(1)\n```\n")
    notebook = load_notebook(Source("one", path))
    assert notebook.metadata.kernelspec == {"name": "python3", "display_name": "python3"}
    assert [cell.source for cell in notebook.cells if cell.cell_type == "code"] == ["print(1)"]


def test_a_wrong_kernel_or_key_of_myst_is_named_with_its_line(tmp_path):
    path = tmp_path / "one.md"
    for head, found in (
        ("a: 1\nkernelspec:\n  name: 3", "line 4 (name: 3): name is the number 3"),
        ("2024-01-02: a", "line 2 (2024-01-02: a): its key 2024-01-02 is not a text"),
    ):
        path.write_text(f"---\n{head}\n---\n\n```{{code-cell}}\nprint(1)\n```\n")
        with pytest.raises(UsageError) as raised:
            load_notebook(Source("one", path))
        assert found in raised.value.cause


@pytest.mark.parametrize(
    "header",
    [
        "title:\tx\nb: a\tb  # tab\nlist: [a,\tb]\nc: d\t",
        "title: a\ndate: 2024-01-02",
        'date: "`r Sys.Date()`"',
        "params:\n  n: !r 1 + 1\n  d: !expr Sys.Date()",
        "title: !custom x",
        "jupyter: python3",
        "just text",
        "- a\n- b",
        "",
    ],
)
@pytest.mark.parametrize("suffix", [".qmd", ".Rmd"])
def test_a_header_that_the_formats_own_program_reads_is_read(tmp_path, suffix, header):
    cells = load_notebook(write_document(tmp_path, suffix, header)).cells
    assert [cell.source for cell in cells if cell.cell_type == "code"] == ["print(1)"]


@pytest.mark.parametrize("suffix", [".qmd", ".Rmd"])
def test_a_chunks_wrong_option_is_named_with_its_line(tmp_path, suffix):
    source = write_document(tmp_path, suffix, "title: a")
    source.path.write_text(source.path.read_text().replace("print", "#| label: @x\nprint"))
    with pytest.raises(UsageError) as raised:
        load_notebook(source)
    assert "in line 6 (label: @x)" in raised.value.cause
    assert raised.value.fix.endswith('line 6: put the value in quotes: label: "@x"')


def test_an_invalid_header_ends_the_command_as_another_invalid_notebook(tmp_path, capsys):
    source = write_document(tmp_path, ".Rmd", "title: @x")
    assert main(["run", str(source.path), "--no-output"]) == 2
    assert f"edit {source.path}, line 2" in capsys.readouterr().out
