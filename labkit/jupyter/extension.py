"""The IPython extension: ``%load_ext labkit`` and the magics ``%memory`` and ``%%memory``."""

from __future__ import annotations

import ast
from typing import Any

from labkit.jupyter.cells import CellLines, show, show_hint, show_use, track_cell
from labkit.jupyter.panel import find_notebook, follow_cells, leave_cells, read_cell_number
from labkit.jupyter.usage import UsageSocket, offer_usage
from labkit.memory.oom.model import find_out_of_memory

USAGE = "%memory, %memory on or %memory off; %%memory on a line of its own above a cell"
_LOADED: list[Extension] = []


def load_ipython_extension(shell: Any) -> None:
    """Adds the magics and the explanation of errors to the shell, for ``%load_ext labkit``."""
    if not any(extension.shell is shell for extension in _LOADED):
        extension = Extension(shell)
        extension.load()
        _LOADED.append(extension)


def unload_ipython_extension(shell: Any) -> None:
    """Removes what ``load_ipython_extension`` added, for ``%unload_ext labkit``."""
    for extension in [one for one in _LOADED if one.shell is shell]:
        extension.unload()
        _LOADED.remove(extension)


class Extension:
    """labkit in one IPython shell."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self._lines = CellLines(shell.events)
        self._usage: UsageSocket | None = None

    def load(self) -> None:
        """Registers the magics and the events."""
        from IPython.core.magic import output_can_be_silenced

        @output_can_be_silenced  # type: ignore[untyped-decorator]
        def memory(line: str, cell: str | None = None) -> object:
            __tracebackhide__ = True  # IPython hides such frames in a traceback
            return self.run_magic(line, cell)

        memory.__doc__ = MAGIC_HELP
        self.shell.register_magic_function(memory, "line_cell", "memory")
        self.shell.events.register("post_run_cell", self._explain_error)
        follow_cells(self.shell)
        self._usage = offer_usage()

    def unload(self) -> None:
        """Removes the magics and the events."""
        self._lines.turn_off()
        if self._usage is not None:
            self._usage.close()
        leave_cells(self.shell)
        self.shell.events.unregister("post_run_cell", self._explain_error)
        for kind in ("line", "cell"):
            self.shell.magics_manager.magics[kind].pop("memory", None)

    def _explain_missing(self, error: NameError) -> None:
        from labkit.jupyter.cells import explain_missing_name

        name = getattr(error, "name", None)
        notebook = find_notebook(self.shell.user_ns)
        ran = self.shell.history_manager.input_hist_raw
        said = explain_missing_name(name, notebook, ran) if name else None
        if said:
            text, html = said
            show(text, f"<div>{html}</div>")

    def run_magic(self, line: str, cell: str | None) -> object:
        """Runs the magic; returns the value of a measured cell's last line, else None."""
        __tracebackhide__ = True
        word = line.strip()
        if cell is not None and not word:
            return self._measure_cell(cell)
        if cell is None and word == "on":
            self._turn_lines_on()
        elif cell is None and word == "off":
            self._lines.turn_off()
        elif cell is None and not word:
            self._show_balance()
        else:
            from IPython.core.error import UsageError

            raise UsageError(f"invalid argument of memory: {word!r}. Use {USAGE}")
        return None

    def _turn_lines_on(self) -> None:
        # Events run in the order of registration: the measuring ends before an error is explained.
        self.shell.events.unregister("post_run_cell", self._explain_error)
        self._lines.turn_on()
        self.shell.events.register("post_run_cell", self._explain_error)

    def _show_balance(self) -> None:
        from labkit.memory.balance.read import take_snapshot
        from labkit.memory.balance.view import render_snapshot

        snapshot = take_snapshot()
        show(repr(snapshot), render_snapshot(snapshot))

    def _measure_cell(self, cell: str) -> object:
        __tracebackhide__ = True
        program, last = compile_cell(self.shell, cell)
        tracker = track_cell()
        try:
            with tracker:
                exec(program, self.shell.user_global_ns, self.shell.user_ns)  # noqa: S102
                if last is not None:
                    return eval(last, self.shell.user_global_ns, self.shell.user_ns)  # noqa: S307
        finally:
            self._lines.skip_running_cell()
            if tracker.use is not None:
                show_use(tracker.use)
        return None

    def _explain_error(self, result: Any) -> None:
        if result.error_in_exec is None:
            return
        from labkit.jupyter.cells import explain_known_error, explain_out_of_memory
        from labkit.memory.oom.view import render_page

        if isinstance(result.error_in_exec, NameError):
            self._explain_missing(result.error_in_exec)
            return
        error = find_out_of_memory(result.error_in_exec)
        if error is not None:
            page = explain_out_of_memory(error, self.shell.user_ns)
            show(repr(page), render_page(page))
        elif hint := explain_known_error(result.error_in_exec):
            show_hint(hint)


MAGIC_HELP = """Shows the memory of the devices, and the memory that a cell uses.

    %memory        the balance of every device, now
    %memory on     a dim line under every cell that uses memory: seconds, peak, change
    %memory off    turns these lines off
    %%memory       above a cell: its seconds, its exact peak and its change

On CUDA the figures are the allocator's, on the CPU the kernel's for the whole process.
"""


def compile_cell(shell: Any, cell: str) -> tuple[Any, Any]:
    """The cell's code without its last line, and the last line's if it is an expression (or None).

    It is compiled under IPython's name for the cell, so that tracebacks show its lines. Raises
    IPython's UsageError for a cell with a top-level await: a magic is not async.
    """
    # The empty line replaces %%memory, so that line numbers match the notebook.
    source = "\n" + shell.transform_cell(cell)
    name = shell.compile.cache(source, max(0, read_cell_number(shell)), raw_code=cell)
    try:
        tree = shell.compile.ast_parse(source, filename=name)
        tree = shell.transform_ast(tree)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        program = shell.compile(tree, name, "exec")
        value = shell.compile(ast.Expression(last.value), name, "eval") if last else None
    except SyntaxError:
        _refuse_await(source)
        raise
    return program, value


def _refuse_await(source: str) -> None:
    from IPython.core.error import UsageError

    try:
        compile(source, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except (SyntaxError, ValueError):
        return
    raise UsageError("%%memory cannot measure a cell with a top-level await. Try: %memory on")
