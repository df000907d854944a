"""Which blocks of a markdown document run, and what their options ask for."""

from __future__ import annotations

import json

import pytest

from labkit.cli import main
from labkit.errors import UsageError
from labkit.notebooks.fences import leave_blocks, read_fence_options, read_lines, unindent_chunks
from labkit.notebooks.sources import Source, load_notebook, note_not_run

UNREAD = {
    "indented.md": "1. Run it:\n\n   ```python\n   1\n   ```\n\n```python\n2\n```\n",
    "quoted.md": "> ```python\n> 1\n> ```\n\n```python\n2\n```\n",
    "tildes.md": "~~~python\n1\n~~~\n\n```python\n2\n```\n",
    "short.md": "```py\n1\n```\n\n```python\n2\n```\n",
    "named.md": "```{.python .copy}\n1\n```\n\n```python\n2\n```\n",
    "cells.md": "```python\n1\n```\n\n```{code-cell}\n2\n```\n",
    "bare.Rmd": "- a\n  ```python\n  1\n  ```\n\n```{python}\n2\n```\n",
}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("- a\n  ```{python}\n  if x:\n    1\n  ```\n", ["if x:\n  1"]),
        ("> ```{python, echo=FALSE}\n> 1\n> ```\n", ["1"]),
        ("1. a\n\n\t```{python}\n\t1\n\n\t2\n\t```\n\n```{python}\n3\n```\n", ["1\n\n2", "3"]),
        ('```{python}\nx = """\n  ```{python}\n"""\n```\n', ['x = """\n  ```{python}\n"""']),
    ],
    ids=["in a list", "in a quote", "with tabs", "in a text of the code"],
)
def test_a_chunk_in_a_list_or_a_quote_runs_as_with_knitr(tmp_path, text, code):
    assert list_code(read(tmp_path, "a.Rmd", text)) == code


OF_PYTHON = "```{python}\n2\n```\n"


@pytest.mark.parametrize(
    "engine",
    [
        "zsh",
        "zsh, echo=FALSE",
        "fish",
        "Rcpp",
        "js",
        "html",
        "perl",
        "stan",
        "python2",
        "sql",
        "css",
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_chunk_of_an_engine_that_does_not_run_is_noted_text(tmp_path, engine, count):
    chunk = f"```{{{engine}}}\nx = 1\n```\n\n"
    alone = read(tmp_path, "a.Rmd", chunk * count)
    assert list_code(alone) == []
    assert "kernelspec" not in alone.metadata
    notebook = read(tmp_path, "a.Rmd", chunk * count + OF_PYTHON)
    assert list_code(notebook) == ["2"]
    assert notebook.cells[0].source == (chunk * count).strip()
    (note,) = note_not_run(notebook)
    if engine == "python2":
        assert note.startswith(f"not run: {count} block")
    else:
        name = engine.partition(",")[0].lower()
        lines = "lines 1, 5, 9" if count > 1 else "line 1"
        assert f" of {{{name}}} ({lines}); the" in note
        assert ("runs in knitr alone" in note) == (name in {"rcpp", "stan", "sql", "css"})


@pytest.mark.parametrize("words", ["asis", "=html", "mermaid", "verbatim", ".zsh"])
def test_a_chunk_that_only_shows_its_text_is_not_noted(tmp_path, words):
    notebook = read(tmp_path, "a.Rmd", f"```{{{words}}}\n# x\n```\n\n{OF_PYTHON}")
    assert (list_code(notebook), note_not_run(notebook)) == (["2"], [])
    assert notebook.cells[0].source == f"```{{{words}}}\n# x\n```"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"````{{python, echo=FALSE}}\n1\n````\n\n{OF_PYTHON}", ["1", "2"]),
        (f"`````{{bash}}\nls\n`````\n\n{OF_PYTHON}", ["%%bash\nls", "2"]),
        (f"````{{zsh}}\n1\n````\n\n{OF_PYTHON}", ["2"]),
        (f"````markdown\n```{{python}}\n1\n```\n````\n\n{OF_PYTHON}", ["2"]),
        (f"````{{verbatim}}\n```{{python}}\n1\n```\n````\n\n{OF_PYTHON}", ["2"]),
        (f"```{{bash}}\nls\n```\n\n```{{zsh}}\nls\n```\n\n{OF_PYTHON}", ["%%bash\nls", "2"]),
        ("```{bash}\nls\n```\n\n```{zsh}\nls\n```\n", ["%%bash\nls"]),
    ],
    ids=["python", "bash", "zsh", "shown", "verbatim", "beside a shell", "shells alone"],
)
def test_a_chunk_in_more_backticks_is_one(tmp_path, text, code):
    notebook = read(tmp_path, "a.Rmd", text)
    assert list_code(notebook) == code
    assert not any("labkit_" in cell.source for cell in notebook.cells)


