"""Draws the autograd graph of a tensor: the nodes that backward visits.

The nodes are those that torch recorded, read from ``grad_fn`` and ``next_functions``; source code
is not read. Reading changes nothing; saved tensors are not unpacked. The layout is layered, with
few crossings, and no edge runs through a box.
"""

from __future__ import annotations

import html
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from labkit.errors import UsageError
from labkit.text import plural

if TYPE_CHECKING:
    import torch


_GAP = 24
_LANE = 14
# If more long edges than this lead to one node, they are drawn as one bundle: a tensor used at
# every step of a loop would otherwise take one lane per step.
_MOST_LANES = 4

Rows = list[list[int]]


@dataclass(frozen=True)
class EdgePath:
    """An edge: its start, its x in each layer that it passes, and its end."""

    start_layer: int
    start_x: float
    passes_x: tuple[float, ...]
    end_x: float


@dataclass(frozen=True)
class Layout:
    """Each node's layer (0 on top) and center x, all edges, the width and number of layers."""

    layers: tuple[int, ...]
    xs: tuple[float, ...]
    edges: tuple[EdgePath, ...]
    width: float
    depth: int


@dataclass
class _Slot:
    """A place in a layer: a node's box, or the point where a long edge passes."""

    layer: int
    width: float
    x: float = 0.0


def lay_out(widths: Sequence[float], edges: Sequence[tuple[int, int]]) -> Layout:
    """Positions for nodes of these widths, from x = 0; every edge must lead to a later node.

    The method is Sugiyama's: longest-path layers, points for edges that cross a layer, then
    sweeps that sort each row by its neighbors and move it close to them.
    """
    layers = _assign_layers(len(widths), edges)
    slots = [_Slot(layer, width) for layer, width in zip(layers, widths, strict=True)]
    paths = _thread_edges(slots, edges)
    _place_rows(slots, paths)
    left = min(slot.x - slot.width / 2 for slot in slots)
    for slot in slots:
        slot.x -= left
    starts = _spread_ports(slots, paths, end=0, nodes=len(widths))
    ends = _spread_ports(slots, paths, end=-1, nodes=len(widths))
    return Layout(
        layers=tuple(layers),
        xs=tuple(slot.x for slot in slots[: len(widths)]),
        edges=tuple(
            EdgePath(layers[path[0]], start, tuple(slots[n].x for n in path[1:-1]), end)
            for path, start, end in zip(paths, starts, ends, strict=True)
        ),
        width=max(slot.x + slot.width / 2 for slot in slots),
        depth=max(layers) + 1,
    )


