"""labkit in IPython and Jupyter: ``%load_ext labkit`` gives ``%memory`` and ``%%memory``."""

from pathlib import Path

# Where JupyterLab finds the browser's part of the start page and of the status bar.
LABEXTENSIONS = Path(__file__).parent / "labextensions"
