"""The report: one HTML page with its pictures inside, from a run directory alone."""

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from deepseek_mini import run_files
from deepseek_mini.analysis import expert_figures, report_figures, style
from deepseek_mini.analysis.experts import ExpertRecords, Routing, read_experts, read_routing
from deepseek_mini.analysis.figures import FIGURES, run_figures
from deepseek_mini.analysis.runs import Run, read_run
from deepseek_mini.analysis.specialisation import SHUFFLES

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; max-width: 1120px; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.6em; margin-bottom: 0 }
h2 { font-size: 1.2em; margin-top: 2.2em }
.faint { color: #868e96 }
img { max-width: 100%; display: block; margin: 0.6em 0 }
pre { background: #f8f9fa; padding: 0.8em; overflow: auto; white-space: pre-wrap }
table { border-collapse: collapse; font-size: 0.93em }
td { padding: 0.2em 1.2em 0.2em 0; border-bottom: 1px solid #e9ecef; vertical-align: top }
td + td { font-variant-numeric: tabular-nums }
"""
PICTURE_DPI = 110
HEALTH = (
    *("", "MaxVio, last tenth", "MaxVio, validation", "entropy", "dead", "biases", "drift"),
    "groups per token",
)
MOST_SAMPLES = 9
MOST_EVENTS = 40


@dataclass
class Records:
    """All that a report is made from."""

    run: Run
    experts: ExpertRecords | None
    routing: Routing | None
    samples: list[dict[str, Any]]
    events: list[dict[str, Any]]


def read_records(path: Path) -> Records:
    """Read a run directory. Raises ValueError naming the file that is missing or damaged."""
    run = read_run(path)
    samples, events = run.lines(run_files.SAMPLES), run.lines(run_files.EVENTS)
    return Records(run, read_experts(run), read_routing(run), samples, events)


def make_page(records: Records) -> str:
    run = records.run
    with style.styled(PICTURE_DPI):
        sections = [
            _section("Learning", _picture(report_figures.learning(run), "loss and bits per byte")),
            _section("Schedules", _picture(report_figures.schedules(run), "learning rate and batch size")),
            _section("Time", _picture(report_figures.speed(run), "tokens per second and device-seconds")),
            *_experts(records),
        ]
    name = html.escape(run.path.resolve().name)
    tail = [_samples(records), _events(records), _settings(run)]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{CSS}</style>\n'
        f'<h1>{name}</h1><p class="faint">{html.escape(_subtitle(run))}</p>\n'
        f"{_table(_facts(run))}\n" + "\n".join(part for part in [*sections, *tail] if part) + "</html>\n"
    )


def _experts(records: Records) -> list[str]:
    run, experts, routing = records.run, records.experts, records.routing
    if run.config.model.n_dense_layers == run.config.model.n_layers and not run.config.model.mtp.depth:
        return []
    parts = [_picture(report_figures.balance(run, experts), "MaxVio, entropy and dead experts")]
    if experts is None:
        parts.append(_note(f"{run_files.EXPERTS} is not there: this run kept no record of each expert."))
    else:
        loads = _picture(expert_figures.loads(experts), "load of each expert over time")
        parts += [loads, _health(experts, routing)]
        figure = report_figures.biases(experts)
        parts.append(
            _picture(figure, "gate biases") if figure else _note("The gates of this run have no bias.")
        )
    sections = [_section("Experts: load", *parts)]
    if routing is not None:
        sections += _routing(run, routing)
    return sections


def _routing(run: Run, routing: Routing) -> list[str]:
    together = _picture(
        expert_figures.coactivation(routing, run.config.model.n_expert_groups), "co-activation"
    )
    kinds = _picture(expert_figures.kinds(routing), "kinds of token by expert")
    where = f"On the validation set at step {routing.step:,}. "
    group_text = "Lines part the expert groups; within a group pairs are likelier where groups are limited."
    kind_text = (
        "Rows are kinds of token, columns experts, in the order of the kind they prefer. Bits are what a "
        "token's expert tells of its kind (mutual information, corrected for the sample)."
    )
    return [
        _section("Experts: who works with whom", _note(where + group_text), together),
        _section("Experts: who takes what", _note(where + kind_text), kinds),
        *_domains(routing, where),
    ]


def _domains(routing: Routing, where: str) -> list[str]:
    """Specialisation by data domain, beside chance."""
    found = routing.specialisation
    if found is None:
        return []
    text = (
        "Rows are the folders that documents come from, columns experts. Shuffled: the same documents, "
        f"whole, dealt to the domains at random {SHUFFLES} times; a domain's documents share experts where "
        "the bits lie above 95% of the shuffles."
    )
    rows: list[tuple[str, ...]] = [("", "bits", "shuffled, mean", "shuffled, 95%", "")]
    columns = (found.information_L, found.shuffled_L, found.shuffled_high_L)
    for name, shown, *bits in zip(routing.layers, found.shown_L, *columns, strict=True):
        rows.append((name, *(f"{value:.4f}" for value in bits), "above chance" if shown else "not shown"))
    picture = _picture(expert_figures.domains(routing.layers, found), "data domains by expert")
    return [_section("Experts: whose text they take", _note(where + text), picture, _table(rows))]


def _health(records: ExpertRecords, routing: Routing | None) -> str:
    """A row for each layer at the end of the run, MTP's among them."""
    batch, last = records.batch, max(len(records.batch.tokens_T) // 10, 1)
    rows: list[tuple[str, ...]] = [HEALTH]
    groups = routing.groups_L if routing else None
    for i, name in enumerate(records.layers):
        biases = records.bias_TLE[-1, i] if records.bias_TLE is not None else None
        drift = records.drift_TL
        rows.append(
            (
                name,
                f"{batch.violation_TL[-last:, i].mean():.2f}",
                f"{records.validation.violation_TL[-1, i]:.2f}" if records.validation else "\u2013",
                f"{batch.entropy_TL[-last:, i].mean():.3f}",
                f"{int(batch.dead_TL[-1, i])}",
                "\u2013" if biases is None else f"{biases.min():+.3f} to {biases.max():+.3f}",
                "\u2013" if drift is None else f"{drift[-1, i]:.2g}",
                "\u2013" if groups is None else f"{groups[i]:.2f}",
            )
        )
    return _table(rows)


def _subtitle(run: Run) -> str:
    environment = run.environment
    words = (environment.get("device"), environment.get("precision"), environment.get("corpus"))
    ended = run.summary.get("exit_reason", "still running, or killed")
    return " \u00b7 ".join(str(word) for word in (ended, *words) if word)


def _facts(run: Run) -> list[tuple[str, ...]]:
    figures = run_figures(run)
    rows = []
    for figure in FIGURES:
        value = figures[figure.name]
        if value is not None:
            exact = figure.name.startswith("val/") and value < 100
            rows.append((figure.title, f"{value:.4f}" if exact else style.short(value)))
    facts = (("best held-out bits per byte", "best_val_bpb"), ("MFU, median step", "mfu"))
    rows += [(title, f"{run.summary[key]:.4g}") for title, key in facts if run.summary.get(key)]
    return [*rows, ("seed", str(run.seed)), ("attempts", str(max(r["attempt"] for r in run.rows)))]


def _samples(records: Records) -> str:
    rows = records.samples[-MOST_SAMPLES:]
    if not rows:
        return ""
    parts = []
    for row in rows:
        text = f"<b>{html.escape(row['prompt'])}</b>{html.escape(row['text'])}"
        parts.append(f'<p class="faint">step {row["step"]:,}</p><pre>{text}</pre>')
    return _section("Samples", *parts)


def _events(records: Records) -> str:
    rows = records.events[-MOST_EVENTS:]
    cells = [(f"step {row['step']:,}", str(row["kind"]), str(row["message"])) for row in rows]
    return _section("Events", _table(cells)) if cells else ""


def _settings(run: Run) -> str:
    overrides = run.path / run_files.OVERRIDES
    words = overrides.read_text().split("\n") if overrides.exists() else []
    command = html.escape(" ".join(["python train.py", *filter(None, words)]))
    facts: list[tuple[str, ...]] = [
        (key, _text(value)) for key, value in run.environment.items() if not isinstance(value, list)
    ]
    config = html.escape((run.path / run_files.CONFIG).read_text())
    whole = f"<details><summary>config.yaml</summary><pre>{config}</pre></details>"
    return _section("What ran", f"<pre>{command}</pre>", _table(facts), whole)


def _picture(figure: Figure, text: str) -> str:
    data = base64.b64encode(style.png_bytes(figure)).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _section(title: str, *parts: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n" + "\n".join(parts)


def _note(text: str) -> str:
    return f'<p class="faint">{html.escape(text)}</p>'


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _text(value: Any) -> str:
    return "\u2013" if value is None else str(value)
