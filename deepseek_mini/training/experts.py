"""What a run records of each expert: experts.jsonl at logged steps, routing.safetensors at evaluations.

Legend: B rows, S = T + 1 tokens of a row, N = B * U positions that a layer sees (U = T, or T - k in MTP's
depth k), L layers with experts (the main model's, then MTP's), E experts, C experts per token, V vocabulary,
K kinds of token.

experts.jsonl: a row for each logged step; of a step that was done again the last row counts. It holds the
batch's `counts` [L][E], the `bias` [L][E] after the step (null where there is none) and, if the step was
evaluated, `val_counts`.

routing.safetensors: the newest evaluation. `together_LEE` are the tokens that chose both experts, `kinds_KLE`
those of each kind that chose the expert; the metadata name the step and the kinds.
"""

import json
import os
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from deepseek_mini import run_files
from deepseek_mini.cost.jsonlines import JsonLines
from deepseek_mini.data import Tokenizer
from deepseek_mini.model.router import Routing
from deepseek_mini.model.transformer import Transformer
from deepseek_mini.tracking import announce

KINDS = (
    "word after a space",
    "word or part",
    "number",
    "punctuation",
    "mixed",
    "white space",
    "not ASCII",
    "end",
)
SIGNIFICANT = 6
"""Digits of a bias that are kept."""


class RoutingCounts:
    """Which experts tokens choose together, and of what kind the tokens are, over one evaluation."""

    def __init__(self, n_layers: int, n_experts: int, kinds_V: Tensor) -> None:
        self.kinds_V = kinds_V
        self.together_LEE = torch.zeros(n_layers, n_experts, n_experts, device=kinds_V.device)
        self.kinds_LKE = torch.zeros(n_layers, len(KINDS), n_experts, device=kinds_V.device)

    @property
    def counts_LE(self) -> Tensor:
        """int64 assignments over the whole evaluation."""
        return self.together_LEE.diagonal(dim1=1, dim2=2).round().long()

    def add(self, chosen: list[Tensor], tokens_BS: Tensor) -> None:
        """Count the choices `[N, C]` of each layer; a position is of its newest token's kind."""
        n_rows, n_tokens = tokens_BS.shape
        for layer, experts_NC in enumerate(chosen):
            length = experts_NC.shape[0] // n_rows
            kinds_N = self.kinds_V[tokens_BS[:, n_tokens - 1 - length : -1].flatten()]
            chosen_NE = torch.zeros(len(kinds_N), self.together_LEE.shape[1], device=experts_NC.device)
            chosen_NE.scatter_(1, experts_NC, 1.0)
            self.together_LEE[layer] += chosen_NE.T @ chosen_NE
            self.kinds_LKE[layer].index_add_(0, kinds_N, chosen_NE)


class ExpertLog:
    """Writes both files; does nothing for a model without experts. A full disk stops nothing."""

    def __init__(self, run_dir: Path, attempt: int, model: Transformer, tokenizer: Tokenizer) -> None:
        self._run_dir, self._attempt, self._gates = run_dir, attempt, model.gates()
        self._rows = JsonLines(run_dir / run_files.EXPERTS, announce) if self._gates else None
        self._kinds_V = token_kinds(tokenizer, model.config.vocab_size).to(model.head.weight.device)

    def new_counts(self) -> RoutingCounts | None:
        """For the evaluation that is about to begin."""
        if not self._gates:
            return None
        return RoutingCounts(len(self._gates), self._gates[0].weight.shape[0], self._kinds_V)

    def log(self, step: int, tokens: int, counts_LE: Tensor | None, evaluated: RoutingCounts | None) -> None:
        """Record a logged step, and its evaluation. `counts_LE` is None for a step of an earlier attempt."""
        if self._rows is None:
            return
        if counts_LE is not None:
            row = {"step": step, "attempt": self._attempt, "tokens": tokens, "counts": counts_LE.tolist()}
            row["bias"] = self._biases()
            if evaluated is not None:
                row["val_counts"] = evaluated.counts_LE.tolist()
            self._rows.append(row)
        if evaluated is not None:
            self._write_routing(step, evaluated)

    def _biases(self) -> list[list[float]] | None:
        biases = [gate.bias for gate in self._gates if gate.bias is not None]
        if not biases:
            return None
        return [[float(f"{b:.{SIGNIFICANT}g}") for b in row] for row in torch.stack(biases).tolist()]

    def _write_routing(self, step: int, evaluated: RoutingCounts) -> None:
        path = self._run_dir / run_files.ROUTING
        partial = path.with_name(f".{path.name}.partial")
        tensors = {
            "together_LEE": evaluated.together_LEE.round().int().contiguous(),
            "kinds_KLE": evaluated.kinds_LKE.round().int().transpose(0, 1).contiguous(),
        }
        try:
            partial.write_bytes(save(tensors, {"step": str(step), "kinds": json.dumps(KINDS)}))
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            announce(f"{path}: {error}; training goes on without it")


@contextmanager
def watch_gates(model: Transformer) -> Iterator[list[Tensor]]:
    """Collects the experts `[N, C]` that each gate chooses, in the order of `model.gates()`."""
    chosen: list[Tensor] = []

    def keep(_module: object, _inputs: object, routing: Routing) -> None:
        chosen.append(routing.experts_NK)

    handles = [gate.register_forward_hook(keep) for gate in model.gates()]
    try:
        yield chosen
    finally:
        for handle in handles:
            handle.remove()


def token_kinds(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """int64 [V]: the place in KINDS of each token; ids without a token count as the end mark."""
    kinds = [_kind(tokenizer.decode([i])) if i != tokenizer.eos_id else "end" for i in range(tokenizer.size)]
    kinds += ["end"] * (vocab_size - len(kinds))
    return torch.tensor([KINDS.index(kind) for kind in kinds])


def _kind(text: str) -> str:
    core = text.strip()
    if not text.isascii():
        return "not ASCII"
    if not core:
        return "white space"
    if core.isalpha():
        return "word after a space" if text[0] == " " else "word or part"
    if core.isdigit():
        return "number"
    return "punctuation" if all(c in string.punctuation for c in core) else "mixed"
