"""IPython's settings in the lab's own Python: every kernel has labkit's magics and explanations.

An installation puts this file into ``etc/ipython`` of its environment, and IPython reads it there.
"""

c = get_config()  # type: ignore[name-defined]  # noqa: F821
c.InteractiveShellApp.extensions = ["labkit"]
