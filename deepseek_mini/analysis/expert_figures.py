"""Heat maps of the experts: load over time, co-activation, and the tokens and domains they take."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from deepseek_mini.analysis import style
from deepseek_mini.analysis.comparison import percent
from deepseek_mini.analysis.experts import ExpertRecords, Routing
from deepseek_mini.analysis.specialisation import Specialisation, lift

LOADS = LogNorm(0.25, 4.0)
"""Load over the mean, symmetric in logarithms: white is fair."""
LIFTS = LogNorm(0.25, 4.0)
COLOUR_MAP = "RdBu_r"
COLUMNS = 3


def loads(records: ExpertRecords) -> Figure:
    """Load of each expert over the run, a panel for each layer."""
    figure, axes = _grid(len(records.layers), height=2.3)
    for i, (panel, name) in enumerate(zip(axes, records.layers, strict=False)):
        _heat_over_time(panel, records.batch.tokens_T, records.batch.load_TLE[:, i].T)
        panel.set_title(name)
        panel.set_ylabel("expert")
    _colour_bar(figure, axes[: len(records.layers)], LOADS, "load / mean")
    return figure


def draw_all_loads(figure: Figure, axes: Axes, records: ExpertRecords) -> None:
    """Every expert of every layer in one panel, with lines between layers."""
    load_TLE = records.batch.load_TLE
    n_layers, n_experts = load_TLE.shape[1:]
    _heat_over_time(axes, records.batch.tokens_T, load_TLE.reshape(len(load_TLE), -1).T)
    for edge in range(1, n_layers):
        axes.axhline(edge * n_experts - 0.5, color="white", linewidth=2)
    axes.yaxis.set_major_locator(FixedLocator([(i + 0.5) * n_experts - 0.5 for i in range(n_layers)]))
    axes.set_yticklabels(records.layers)
    axes.tick_params(axis="y", length=0)
    axes.set_title("load of every expert over its layer's mean")
    _colour_bar(figure, [axes], LOADS, "")


def coactivation(routing: Routing, n_groups: int) -> Figure:
    """Pairs of experts chosen together over what their loads let expect; lines part the expert groups."""
    figure, axes = _grid(len(routing.layers), height=2.9, width=3.3)
    n_experts = routing.together_LEE.shape[1]
    for panel, name, lift_EE in zip(axes, routing.layers, routing.lift_LEE, strict=False):
        panel.imshow(np.clip(lift_EE, LIFTS.vmin, LIFTS.vmax), norm=LIFTS, cmap=COLOUR_MAP)
        for edge in range(1, n_groups):
            place = edge * n_experts / n_groups - 0.5
            panel.axhline(place, color=style.FAINT, linewidth=0.6)
            panel.axvline(place, color=style.FAINT, linewidth=0.6)
        panel.set_title(name)
        panel.grid(visible=False)
    _colour_bar(figure, axes[: len(routing.layers)], LIFTS, "pairs / expected")
    return figure


def kinds(routing: Routing) -> Figure:
    """How much an expert prefers a kind of token."""
    titles = [
        f"{name}: {bits:.2f} bits" for name, bits in zip(routing.layers, routing.information_L, strict=True)
    ]
    return _preferences(titles, routing.kinds, routing.kinds_KLE)


def domains(layers: list[str], found: Specialisation) -> Figure:
    """How much an expert prefers a data domain, and what shuffled documents show of the same."""
    bits = zip(layers, found.information_L, found.shuffled_L, strict=True)
    titles = [f"{name}: {own:.3f} bits, shuffled {chance:.3f}" for name, own, chance in bits]
    return _preferences(titles, found.domains, found.counts_KLE)


def _preferences(titles: list[str], classes: list[str], counts_KLE: np.ndarray) -> Figure:
    """A panel for each layer, a row for each class; experts in the order of the class they prefer most."""
    tokens_K = counts_KLE.sum((1, 2))
    there = np.flatnonzero(tokens_K)
    figure, axes = _grid(len(titles), height=0.9 + 0.18 * len(there))
    lift_LEK = lift(counts_KLE)
    for i, (panel, title) in enumerate(zip(axes, titles, strict=False)):
        lift_KE = lift_LEK[i].T[there]
        order = np.lexsort((-lift_KE.max(0), lift_KE.argmax(0)))
        shown = np.clip(lift_KE[:, order], LIFTS.vmin, LIFTS.vmax)
        panel.imshow(shown, norm=LIFTS, cmap=COLOUR_MAP, aspect="auto", interpolation="nearest")
        panel.yaxis.set_major_locator(FixedLocator(range(len(there))))
        shares = [f"{classes[k]}, {percent(tokens_K[k] / tokens_K.sum())}" for k in there]
        panel.set_yticklabels(shares, fontsize=7)
        panel.xaxis.set_major_locator(NullLocator())
        panel.set_title(title)
        panel.grid(visible=False)
    _colour_bar(figure, axes[: len(titles)], LIFTS, "share / layer's")
    return figure


def _heat_over_time(axes: Axes, tokens_T: np.ndarray, load_XT: np.ndarray) -> None:
    shown = np.clip(load_XT, LOADS.vmin, LOADS.vmax)
    edges = np.concatenate([[0], tokens_T])
    rows = np.arange(len(load_XT) + 1) - 0.5
    axes.pcolormesh(edges, rows, shown, norm=LOADS, cmap=COLOUR_MAP, rasterized=True)
    axes.invert_yaxis()
    axes.grid(visible=False)
    style.token_axis(axes)


def _grid(n: int, height: float, width: float = 4.2) -> tuple[Figure, list[Axes]]:
    """Panels in rows of three; those left over are blank."""
    columns = min(n, COLUMNS)
    figure, axes = style.panels(columns, -(-n // columns), width, height)
    for panel in axes[n:]:
        panel.set_visible(False)
    return figure, axes


def _colour_bar(figure: Figure, axes: list[Axes], norm: Normalize, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(norm, COLOUR_MAP), ax=axes, shrink=0.8, pad=0.01, label=label)
    bar.ax.yaxis.set_major_locator(FixedLocator([0.25, 0.5, 1, 2, 4]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.set_yticklabels(["\u2264 \u00bc", "\u00bd", "1", "2", "\u2265 4"])
