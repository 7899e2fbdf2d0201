"""The model card of an export: a function of the run's records alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from deepseek_mini import run_files
from deepseek_mini.config import Config
from deepseek_mini.cost.flops import active_params, mtp_params, total_params

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- deepseek_v3
- deepseek_mini
---

# {name}

A DeepSeek-V3 in miniature, trained with deepseek_mini. The weights are those of `{checkpoint}`{precision}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "where/this/file/is"
model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
```
{mtp}
## Figures

{figures}

## Model

```yaml
{model}
```
"""
FP8_READERS = """\
transformers needs accelerate to read FP8; without a GPU it also mistakes or refuses the scales of matrices
that end in a part of a block (as of 5.23), of which most models have some. import_hf.py reads them all"""
FP8 = f", quantised to E4M3 in blocks of 128 x 128.\n\n{FP8_READERS}"
MTP = """
The layers from `model.layers.{first}` on are multi-token prediction modules, as in DeepSeek's release;
transformers leaves them out, and says so.
"""


def model_card(run_dir: Path, config: Config, checkpoint: str, fp8: bool) -> str:
    """Markdown; what the run has no record of is left out, and so are the user's paths."""
    model = replace(config.model, init_from=None)
    return CARD.format(
        name=run_dir.resolve().name,
        checkpoint=checkpoint,
        precision=FP8 if fp8 else "",
        mtp=MTP.format(first=config.model.n_layers) if config.model.mtp.depth else "",
        figures=_table(_figures(config) | _training(run_dir, config) | _environment(run_dir)),
        model=OmegaConf.to_yaml(OmegaConf.structured(model)).strip(),
    )


def _figures(config: Config) -> dict[str, Any]:
    model = config.model
    return {
        "parameters": f"{total_params(model):,}",
        "active per token": f"{active_params(model):,}",
        "in MTP modules": f"{mtp_params(model):,}",
        "context": f"{model.max_seq_len:,} tokens",
    }


def _training(run_dir: Path, config: Config) -> dict[str, Any]:
    """How it was trained and how far it came; nothing for a model that was not trained here."""
    summary, rows = run_files.read_summary(run_dir), run_files.read_metrics(run_dir)
    if not rows:
        return {}
    last = rows[-1]
    figures = {
        "text": config.data.source,
        "steps": f"{last['step']:,}",
        "batch": f"{config.data.batch_size} sequences of {config.data.sequence_length} tokens",
        "tokens": f"{last['tokens']:,}",
        "peak learning rate": f"{config.optimizer.lr:g} ({config.optimizer.name})",
        "training loss": _number(last.get("train/loss")),
    }
    if summary is not None:
        figures |= {
            "validation loss": _number(summary.get("final_val_loss")),
            "best validation bits per byte": _number(summary.get("best_val_bpb")),
            "device-hours": _number(summary.get("device_hours")),
            "ended": summary.get("exit_reason"),
        }
    return figures


def _environment(run_dir: Path) -> dict[str, Any]:
    environment = run_files.read_environment(run_dir)
    if environment is None:
        return {}
    names = {
        "corpus_hash": "corpus, by its hash",
        "device": "device",
        "precision": "precision",
        "torch": "torch",
        "git_commit": "commit of deepseek_mini",
    }
    return {title: environment.get(key) for key, title in names.items()}


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _table(figures: dict[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in figures.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])