def _assign_layers(nodes: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Each node's layer: its longest path from node 0, so that all edges lead down."""
    layers = [0] * nodes
    for source, target in sorted(edges):
        layers[target] = max(layers[target], layers[source] + 1)
    return layers


def _thread_edges(slots: list[_Slot], edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Each edge as a path of slots, one per layer; adds a slot for each layer that it passes."""
    long_edges = Counter(
        target for source, target in edges if slots[target].layer - slots[source].layer > 1
    )
    bundles: dict[tuple[int, int], int] = {}
    paths = []
    for source, target in edges:
        path = [source]
        for layer in range(slots[source].layer + 1, slots[target].layer):
            place = bundles.get((target, layer))
            if place is None:
                place = len(slots)
                slots.append(_Slot(layer, _LANE))
                if long_edges[target] > _MOST_LANES:
                    bundles[target, layer] = place
            path.append(place)
        paths.append([*path, target])
    return paths


def _place_rows(slots: list[_Slot], paths: list[list[int]]) -> None:
    """Sets every slot's x, in sweeps down and up."""
    rows: Rows = [[] for _ in range(max(slot.layer for slot in slots) + 1)]
    for number, slot in enumerate(slots):
        rows[slot.layer].append(number)
    nothing: Rows = [[] for _ in slots]
    above: Rows = [[] for _ in slots]
    below: Rows = [[] for _ in slots]
    for path in paths:
        for source, target in pairwise(path):
            below[source].append(target)
            above[target].append(source)
    both = [up + down for up, down in zip(above, below, strict=True)]
    for neighbors in (nothing, above, below, above, below, above, both, both):
        for row in reversed(rows) if neighbors is below else rows:
            _place_row(slots, row, neighbors)


def _place_row(slots: list[_Slot], row: list[int], neighbors: Rows) -> None:
    """Moves a row's slots as close to the center of their neighbors as their widths allow."""
    wanted = {}
    for number in row:
        near = neighbors[number]
        wanted[number] = sum(slots[n].x for n in near) / len(near) if near else slots[number].x
    row.sort(key=lambda number: wanted[number])
    edge = float("-inf")
    for number in row:
        slot = slots[number]
        slot.x = max(wanted[number], edge + slot.width / 2)
        edge = slot.x + slot.width / 2 + _GAP
    # Packing from the left shifts a crowded row to the right; this shifts it back.
    push = sum(slots[number].x - wanted[number] for number in row) / len(row)
    for number in row:
        slots[number].x -= push


def _spread_ports(
    slots: list[_Slot], paths: list[list[int]], *, end: int, nodes: int
) -> list[float]:
    """The x at which each path leaves its first slot (end 0) or meets its last (end -1)."""
    beside = 1 if end == 0 else -2
    ports = [0.0] * len(paths)
    for node in {path[end] for path in paths}:
        arriving: dict[tuple[int, int], list[int]] = {}
        for i, path in enumerate(paths):
            if path[end] == node:
                bundle = path[beside]
                arriving.setdefault((bundle, -1 if bundle >= nodes else i), []).append(i)
        order = sorted(arriving, key=lambda key: slots[key[0]].x)
        room = min(_LANE, (slots[node].width - 16) / len(order))
        for place, key in enumerate(order):
            for i in arriving[key]:
                ports[i] = slots[node].x + (place - (len(order) - 1) / 2) * room
    return ports


MOST_NODES = 60

_CHARACTER_WIDTH = 7.3  # of a 12 px monospace font, slightly overestimated
_BOX_HEIGHT = 40
_LAYER_HEIGHT = 76
_MARGIN = 8

# JupyterLab's theme sets the variables; the fallbacks are legible on light and dark pages.
_FONT = "var(--jp-code-font-family, ui-monospace, monospace)"
_INK = "var(--jp-content-font-color1, currentColor)"
_FAINT_INK = "var(--jp-content-font-color2, currentColor)"
_EDGE = "var(--jp-content-font-color3, #888)"
_FILLS = {
    "result": "var(--jp-layout-color1, transparent)",
    "operation": "var(--jp-layout-color2, rgba(128, 128, 128, 0.12))",
    "leaf": "rgba(0, 158, 115, 0.18)",
}
_STROKES = {"result": _INK, "operation": _EDGE, "leaf": "#009e73"}

Kind = Literal["result", "operation", "leaf"]


@dataclass(frozen=True)
class GraphNode:
    """One box of the picture: the result, an operation's backward, or a leaf's gradient."""

    kind: Kind
    label: str
    shape: str


@dataclass(frozen=True)
class Graph:
    """The nodes that torch recorded, in an order in which backward can visit them.

    Node 0 is the result. An edge leads from a node to one that receives its gradient, and is
    listed twice if the gradient flows there twice. ``hidden`` counts the nodes that are too far
    away to be drawn; ``absent`` are the names whose tensors are not in the graph.
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[tuple[int, int], ...]
    hidden: int = 0
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphPicture:
    """A graph that a notebook shows as a picture, and a terminal as a list."""

    graph: Graph

    @property
    def html(self) -> str:
        """The picture as one HTML fragment: an SVG with a caption."""
        return _format_html(self.graph)

    def __repr__(self) -> str:
        return _format_text(self.graph)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        # Inline HTML, not image/svg+xml: Jupyter shows that as an <img>, cut off from the theme.
        return {"text/html": self.html, "text/plain": repr(self)}


def draw_graph(tensor: torch.Tensor, names: dict[str, torch.Tensor] | None = None) -> GraphPicture:
    """Draws the autograd graph of ``tensor``: the result on top, leaves at the bottom.

    ``names`` labels leaves and intermediate results: ``draw_graph(y, {"x": x, "y": y})``. Arrows
    point in the direction of the gradient; a node used twice is drawn once. In a graph with more
    than 60 nodes, the nearest to the result are drawn, and the caption counts the others.
    Raises UsageError for anything that is not a tensor.
    """
    import torch

    named = dict(names or {})
    for label, given in (("the first argument", tensor), *named.items()):
        if not isinstance(given, torch.Tensor):
            raise UsageError(
                f"draw_graph needs a torch.Tensor, but {label} is a {type(given).__name__}",
                fix='draw_graph(y, {"x": x, "y": y})',
            )
    return GraphPicture(read_graph(tensor, named))


def read_graph(tensor: torch.Tensor, names: dict[str, torch.Tensor]) -> Graph:
    """The graph of ``tensor``: at most 60 nodes, those closest to the result."""
    root = _find_node(tensor)
    found = _walk(root)
    kept = _sort_nodes(found[:MOST_NODES])
    numbers = {node: number for number, node in enumerate(kept, start=1)}
    edges = [(0, 1)] if root is not None else []
    for node, number in numbers.items():
        edges += [(number, numbers[after]) for after in _next_nodes(node) if after in numbers]
    labels = _label_nodes(found, tensor, names)
    result_name = next((name for name, given in names.items() if given is tensor), "result")
    result = GraphNode("result", result_name, _format_shape(tensor.shape))
    return Graph(
        nodes=(result, *(_describe_node(node, labels.get(node)) for node in kept)),
        edges=tuple(edges),
        hidden=len(found) - len(kept),
        absent=_find_absent(found, tensor, names),
    )


def _find_node(tensor: torch.Tensor) -> Any:
    """The node that receives the gradient of ``tensor``; None if torch recorded nothing."""
    import torch

    if tensor.grad_fn is not None or not tensor.requires_grad:
        return tensor.grad_fn
    # torch makes a leaf's node on demand; only a view leads to it, as a leaf has no grad_fn.
    with torch.inference_mode(False), torch.enable_grad():
        view = tensor.view_as(tensor)
    assert view.grad_fn is not None
    return view.grad_fn.next_functions[0][0]


def _next_nodes(node: Any) -> list[Any]:
    """The nodes that ``node`` passes gradients to; inputs that need no gradient are left out."""
    return [after for after, _ in node.next_functions if after is not None]


def _walk(root: Any) -> list[Any]:
    """Every node reachable from ``root``, each once, the nearest first."""
    if root is None:
        return []
    found = [root]
    seen = {root}
    waiting = deque(found)
    while waiting:
        for after in _next_nodes(waiting.popleft()):
            if after not in seen:
                seen.add(after)
                found.append(after)
                waiting.append(after)
    return found


def _sort_nodes(nodes: list[Any]) -> list[Any]:
    """The same nodes in topological order: each before the nodes that receive its gradient."""
    kept = set(nodes)
    arrivals = dict.fromkeys(nodes, 0)
    for node in nodes:
        for after in _next_nodes(node):
            if after in kept:
                arrivals[after] += 1
    ready = deque(node for node in nodes if arrivals[node] == 0)
    order = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for after in _next_nodes(node):
            if after in kept:
                arrivals[after] -= 1
                if arrivals[after] == 0:
                    ready.append(after)
    return order


def _leaf_of(node: Any) -> Any:
    """The leaf whose gradient this node accumulates, or None for an operation's node."""
    return getattr(node, "variable", None) if node.name().endswith("AccumulateGrad") else None


def _label_nodes(
    found: list[Any], tensor: torch.Tensor, names: dict[str, torch.Tensor]
) -> dict[Any, str]:
    """The given names of the nodes, and a number for each unnamed leaf."""
    labels: dict[Any, str] = {}
    for name, given in names.items():
        if given is not tensor or given.grad_fn is None:
            node = _find_node(given)
            labels[node] = f"{labels[node]}, {name}" if node in labels else name
    unnamed = 0
    for node in found:
        if node not in labels and _leaf_of(node) is not None:
            unnamed += 1
            labels[node] = f"leaf{unnamed}"
    return labels


def _find_absent(
    found: list[Any], tensor: torch.Tensor, names: dict[str, torch.Tensor]
) -> tuple[str, ...]:
    """The names whose tensors have no node among those found, in the order given."""
    reached = set(found)
    return tuple(
        name
        for name, given in names.items()
        if given is not tensor and _find_node(given) not in reached
    )


def _describe_node(node: Any, name: str | None) -> GraphNode:
    """The box for ``node``: its label, and the shape of the gradient that enters it."""
    leaf = _leaf_of(node)
    if leaf is not None:
        return GraphNode("leaf", f"{name}.grad", _format_shape(leaf.shape))
    label = node.name() if name is None else f"{name}: {node.name()}"
    shapes = [_format_shape(entry.shape) for entry in getattr(node, "_input_metadata", ())]
    return GraphNode("operation", label, " ".join(shapes))


def _format_shape(shape: Sequence[int]) -> str:
    sizes = ", ".join(str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _summarize(graph: Graph) -> str:
    """One line about the graph: its tensor, and the number of drawn nodes of each kind."""
    result = graph.nodes[0]
    if len(graph.nodes) == 1:
        return f"{result.label} {result.shape} has no graph: nothing was recorded for it"
    operations = sum(node.kind == "operation" for node in graph.nodes)
    leaves = sum(node.kind == "leaf" for node in graph.nodes)
    counted = f"{plural(operations, 'operation')}, {leaves} {'leaf' if leaves == 1 else 'leaves'}"
    return f"the graph behind {result.label} {result.shape}: {counted}"


def describe_connections(graph: Graph) -> str:
    """Which node passes its gradient to which, in sentences; nodes of one label get numbers."""
    labels = [f"{node.label} {node.shape}".strip() for node in graph.nodes]
    seen: Counter[str] = Counter()
    names = []
    for label in labels:
        seen[label] += 1
        names.append(f"{label} no. {seen[label]}" if labels.count(label) > 1 else label)
    sentences = []
    for number, name in enumerate(names):
        counts = Counter(names[target] for source, target in graph.edges if source == number)
        targets = [one if n == 1 else f"{one} ({n} times)" for one, n in counts.items()]
        if targets:
            sentences.append(f"{name} to {' and '.join(targets)}")
    return f"The gradient goes from {'; from '.join(sentences)}." if sentences else ""


def _list_remarks(graph: Graph) -> list[str]:
    """Notes that complete the picture, one sentence each."""
    remarks = []
    if graph.hidden:
        remarks.append(f"{plural(graph.hidden, 'more node')} farther from the result not drawn")
    if graph.absent:
        remarks.append(f"Not in this graph: {', '.join(graph.absent)}")
    return remarks


def _format_text(graph: Graph) -> str:
    """The graph as numbered lines, each with the numbers of the nodes that get its gradient."""
    lines = [_summarize(graph)]
    width = max(len(f"{node.label} {node.shape}") for node in graph.nodes)
    for number, node in enumerate(graph.nodes[1:], start=1):
        after = [str(target) for source, target in graph.edges if source == number]
        line = f"{number:4}  {f'{node.label} {node.shape}':{width}}"
        lines.append(f"{line}  -> {', '.join(after)}" if after else line.rstrip())
    return "\n".join(lines + [f"  {remark}" for remark in _list_remarks(graph)])


def _format_html(graph: Graph) -> str:
    """The picture with its caption; only the caption if there is no graph."""
    summary = ". ".join([_summarize(graph), *_list_remarks(graph)])
    caption = html.escape(summary)
    text = html.escape(f"{summary}. {describe_connections(graph)}")
    font = f"font-family: {_FONT}; font-size: 12px"
    figure = f'<div style="{font}; color: {_FAINT_INK}">{caption}</div>'
    if len(graph.nodes) == 1:
        return figure
    widths = [_measure_width(node) for node in graph.nodes]
    layout = lay_out(widths, graph.edges)
    drawn = [_draw_edge(edge) for edge in layout.edges]
    for node, width, x, layer in zip(graph.nodes, widths, layout.xs, layout.layers, strict=True):
        drawn.append(_draw_box(node, width, x, _layer_top(layer)))
    wide = round(layout.width) + 2 * _MARGIN
    high = round(_layer_top(layout.depth - 1)) + _BOX_HEIGHT + _MARGIN
    return (
        # Focusable: a keyboard scrolls a wide graph with the arrow keys.
        f'<div style="overflow-x: auto" tabindex="0" role="group" aria-label="graph">'
        f'<svg xmlns="http://www.w3.org/2000/svg" '
        f'width="{wide}" height="{high}" viewBox="{-_MARGIN} 0 {wide} {high}" '
        f'role="img" aria-label="{text}" style="{font}">{"".join(drawn)}</svg>{figure}</div>'
    )


def _measure_width(node: GraphNode) -> float:
    return max(len(node.label), len(node.shape)) * _CHARACTER_WIDTH + 20


def _layer_top(layer: int) -> float:
    return _MARGIN + layer * _LAYER_HEIGHT


def _draw_edge(edge: EdgePath) -> str:
    """A curve from node to node with an arrow head; it passes other boxes in a straight line."""
    x, y = edge.start_x, _layer_top(edge.start_layer) + _BOX_HEIGHT
    curve = [f"M{x:.1f} {y:.1f}"]
    for layer, next_x in enumerate((*edge.passes_x, edge.end_x), start=edge.start_layer + 1):
        top = _layer_top(layer)
        half = (y + top) / 2
        curve.append(f"C{x:.1f} {half:.1f} {next_x:.1f} {half:.1f} {next_x:.1f} {top:.1f}")
        x, y = next_x, top + _BOX_HEIGHT
        curve.append(f"V{y:.1f}")
    curve.pop()
    head = f"M{x:.1f} {top:.1f}l-4 -8h8z"
    return (
        f'<path d="{" ".join(curve)}" style="fill: none; stroke: {_EDGE}"/>'
        f'<path d="{head}" style="fill: {_EDGE}; stroke: none"/>'
    )


def _draw_box(node: GraphNode, width: float, x: float, top: float) -> str:
    """One node: its label above its shape, in the colors of its kind."""
    style = f"fill: {_FILLS[node.kind]}; stroke: {_STROKES[node.kind]}"
    texts = "".join(
        f'<text x="{x:.1f}" y="{top + y:.1f}" text-anchor="middle" style="fill: {ink}">'
        f"{html.escape(line)}</text>"
        for line, y, ink in ((node.label, 17, _INK), (node.shape, 32, _FAINT_INK))
    )
    return (
        f'<rect x="{x - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{_BOX_HEIGHT}" rx="6" style="{style}"/>{texts}'
    )