FENCES = {
    "a blank before the brace": ("``` {python}\n1\n```\n", ["1"]),
    "a blank in the brace": ("```{ python }\n1\n```\n", ["1"]),
    "a brace in a text": (
        "```{python, results='hide', fig.cap=\"a } b [\"}\n1\n```\n",
        ["1"],
    ),
    "a brace in a text, in a quote": ("  ``` {python, fig.cap='{'}\n  1\n  ```\n", ["1"]),
    "a fence in a text of the code": (
        "````{python}\ns = '''\n```\nx\n```{r}\n'''\n````\n\n```{python}\n2\n```\n",
        ["s = '''\n```\nx\n```{r}\n'''", "2"],
    ),
}


@pytest.mark.parametrize("name", ["a.Rmd", "a.qmd"])
@pytest.mark.parametrize(("text", "code"), FENCES.values(), ids=FENCES)
def test_a_fence_that_knitr_and_quarto_run_is_a_cell(tmp_path, name, text, code):
    notebook = read(tmp_path, name, text)
    assert (list_code(notebook), note_not_run(notebook)) == (code, [])
    assert not any("labkit_" in cell.source for cell in notebook.cells)


@pytest.mark.parametrize("fence", ["``` {.python}", "```{python.x}", '```{python, a="}', "```{=x}"])
def test_a_fence_that_is_not_of_a_chunk_is_text(tmp_path, fence):
    text = f"{fence}\n1\n```\n\n{OF_PYTHON}"
    assert list_code(read(tmp_path, "a.Rmd", text)) == ["2"]


def test_the_option_engine_names_what_runs(tmp_path):
    text = f"```{{python, engine='bash'}}\nls\n```\n\n{OF_PYTHON}"
    assert list_code(read(tmp_path, "a.Rmd", text)) == ["%%bash\nls", "2"]
    notebook = read(tmp_path, "b.Rmd", text.replace("bash", "zsh"))
    assert list_code(notebook) == ["2"]
    assert note_not_run(notebook) == [
        "not run: 1 cell of {zsh} (line 1); the document's kernel runs python",
    ]
    quarto = read(tmp_path, "a.qmd", text)
    assert list_code(quarto) == ["2"]
    assert "1 cell of {bash}" in note_not_run(quarto)[0]
    mentioned = text.replace("engine='bash'", "fig.cap=\"engine='bash'\"")
    assert list_code(read(tmp_path, "c.Rmd", mentioned)) == ["ls", "2"]


def test_a_document_that_jupytext_wrote_keeps_its_magics(tmp_path):
    header = "---\njupyter:\n  jupytext:\n    formats: ipynb,Rmd\n---\n\n"
    text = f"{header}```{{html}}\n<b>\n```\n\n```{{zsh}}\nls\n```\n\n{OF_PYTHON}"
    assert list_code(read(tmp_path, "a.Rmd", text)) == ["%%html\n<b>", "2"]


