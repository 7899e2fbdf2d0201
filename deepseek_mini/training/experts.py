"""What a run records of each expert: experts.jsonl at logged steps, routing.safetensors at evaluations.

Legend: B rows, S = T + 1 tokens of a row, N = B * U positions that a layer sees (U = T, or T - k in MTP's
depth k), L layers with experts (the main model's, then MTP's), E experts, C experts per token, V vocabulary,
K kinds of token, D documents of the held-out text, G expert groups.

experts.jsonl: a row for each logged step; of a step that was done again the last row counts. It holds the
batch's `counts` [L][E], the `bias` [L][E] after the step (null where there is none) and, if the step was
evaluated, `val_counts`.

routing.safetensors: the newest evaluation. `together_LEE` are the tokens that chose both experts, `kinds_KLE`
those of each kind that chose the expert, `documents_DLE` those of each document, and `reach_LG` the tokens
whose experts lie in 1, 2, ... groups; the metadata name the step, the kinds and the documents.
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
from deepseek_mini.data import Data, Tokenizer
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
MOST_DOCUMENTS = 256
"""Those that an evaluation meets first; of further ones no counts are kept."""
SIGNIFICANT = 6
"""Digits of a bias that are kept."""


class RoutingCounts:
    """Which experts tokens choose together, and what these tokens are, over one evaluation."""

    def __init__(self, n_layers: int, n_experts: int, n_groups: int, kinds_V: Tensor) -> None:
        self.kinds_V = kinds_V
        self.documents: dict[int, int] = {}
        """Number of a held-out document -> its place in `documents_LDE`."""
        self.documents_LDE = torch.zeros(n_layers, MOST_DOCUMENTS + 1, n_experts, device=kinds_V.device)
        self.together_LEE = torch.zeros(n_layers, n_experts, n_experts, device=kinds_V.device)
        self.reach_LG = torch.zeros(n_layers, n_groups, dtype=torch.int64, device=kinds_V.device)
        self.kinds_LKE = torch.zeros(n_layers, len(KINDS), n_experts, device=kinds_V.device)

    @property
    def counts_LE(self) -> Tensor:
        """int64 assignments over the whole evaluation."""
        return self.together_LEE.diagonal(dim1=1, dim2=2).round().long()

    def add(self, chosen: list[Tensor], tokens_BS: Tensor, documents_BS: Tensor) -> None:
        """Count the choices `[N, C]` of each layer; a position is of its newest token's kind and document."""
        n_rows, n_tokens = tokens_BS.shape
        places_BS = self._places(documents_BS)
        for layer, experts_NC in enumerate(chosen):
            length = experts_NC.shape[0] // n_rows
            newest = slice(n_tokens - 1 - length, -1)
            kinds_N = self.kinds_V[tokens_BS[:, newest].flatten()]
            chosen_NE = torch.zeros(len(kinds_N), self.together_LEE.shape[1], device=experts_NC.device)
            chosen_NE.scatter_(1, experts_NC, 1.0)
            self.together_LEE[layer] += chosen_NE.T @ chosen_NE
            self.reach_LG[layer] += self._reach(chosen_NE)
            self.kinds_LKE[layer].index_add_(0, kinds_N, chosen_NE)
            self.documents_LDE[layer].index_add_(0, places_BS[:, newest].flatten(), chosen_NE)

    def _reach(self, chosen_NE: Tensor) -> Tensor:
        """How many tokens have experts in 1, 2, ... groups."""
        n_groups = self.reach_LG.shape[1]
        groups_N = chosen_NE.unflatten(1, (n_groups, -1)).amax(2).sum(1).long()
        return torch.bincount(groups_N - 1, minlength=n_groups)

    def _places(self, documents_BS: Tensor) -> Tensor:
        """The place of each document, a new one's behind the others; those too many share the last."""
        found, places = documents_BS.unique(return_inverse=True)
        for document in found.tolist():
            self.documents.setdefault(document, min(len(self.documents), MOST_DOCUMENTS))
        return torch.tensor([self.documents[d] for d in found.tolist()], device=places.device)[places]


class ExpertLog:
    """Writes both files; does nothing for a model without experts. A full disk stops nothing."""

    def __init__(self, run_dir: Path, attempt: int, model: Transformer, data: Data) -> None:
        self._run_dir, self._attempt, self._gates = run_dir, attempt, model.gates()
        self._rows = JsonLines(run_dir / run_files.EXPERTS, announce) if self._gates else None
        self._kinds_V = token_kinds(data.tokenizer, model.config.vocab_size).to(model.head.weight.device)
        self._names = data.validation_names

    def new_counts(self) -> RoutingCounts | None:
        """For the evaluation that is about to begin."""
        if not self._gates:
            return None
        gate = self._gates[0]
        return RoutingCounts(len(self._gates), len(gate.weight), gate.n_groups, self._kinds_V)

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
        documents = [self._names[document] for document in evaluated.documents][:MOST_DOCUMENTS]
        documents_LDE = evaluated.documents_LDE[:, : len(documents)].round().int()
        tensors = {
            "together_LEE": evaluated.together_LEE.round().int().contiguous(),
            "kinds_KLE": evaluated.kinds_LKE.round().int().transpose(0, 1).contiguous(),
            "reach_LG": evaluated.reach_LG.int(),
            "documents_DLE": documents_LDE.transpose(0, 1).contiguous(),
        }
        facts = {"step": str(step), "kinds": json.dumps(KINDS), "documents": json.dumps(documents)}
        try:
            partial.write_bytes(save(tensors, facts))
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
