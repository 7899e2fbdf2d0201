"""The claims about V3 on one page: verdicts, primary sources, what is computed and what was measured."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from deepseek_mini.analysis import provenance, style
from deepseek_mini.analysis.studies import Study, groups_per_token, kept_drafts, measured, other_verdicts
from deepseek_mini.config import ModelConfig
from deepseek_mini.cost.claim import Claim, Topic
from deepseek_mini.cost.claims import SECOND_TOKENS
from deepseek_mini.cost.communication import expected_nodes
from deepseek_mini.cost.flops import flops_per_token, kv_cache_bytes_per_token, total_params
from deepseek_mini.cost.pipeline.closed_form import bubble

PUBLISHED_CACHE = {"Qwen-2.5-72B": 327_680.0, "Llama-3.1-405B": 516_096.0}
"""Bytes per token in BF16 (arXiv:2505.09343, table 1)."""
PUBLISHED_FLOPS = 250e9
"""Of V3 (arXiv:2505.09343, table 2)."""
LENGTH = 4096
STEPS = {"1f1b": "1F1B", "interleaved": "interleaved", "zb1p": "ZB1P", "dualpipe": "DualPipe"}


def make_page(claims: list[Claim], studies: list[Study], command: str, picture: str) -> str:
    """Markdown: a table for each topic, then what was measured."""
    counts = {verdict: sum(c.verdict is verdict for c in claims) for verdict in {c.verdict for c in claims}}
    tally = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
    parts = [
        "# Popular claims about DeepSeek-V3, reproduced",
        f"    {command}",
        f"Of {len(claims)} claims: {tally}. Verdicts are against DeepSeek's own papers and Meta's model card."
        " What is computed comes from the cost model, what is measured from the runs that the command names.",
        f"![claims]({picture})\n\nBlue is computed or measured here, orange published, grey the claim.",
        *(_section(topic, claims, studies) for topic in Topic),
        *([f"## Other ablations\n\n{_bullets(rest)}"] if (rest := other_verdicts(studies)) else []),
        "Sources: V3 is arXiv:2412.19437, V2 2405.04434, ISCA 2505.09343, LFB 2408.15664.",
    ]
    if studies:
        runs = [run for study in studies for group in study.groups for run in group.runs.values()]
        parts += ["## The runs", _bullets(provenance.facts(runs))]
    return "\n\n".join(parts) + "\n"


def _section(topic: Topic, claims: list[Claim], studies: list[Study]) -> str:
    rows = ["| claim | verdict | primary source | computed |", "| --- | --- | --- | --- |"]
    rows += [
        f"| {c.claim} | **{c.verdict}** | {c.published} | {c.says} |" for c in claims if c.topic is topic
    ]
    return f"## {topic}\n\n" + "\n".join(rows) + "\n\nMeasured:\n\n" + _bullets(measured(topic, studies))


def _bullets(lines: Sequence[str]) -> str:
    wrapper = textwrap.TextWrapper(118, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(map(wrapper.fill, lines))


def draw_claims(config: ModelConfig, claims: list[Claim], studies: list[Study], path: Path) -> Path:
    """Eight panels: five that are computed from V3's config, three that small runs fill."""
    with style.styled(110):
        figure, axes = style.panels(4, 2, width=4.0, height=2.9)
        _draw_cache(axes[0], config)
        _draw_flops(axes[1], config, claims)
        _draw_bubbles(axes[2])
        _draw_hours(axes[3], claims)
        _draw_routing(axes[4], config, _of(studies, Topic.routing))
        _draw_balance(axes[5], _of(studies, Topic.balance))
        _draw_drafts(axes[6], _of(studies, Topic.mtp))
        _draw_differences(axes[7], studies)
        return style.save(figure, path)


def _draw_cache(axes: Axes, config: ModelConfig) -> None:
    sizes = {f"V3, {kind}": float(size) for kind, size in kv_cache_bytes_per_token(config).items()}
    _bars(axes, sizes | PUBLISHED_CACHE, published=len(PUBLISHED_CACHE))
    axes.set_xscale("log")
    axes.set_title("KV cache, bytes per token")


