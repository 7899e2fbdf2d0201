"""Pictures of a comparison: learning curves, differences from the baseline, and the scaling fit."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from deepseek_mini.analysis import style
from deepseek_mini.analysis.groups import Group
from deepseek_mini.analysis.runs import SMOOTHED, Run
from deepseek_mini.analysis.scaling import Line
from deepseek_mini.analysis.statistics import t_quantile

TITLES = {
    "val/loss": "held-out loss, nats per token",
    "val/bpb": "held-out bits per byte",
    SMOOTHED: "training loss, smoothed",
}
DPI = 110
MOST_DOTS = 100
WINDOW = 0.04
"""Span of the running mean of training losses, as a share of the run."""


def draw_curves(groups: list[Group], metric: str, path: Path) -> Path:
    """Held-out and training loss by tokens: seeds thin, their mean thick."""
    with style.styled(DPI):
        figure, (held_out, training) = style.panels(2, width=5.2, height=3.6)
        for group, colour in zip(groups, _colours(len(groups)), strict=True):
            _curve(held_out, group, metric, colour)
            for run in group.runs.values():
                tokens, losses = run.series("train/main_loss")
                training.plot(tokens, running_mean(losses), color=colour, alpha=0.7, linewidth=1)
        held_out.set_title(TITLES.get(metric, metric))
        training.set_title("training loss, running mean")
        for axes in (held_out, training):
            style.token_axis(axes)
        _cut_start(held_out, [run.series(metric)[1] for g in groups for run in g.runs.values()])
        _cut_start(training, [run.series("train/main_loss")[1] for g in groups for run in g.runs.values()])
        held_out.legend(loc="upper right")
        return style.save(figure, path)


def draw_differences(pairs: list[tuple[Group, Group]], metric: str, alpha: float, path: Path) -> Path | None:
    """Variant minus baseline by tokens, in percent of the baseline, with the interval at every evaluation.

    None if no pair shares a seed.
    """
    with style.styled(DPI):
        figure, (axes,) = style.panels(1, width=6.4, height=3.6)
        drawn = [
            _difference(axes, *pair, metric, alpha, colour)
            for pair, colour in zip(pairs, _colours(len(pairs) + 1)[1:], strict=True)
        ]
        if not any(len(d) for d in drawn):
            style.plt.close(figure)
            return None
        reach = max(float(np.abs(d[len(d) // 4 :]).max()) for d in drawn if len(d))
        axes.set_ylim(-2.2 * reach or -1e-3, 2.2 * reach or 1e-3)
        axes.axhline(0, color=style.INK, linewidth=0.8)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        baselines = {base.label for base, _ in pairs}
        title = f"{TITLES.get(metric, metric)}: difference from "
        axes.set_title(title + (baselines.pop() if len(baselines) == 1 else "its baseline"))
        style.token_axis(axes)
        axes.legend(loc="upper right")
        better = "below zero: better than the baseline"
        axes.text(0.01, 0.02, better, color=style.FAINT, transform=axes.transAxes)
        return style.save(figure, path)


def draw_scaling(scaling: dict[str, Any], metric: str, alpha: float, path: Path) -> Path:
    """Each family's sizes and its line L = a C^-b, then the differences by size, all with their intervals."""
    fits, trends = scaling["fits"], scaling["trends"]
    colours = dict(zip(fits, _colours(len(fits)), strict=True))
    with style.styled(DPI):
        figure, (axes, *others) = style.panels(2 if trends else 1, width=5.2, height=3.8)
        for family, fit in fits.items():
            line = Line(**fit["line"])
            x = np.linspace(math.log(min(fit["flops"])) - 0.2, math.log(max(fit["flops"])) + 1.2, 60)
            half = (fit["exponent_high"] - fit["exponent_low"]) / 2
            label = f"{family}: exponent {fit['exponent']:.3f} \u00b1 {half:.2g}"
            middle, reach = _band(line, x, alpha)
            axes.plot(np.exp(x), np.exp(middle), color=colours[family], label=label)
            edges = np.exp(middle - reach), np.exp(middle + reach)
            axes.fill_between(np.exp(x), *edges, color=colours[family], alpha=0.12, linewidth=0)
            axes.plot(fit["flops"], fit["losses"], "o", color=colours[family], markersize=5)
        _scaling_axes(axes, fits)
        axes.set_title(f"{TITLES.get(metric, metric)} by training FLOPs")
        axes.legend(loc="upper right")
        for panel in others:
            _draw_trends(panel, trends, colours)
        return style.save(figure, path)


