"""IPython's settings in the lab's own Python: every kernel has labkit's magics and explanations.

The image and the .venv have this file in a folder that IPython looks into. The wheel does not bring
it: in an environment of one's own, what IPython loads is its owner's business.
"""

c = get_config()  # noqa: F821 - IPython puts it here
c.InteractiveShellApp.extensions = ["labkit"]
