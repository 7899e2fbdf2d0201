"""A whole run: what it writes, how it goes on, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deepseek_mini import run_files
from deepseek_mini.compose import load_config
from deepseek_mini.config import Recompute
from deepseek_mini.model.transformer import Transformer
from deepseek_mini.training import step, trainer
from deepseek_mini.training.trainer import run
from small_run import merge

REPOSITORY = Path(__file__).resolve().parents[2]


def losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in run_files.read_metrics(run_dir)]


def test_a_run_writes_every_file_of_its_directory(make_config, tmp_path):
    run_dir = tmp_path / "run"
    assert run(make_config("trainer.sample_every=6"), run_dir, ["a=1"]) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["exit_reason"] == "finished"
    for key in ("best_val_bpb", "final_val_loss", "tokens", "device_hours", "steady_tokens_per_second"):
        assert summary[key] > 0, key
    assert summary["total_params"] > summary["active_params"] > 0
    assert (run_dir / "overrides.txt").read_text() == "a=1\n"
    assert json.loads((run_dir / "environment.json").read_text())["corpus_hash"]
    rows = run_files.read_metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 13))
    for key in ("tokens", "attempt", "train/main_loss", "train/mtp_loss", "optim/lr", "optim/grad_norm"):
        assert key in rows[0], key
    for key in ("perf/tokens_per_second", "perf/mfu", "perf/data_wait_seconds", "moe/max_violation"):
        assert key in rows[0], key
    assert [row["step"] for row in rows if "val/bpb" in row] == [6, 12]
    assert len((run_dir / "samples.jsonl").read_text().splitlines()) == 6
    assert run_files.read_config(run_dir) == make_config("trainer.sample_every=6")


def test_a_fault_of_ours_keeps_its_traceback(make_config, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ValueError("shapes do not match")

    monkeypatch.setattr(trainer, "train_step", broken)
    with pytest.raises(RuntimeError, match="training failed after step 0") as caught:
        run(make_config(), tmp_path / "run", [])
    assert isinstance(caught.value.__cause__, ValueError)
    assert run_files.read_summary(tmp_path / "run")["exit_reason"] == "crashed"


@pytest.mark.parametrize(
    ("place", "message"),
    [("file", "File exists"), ("file/below", "Not a directory"), ("/proc/nope", "No such file")],
)
def test_a_directory_that_cannot_be_made_is_named(make_config, tmp_path, place, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"run_dir=.*{place} cannot be used \(.*{message}"):
        run(make_config(), tmp_path / place, [])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("device=mps", "device=mps"),
        ("data.path=nowhere", "data.path='nowhere' matches no file"),
        ("logger=tensorboard", "tensorboard"),
    ],
)
def test_a_start_that_fails_makes_no_directory(make_config, tmp_path, monkeypatch, fault, message):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=message):
        run(make_config(fault), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


def test_a_start_that_fails_while_building_can_be_made_again_with_other_settings(make_config, tmp_path):
    with pytest.raises(ValueError, match="needs 9001"):
        run(
            make_config("data.sequence_length=9000", "model.max_seq_len=9000", "trainer.max_steps=2"),
            tmp_path / "run",
            [],
        )
    assert run(make_config("resume=never", "trainer.max_steps=2"), tmp_path / "run", []) == 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls(make_config, tmp_path, optimizer):
    """Further than embedding and head, which AdamW trains beside Muon, would take it without the rest."""
    run(make_config(f"optimizer={optimizer}", "optimizer.lr=1e-2"), tmp_path / "run", [])
    curve = losses(tmp_path / "run")
    assert curve[-1] < 0.55 * curve[0]


def test_a_run_keeps_freed_memory_and_makes_again_what_it_was_told_to(make_config, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trainer, "keep_freed_memory", lambda: asked.append("memory"))
    monkeypatch.setattr(trainer, "recompute", lambda model, choice: asked.append((type(model), choice)))
    run(make_config("trainer.recompute=full", "trainer.max_steps=1"), tmp_path / "run", [])
    assert asked == ["memory", (Transformer, Recompute.full)]


def test_the_peak_is_written_with_its_unit(make_config, tmp_path, capsys):
    run(make_config("trainer.max_steps=1"), tmp_path / "run", [])
    assert re.search(r"^peak +[\d.]+ [MGT]FLOP/s, measured", capsys.readouterr().out, re.MULTILINE)


def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_seed_another(make_config, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(make_config(f"seed={seed}"), tmp_path / name, [])
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_is_bitwise_identical(make_config, tmp_path, optimizer, monkeypatch):
    config = make_config(f"optimizer={optimizer}")
    run(config, tmp_path / "whole", [])

    real, calls = trainer.train_step, []

    def dies_at_step_7(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("power cut")
        return real(*arguments, **keywords)

    monkeypatch.setattr(trainer, "train_step", dies_at_step_7)
    with pytest.raises(RuntimeError, match="power cut"):
        run(config, tmp_path / "broken", [])
    monkeypatch.setattr(trainer, "train_step", real)
    assert run(config, tmp_path / "broken", []) == 0

    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    name = "checkpoints/step_00000012/model.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "broken" / "ledger.jsonl").read_text().splitlines()]
    assert sum(row["steps"] for row in rows if row["event"] == "beat") == 12
    assert sum(row["steps"] for row in rows if row["event"] == "redo") == 2  # steps 5 and 6
    assert {row["attempt"] for row in rows} == {1, 2}


def test_a_finished_run_says_so_and_trains_no_further(make_config, tmp_path, capsys):
    config = make_config()
    run(config, tmp_path / "run", [])
    names = ("metrics.jsonl", "ledger.jsonl", "git.diff", "overrides.txt")
    (tmp_path / "run" / "git.diff").write_text("what ran")
    before = [(tmp_path / "run" / name).read_bytes() for name in names]
    capsys.readouterr()
    assert run(config, tmp_path / "run", []) == 0
    assert "is finished" in capsys.readouterr().out
    assert [(tmp_path / "run" / name).read_bytes() for name in names] == before


def test_changed_settings_are_refused_with_the_difference(make_config, tmp_path):
    run(make_config(), tmp_path / "run", [])
    with pytest.raises(ValueError, match=r"config\.yaml.*other settings") as error:
        run(make_config("optimizer.beta2=0.9"), tmp_path / "run", [])
    assert "-  beta2: 0.95" in str(error.value)
    assert "+  beta2: 0.9" in str(error.value)


def test_resume_never_refuses_a_used_directory(make_config, tmp_path):
    run(make_config(), tmp_path / "run", [])
    with pytest.raises(ValueError, match=r"resume=never.*holds a run already"):
        run(make_config("resume=never"), tmp_path / "run", [])


def test_resume_names_the_checkpoint_it_cannot_find(make_config, tmp_path):
    with pytest.raises(ValueError, match=r"resume=.*nowhere.*no checkpoint is there"):
        run(make_config(f"resume={tmp_path / 'nowhere'}"), tmp_path / "run", [])


def test_another_run_can_start_from_a_checkpoint(make_config, tmp_path):
    run(make_config(), tmp_path / "first", [])
    checkpoint = tmp_path / "first" / "checkpoints" / "step_00000008"
    assert run(make_config(f"resume={checkpoint}"), tmp_path / "second", []) == 0
    assert losses(tmp_path / "second") == losses(tmp_path / "first")[8:]


def test_a_changed_corpus_is_refused(make_config, tmp_path, monkeypatch):
    config = make_config()
    monkeypatch.setattr(trainer.Trainer, "evaluate", lambda self: os.kill(os.getpid(), signal.SIGINT) or {})
    assert run(config, tmp_path / "run", []) == 130
    (tmp_path / "corpus" / "new.txt").write_text("one more document " * 20)
    with pytest.raises(ValueError, match=r"trained on corpus .* the data is now"):
        run(config, tmp_path / "run", [])


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGINT) -> None:
    """Send this process a signal in the middle of a step."""
    real = trainer.train_step

    def signalled(model, optimizers, batch, plan, *rest):
        if plan.step == step:
            os.kill(os.getpid(), number)
        return real(model, optimizers, batch, plan, *rest)

    monkeypatch.setattr(trainer, "train_step", signalled)


@pytest.mark.parametrize("step", [6, 12])
def test_ctrl_c_delays_the_evaluation_and_the_samples_of_its_step(make_config, tmp_path, monkeypatch, step):
    config = make_config("trainer.sample_every=6")
    run(config, tmp_path / "whole", [])
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        assert run(config, tmp_path / "run", []) == 130
    assert "val/loss" not in run_files.read_metrics(tmp_path / "run")[-1]
    assert run(config, tmp_path / "run", []) == 0
    curves = [
        [(row["step"], row["val/bpb"]) for row in run_files.read_metrics(tmp_path / name) if "val/bpb" in row]
        for name in ("run", "whole")
    ]
    assert [at for at, _ in curves[0]] == [6, 12]
    assert curves[0] == curves[1]
    texts = [(tmp_path / name / "samples.jsonl").read_text() for name in ("run", "whole")]
    assert [json.loads(line)["text"] for line in texts[0].splitlines()] == [
        json.loads(line)["text"] for line in texts[1].splitlines()
    ]
    summaries = [run_files.read_summary(tmp_path / name) for name in ("run", "whole")]
    assert summaries[0]["final_val_loss"] == summaries[1]["final_val_loss"]


def test_the_summary_covers_all_attempts(make_config, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(12, patch)
        assert run(make_config(), tmp_path / "run", []) == 130
    metrics = tmp_path / "run/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        row |= {"perf/tokens_per_second": 1000.0 + row["step"], "perf/mfu": 0.1 * row["step"]}
    rows[3]["perf/memory_gib"] = 99.0
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    ledger = tmp_path / "run/ledger.jsonl"
    entry = json.loads(ledger.read_text().splitlines()[-1]) | {"seconds": 7200.0}
    ledger.write_text(ledger.read_text() + json.dumps(entry) + "\n")
    capsys.readouterr()
    assert run(make_config(), tmp_path / "run", []) == 0
    summary = run_files.read_summary(tmp_path / "run")
    assert 1005 <= summary["steady_tokens_per_second"] <= 1007
    assert 0.5 <= summary["mfu"] <= 0.7
    assert summary["peak_memory_gib"] == 99.0
    assert " in 2h 00m" in capsys.readouterr().out


def test_resumes_and_spikes_are_events(make_config, tmp_path, monkeypatch):
    real, run_dir = trainer.train_step, tmp_path / "run"

    def jumps_at_step_10(model, optimizers, batch, plan, *rest):
        result = real(model, optimizers, batch, plan, *rest)
        if plan.step == 10:
            result.grad_norm *= 100
        return result

    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        run(make_config(), run_dir, [])
    assert not (run_dir / "events.jsonl").read_text()
    monkeypatch.setattr(trainer, "train_step", jumps_at_step_10)
    run(make_config(), run_dir, [])
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event["step"], event["attempt"]) for event in events] == [
        ("resumed", 1, 2),
        ("spike", 10, 2),
    ]
    assert "step_00000001" in events[0]["message"]
    assert "optim/grad_norm" in events[1]["message"]


def test_the_same_command_with_resume_goes_on_with_its_own_run(make_config, tmp_path, monkeypatch):
    run(make_config(), tmp_path / "first", [])
    config = make_config(f"resume={tmp_path / 'first/checkpoints/step_00000004'}")
    with monkeypatch.context() as patch:
        interrupt_at(9, patch)
        run(config, tmp_path / "second", [])
    assert run(config, tmp_path / "second", []) == 0
    rows = run_files.read_metrics(tmp_path / "second")
    assert [(row["step"], row["attempt"]) for row in rows] == [(n, 1 if n < 10 else 2) for n in range(5, 13)]
    assert losses(tmp_path / "second") == losses(tmp_path / "first")[4:]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_a_signal_finishes_the_step_saves_and_ends_cleanly(make_config, tmp_path, monkeypatch, number, code):
    with monkeypatch.context() as patch:
        interrupt_at(3, patch, number)
        assert run(make_config(), tmp_path / "run", []) == code
    assert run_files.read_summary(tmp_path / "run")["exit_reason"] == "interrupted"
    assert run_files.latest_checkpoint(tmp_path / "run" / "checkpoints").name == "step_00000003"
    assert run(make_config(), tmp_path / "run", []) == 0
    run(make_config(), tmp_path / "whole", [])
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(make_config, tmp_path, monkeypatch, capsys):
    real = trainer.train_step

    def poisoned(model, optimizers, batch, plan, *rest):
        if plan.step == 6:
            model.layers[0].attn.wo.weight.data[0, 0] = torch.nan
        return real(model, optimizers, batch, plan, *rest)

    monkeypatch.setattr(trainer, "train_step", poisoned)
    assert run(make_config(), tmp_path / "run", []) == 1
    assert run_files.read_summary(tmp_path / "run")["exit_reason"] == "non_finite"
    event = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert event["step"] == 6
    assert "layers.0.attn.wo.weight" in json.dumps(event)
    assert run_files.latest_checkpoint(tmp_path / "run" / "checkpoints").name == "step_00000004"


def test_a_full_disk_while_saving_costs_no_more_than_that_checkpoint(make_config, tmp_path, monkeypatch):
    from deepseek_mini.training import checkpoint

    real, calls = checkpoint.save_file, []

    def full_disk(tensors, path):
        calls.append(path)
        if "00000008" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    assert run(make_config(), tmp_path / "run", []) == 0
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step_00000004", "step_00000012"]
    text = (tmp_path / "run" / "events.jsonl").read_text()
    assert "step_00000008" in text
    assert "No space left" in text


def test_the_micro_batch_size_changes_the_run_only_by_rounding(make_config, tmp_path):
    run(make_config(), tmp_path / "whole", [])
    run(make_config("trainer.micro_batch_size=1"), tmp_path / "cut", [])
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_check_builds_nothing_and_prints_what_would_be(make_config, tmp_path, capsys):
    assert run(make_config("check=true"), tmp_path / "run", []) == 0
    assert not (tmp_path / "run").exists()
    assert "FLOP" in capsys.readouterr().out


@pytest.mark.parametrize("step", [8, 12])
def test_a_kill_between_saving_and_logging_loses_no_figure(make_config, tmp_path, monkeypatch, step):
    run(make_config(), tmp_path / "whole", [])
    real = trainer.save_checkpoint

    def dies_after(directory, model, optimizers, state, *rest):
        real(directory, model, optimizers, state, *rest)
        if state.step == step:
            raise RuntimeError("power cut")

    monkeypatch.setattr(trainer, "save_checkpoint", dies_after)
    with pytest.raises(RuntimeError, match="power cut"):
        run(make_config(), tmp_path / "run", [])
    monkeypatch.setattr(trainer, "save_checkpoint", real)
    assert run(make_config(), tmp_path / "run", []) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    final = [run_files.read_summary(tmp_path / name)["final_val_loss"] for name in ("run", "whole")]
    assert final[0] == final[1]


def test_kill_9_at_any_moment_then_the_same_command_ends_like_an_uninterrupted_run(small_overrides, tmp_path):
    overrides = merge(
        small_overrides, ["trainer.save_every=1", "trainer.eval_every=4", "trainer.max_steps=30"]
    )
    run(load_config(overrides), tmp_path / "whole", [])
    command = [sys.executable, str(REPOSITORY / "train.py"), *overrides, f"run_dir={tmp_path / 'killed'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for steps in (3, 11, 20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + 60
        while len(run_files.read_metrics(tmp_path / "killed")) < steps:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "killed")[-1] == losses(tmp_path / "whole")[-1]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_the_ledger_accounts_for_every_second_from_creation_to_the_end(small_overrides, tmp_path):
    overrides = merge(small_overrides, ["trainer.max_steps=40", f"run_dir={tmp_path / 'run'}"])
    code = "import sys, time; from deepseek_mini.cli import main; main(); print(time.monotonic())"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *overrides], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    wall = float(done.stdout.splitlines()[-1]) - begin
    rows = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert sum(row["seconds"] for row in rows) == pytest.approx(wall, rel=0.005, abs=0.1)


def test_the_step_module_does_no_input_or_output():
    source = Path(step.__file__).read_text()
    assert not any(word in source for word in ("open(", "print(", "logging", "Path("))