def test_a_chunk_that_a_block_shows_stays_where_it_is():
    text = "````\n  ```{python}\n  1\n  ```\n````\n"
    assert unindent_chunks(text) == text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("<!--\n```python\n1\n```\n-->\n\n```python\n2\n```\n", ["2"]),
        ("<!-- old:\n\n```python\n1\n```\n\n```python\n3\n```\n-->\n```python\n2\n```\n", ["2"]),
        ("<!-- one line -->\n```python\n2\n```\n", ["2"]),
        ("<!-- a --> b <!-- c\n-->\n```python\n2\n```\n", ["2"]),
        ("write `<!--` first\n\n```python\n2\n```\n", ["2"]),
        ("```html\n<!--\n```\n\n```python\n2\n```\n", ["2"]),
        ("```python\n# <!--\n1\n```\n\n```python\n2\n```\n", ["# <!--\n1", "2"]),
    ],
    ids=[
        "a block",
        "blocks",
        "one line",
        "two",
        "inline code",
        "code of HTML",
        "a comment in code",
    ],
)
def test_a_block_in_a_comment_of_html_does_not_run(tmp_path, text, code):
    notebook = read(tmp_path, "a.md", text)
    assert list_code(notebook) == code
    assert not [note for note in note_not_run(notebook) if "Python" in note or "{python}" in note]
    assert ".noeval" not in "".join(cell.source for cell in notebook.cells)


OF_TWO = "\n```python\n1\n```\n\n```bash\n:\n```\n"


@pytest.mark.parametrize("key", ["jupytext", "jupyter", "kernelspec"])
@pytest.mark.parametrize(
    ("value", "is_notebook"),
    [
        *[(value, False) for value in ("false", "no", "~", "", "[]", "{}", "False  # later")],
        *[(value, True) for value in ("true", "python3", "3", "{formats: md}", "\n  formats: md")],
    ],
)
@pytest.mark.parametrize("more", ["", "title: a\n"], ids=["alone", "beside others"])
def test_a_header_says_that_a_document_is_a_notebook(tmp_path, key, value, is_notebook, more):
    notebook = read(tmp_path, "a.md", f"---\n{more}{key}: {value}\n---\n{OF_TWO}")
    assert list_code(notebook) == ["1", *(["%%bash\n:"] if is_notebook else [])]


@pytest.mark.parametrize("name", UNREAD)
def test_a_block_of_python_that_is_text_is_counted(tmp_path, name):
    (tmp_path / name).write_text(UNREAD[name])
    (note,) = note_not_run(load_notebook(Source("a", tmp_path / name)))
    assert note.startswith("not run: 1 block of Python, which is text")