def _draw_trends(axes: Axes, trends: dict[str, dict[str, Any]], colours: dict[str, str]) -> None:
    """Relative differences of each seed and size, and the line through them."""
    for family, trend in trends.items():
        x = np.linspace(math.log10(min(trend["flops"])), math.log10(max(trend["flops"])), 60)
        middle, reach = _band(Line(**trend["line"]), x, trend["alpha"])
        axes.plot(10**x, middle, color=colours[family], label=family)
        edges = middle - reach, middle + reach
        axes.fill_between(10**x, *edges, color=colours[family], alpha=0.12, linewidth=0)
        axes.plot(trend["flops"], trend["fractions"], "o", color=colours[family], markersize=4)
    axes.axhline(0, color=style.INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training FLOPs")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("difference from the baseline of the same size")
    axes.legend()


def _band(line: Line, x: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """A line, and half its interval."""
    return np.array([line.at(value) for value in x]), np.array([line.reach(value, alpha) for value in x])


def running_mean(values: list[float]) -> np.ndarray:
    """Mean over a window that is shorter at both ends."""
    half = max(round(len(values) * WINDOW / 2), 0)
    sums = np.cumsum([0.0, *values])
    first = np.clip(np.arange(len(values)) - half, 0, None)
    last = np.clip(np.arange(len(values)) + half + 1, None, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _curve(axes: Axes, group: Group, metric: str, colour: str) -> None:
    series = [run.series(metric) for run in group.runs.values()]
    for tokens, values in series:
        axes.plot(tokens, values, color=colour, alpha=0.35, linewidth=0.8)
    tokens = _shared([tokens for tokens, _ in series])
    mean = np.mean([[v for t, v in zip(*s, strict=True) if t in tokens] for s in series], axis=0)
    seeds = f" ({len(series)} seeds)" if len(series) > 1 else ""
    axes.plot(sorted(tokens), mean, _style(tokens), color=colour, markersize=3, label=group.label + seeds)


def _difference(
    axes: Axes, base: Group, variant: Group, metric: str, alpha: float, colour: str
) -> np.ndarray:
    """Draw one variant; the differences of its seeds, in the order of the evaluations."""
    seeds = [seed for seed in base.runs if seed in variant.runs]
    if not seeds:
        return np.array([])
    parts = [_fractions(base.runs[seed], variant.runs[seed], metric) for seed in seeds]
    tokens = sorted(_shared([list(part) for part in parts]))
    values = np.array([[part[t] for t in tokens] for part in parts])
    mean = values.mean(0)
    for row in values:
        axes.plot(tokens, row, color=colour, alpha=0.35, linewidth=0.8)
    axes.plot(tokens, mean, _style(tokens), color=colour, markersize=3, label=variant.label)
    if len(seeds) > 1:
        n = len(seeds)
        reach = t_quantile(1 - alpha / 2, n - 1) * values.std(0, ddof=1) / math.sqrt(n)
        axes.fill_between(tokens, mean - reach, mean + reach, color=colour, alpha=0.12, linewidth=0)
    return values.T.flatten()


def _fractions(base: Run, variant: Run, metric: str) -> dict[int, float]:
    """Relative difference at each number of tokens at which both were evaluated."""
    there = dict(zip(*base.series(metric), strict=True))
    return {
        tokens: value / there[tokens] - 1
        for tokens, value in zip(*variant.series(metric), strict=True)
        if tokens in there
    }


def _style(points: Collection[int]) -> str:
    """Dots where points can be told apart."""
    return "o-" if len(points) < MOST_DOTS else "-"


def _shared(columns: list[list[int]]) -> set[int]:
    return set(columns[0]).intersection(*columns[1:])


def _cut_start(axes: Axes, curves: list[list[float]]) -> None:
    """Let the first tenth of the curves leave the picture, so that the rest can be told apart."""
    later = [value for values in curves for value in values[len(values) // 10 :]]
    if later and max(later) > min(later):
        margin = 0.06 * (max(later) - min(later))
        axes.set_ylim(min(later) - margin, max(later) + margin)


def _scaling_axes(axes: Axes, fits: dict[str, dict[str, Any]]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("log")
    losses = [loss for fit in fits.values() for loss in fit["losses"]]
    axes.set_ylim(0.85 * min(losses), 1.1 * max(losses))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(style.FuncFormatter(style.short))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training FLOPs")


def _colours(n: int) -> list[str]:
    return [style.COLOURS[i % len(style.COLOURS)] for i in range(n)]
