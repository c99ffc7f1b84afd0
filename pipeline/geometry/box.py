"""Rectangles of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Box:
    """A half-open rectangle of pixels."""

    y0: int
    """First row."""
    y1: int
    """Row after the last."""
    x0: int
    """First column."""
    x1: int
    """Column after the last."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the two last axes."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def within(self, whole: Box) -> Box:
        """The same rectangle, counted from the first pixel of another one."""
        return Box(y0=self.y0 - whole.y0, y1=self.y1 - whole.y0, x0=self.x0 - whole.x0, x1=self.x1 - whole.x0)

    def grown(self, margin: int) -> Box:
        """The rectangle and `margin` pixels around it."""
        return Box(y0=self.y0 - margin, y1=self.y1 + margin, x0=self.x0 - margin, x1=self.x1 + margin)

    def halves(self) -> tuple[Box, Box]:
        """The two halves across the longer side; both must have a pixel."""
        height, width = self.shape
        if height >= width:
            middle = self.y0 + height // 2
            return replace(self, y1=middle), replace(self, y0=middle)
        middle = self.x0 + width // 2
        return replace(self, x1=middle), replace(self, x0=middle)

    def times(self, ratio: int) -> Box:
        """The same rectangle in pixels `ratio` times smaller."""
        return Box(y0=self.y0 * ratio, y1=self.y1 * ratio, x0=self.x0 * ratio, x1=self.x1 * ratio)


def blocks_of(shape: tuple[int, ...], edge: int) -> Iterator[Box]:
    """Squares of an edge that cover an image row by row; the last ones are as large as what is left."""
    for y in range(0, shape[0], edge):
        for x in range(0, shape[1], edge):
            yield Box(y0=y, y1=min(y + edge, shape[0]), x0=x, x1=min(x + edge, shape[1]))