def test_a_block_inside_another_is_no_block(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("```python\n2\n```\n\n````md\n```python\n1\n```\n````\n")
    assert note_not_run(load_notebook(Source("a", page))) == []


README = """# A tool

```console
$ pip install tool
```

```bash title="once"
rm -rf data
```

```sh
rm -rf data
```

```bash {"a": 1}
rm -rf data
```

````md
```bash
only shown
```
````

```python3
made = 1
```
More:
```ruby
system("rm -rf data")
```

```html
<b>
```

```python tags=["last"]
%%bash
echo asked for
```
"""
HEADER = "---\njupytext:\n  cell_metadata_filter: all\n---\n\n"


def read(folder, name, text):
    (folder / name).write_text(text)
    return load_notebook(Source("a", folder / name))


def list_code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def list_tags(notebook):
    return [
        [tag for tag in cell.metadata.get("tags", []) if "-" in tag]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_readme_runs_its_own_language_alone(tmp_path, end):
    (tmp_path / "a.md").write_bytes(README.replace("\n", end).encode())
    notebook = load_notebook(Source("a", tmp_path / "a.md"))
    assert list_code(notebook) == ["made = 1", "%%bash\necho asked for"]
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for line in ('```bash title="once"', '```bash {"a": 1}', "```sh", "```html", "```console"):
        assert f"{line}\n" in text
    assert ".noeval" not in str(notebook)
    (note,) = note_not_run(notebook)
    blocks = {"console": [3], "bash": [7, 15], "sh": [11], "ruby": [29], "html": [33]}
    assert note.endswith("; the document's kernel runs python")
    for language, lines in blocks.items():
        shown = f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines))}"
        assert f"of {{{language}}} ({shown})" in note
        assert all(README.splitlines()[line - 1].startswith(f"```{language}") for line in lines)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (HEADER + "```python\n1\n```\n\n```bash\nls\n```\n", ["1", "%%bash\nls"]),
        ("```{code-cell}\n1\n```\n\n```bash\nls\n```\n", ["1"]),
        (
            "---\ntitle: a\n---\n\n```bash\nls\n```\n\n```bash\nls\n```\n\n```python\n1\n```\n",
            ["1"],
        ),
        ("```bash\nls\n```\n\n```html\n<b>\n```\n", []),
        ("~~~bash\nls\n~~~\n\n```python\n1\n```\n", ["1"]),
    ],
    ids=["a header", "MyST", "mostly a shell", "nothing to run", "tildes"],
)
def test_the_header_says_whether_a_shells_block_is_a_cell(tmp_path, text, code):
    assert list_code(read(tmp_path, "a.md", text)) == code


def test_a_document_of_one_other_language_keeps_it(tmp_path):
    notebook = read(tmp_path, "a.md", "```bash\nnpm i\n```\n\n```js\nlet x = 1\n```\n")
    assert list_code(notebook) == ["let x = 1"]
    assert note_not_run(notebook) == [
        "not run: 1 cell of {bash} (line 1); the document's kernel runs js",
    ]


CHUNKS = """```{r setup, include=FALSE}
knitr::opts_chunk$set(echo = TRUE, error = TRUE)
```

```{bash}
ls
```

```{bash, eval=FALSE}
ls
```

```{python, include=FALSE, error=FALSE}
1
```

```{python name, eval = F}
2
```

```{python}
#| eval: false
3
```

```{python}
#| eval=FALSE, echo=TRUE
4
```

```{python, eval=has_gpu}
5
```

```{python}
#| eval: !expr nrow(x) > 0
6
```

```{bash}
#| eval: false
ls
```

```{sql}
select 1
```
"""
SKIP, ALLOW = "skip-execution", "raises-exception"


def test_knitrs_options_count_in_r_markdown(tmp_path):
    notebook = read(tmp_path, "a.Rmd", CHUNKS)
    code = list_code(notebook)
    assert code[:3] == ["%%bash\nls", "%%bash\nls", "1"]
    tags = list_tags(notebook)
    assert tags == [[ALLOW], [SKIP, ALLOW], [], *[[SKIP, ALLOW]] * 6]
    languages, options = note_not_run(notebook)
    assert languages.startswith("not run: 1 cell of {r} (line 1), 1 cell of {sql} (line 45);")
    assert languages.endswith("{r} needs a kernel of its own, {sql} runs in knitr alone")
    assert options == (
        "not run: 5 cells with eval=FALSE (lines 9, 17, 21, 26 ...), 1 cell with eval=has_gpu"
        " (line 31), 1 cell with eval=nrow(x) > 0 (line 35); R code in an option is not evaluated"
    )


@pytest.mark.parametrize("word", ["engine: bash", "engine='bash'", 'echo=FALSE, engine = "bash"'])
@pytest.mark.parametrize("chunk", ["python", "r"])
def test_an_option_in_a_chunks_first_lines_names_what_runs(tmp_path, chunk, word):
    text = f"```{{{chunk}}}\n#| {word}\nls\n```\n\n{OF_PYTHON}"
    notebook = read(tmp_path, "a.Rmd", text)
    assert list_code(notebook) == [f"%%bash\n#| {word}\nls", "2"]
    quarto = read(tmp_path, "a.qmd", text)
    assert list_code(quarto) == ["2"]
    assert "1 cell of {bash} (line 1)" in note_not_run(quarto)[0]


