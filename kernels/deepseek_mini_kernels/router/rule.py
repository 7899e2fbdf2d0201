"""What a router does with the logits."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Rule:
    """Scores, groups and selection; names as in the model's config."""

    n_activated: int
    n_groups: int = 1
    n_limited_groups: int = 1
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    """sigmoid also normalises the chosen weights (V3); softmax does not (V2)."""
    group_score: Literal["top2", "max"] = "top2"
    route_scale: float = 1.0

    def check(self, n_experts: int) -> None:
        """Raises ValueError unless a router of `n_experts` can follow this rule."""
        if n_experts % self.n_groups:
            raise ValueError(f"kernels: {n_experts} experts do not divide into {self.n_groups} groups")
        in_group = n_experts // self.n_groups
        if not 1 <= self.n_limited_groups <= self.n_groups:
            raise ValueError(
                f"kernels: n_limited_groups={self.n_limited_groups} must lie between 1 and {self.n_groups}"
            )
        if not 1 <= self.n_activated <= self.n_limited_groups * in_group:
            raise ValueError(
                f"kernels: n_activated={self.n_activated} must lie between 1 and the "
                f"{self.n_limited_groups * in_group} experts of {self.n_limited_groups} groups"
            )
        if self.group_score == "top2" and self.n_groups > 1 and in_group < 2:
            raise ValueError("kernels: group_score=top2 needs 2 experts per group")
