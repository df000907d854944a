"""Memory over time in a bounded number of points, however long the notebook runs."""

from __future__ import annotations

from labkit.runner.result import Point

POINT_LIMIT = 600
FIRST_WIDTH_SECONDS = 0.05


class Timeline:
    """Points of (seconds, resident bytes, CUDA bytes or None), at most ``limit`` of them.

    Time is cut into slices of one width, and each slice keeps its highest point. Where the slices
    become too many, each two neighbours become one: the thinning is even, and no seen spike is
    lost.
    """

    def __init__(
        self, limit: int = POINT_LIMIT, width_seconds: float = FIRST_WIDTH_SECONDS
    ) -> None:
        self._limit = limit
        self._width = width_seconds
        self._slices: dict[int, Point] = {}

    @property
    def points(self) -> tuple[Point, ...]:
        """What was kept, in the order of time."""
        return tuple(self._slices[number] for number in sorted(self._slices))

    def add(self, point: Point) -> None:
        """Takes in a measured point."""
        self._put(point)
        while len(self._slices) > self._limit:
            self._width *= 2
            points, self._slices = self.points, {}
            for kept in points:
                self._put(kept)

    def _put(self, point: Point) -> None:
        number = int(point[0] / self._width)
        there = self._slices.get(number)
        self._slices[number] = point if there is None else _join(there, point)


def _join(first: Point, second: Point) -> Point:
    """The one of two points with more resident memory, with the higher known CUDA figure."""
    higher = second if (second[1] or 0) > (first[1] or 0) else first
    known = [point[2] for point in (first, second) if point[2] is not None]
    return (higher[0], higher[1], max(known, default=None))