def test_the_lines_of_what_is_left_out_are_those_of_the_document(tmp_path):
    header = "---\ntitle: a\njupytext: false\n---\n\n"
    chunks = "```{r}\n1\n```\n\n1. so\n   ```{sql}\n   1\n   ```\n\n```{r}\n1\n```\n\n"
    skipped = "```{python}\n#| eval: false\n1\n```\n"
    text = f"{header}{OF_PYTHON}\n{chunks}{skipped}{OF_PYTHON}"
    for name in ("a.Rmd", "a.qmd"):
        left, options = note_not_run(read(tmp_path, name, text))
        assert left.startswith("not run: 2 cells of {r} (lines 10, 19), 1 cell of {sql} (line 15);")
        assert options == "not run: 1 cell with eval=FALSE (line 23)"


@pytest.mark.parametrize(
    ("text", "code", "kernel"),
    [
        ("```{bash}\nls\n```\n\n```{bash}\nls\n```\n\n```{python}\n1\n```\n", 3, "python"),
        ("```{bash}\nls\n```\n", 1, "python"),
        ("```{bash}\nls\n```\n\n```{bash}\nls\n```\n\n```{r}\n1\n```\n", 1, "r"),
    ],
    ids=["python", "a shell alone", "R"],
)
def test_a_shell_is_not_the_kernel_of_r_markdown(tmp_path, text, code, kernel):
    notebook = read(tmp_path, "a.Rmd", text)
    assert len(list_code(notebook)) == code
    assert notebook.metadata.get("kernelspec", {}).get("language", "python") == kernel


@pytest.mark.parametrize(
    ("fence", "tags"),
    [
        ("python, eval=FALSE", [SKIP]),
        ("python error=TRUE", [ALLOW]),
        ("python eval=false error=true", [SKIP, ALLOW]),
        ("python, fig.cap='eval=FALSE'", []),
        ("python, echo=FALSE, include=FALSE", []),
    ],
)
def test_knitrs_options_count_in_quarto(tmp_path, fence, tags):
    assert list_tags(read(tmp_path, "a.qmd", f"```{{{fence}}}\n1\n```\n")) == [tags]


def test_options_of_a_fence_and_of_lines():
    assert read_fence_options("python, eval=c(1, 2), error = T") == {
        "eval": "c(1, 2)",
        "error": True,
    }
    assert read_lines("#| error = TRUE\n#| eval = FALSE\n1") == {"error": True, "eval": False}
    assert read_lines("# | eval: false\n1") == {"eval": False}  # as formatters write it
    assert read_lines("1\n#| eval: false") == {}


def test_a_block_without_an_end_is_left_too():
    assert list(leave_blocks("```bash\nls", ["bash"]).marks) == ["```bash .noeval .labkit_0"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", ""),
        ("a.qmd", "---\ntitle: a\n---\n"),
        ("a.md", "\n\n"),
        ("a.ipynb", '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'),
    ],
)
def test_an_empty_document_is_refused(tmp_path, name, text):
    with pytest.raises(UsageError, match=r"has no code"):
        read(tmp_path, name, text)


@pytest.mark.slow
def test_a_document_without_code_passes_only_beside_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# A\n\n```bash\ntouch ran\n```\n")
    (tmp_path / "b.py").write_text("x = 1\n")
    assert main(["run", "README.md", "--no-output", "--json"]) == 2
    (told,) = json.loads(capsys.readouterr().out)["notebooks"]
    assert (told["status"], told["error"]["what"]) == ("invalid", "README.md has no code that runs")
    assert "%%bash" in told["error"]["hint"]
    assert main(["run", "README.md", "b.py", "--no-output"]) == 0
    assert "note: it has no code of the kernel's language" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()
