"""A study's learning curves as a picture: a line a variant, the same bytes for the same results."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from flows.study.show import curve_points, evaluated_modes
from schemas.records.evaluation import EvaluationMode
from schemas.records.study import StudyResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Style(NamedTuple):
    """How a line looks; colour, dash and marker each tell lines apart, so that print without colour does too."""

    colour: str
    dash: str | tuple[int, tuple[float, ...]]
    marker: str


# Colours: Okabe and Ito's, which colour-blind readers can tell apart; the baseline is black.
BASELINE: Final = Style("#000000", (0, (4, 2)), "o")
STYLES: Final = (
    Style("#0072B2", "-", "s"),
    Style("#D55E00", (0, (6, 1.5, 1.5, 1.5)), "^"),
    Style("#009E73", (0, (1.5, 1.5)), "D"),
    Style("#CC79A7", (0, (8, 2)), "v"),
)
# More lines than this in one panel cannot be read: then every variant gets a panel, with the baseline in each.
_MAX_LINES = 1 + len(STYLES)
_GRID_COLUMNS = 3
_MAX_TICKS = 7
_PANEL_INCHES = (4.6, 3.4)
_GRID_PANEL_INCHES = (3.2, 2.5)
_FORMAT: Final[dict[str, dict[str, Any]]] = {
    # A date would make equal results unequal files.
    "svg": {"metadata": {"Date": None, "Creator": "sdsearch"}},
    "png": {"dpi": 160, "metadata": {"Software": "sdsearch"}},
}
_RC: Final[dict[Any, Any]] = {
    "text.parse_math": False,
    "svg.hashsalt": "sdsearch",
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


class _Panel(NamedTuple):
    title: str
    mode: EvaluationMode
    variants: Sequence[str]


def draw_curves(results: StudyResults, form: Literal["svg", "png"]) -> bytes:
    """Return the picture: dev EM over updates, the mean over seeds with a band from the lowest to the highest seed."""
    return as_picture(lambda: _draw(results), form)


def as_picture(draw: Callable[[], Figure], form: Literal["svg", "png"]) -> bytes:
    """Return what `draw` makes in the style of all pictures; the same bytes for the same figure."""
    import matplotlib

    # Without pyplot there is no figure that outlives this call, and no display is looked for.
    with matplotlib.rc_context(_RC):
        figure = draw()
        content = io.BytesIO()
        figure.savefig(content, format=form, **_FORMAT[form])
    return content.getvalue()


def _draw(results: StudyResults) -> Figure:
    from matplotlib.figure import Figure

    panels = _panels(results)
    columns = min(len(panels), _GRID_COLUMNS)
    rows = -(-len(panels) // columns)
    width, height = _PANEL_INCHES if rows == 1 else _GRID_PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for index, (panel, ax) in enumerate(zip(panels, axes, strict=False)):
        _draw_panel(ax, results, panel)
        # The last row may be short: the panels above its gap carry the numbers.
        ax.tick_params(labelbottom=index + columns >= len(panels))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    figure.supylabel(_y_label(results, panels), fontsize="medium")
    figure.supxlabel("updates done (iterations) · line: mean over seeds, band: lowest to highest", fontsize="medium")
    return figure


def _panels(results: StudyResults) -> list[_Panel]:
    """One panel a mode while the lines can be told apart, else one panel a variant, in the first mode."""
    study = results.study
    variants = list(dict.fromkeys(summary.variant for summary in results.summaries))
    modes = evaluated_modes(results)
    if len(variants) <= _MAX_LINES:
        return [_Panel(f"{mode} decoding", mode, variants) for mode in modes]
    others = [variant for variant in variants if variant != study.baseline]
    baseline = [study.baseline] if study.baseline in variants else []
    return [_Panel(results.title_of(variant), modes[0], [*baseline, variant]) for variant in others]


def _draw_panel(ax: Axes, results: StudyResults, panel: _Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    study = results.study
    others = [variant for variant in panel.variants if variant != study.baseline]
    for variant in panel.variants:
        style = BASELINE if variant == study.baseline else STYLES[others.index(variant)]
        _draw_line(ax, results, variant, panel.mode, style)
    ax.set_title(panel.title, loc="left", fontsize="medium", fontweight="bold")
    updates = list(curve_points(results, panel.variants[-1], panel.mode))
    if len(updates) <= _MAX_TICKS:
        ax.set_xticks(updates)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=_MAX_TICKS, integer=True))
    ax.legend(loc="lower right", handlelength=3.2)


def _draw_line(ax: Axes, results: StudyResults, variant: str, mode: EvaluationMode, style: Style) -> None:
    points = curve_points(results, variant, mode)
    ems = {updates: [report.em for report in reports] for updates, reports in points.items()}
    draw_line(ax, ems, results.title_of(variant), style)


def draw_line(ax: Axes, points: Mapping[int, Sequence[float]], title: str, style: Style) -> None:
    """Draw the mean over the seeds' values at each point, with a band from the lowest to the highest."""
    values = list(points.values())
    num_seeds = max(map(len, values), default=0)
    low, high = [min(v) for v in values], [max(v) for v in values]
    ax.fill_between(list(points), low, high, color=style.colour, alpha=0.15, linewidth=0)
    ax.plot(
        list(points),
        [fmean(v) for v in values],
        color=style.colour,
        linestyle=style.dash,
        marker=style.marker,
        markersize=4.5,
        linewidth=1.6,
        label=f"{title} ({num_seeds} {'seed' if num_seeds == 1 else 'seeds'})",
    )


def _y_label(results: StudyResults, panels: Sequence[_Panel]) -> str:
    splits = sorted({report.split for outcome in results.outcomes for report in outcome.evaluations})
    modes = {panel.mode for panel in panels}
    decoding = f", {panels[0].mode}" if len(modes) == 1 else ""
    return f"exact match (share of {' and '.join(splits)} questions{decoding})"
