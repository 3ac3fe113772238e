"""Small plots as inline SVG, for a page that needs nothing beside itself."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WIDTH: Final = 280
_HEIGHT: Final = 160
_BLUE: Final = "#0969da"
_GREY: Final = "#8c959f"


def _figure(inner: list[str], caption: str, width: int = _WIDTH, height: int = _HEIGHT) -> str:
    return (
        f"<figure><svg width='{width}' height='{height}' viewBox='0 0 {width} {height}' role='img' "
        f"font-family='system-ui, sans-serif' font-size='12'><title>{escape(caption)}</title>{''.join(inner)}</svg>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _rectangle(x: float, y: float, width: float, height: float, color: str) -> str:
    return f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' fill='{color}'/>"


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{color}' stroke-dasharray='4 3'/>"


def bars(values: list[tuple[str, float]], *, caption: str, mark: float | None = None) -> str:
    """Horizontal bars from zero, each with its name and value, and a line at ``mark``."""
    top = max([1e-12, *(value for _, value in values), *([mark] if mark is not None else [])])
    left, space = 100, _WIDTH - 100 - 60
    inner = []
    for place, (name, value) in enumerate(values):
        y = 10 + 34 * place
        width = max(value, 0.0) / top * space
        inner += [
            f"<text x='0' y='{y + 16}'>{escape(name)}</text>",
            _rectangle(left, y, width, 24, _BLUE if place == 0 else _GREY),
            f"<text x='{left + space + 4}' y='{y + 16}'>{value:.4f}</text>",
        ]
    height = 14 + 34 * len(values)
    if mark is not None and mark >= 0:
        inner.append(_line(left + mark / top * space, 0, left + mark / top * space, height, "#cf222e"))
    return _figure(inner, caption, height=height)


def shares(counts: NDArray[np.int64], *, caption: str) -> str:
    """Two distributions over the same categories, shape (2, categories), side by side as shares."""
    share: Any = counts / counts.sum(axis=1, keepdims=True).clip(1)
    top = float(share.max()) or 1.0
    step = _WIDTH / share.shape[1]
    inner = []
    for place, (before, after) in enumerate(share.T.tolist()):
        for offset, value, color in ((0.1, before, _GREY), (0.5, after, _BLUE)):
            height = value / top * (_HEIGHT - 10)
            inner.append(_rectangle((place + offset) * step, _HEIGHT - height, 0.4 * step, height, color))
    return _figure(inner, caption)


def reliability(points: list[tuple[float, float, int]], *, caption: str) -> str:
    """Accuracy over confidence, both 0 to 1; a point is (confidence, accuracy, rows), its area the share of rows."""
    side, total = _HEIGHT - 10, max(sum(rows for *_, rows in points), 1)
    inner = [_rectangle(5, 5, side, side, "#f6f8fa"), _line(5, 5 + side, 5 + side, 5, _GREY)]
    for confidence, accuracy, rows in points:
        radius = 3 + 9 * (rows / total) ** 0.5
        inner.append(
            f"<circle cx='{5 + confidence * side:.1f}' cy='{5 + (1 - accuracy) * side:.1f}' r='{radius:.1f}' "
            f"fill='{_BLUE}' fill-opacity='0.6'><title>{rows} rows</title></circle>"
        )
    return _figure(inner, caption, width=_HEIGHT)
