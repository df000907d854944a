"""Quarto documents are read without Quarto: cells, kernel, options."""

from __future__ import annotations

import shutil

import pytest

from labkit.cli import main
from labkit.errors import UsageError
from labkit.notebooks.quarto import read_quarto
from labkit.notebooks.sources import Source, load_notebook

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
    assert "passed, 5 of 6 cells run" in capsys.readouterr().out
