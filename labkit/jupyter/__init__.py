"""labkit in IPython and Jupyter: ``%load_ext labkit`` gives ``%memory`` and ``%%memory``."""
