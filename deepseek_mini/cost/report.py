"""The one-page report of an extrapolation: a single HTML file with its figures inside."""

import base64
import html
import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from deepseek_mini.cost.draws import band
from deepseek_mini.cost.extrapolate import (
    PUBLISHED,
    PUBLISHED_PHASES,
    PUBLISHED_PHASES_OF,
    PUBLISHED_STEP,
    Extrapolation,
)
from deepseek_mini.cost.layout import MIDDLE_LAYOUT
from deepseek_mini.cost.plan import Plan
from deepseek_mini.cost.plots import draw_overview, draw_timeline
from deepseek_mini.cost.prices import OWNERS, rental_prices
from deepseek_mini.cost.summary import (
    carried_over_label,
    dollars,
    extra_dollars,
    mfu_by_convention,
    phases_of,
)
from deepseek_mini.cost.text import hours_text, money_text
from deepseek_mini.cost.tiers import Tier

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<title>{title}</title><style>
body {{ font: 14px/1.45 system-ui, sans-serif; color: #1f2933 }}
body {{ max-width: 1080px; margin: 1.6rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem; margin: 0 0 .2rem }} h2 {{ font-size: 1.05rem; margin: 1.5rem 0 .4rem }}
p.lead {{ font-size: 1.05rem; margin: .3rem 0 }} p.note, td.note {{ color: #616e7c; font-size: .85rem }}
table {{ border-collapse: collapse; width: 100%; font-size: .88rem }}
th {{ text-align: left; border-bottom: 1px solid #9aa5b1; font-weight: 600 }}
td, th {{ padding: .18rem .6rem .18rem 0; vertical-align: top }}
th.n, td.n {{ text-align: right; white-space: nowrap }}
tr + tr td {{ border-top: 1px solid #eef1f4 }} img {{ width: 100% }}
.two {{ display: grid; grid-template-columns: 1fr 1fr; gap: 0 2rem }}
</style></head><body>
{body}
</body></html>
"""

Row = Sequence[str]


def make_report(result: Extrapolation) -> str:
    """The page as text."""
    plan = result.plan
    title = f"{plan.model}: {plan.tokens / 1e12:g}T tokens on {plan.cluster.name}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *_lead(result),
        _picture(draw_overview(result)),
        "<h2>Tiers</h2>",
        _table(("tier", "P10", "P50", "P90", "per T tokens", "stands on"), tier_rows(result)),
        *_run_lines(result),
        *_pipeline(result),
        '<div class="two"><div>',
        "<h2>MFU in every convention</h2>",
        _table(("FLOPs counted", "of the BF16 peak", "of the FP8 peak"), convention_rows(result)),
        "</div><div>",
        "<h2>Dollars per GPU-hour</h2>",
        _table(("price", "$ per hour", "source"), price_rows(result)),
        "</div></div>",
        "<h2>This run</h2>",
        *_this_run(result),
        *_claims(result),
    ]
    return PAGE.format(title=html.escape(title), body="\n".join(parts))


def tier_rows(result: Extrapolation) -> list[Row]:
    """Name, P10, P50, P90, per trillion tokens, evidence; a dash where a tier has nothing."""
    rows: list[Row] = []
    for tier in result.tiers:
        if tier.hours is None:
            rows.append((tier.title, "-", "-", "-", "-", tier.evidence))
            continue
        per_trillion = tier.hours["p50"] / (result.plan.tokens / 1e12)
        rows.append(
            (tier.title, *map(hours_text, tier.hours.values()), hours_text(per_trillion), tier.evidence)
        )
    if result.carried_over is not None:
        rows.append(
            (
                "this run's own MFU carried over",
                "",
                hours_text(result.carried_over),
                "",
                "",
                carried_over_label(result.run),
            )
        )
    published = PUBLISHED.get(result.plan.model, {}).get("pre-training at the steady rate")
    if published:
        rows.append(("published by its makers", "", hours_text(published), "", "", "not used by any tier"))
    return rows


def per_trillion(tier: Tier, plan: Plan) -> str:
    """GPU-hours per trillion tokens of a tier that has any, with their band."""
    assert tier.hours is not None
    p10, p50, p90 = (hours_text(hours / (plan.tokens / 1e12)) for hours in tier.hours.values())
    return f"{p50} per trillion tokens, {p10} to {p90}"


def line_rows(result: Extrapolation) -> list[Row]:
    """Name, P10, P50, P90 and P50 dollars of every line of the run, then steady and metered sums."""
    if result.best is None or result.best.run is None:
        return []
    run = result.best.run
    sums = {"metered: all of it": run.metered}
    return [
        (name, *map(hours_text, band(hours).values()), money_text(dollars(hours, result.price)["p50"]))
        for name, hours in {**run.lines, **sums}.items()
    ]


def extra_rows(result: Extrapolation) -> list[Row]:
    """Dollars beside the GPU-hours, that the user has set."""
    return [(name, "", "", "", money_text(value)) for name, value in extra_dollars(result).items() if value]


def price_rows(result: Extrapolation) -> list[Row]:
    name = result.plan.cluster.gpu.name
    rented: list[Row] = [
        (
            f"{name}, {price.date}, {price.kind}",
            f"{price.low:.2f} - {price.typical:.2f} - {price.high:.2f}",
            price.source,
        )
        for price in rental_prices(name)
    ]
    owned: list[Row] = [
        (
            f"owner: {case}",
            f"{owner.per_hour:.2f}",
            ", ".join(f"{name} {value:.2f}" for name, value in owner.lines().items() if value),
        )
        for case, owner in OWNERS.items()
    ]
    return rented + owned


def ledger_rows(result: Extrapolation) -> list[Row]:
    """Every row of the ledger ends up in one of these lines; they add up to the metered device-hours."""
    run = result.run
    rows: list[Row] = [
        (
            f"{line.phase}{', done again after a crash' if line.again else ''}",
            f"{line.device_hours:.5f}",
            f"{line.device_hours / run.device_hours:.2%}",
            f"{line.tokens:,}" if line.tokens else "",
        )
        for line in run.lines
    ]
    return [*rows, ("metered: all of the ledger", f"{run.device_hours:.5f}", "100.00%", f"{run.tokens:,}")]


def convention_rows(result: Extrapolation) -> list[Row]:
    """The same GPU-hours as MFU in every convention, against the BF16 and the FP8 peak."""
    best = result.best or result.tiers[0]
    assert best.hours is not None
    return [
        (name.replace("_", " "), f"{bf16:.1%}", "-" if fp8 is None else f"{fp8:.1%}")
        for name, (bf16, fp8) in mfu_by_convention(result.plan, best.hours["p50"]).items()
    ]


def phase_rows(result: Extrapolation) -> list[Row]:
    """Rank 0's phases for each layout, beside the published ones."""
    rows: list[Row] = []
    phases = {layout: phases_of(step) for layout, step in result.steps.items()}
    for name, published in PUBLISHED_PHASES.items():
        rows.append((name, *(f"{phases[layout][name]:.2f}" for layout in phases), f"{published:.2f}"))
    seconds = (f"{float(step.seconds[0]):.2f}" for step in result.steps.values())
    return [*rows, ("step", *seconds, f"{PUBLISHED_STEP:.3f}")]


def _lead(result: Extrapolation) -> list[str]:
    best, plan = result.best, result.plan
    if best is None or best.run is None:
        return ['<p class="lead">Only the prior has something to stand on: see the table.</p>']
    steady, metered = band(best.run.steady), band(best.run.metered)
    cost = dollars(best.run.metered, result.price)
    return [
        f'<p class="lead"><b>{hours_text(steady["p50"])} GPU-hours</b> of pre-training at the steady rate '
        f"({hours_text(steady['p10'])} to {hours_text(steady['p90'])}; {per_trillion(best, plan)}), "
        f"<b>{hours_text(metered['p50'])}</b> metered with everything around it "
        f"({hours_text(metered['p10'])} to {hours_text(metered['p90'])}): "
        f"<b>{money_text(cost['p50'])}</b> ({money_text(cost['p10'])} to {money_text(cost['p90'])}), "
        f"{metered['p50'] / plan.cluster.n_gpus / 24:.0f} days.</p>",
        f'<p class="note">From: {html.escape(best.evidence)}. Bands are P10 to P90.</p>',
    ]


def _run_lines(result: Extrapolation) -> list[str]:
    rows = [*line_rows(result), *extra_rows(result)]
    if not rows:
        return []
    return [
        "<h2>The run, line by line</h2>",
        _table(("line", "P10", "P50", "P90", "dollars, P50"), rows),
        f'<p class="note">{html.escape(result.price.text)}. Staff, data, failed runs and research are 0 '
        "unless set with --staff, --data, --failed-runs and --research.</p>",
    ]


def _pipeline(result: Extrapolation) -> list[str]:
    if not result.steps:
        return []
    plan, step = result.plan, result.steps[MIDDLE_LAYOUT]
    timeline = draw_timeline(
        step, f"{plan.schedule} on {plan.n_ranks} ranks, {plan.n_micro_batches} micro-batches"
    )
    parts = [f"<h2>One optimizer step: {plan.schedule}, PP{plan.pp}, EP{plan.ep}</h2>", _picture(timeline)]
    if (plan.model, plan.cluster.name) == PUBLISHED_PHASES_OF:
        head = ("seconds on rank 0, by layout", *result.steps, "published")
        parts.append(_table(head, phase_rows(result)))
        parts.append(
            '<p class="note">Published: arXiv:2505.09343 Table 4; its phases sum to 19.90 s, the step is '
            "printed as 19.926 s. All unknowns at their medians; nothing is fitted to these figures.</p>"
        )
    return [*parts, _table(("rank", "bubble, s", *next(iter(result.memory))), _rank_rows(result))]


def _rank_rows(result: Extrapolation) -> list[Row]:
    timeline = result.steps[MIDDLE_LAYOUT].timeline
    return [
        (
            str(rank),
            f"{float(timeline.bubble(rank)[0]):.2f}",
            *(f"{value / 2**30:.1f} GiB" for value in memory.values()),
        )
        for rank, memory in enumerate(result.memory)
    ]


def _this_run(result: Extrapolation) -> list[str]:
    run = result.run
    of_peak = " of the FP8 peak" if run.of_fp8_peak else ""
    mfu = "not known (no peak)" if run.mfu is None else f"{run.mfu:.1%}{of_peak}"
    return [
        f"<p>{html.escape(run.run)} on {run.devices} x {html.escape(run.device)}: "
        f"{run.tokens_per_second:,.0f} tokens/s and an MFU of {mfu} in the median step; steady state "
        f"{run.steady_device_hours:.5f} of "
        f"{run.device_hours:.5f} metered device-hours ({run.goodput:.0%}).</p>",
        _table(("line of the ledger", "device-hours", "share", "tokens"), ledger_rows(result)),
        f'<p class="note">MFU carried over: {html.escape(carried_over_label(run))}.</p>',
    ]


def _claims(result: Extrapolation) -> list[str]:
    if not result.claims:
        return []
    rows = [(claim.claim, claim.verdict, claim.published, claim.says) for claim in result.claims]
    head = ("claim", "verdict", "primary source", "model")
    return ["<h2>Popular claims, and what the model says</h2>", _table(head, rows)]


def _picture(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="">'


def _table(head: Row, rows: Sequence[Row]) -> str:
    """Figures stand right, below their heading; sentences are smaller, a whole column at a time."""
    kinds = [_kind(column) if index else "" for index, column in enumerate(zip(*rows, strict=True))]
    lines = [_line("th", head, kinds), *(_line("td", row, kinds) for row in rows)]
    return "\n".join(["<table>", *lines, "</table>"])


def _kind(column: Row) -> str:
    if all(not text or (text.lstrip("$")[:1].isdigit() and len(text) < 20) for text in column):
        return "n"
    return "note" if max(map(len, column)) > 45 else ""


def _line(tag: str, cells: Row, kinds: Sequence[str]) -> str:
    texts = zip(cells, kinds, strict=True)
    return (
        "<tr>"
        + "".join(f'<{tag} class="{kind}">{html.escape(text)}</{tag}>' for text, kind in texts)
        + "</tr>"
    )
