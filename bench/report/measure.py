"""How wide words are in the figures' font: names come from suites, and no rule of thumb fits ``iiii`` and ``WWWW``.

Both functions want to be called inside :func:`deidbench.report.figures.style`, whose font they measure.
"""

from __future__ import annotations

from collections.abc import Iterable

from deidbench.report.view import plain, shorten


def inches(texts: Iterable[str], size: float) -> float:
    """Width of the widest of ``texts`` at ``size`` points, 0 where there is none; of several lines the widest counts."""
    from deidbench.report.figures import _figure

    figure = _figure(1, 1)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    words = {line for text in texts for line in text.split("\n") if line}
    widths = [figure.text(0, 0, word, fontsize=size).get_window_extent(renderer).width for word in words]
    return float(max(widths, default=0.0)) / float(figure.dpi)


def fitted(text: object, room: float, size: float) -> str:
    """``text`` on one line, its middle left out until it is no wider than ``room`` inches (three characters always stay)."""
    said = plain(text)
    wide = inches([said], size)
    length = len(said)
    while wide > room and length > 3:
        length = max(min(length - 1, int(length * room / wide)), 3)
        said = shorten(text, length)
        wide = inches([said], size)
    return said
