"""The training loop: builds the parts from the config, then steps, saves, evaluates, samples and logs."""

import importlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_mini import run_files
from deepseek_mini.config import Config, PrecisionConfig
from deepseek_mini.cost.estimate import describe_run
from deepseek_mini.cost.flops import flops_per_token
from deepseek_mini.cost.hardware import (
    choose_device,
    choose_precision,
    device_name,
    matmul_peak,
    product_dtype,
)
from deepseek_mini.cost.meter import Meter
from deepseek_mini.data import Loader, build_data, check_source
from deepseek_mini.inference.generate import generate
from deepseek_mini.inference.sampling import Sampling
from deepseek_mini.interop.load import load_initial_weights
from deepseek_mini.model.recompute import recompute
from deepseek_mini.model.transformer import build_model
from deepseek_mini.optim.build import build_optimizers
from deepseek_mini.optim.schedule import StepPlan, plan_run
from deepseek_mini.precision.backend import choose_backend, precision_words
from deepseek_mini.precision.convert import convert, holding_weights, short_list
from deepseek_mini.tracking import announce, build_trackers, check_trackers
from deepseek_mini.training.balance import balance_metrics
from deepseek_mini.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from deepseek_mini.training.evaluation import evaluate
from deepseek_mini.training.experts import ExpertLog, RoutingCounts
from deepseek_mini.training.guards import NonFinite, SpikeWatch, StopRequest, check_finite
from deepseek_mini.training.report import (
    make_header,
    make_summary,
    peak_memory_gib,
    wall_seconds,
)
from deepseek_mini.training.resume import find_checkpoint
from deepseek_mini.training.setup import check_grouped_products, keep_freed_memory, make_deterministic
from deepseek_mini.training.step import train_step
from deepseek_mini.training.unread import Figures, Unread

DONE, FAILED, INTERRUPTED = 0, 1, 130
SAMPLE_TOKENS = 48
SAMPLE_TEMPERATURE = 0.8


def run(config: Config, run_dir: Path, overrides: list[str]) -> int:
    """Train, or go on with a run; returns the exit code.

    Raises ValueError for what the user can mend: data, a foreign or damaged checkpoint, a used directory.
    """
    if config.check:
        announce(describe_run(config))
        return DONE
    with run_files.usable(run_dir):
        checkpoint = find_checkpoint(config, run_dir)
        run_files.refuse_changes(run_dir, config)
        if run_files.is_finished(run_dir):
            announce(
                f"{run_dir} is finished: see {run_dir / run_files.SUMMARY}; another seed= starts another run"
            )
            return DONE
        device, device_reason = choose_device(config.device)
        check_trackers(config.logger)
        check_source(config.data)
        precision = choose_backend(config.precision, device, announce)
        check_grouped_products(config.model, precision.format, device, announce)
        run_files.claim(run_dir, config, overrides)
    importlib.import_module("torch._dynamo")  # as torch.optim does later: the ledger has it among the imports
    with Meter(run_dir / run_files.LEDGER, device_name(device)) as meter:
        return Trainer(config, run_dir, meter, device, device_reason, precision, checkpoint).train()


