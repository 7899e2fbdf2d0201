"""The pictures of a report: one function each, from the records of a run."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from deepseek_mini.analysis import style
from deepseek_mini.analysis.comparison import percent
from deepseek_mini.analysis.curves import running_mean
from deepseek_mini.analysis.experts import ExpertRecords
from deepseek_mini.analysis.runs import Run
from deepseek_mini.cost.meter import seconds_by_phase


def learning(run: Run) -> Figure:
    """Training and held-out loss, bits per byte, MTP's losses, and how many drafts would be kept."""
    depths = run.config.model.mtp.depth
    figure, (loss, bits, *mtp) = style.panels(4 if depths else 2, width=3.4 if depths else 4.2)
    _training_loss(loss, run, "train/main_loss", "val/loss", "loss, nats")
    _bits(bits, run)
    if mtp:
        _training_loss(mtp[0], run, "train/mtp_loss", "val/mtp_loss", "MTP loss, nats")
        for depth in range(1, depths + 1):
            name = "val/mtp_acceptance" + (f"_{depth}" if depth > 1 else "")
            mtp[1].plot(*run.series(name), "o-", markersize=4, label=f"depth {depth}")
        kept = run.last("val/mtp_acceptance")
        mtp[1].set_title("MTP drafts kept" + (f": {percent(kept)} at the end" if kept is not None else ""))
        mtp[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        mtp[1].set_ylim(bottom=0)
        mtp[1].legend()
        style.token_axis(mtp[1])
    return figure


def schedules(run: Run) -> Figure:
    """Learning rate, tokens of a step, the weights of MTP and bias rule, and the gradient norm."""
    figure, axes = style.panels(4, width=3.3, height=2.5)
    tokens = np.array([row["tokens"] for row in run.rows])
    steps = np.array([row["step"] for row in run.rows])
    axes[0].plot(*run.series("optim/lr"))
    axes[0].set_title("learning rate")
    axes[1].step(tokens, np.diff(tokens, prepend=0) / np.diff(steps, prepend=0), where="pre")
    axes[1].set_title("tokens per step")
    axes[2].plot(*run.series("optim/mtp_weight"), label="MTP loss weight")
    axes[2].plot(*run.series("optim/bias_update_rate"), label="bias update rate")
    axes[2].set_title("weight and rate")
    axes[2].legend()
    axes[3].plot(*run.series("optim/grad_norm"), linewidth=1)
    axes[3].set_title("gradient norm, before clipping")
    for panel in axes:
        style.token_axis(panel)
        panel.yaxis.set_major_formatter(style.FuncFormatter(style.short))
        if panel is not axes[3]:
            panel.set_ylim(bottom=0)
    if any(norm > 0 for norm in run.series("optim/grad_norm")[1]):
        axes[3].set_yscale("log")
        axes[3].yaxis.set_minor_formatter(NullFormatter())
    return figure


def speed(run: Run) -> Figure:
    """Tokens per second, and the device-seconds of each phase."""
    figure, (rate, phases) = style.panels(2, width=6.2, height=2.8)
    rate.plot(*run.series("perf/tokens_per_second"), linewidth=1)
    rate.set_ylim(bottom=0)
    rate.set_title("tokens per second, of the logged step")
    rate.yaxis.set_major_formatter(style.FuncFormatter(style.short))
    style.token_axis(rate)
    again = [row for row in run.ledger if row["event"] == "redo"]
    first = [row for row in run.ledger if row["event"] != "redo"]
    seconds, redone = seconds_by_phase(first), seconds_by_phase(again)
    names = sorted((n for n in seconds if seconds[n] + redone[n]), key=lambda n: seconds[n] + redone[n])
    total = sum(seconds.values()) + sum(redone.values())
    phases.barh(names, [seconds[n] for n in names], color=style.COLOURS[0])
    if any(redone.values()):
        left = [seconds[n] for n in names]
        phases.barh(names, [redone[n] for n in names], left=left, color=style.COLOURS[1], label="done again")
        phases.legend(loc="lower right")
    for i, name in enumerate(names):
        value = seconds[name] + redone[name]
        phases.text(value, i, f" {value:,.3g} s, {percent(value / total)}", va="center", fontsize=8)
    phases.set_xlim(right=1.3 * max((seconds[n] + redone[n] for n in names), default=1.0))
    phases.set_title(f"where {total:,.0f} device-seconds went")
    phases.set_xlabel("seconds")
    phases.grid(axis="y", visible=False)
    return figure


def balance(run: Run, records: ExpertRecords | None) -> Figure:
    """MaxVio per batch and over the validation set, entropy of the load, experts without a token."""
    figure, (violation, entropy, dead) = style.panels(3)
    violation.set_title("MaxVio")
    entropy.set_title("entropy of the load, 1 = even")
    dead.set_title("experts without a token in the batch")
    if records is None:
        violation.plot(*run.series("moe/max_violation"), linewidth=1, label="per batch, mean of layers")
        entropy.plot(*run.series("moe/entropy"), linewidth=1)
        dead.plot(*run.series("moe/dead_experts"), linewidth=1)
    else:
        batch = records.batch
        lines = (violation, batch.violation_TL), (entropy, batch.entropy_TL), (dead, batch.dead_TL)
        for axes, values_TL in lines:
            for name, colour, values_T in zip(
                records.layers, shades(records.layers), values_TL.T, strict=True
            ):
                style_line = "--" if name.startswith("MTP") else "-"
                axes.plot(batch.tokens_T, values_T, style_line, color=colour, linewidth=0.9, label=name)
    violation.plot(*run.series("val/max_violation"), "o-", color=style.COLOURS[1], label="validation set")
    violation.set_ylim(0, _upper(run.series("moe/max_violation")[1]))
    dead.yaxis.set_major_locator(MaxNLocator(integer=True))
    dead.set_ylim(bottom=0)
    violation.legend(ncols=2 if records and len(records.layers) > 3 else 1, fontsize=7)
    for axes in (violation, entropy, dead):
        style.token_axis(axes)
    return figure


def biases(records: ExpertRecords) -> Figure | None:
    """Smallest to largest gate bias of each layer, and how far they drift within a tenth of the run."""
    if records.bias_TLE is None or records.drift_TL is None:
        return None
    figure, (span, drift) = style.panels(2, width=6.2, height=2.8)
    tokens_T = records.batch.tokens_T
    for i, (name, colour) in enumerate(zip(records.layers, shades(records.layers), strict=True)):
        bias_TE = records.bias_TLE[:, i]
        for edge_T in (bias_TE.min(1), bias_TE.max(1)):
            span.plot(tokens_T, edge_T, color=colour, linewidth=0.9)
        span.plot(tokens_T, bias_TE.mean(1), ":", color=colour, linewidth=1.2)
        drift.plot(tokens_T, records.drift_TL[:, i], color=colour, linewidth=0.9, label=name)
    span.set_title("gate biases: smallest, largest, mean (dotted)")
    drift.set_title("drift: mean distance from a tenth of the run before")
    drift.set_ylim(bottom=0)
    drift.legend(ncols=3, fontsize=7, loc="lower center")
    style.token_axis(span)
    style.token_axis(drift)
    return figure


def picture(run: Run, records: ExpertRecords | None) -> Figure:
    """The run at a glance, as in the README: loss, bits per byte, and the load of every expert."""
    figure, (loss, bits, experts) = style.panels(3, width=4.3, height=3.1)
    _training_loss(loss, run, "train/main_loss", "val/loss", "loss, nats")
    _bits(bits, run)
    if records is None:
        experts.plot(*run.series("moe/max_violation"), linewidth=1, label="per batch")
        experts.plot(*run.series("val/max_violation"), "o-", label="validation set")
        experts.set_title("MaxVio: largest expert load above the mean")
        experts.set_ylim(bottom=0)
        experts.legend()
        style.token_axis(experts)
    else:
        from deepseek_mini.analysis.expert_figures import draw_all_loads

        draw_all_loads(figure, experts, records)
    return figure


def shades(layers: list[str]) -> list[str]:
    """A colour for each layer, from early to late; MTP's stand out."""
    main = sum(not name.startswith("MTP") for name in layers)
    ramp = [style.plt.get_cmap("viridis")(0.85 * i / max(main - 1, 1)) for i in range(main)]
    return [style.to_hex(c) for c in ramp] + [style.COLOURS[5]] * (len(layers) - main)


def _training_loss(axes: Axes, run: Run, train: str, held_out: str, title: str) -> None:
    tokens, losses = run.series(train)
    if tokens:
        axes.plot(tokens, losses, color=style.COLOURS[0], alpha=0.25, linewidth=0.8)
        axes.plot(tokens, running_mean(losses), color=style.COLOURS[0], label="training, running mean")
    axes.plot(*run.series(held_out), "o-", color=style.COLOURS[1], markersize=4, label="held out")
    axes.set_title(title + _at_end(run.series(held_out)[1]))
    style.token_axis(axes)
    if axes.lines:
        axes.legend()


def _bits(axes: Axes, run: Run) -> None:
    axes.plot(*run.series("val/bpb"), "o-", color=style.COLOURS[1], markersize=4)
    axes.set_title("held-out bits per byte" + _at_end(run.series("val/bpb")[1]))
    style.token_axis(axes)


def _at_end(values: list[float]) -> str:
    return f": {values[-1]:.3f} at the end" if values else ""


def _upper(values: list[float]) -> float:
    """Top of an axis that the first wild steps may leave."""
    return 1.15 * float(np.quantile(values, 0.97)) if values else 1.0
