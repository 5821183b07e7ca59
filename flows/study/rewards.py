"""The parts of a study's rewards as a picture: a panel a part, a line a variant that earns it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from flows.study.plot import BASELINE, STYLES, as_picture, draw_line
from schemas.records.study import StudyResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_INCHES: Final = (4.6, 2.8)
# Part -> variant -> iteration -> the mean of each finished run.
_Curves = Mapping[str, Mapping[str, Mapping[int, list[float]]]]


def draw_rewards(results: StudyResults) -> bytes | None:
    """Return the picture as SVG; None where no finished run has kept the parts of its reward."""
    curves = reward_curves(results)
    return as_picture(lambda: _draw(results, curves), "svg") if curves else None


def reward_curves(results: StudyResults) -> _Curves:
    """Return the means of the rewards' parts, by part, variant and iteration; of finished runs only."""
    curves: dict[str, dict[str, dict[int, list[float]]]] = {}
    for outcome in results.outcomes:
        for mean in outcome.rewards if outcome.finished else ():
            of_variant = curves.setdefault(mean.part, {}).setdefault(outcome.variant, {})
            of_variant.setdefault(mean.iteration, []).append(mean.mean)
    return curves


def _draw(results: StudyResults, curves: _Curves) -> Figure:
    from matplotlib.figure import Figure

    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width, height * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False).flat
    others = [variant for variant in results.study.variants if variant != results.study.baseline]
    for ax, (part, variants) in zip(axes, curves.items(), strict=True):
        for variant, points in variants.items():
            is_baseline = variant == results.study.baseline
            style = BASELINE if is_baseline else STYLES[others.index(variant) % len(STYLES)]
            draw_line(ax, points, results.title_of(variant), style)
        ax.set_title(f"reward: {part}", loc="left", fontsize="medium", fontweight="bold")
        ax.legend(loc="best", handlelength=3.2)
    figure.supxlabel("iteration · line: mean over seeds, band: lowest to highest", fontsize="medium")
    return figure
