"""The report's figures: tiers, lines of the run, parts of a step, tornado, the pipeline's timeline."""

from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from deepseek_mini.cost.draws import band
from deepseek_mini.cost.extrapolate import PUBLISHED, Extrapolation
from deepseek_mini.cost.layout import MIDDLE_LAYOUT
from deepseek_mini.cost.pipeline.schedule import Step
from deepseek_mini.cost.step import StepTime

INK, FAINT = "#1f2933", "#9aa5b1"
COLOURS = {
    "forward": "#4c9be8",
    "backward": "#2f6f4e",
    "input gradient": "#5fb583",
    "weight gradient": "#f2b134",
    "forward and backward, overlapped": "#7d5ba6",
}
SHARE_COLOURS = {
    "attention products": "#4c78a8",
    "attention core": "#72a0cf",
    "MLP products": "#2f6f4e",
    "element-wise": "#8cc9a1",
    "head": "#b7a6d9",
    "all-to-all not hidden": "#f2b134",
    "bubble": "#e07a5f",
    "optimizer": "#9aa5b1",
}
STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw_overview(result: Extrapolation) -> Figure:
    """Tiers against the published figure, the run's lines, a step's parts, and the tornado."""
    with matplotlib.rc_context(STYLE):
        if result.best is None or not result.shares:
            figure = Figure(figsize=(7.5, 2.6), layout="constrained")
            draw_tiers(figure.subplots(), result)
            return figure
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        (tiers, lines), (shares, tornado) = figure.subplots(2, 2, width_ratios=(1.1, 1))
        draw_tiers(tiers, result)
        draw_lines(lines, result)
        draw_shares(shares, result)
        draw_tornado(tornado, result)
    return figure


def draw_timeline(step: StepTime, title: str) -> Figure:
    """Every rank's steps over one optimizer step: its beginning and its end enlarged."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        total = float(step.timeline.seconds[0])
        window = total * 0.2
        for axes, begin in ((left, 0.0), (right, total - window)):
            _draw_ranks(axes, step, begin, begin + window)
        left.set_ylabel("rank")
        left.set_title(title)
        right.set_title(f"... and the end of {total:.1f} s; white is bubble", fontweight="normal")
        handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
        figure.legend(handles=handles, ncols=5, loc="outside lower center", frameon=False)
    return figure


def draw_tiers(axes: Axes, result: Extrapolation) -> None:
    names, published = [], PUBLISHED.get(result.plan.model, {}).get("pre-training at the steady rate")
    for index, tier in enumerate(result.tiers):
        names.append(
            tier.title.replace(" of the same model", "\nof the same model").replace(" and ", "\nand ")
        )
        if tier.hours is None:
            axes.text(0.02, index, "nothing to stand on", va="center", color=FAINT, transform=_row(axes))
            continue
        low, middle, high = (tier.hours[name] / 1e6 for name in ("p10", "p50", "p90"))
        axes.plot(
            [low, high], [index, index], color="#4c9be8", linewidth=7, alpha=0.45, solid_capstyle="round"
        )
        axes.plot(middle, index, "o", color="#1f5f99", markersize=8)
        axes.annotate(f"{middle:.2f}M", (middle, index), (0, 8), textcoords="offset points", ha="center")
    if published:
        axes.axvline(published / 1e6, color="#e07a5f", linestyle="--", linewidth=1.4)
        axes.annotate(
            f"published {published / 1e6:.3f}M",
            (published / 1e6, len(names) - 0.45),
            (5, 0),
            textcoords="offset points",
            color="#c2553a",
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("million GPU-hours of pre-training, P10 to P90")
    axes.set_title("What each tier says")


def draw_lines(axes: Axes, result: Extrapolation) -> None:
    assert result.best is not None
    assert result.best.run is not None
    lines = {name: band(hours) for name, hours in result.best.run.lines.items()}
    for index, spread in enumerate(lines.values()):
        middle = spread["p50"] / 1e3
        axes.barh(index, middle, color="#4c9be8" if index == 0 else "#8cc9a1", height=0.62)
        axes.plot([spread["p10"] / 1e3, spread["p90"] / 1e3], [index, index], color=INK, linewidth=1)
        text = f"{middle:,.0f}K" if middle >= 10 else f"{middle:.1f}K"
        _label(axes, text, spread["p90"] / 1e3, index)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("thousand GPU-hours, P50 and P10 to P90")
    metered = band(result.best.run.metered)["p50"] / 1e6
    axes.set_title(f"Where {metered:.2f}M metered hours go")


def draw_shares(axes: Axes, result: Extrapolation) -> None:
    """One bar per layout would say the same three times: the middle layout's, part by part."""
    names = list(result.shares)
    values = [100 * result.shares[name] for name in names]
    axes.barh(names, values, color=[SHARE_COLOURS[name] for name in names], height=0.66)
    for index, value in enumerate(values):
        _label(axes, f"{value:.1f}%", max(value, 0), index)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("share of all ranks' seconds, %")
    axes.set_title(f"Where a steady step goes (layout {MIDDLE_LAYOUT})")


def draw_tornado(axes: Axes, result: Extrapolation) -> None:
    swings = [swing for swing in result.tornado if swing.high > swing.low]
    for index, swing in enumerate(swings):
        width = (swing.high - swing.low) / 1e3
        axes.barh(index, width, left=swing.low / 1e3, color="#7d5ba6", alpha=0.75, height=0.62)
        _label(axes, f"{width:,.0f}K", swing.high / 1e3, index)
    axes.use_sticky_edges = False
    axes.set_yticks(range(len(swings)), [swing.name.replace("_", " ") for swing in swings])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("thousand metered GPU-hours, unknown at P10 to P90")
    axes.set_title("What the spread comes from")


def _label(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center")


def _draw_ranks(axes: Axes, step: StepTime, begin: float, end: float) -> None:
    for rank, intervals in enumerate(step.timeline.ranks):
        bars: dict[str, list[tuple[float, float]]] = {name: [] for name in COLOURS}
        for interval in intervals:
            start, stop = float(interval.begin[0]), float(interval.end[0])
            if stop > begin and start < end:
                bars[_kind(interval.step)].append((start, stop - start))
        for name, spans in bars.items():
            axes.broken_barh(
                spans, (rank - 0.42, 0.84), facecolors=COLOURS[name], edgecolor="white", linewidth=0.3
            )
    axes.set_xlim(begin, end)
    axes.set_ylim(len(step.timeline.ranks) - 0.4, -0.6)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("seconds")


def _kind(step: Step) -> str:
    names = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
    return "forward and backward, overlapped" if len(step) == 2 else names[step[0].kind]


def _row(axes: Axes) -> Any:
    """Horizontal in shares of the axes, vertical in its own units."""
    return axes.get_yaxis_transform()