class Trainer:
    """A run and its parts. `train` is the loop; each of its lines is one method."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        meter: Meter,
        device: torch.device,
        device_reason: str,
        precision: PrecisionConfig,
        checkpoint: Path | None,
    ) -> None:
        self.config, self.run_dir, self.meter, self.device = config, run_dir, meter, device
        dtype, reason = choose_precision(self.device, config.precision.format)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)
        make_deterministic(self.device)
        keep_freed_memory()
        self.plans = plan_run(config)
        self.data = build_data(config.data, config.model.vocab_size, config.seed, announce)
        self.data.tokenizer.save(run_dir / run_files.TOKENIZER)
        self.model = build_model(config.model, self.device, config.seed)
        if converted := convert(self.model, precision):
            announce(f"in fp8: {short_list(converted)}")
        recompute(self.model, config.trainer.recompute)
        self.optimizers = build_optimizers(self.model, config.optimizer)
        self.state = RunState(0, 0, self.data.corpus_hash)
        self.restored_metrics: dict[str, Any] = {}
        self.recorded: set[str] = set()
        initial_weights = None
        if checkpoint is not None:
            self.restore(checkpoint)
        elif config.model.init_from is not None:
            initial_weights = load_initial_weights(self.model, self.data.tokenizer)
        meter.start_at(self.state.step)

        self.peak = matmul_peak(self.device, product_dtype(self.device, precision, dtype))
        self.flops_per_token = flops_per_token(
            config.model, config.data.sequence_length, mtp=config.model.mtp.depth > 0
        )
        arithmetic = precision_words(precision, dtype, reason)
        header = make_header(self, device_reason, arithmetic)
        self.trackers = build_trackers(config, run_dir, header, meter.attempt)
        if checkpoint is not None:
            self.trackers.event("resumed", f"from {checkpoint}", self.state.step)
        if initial_weights is not None:
            self.trackers.event("initial_weights", initial_weights, self.state.step)
        self.unread = Unread()
        self.spikes = SpikeWatch()
        self.experts = ExpertLog(run_dir, meter.attempt, self.model, self.data)
        self.counts_LE: Tensor | None = None
        self.routing: RoutingCounts | None = None
        run_files.write_environment(
            run_dir,
            attempt=meter.attempt,
            device=device_name(self.device),
            precision=arithmetic,
            corpus_hash=self.data.corpus_hash,
            corpus=self.data.description,
        )

    def train(self) -> int:
        """Run to the end, or until a signal or a number that is not finite stops it; the exit code."""
        reason, code = "crashed", FAILED
        try:
            reason, code = self.loop()
        except NonFinite as error:
            reason = "non_finite"
            advice = "try a lower optimizer.lr or a longer schedule.min_warmup_steps"
            message = f"stopped before updating the weights: {error}; {advice}"
            self.trackers.event(reason, message, self.state.step + 1)
        except torch.OutOfMemoryError as error:
            reason = "out_of_memory"
            half = max((self.config.trainer.micro_batch_size or self.config.data.batch_size) // 2, 1)
            advice = (
                f"trainer.micro_batch_size={half}, trainer.recompute=full or a shorter data.sequence_length"
            )
            message = f"{str(error).splitlines()[0]}; less memory is needed with {advice}"
            self.trackers.event(reason, message, self.state.step + 1)
        except ValueError as error:  # settings and files were checked before: not the user's to mend
            raise RuntimeError(f"training failed after step {self.state.step}") from error
        finally:
            self.trackers.close(self.finish(reason))
        return code

    def loop(self) -> tuple[str, int]:
        """All steps that are left; why it ended, and the exit code."""
        every = self.config.trainer
        with StopRequest() as stop, Loader(self.data.train, self._sequences()) as loader:
            self.catch_up()
            for plan in self.plans[self.state.step :]:
                self.step(plan, loader)
                stopping = stop.signal is not None
                if not (self.reads_now() or stopping):
                    continue
                metrics = self.read()
                if self.due(every.save_every) or stopping:
                    self.save(metrics)
                if self.due(every.eval_every) and not stopping:
                    metrics |= self.evaluate()
                if self.due(every.sample_every) and not stopping:
                    self.sample()
                if self.due(every.log_every) or "val/loss" in metrics or plan.step == 1 or stopping:
                    self.log(metrics)
                if stopping:
                    return "interrupted", INTERRUPTED if stop.signal == signal.SIGINT else FAILED
        return "finished", DONE

    def step(self, plan: StepPlan, loader: Loader) -> None:
        """One optimizer step; `read` has its figures."""
        self.unread.begin_step()
        begin = time.perf_counter()
        with self.meter.phase("data_wait"):
            batch = next(loader)
        self.unread.data_wait += time.perf_counter() - begin
        with self.meter.phase("step"):
            result = train_step(
                self.model,
                self.optimizers,
                batch,
                plan,
                self.config.trainer.micro_batch_size or plan.batch_size,
                self.config.optimizer.clip_norm,
                self.autocast,
                self.config.data.document_mask,
            )
        self.unread.steps.append((plan, result))
        self.state = RunState(plan.step, plan.first_sequence + plan.batch_size, self.data.corpus_hash)

    def reads_now(self) -> bool:
        """Whether the figures are wanted. A CPU has them at hand; a GPU is only waited for when they are."""
        every = self.config.trainer
        rhythms = (every.log_every, every.save_every, every.eval_every, every.sample_every)
        return self.device.type == "cpu" or self.state.step == 1 or any(map(self.due, rhythms))

    def read(self) -> dict[str, Any]:
        """The newest step's figures; times and rates are means over the steps since the last reading."""
        unread, self.unread = self.unread, Unread()
        with self.meter.phase("step"):
            rows = unread.read()
        for (plan, _), row in zip(unread.steps, rows, strict=True):
            self.enter(plan, row)
        seconds = time.perf_counter() - unread.begin
        (plan, result), row = unread.steps[-1], rows[-1]
        tokens = sum(plan.batch_size for plan, _ in unread.steps) * self.config.data.sequence_length
        rate, peak = tokens / seconds, self.peak.flops_per_second
        self.counts_LE, self.routing = result.counts_LE.cpu(), None
        return {
            "tokens": plan.tokens_before + plan.batch_size * self.config.data.sequence_length,
            "train/loss": row.loss,
            "train/main_loss": row.main_loss,
            "train/mtp_loss": row.mtp_loss,
            "optim/lr": plan.lr,
            "optim/grad_norm": row.grad_norm,
            "optim/mtp_weight": plan.mtp_weight,
            "optim/bias_update_rate": plan.bias_update_rate,
            "perf/tokens_per_second": rate,
            "perf/mfu": rate * self.flops_per_token / peak if peak else None,
            "perf/step_seconds": (seconds - unread.data_wait) / len(rows),
            "perf/data_wait_seconds": unread.data_wait / len(rows),
            "perf/memory_gib": peak_memory_gib(self.device),
            **balance_metrics(self.counts_LE),
        }

    def enter(self, plan: StepPlan, row: Figures) -> None:
        """Count a step and tell of spikes. Raises NonFinite, with the state of before, if it was void."""
        after, self.state = self.state, RunState(plan.step - 1, plan.first_sequence, self.data.corpus_hash)
        check_finite(self.model, row.loss, row.grad_norm)
        self.state = after
        tokens = plan.batch_size * self.config.data.sequence_length
        self.meter.count(steps=1, tokens=tokens, model_flops=tokens * self.flops_per_token)
        for spike in self.spikes.look({"train/main_loss": row.main_loss, "optim/grad_norm": row.grad_norm}):
            self.trackers.event("spike", spike, plan.step)

    def catch_up(self) -> None:
        """Do what a stop or a kill kept the restored step from: evaluation, samples, the row of figures."""
        metrics, every = dict(self.restored_metrics), self.config.trainer
        if not metrics:
            return
        if self.due(every.eval_every) and "val/loss" not in self.recorded:
            metrics |= self.evaluate()
        if self.due(every.sample_every) and "samples" not in self.recorded:
            self.sample()
        if metrics.keys() - self.recorded:
            self.log(metrics)

    def log(self, metrics: dict[str, Any]) -> None:
        """Record a step: its figures, and what its experts did."""
        self.experts.log(self.state.step, metrics["tokens"], self.counts_LE, self.routing)
        self.trackers.log(metrics, self.state.step)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the last one, happens now."""
        return every > 0 and (self.state.step % every == 0 or self.state.step == len(self.plans))

    def save(self, metrics: dict[str, Any]) -> None:
        """Save a checkpoint, with the step's figures. A full disk costs no more than this checkpoint."""
        with self.meter.phase("checkpoint"):
            self.meter.flush()
            try:
                save_checkpoint(
                    self.run_dir / run_files.CHECKPOINTS,
                    self.model,
                    self.optimizers,
                    self.state,
                    metrics,
                    self.config.trainer.keep_checkpoints,
                )
            except OSError as error:
                again = self.state.step + self.config.trainer.save_every
                advice = (
                    f"earlier checkpoints are untouched and training goes on; make room before step {again}"
                )
                self.trackers.event("checkpoint_failed", f"{error}; {advice}", self.state.step)

    def restore(self, checkpoint: Path) -> None:
        """Go on where a checkpoint stands. Raises ValueError if it does not fit model or corpus."""
        self.state, metrics = load_checkpoint(checkpoint, self.model, self.optimizers, self.device)
        if checkpoint.parent == self.run_dir / run_files.CHECKPOINTS:
            self.restored_metrics = metrics
            self.recorded = run_files.recorded_at(self.run_dir, self.state.step)
        if self.state.corpus_hash != self.data.corpus_hash:
            raise ValueError(
                f"{checkpoint}: trained on corpus {self.state.corpus_hash}, the data is now "
                f"{self.data.corpus_hash}; restore the files of data.source={self.config.data.source}, "
                "or choose another run_dir"
            )

    def evaluate(self) -> dict[str, float | None]:
        with self.meter.phase("evaluate"), holding_weights(self.model):
            self.routing = self.experts.new_counts()
            return evaluate(
                self.model,
                self.data,
                min(self.config.trainer.eval_sequences, self.data.validation.n_sequences),
                self.config.trainer.micro_batch_size or self.config.data.batch_size,
                self.autocast,
                self.config.data.document_mask,
                self.routing,
            )

    def sample(self) -> None:
        """Text after the three fixed prompts."""
        with self.meter.phase("sample"), self.autocast, holding_weights(self.model):
            tokenizer = self.data.tokenizer
            prompts = [tokenizer.encode(prompt) for prompt in self.data.prompts]
            seed = self.config.seed * 1_000_003 + self.state.step
            sampling = Sampling(SAMPLE_TEMPERATURE, seed=seed)
            new = generate(self.model, prompts, SAMPLE_TOKENS, sampling, {tokenizer.eos_id})
            rows = [
                {"prompt": prompt, "text": tokenizer.decode(ids), "temperature": SAMPLE_TEMPERATURE}
                for prompt, ids in zip(self.data.prompts, new, strict=True)
            ]
        self.trackers.samples(rows, self.state.step)

    def finish(self, reason: str) -> dict[str, Any]:
        """Write summary.json from the run's records; a run that stops early can go on later."""
        self.meter.flush()
        summary = make_summary(
            self.config,
            self.run_dir,
            reason,
            peak_memory_gib(self.device),
            tokens=self.state.sequences * self.config.data.sequence_length,
            flops_per_token=self.flops_per_token,
        )
        try:
            run_files.write_summary(self.run_dir, summary)
        except OSError as error:
            self.trackers.event(
                "summary_failed", f"cannot write {run_files.SUMMARY}: {error}", self.state.step
            )
        return {**summary, "wall_seconds": wall_seconds(self.run_dir)}

    def _sequences(self) -> Iterator[tuple[int, int]]:
        """First sequence and number of sequences of each step to come."""
        for plan in self.plans[self.state.step :]:
            yield plan.first_sequence, plan.batch_size
