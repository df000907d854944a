"""Places the boxes of a layered graph: few crossings, and no edge runs through a box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_GAP = 24
_LANE = 14
# A node that more long edges than this lead to gets them as one bundle: a name used at every
# step of a loop would otherwise take a lane for each step.
_MOST_LANES = 4

Rows = list[list[int]]


@dataclass(frozen=True)
class EdgePath:
    """An edge: where it leaves its node, each layer's x that it passes, where it arrives."""

    start_layer: int
    start_x: float
    passes_x: tuple[float, ...]
    end_x: float


@dataclass(frozen=True)
class Layout:
    """Each node's layer (0 on top) and middle x, all edges, and how wide and deep it all is."""

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
    sweeps that put each row in the order of its neighbours and near them.
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
    """Each node's layer: its longest way from node 0, so that all edges lead down."""
    layers = [0] * nodes
    for source, target in sorted(edges):
        layers[target] = max(layers[target], layers[source] + 1)
    return layers


def _thread_edges(slots: list[_Slot], edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Each edge as a path of slots, one a layer; adds a slot where it passes a layer."""
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
    for neighbours in (nothing, above, below, above, below, above, both, both):
        for row in reversed(rows) if neighbours is below else rows:
            _place_row(slots, row, neighbours)


def _place_row(slots: list[_Slot], row: list[int], neighbours: Rows) -> None:
    """Moves a row's slots as near to the middle of their neighbours as their widths allow."""
    wanted = {}
    for number in row:
        near = neighbours[number]
        wanted[number] = sum(slots[n].x for n in near) / len(near) if near else slots[number].x
    row.sort(key=lambda number: wanted[number])
    edge = float("-inf")
    for number in row:
        slot = slots[number]
        slot.x = max(wanted[number], edge + slot.width / 2)
        edge = slot.x + slot.width / 2 + _GAP
    # Packing from the left pushes a crowded row to the right; this takes the push back out.
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
