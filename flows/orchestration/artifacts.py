"""The bodies of a run's artifacts in Prefect's pages: a learning curve, and a table with a row an iteration.

Prefect's pages, the present and the former ones, show an image of a Markdown artifact only where its address is a
`data:` one or a server's. So the curve is an SVG inside the Markdown, drawn here by hand: it is stored anew after every
iteration, and has 2 kB where matplotlib's has 40.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final, NamedTuple

Numbers = Mapping[str, float]
"""An iteration's row of `v_iterations`, its numbers alone."""

MAX_ROWS: Final = 24
"""Rows of the table; of a longer run every second, third, … iteration has one, and the last."""

# No more than Prefect's page has room for; `RUN-metrics` has every figure of the last iteration.
_COLUMNS: Final = {
    "reward_mean": "reward",
    "em": "EM",
    "search_quality": "search quality",
    "searches_per_rollout": "searches",
    "mean_jsd": "JSD",
    "greedy_em": "dev EM, greedy",
    "total_s": "seconds",
}


class _Line(NamedTuple):
    """A line of the curve; colours are Okabe and Ito's, which colour-blind readers can tell apart."""

    name: str
    title: str
    colour: str
    dash: str = ""


_LINES: Final = (
    _Line("reward_mean", "reward", "#0072B2"),
    _Line("em", "EM", "#D55E00", "6 4"),  # Where no reward is partial it lies on the reward's line.
    _Line("search_quality", "search quality", "#009E73"),
    _Line("greedy_em", "dev EM, greedy", "#CC79A7"),
)
_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 8, 28, 24  # Room around the curve for its axes and its legend, pixels.
_LEVELS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_BLOCKS: Final = "▁▂▃▄▅▆▇█"


def summary_markdown(run: str, num_iterations: int, rows: Mapping[int, Numbers]) -> str:
    """Return a run's summary as Markdown: the curve, then the figures; `rows` by iteration, at least one."""
    last = max(rows)
    shown = [iteration for iteration in sorted(rows) if _is_shown(iteration, last, len(rows))]
    columns = {name: title for name, title in _COLUMNS.items() if any(name in rows[i] for i in shown)}
    lines = [f"| {' | '.join(['iteration', *columns.values()])} |", f"|{'---|' * (len(columns) + 1)}"]
    lines += [
        f"| {' | '.join([str(iteration), *(_cell(rows[iteration].get(name)) for name in columns)])} |"
        for iteration in reversed(shown)
    ]
    image = base64.b64encode(curve_svg(num_iterations, rows).encode()).decode()
    curve = f"![{curve_text(rows)}](data:image/svg+xml;base64,{image})"
    return "\n".join([f"## {run}: iteration {last} of {num_iterations}", "", curve, "", *lines])


def curve_text(rows: Mapping[int, Numbers]) -> str:
    """Return the curves as text, for where no image is shown: eight heights between 0 and 1, a letter an iteration."""
    parts = []
    for line in _LINES:
        values = [value for _, value in _points(line.name, rows)]
        if values:
            blocks = "".join(_BLOCKS[round(_clamped(value) * (len(_BLOCKS) - 1))] for value in values)
            parts.append(f"{line.title} {blocks} {values[-1]:.3f}")
    return ", ".join(parts)


def curve_svg(num_iterations: int, rows: Mapping[int, Numbers]) -> str:
    """Return the curves as an SVG: iterations from left to right, values from 0 to 1."""
    legend_x = _LEFT
    parts = [_level(value) for value in _LEVELS]
    for iteration in sorted({1, num_iterations}):
        x = _x(iteration, num_iterations)
        parts.append(_text(x, _HEIGHT - 6, str(iteration), "#666", "middle"))
    for line in _LINES:
        points = [(_x(iteration, num_iterations), _y(value)) for iteration, value in _points(line.name, rows)]
        if not points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        stroke = f'stroke="{line.colour}" stroke-width="2" stroke-dasharray="{line.dash}"'
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{line.colour}"/>' for x, y in points[-1:]]
        parts.append(_text(legend_x, 16, line.title, line.colour))
        legend_x += 8 * len(line.title) + 24
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{background}{"".join(parts)}</svg>'


def _points(name: str, rows: Mapping[int, Numbers]) -> Sequence[tuple[int, float]]:
    return [(iteration, rows[iteration][name]) for iteration in sorted(rows) if name in rows[iteration]]


def _is_shown(iteration: int, last: int, num_rows: int) -> bool:
    return (last - iteration) % (-(-num_rows // MAX_ROWS)) == 0


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _level(value: float) -> str:
    y = _y(value)
    line = f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
    return line + _text(_LEFT - 6, y + 4, f"{value:g}", "#666", "end")


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    font = f'font-family="sans-serif" font-size="12" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {font}>{escape(text)}</text>'


def _x(iteration: int, num_iterations: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (iteration - 1) / max(num_iterations - 1, 1)


def _y(value: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - _clamped(value))


def _clamped(value: float) -> float:
    return min(max(value, 0.0), 1.0)
