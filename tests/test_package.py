"""What the package exports, and the sentence that a Python that is too old gets."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import labkit
from labkit import __main__
from labkit.errors import UsageError

PACKAGE = Path(labkit.__file__).parent


@pytest.mark.parametrize("name", ["__init__.py", "__main__.py"])
def test_what_an_old_python_reads_first_it_can_parse(name):
    ast.parse((PACKAGE / name).read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 6, 9), (3, 9, 21)], ids=["3.6", "3.9"])
def test_an_old_python_gets_a_sentence(monkeypatch, capsys, version):
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert __main__.main() == 2
    assert capsys.readouterr().err == (
        f"error: Python {version[0]}.{version[1]} is too old for labkit (/usr/bin/python3)\n"
        "  cause: labkit needs Python 3.10 or newer\n"
        "  try: make up PYTHON=python3.12   # or install a container engine\n"
    )


def test_this_python_is_new_enough(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["labkit", "xyzzy"])
    assert __main__.main() == 2
    assert "unknown command 'xyzzy'" in capsys.readouterr().err


def test_the_public_names_are_there():
    promised = {"LabkitError", "__version__", "best_device", "check", "claim", "claim_raises"}
    assert promised <= set(labkit.__all__)
    assert dir(labkit) == sorted(labkit.__all__)
    assert issubclass(UsageError, labkit.LabkitError)


def test_every_public_name_has_a_module():
    assert set(labkit._EXPORTS) == set(labkit.__all__) - {"__version__"}
    missing = [name for name, module in labkit._EXPORTS.items() if not has_source(module)]
    assert missing == []


def has_source(module):
    """True where the module is in the package, without importing it."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_a_name_that_is_not_exported():
    with pytest.raises(AttributeError, match="module 'labkit' has no attribute 'launch_rockets'"):
        _ = labkit.launch_rockets


def test_the_file_that_a_wheel_takes_its_version_from_has_it():
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[tool.hatch.version]\n")[2]
    path = section.partition("\n")[0].partition("=")[2].strip(' "')
    source = (PACKAGE.parent / path).read_text(encoding="utf-8")
    assert f'__version__ = "{labkit.__version__}"' in source
