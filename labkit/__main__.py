"""``python3 -m labkit``: runs a command from a checkout, with nothing installed."""

import sys

# Kept to what any Python 3 can parse: see labkit/__init__.py.
OLDEST_PYTHON = (3, 10)


def main() -> int:
    """Hands over to the command line, or says plainly that this Python is too old."""
    if sys.version_info < OLDEST_PYTHON:
        has = "%d.%d" % sys.version_info[:2]  # noqa: UP031 - parsed by the Python it is about
        sys.stderr.write(
            "error: Python " + has + " is too old for labkit (" + sys.executable + ")\n"
            "  cause: labkit needs Python 3.10 or newer\n"
            "  try: make up PYTHON=python3.12   # or install a container engine\n"
        )
        return 2
    from labkit.cli import main as run_command_line

    return run_command_line()


if __name__ == "__main__":
    sys.exit(main())