def _draw_flops(axes: Axes, config: ModelConfig, claims: list[Claim]) -> None:
    claimed = next(claim.claimed for claim in claims if "GFLOP per token" in claim.claim)
    values = {
        "V3, the claim": claimed,
        "V3, computed": flops_per_token(config, LENGTH),
        "dense 671B, 6N": 6.0 * total_params(config),
        "V3, published": PUBLISHED_FLOPS,
    }
    _bars(axes, values, published=1)
    axes.set_xscale("log")
    axes.set_title("training FLOPs per token")


def _draw_bubbles(axes: Axes) -> None:
    seconds = {title: bubble(name, 16, 1, 1, 1) for name, title in STEPS.items()}
    _bars(axes, {title: value / seconds["1F1B"] for title, value in seconds.items()})
    axes.set_title("bubble over 1F1B's, 16 stages, F = B/2")


def _draw_hours(axes: Axes, claims: list[Claim]) -> None:
    steady = next(claim.model for claim in claims if claim.claim.startswith("pre-training took"))
    ideal = next(claim for claim in claims if "perfect efficiency" in claim.claim)
    assert steady is not None
    assert ideal.model is not None
    values = {
        "perfect, the claim": ideal.claimed,
        "perfect, sparse peak": ideal.model,
        "simulated": steady,
        "published": 2.664e6,
    }
    _bars(axes, values, published=1)
    axes.set_title("GPU-hours of pre-training")


def _draw_routing(axes: Axes, config: ModelConfig, study: Study | None) -> None:
    shape = config.n_routed_experts, config.n_activated_experts, config.n_expert_groups
    values = {
        "V3, free": expected_nodes(*shape),
        f"V3, {config.n_limited_groups} of {config.n_expert_groups}": expected_nodes(
            *shape, config.n_limited_groups
        ),
    }
    for group in study.groups if study else []:
        reach = groups_per_token(group)
        values |= {} if reach is None else {f"measured, {group.label}": reach}
    _bars(axes, values)
    axes.set_title("nodes or groups per token")


def _draw_balance(axes: Axes, study: Study | None) -> None:
    axes.set_title("MaxVio, validation set")
    _bars(axes, study.means("val/max_violation") if study else {})


def _draw_drafts(axes: Axes, study: Study | None) -> None:
    axes.set_title("MTP drafts kept")
    shares = {}
    for group in study.groups if study else []:
        for depth, share in enumerate(kept_drafts(group), start=1):
            shares[f"{group.label}, draft {depth}"] = share
    _bars(axes, shares)
    if shares:
        axes.axvspan(*SECOND_TOKENS, color=style.COLOURS[1], alpha=0.3, label="published, V3")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(loc="lower right")


def _draw_differences(axes: Axes, studies: list[Study]) -> None:
    """Held-out loss of every variant against its baseline, with the intervals."""
    axes.set_title("held-out loss differences")
    rows = [
        (group["label"], group["differences"]["val/loss"])
        for study in studies
        for group in study.result["groups"]
        if group["differences"] and group["differences"]["val/loss"]
    ]
    for i, (_, judged) in enumerate(rows):
        axes.plot([judged["low_fraction"], judged["high_fraction"]], [i, i], color=style.COLOURS[0])
        axes.plot(judged["mean_fraction"], i, "o", color=style.COLOURS[0], markersize=4)
    if not rows:
        return _empty(axes)
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def _of(studies: list[Study], topic: Topic) -> Study | None:
    return next((study for study in studies if study.topic is topic), None)


def _bars(axes: Axes, values: dict[str, float], published: int = 0) -> None:
    """Bars from above; the last `published` of them in the colour of what others state."""
    if not values:
        return _empty(axes)
    colours = [style.FAINT if "the claim" in label else style.COLOURS[0] for label in values]
    colours[len(values) - published :] = [style.COLOURS[1]] * published
    axes.barh(range(len(values)), list(values.values()), color=colours, height=0.6)
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(style.FuncFormatter(style.short))
    for i, value in enumerate(values.values()):
        place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(style.short(value), (value, i), fontsize=8, **place)
    axes.margins(x=0.2)


def _empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not measured", color=style.FAINT, ha="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
