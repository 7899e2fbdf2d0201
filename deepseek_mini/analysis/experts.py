"""What a run recorded of its experts: loads, biases, and who works with whom on what.

Legend: T logged steps, L layers with experts (the main model's, then MTP's), E experts, K kinds of token.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from deepseek_mini import run_files
from deepseek_mini.analysis.runs import Run
from deepseek_mini.analysis.specialisation import Specialisation, information, lift, specialise


@dataclass
class Series:
    """Assignments per expert at some steps, in the order of the steps."""

    tokens_T: np.ndarray
    counts_TLE: np.ndarray

    @cached_property
    def load_TLE(self) -> np.ndarray:
        """Relative to the layer's mean: 1 is fair, 0 is dead."""
        return self.counts_TLE / self.counts_TLE.mean(2, keepdims=True)

    @property
    def violation_TL(self) -> np.ndarray:
        """MaxVio = (largest load - mean) / mean (arXiv:2408.15664 section 4)."""
        return self.load_TLE.max(2) - 1

    @property
    def entropy_TL(self) -> np.ndarray:
        """Of the load, as a share of its greatest, log E."""
        share_TLE = self.counts_TLE / self.counts_TLE.sum(2, keepdims=True)
        logs_TLE = np.log(share_TLE, where=share_TLE > 0, out=np.zeros_like(share_TLE))
        return -(share_TLE * logs_TLE).sum(2) / np.log(share_TLE.shape[2])

    @property
    def dead_TL(self) -> np.ndarray:
        return (self.counts_TLE == 0).sum(2)


@dataclass
class ExpertRecords:
    """experts.jsonl."""

    layers: list[str]
    batch: Series
    """Of the batch of each logged step."""
    validation: Series | None
    """Of the whole validation set."""
    bias_TLE: np.ndarray | None
    """At the steps of `batch`, after their update."""

    @property
    def drift_TL(self) -> np.ndarray | None:
        """Mean distance between a layer's biases and those of a tenth of the run before, 0 at the start."""
        if self.bias_TLE is None:
            return None
        window = max(len(self.bias_TLE) // 10, 1)
        before_TLE = np.concatenate([np.zeros_like(self.bias_TLE[:window]), self.bias_TLE[:-window]])
        return np.abs(self.bias_TLE - before_TLE).mean(2)


@dataclass
class Routing:
    """routing.safetensors: the newest evaluation, expert by expert."""

    layers: list[str]
    step: int
    kinds: list[str]
    together_LEE: np.ndarray
    """Tokens that chose both experts; on the diagonal, that chose the expert."""
    kinds_KLE: np.ndarray
    """Tokens of each kind that chose the expert."""
    reach_LG: np.ndarray | None = None
    """Tokens whose experts lie in 1, 2, ... groups; None where the run kept no record of it."""
    specialisation: Specialisation | None = None
    """By data domain; None where too few documents were met, or the run kept no record of them."""

    @property
    def lift_LEE(self) -> np.ndarray:
        """Pairs over what both loads let expect: 1 if choices were independent; NaN on the diagonal."""
        load_LE = np.diagonal(self.together_LEE, axis1=1, axis2=2).astype(float)
        expected_LEE = load_LE[:, :, None] * load_LE[:, None, :]
        apart = ~np.eye(load_LE.shape[1], dtype=bool)
        pairs_LEE = np.where(apart, self.together_LEE, 0.0)
        scale_L = pairs_LEE.sum((1, 2)) / np.maximum((expected_LEE * apart).sum((1, 2)), 1)
        expected_LEE *= scale_L[:, None, None]
        ratio = np.divide(pairs_LEE, expected_LEE, where=expected_LEE > 0, out=np.ones_like(expected_LEE))
        return np.where(apart, ratio, np.nan)

    @property
    def groups_L(self) -> np.ndarray | None:
        """Groups that a token's experts lie in, on average."""
        if self.reach_LG is None:
            return None
        return self.reach_LG @ np.arange(1, self.reach_LG.shape[1] + 1) / self.reach_LG.sum(1)

    @property
    def kind_lift_LEK(self) -> np.ndarray:
        """Share of a kind among an expert's tokens over its share among the layer's: 1 without preference."""
        return lift(self.kinds_KLE)

    @property
    def information_L(self) -> np.ndarray:
        """Bits that a token's expert tells of its kind."""
        return information(self.kinds_KLE)


def layer_names(run: Run) -> list[str]:
    """Of the layers with experts, numbered from 0 as in the checkpoints."""
    model = run.config.model
    main = [f"layer {i}" for i in range(model.n_dense_layers, model.n_layers)]
    return main + [f"MTP {depth}" for depth in range(1, model.mtp.depth + 1)]


def read_experts(run: Run) -> ExpertRecords | None:
    """Records of the experts; None if the run has none. Of a step done again, the last time counts.

    Raises ValueError naming the file if it does not fit the run's model.
    """
    lines = run.lines(run_files.EXPERTS)
    if not lines:
        return None
    layers = layer_names(run)
    shape = (len(layers), run.config.model.n_routed_experts)
    try:
        by_step = {row["step"]: row for row in lines}
        rows = [by_step[step] for step in sorted(by_step)]
        batch = _series(rows, "counts", shape)
        evaluated = [row for row in rows if row.get("val_counts")]
        validation = _series(evaluated, "val_counts", shape) if evaluated else None
        biased = all(row.get("bias") for row in rows)
        bias_TLE = np.array([row["bias"] for row in rows], dtype=float) if biased else None
    except (KeyError, ValueError) as error:
        path = run.path / run_files.EXPERTS
        raise ValueError(
            f"{path}: does not fit the run's model ({error}); remove it to do without"
        ) from error
    return ExpertRecords(layers, batch, validation, bias_TLE)


def read_routing(run: Run) -> Routing | None:
    """The newest evaluation's routing; None if the run has none. Raises ValueError if the file is damaged."""
    path = run.path / run_files.ROUTING
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            facts: dict[str, Any] = file.metadata()
            together_LEE, kinds_KLE = file.get_tensor("together_LEE"), file.get_tensor("kinds_KLE")
            names = json.loads(facts.get("documents", "[]"))
            by_domain = specialise(names, file.get_tensor("documents_DLE")) if names else None
            reach_LG = file.get_tensor("reach_LG") if "reach_LG" in file.keys() else None  # noqa: SIM118
        kinds = json.loads(facts["kinds"])
        return Routing(
            layer_names(run), int(facts["step"]), kinds, together_LEE, kinds_KLE, reach_LG, by_domain
        )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove it to do without") from error


def _series(rows: list[dict[str, Any]], name: str, shape: tuple[int, int]) -> Series:
    counts_TLE = np.array([row[name] for row in rows], dtype=float)
    if counts_TLE.shape[1:] != shape:
        raise ValueError(f"{name} has the shape {counts_TLE.shape[1:]}, the model {shape}")
    return Series(np.array([row["tokens"] for row in rows]), counts_TLE)
