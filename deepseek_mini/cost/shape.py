"""The dimensions that decide what a transformer costs, of DeepSeek's family and of others."""

import re
from dataclasses import dataclass

from deepseek_mini.config import Attention, ModelConfig
from deepseek_mini.cost.tables import whole


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder: latent or grouped-query attention, dense and MoE layers, sliding windows, MTP.

    Multi-head attention is the case `n_kv_heads = n_heads`, multi-query the case of one.
    """

    dim: int
    vocab_size: int
    n_heads: int
    n_kv_heads: int
    """Not used by latent attention."""
    key_width: int
    """Width of one head's query and key; of latent attention with its rotated part."""
    value_width: int
    n_dense_layers: int = 0
    dense_width: int = 0
    n_moe_layers: int = 0
    n_experts: int = 0
    """Routed experts of a layer."""
    top_k: int = 0
    expert_width: int = 0
    shared_width: int = 0
    """Inner width of all shared experts of a layer together."""
    mlp_matrices: int = 3
    """3 for a gated MLP (SwiGLU), 2 for a plain one."""
    q_rank: int = 0
    """Width of the query latent; 0 projects the query directly."""
    kv_rank: int = 0
    """Width of the key-value latent; 0 is not latent attention."""
    rope_width: int = 0
    """Width of the rotated key that all heads of latent attention share."""
    window: int = 0
    """Tokens that a layer with a sliding window attends to."""
    n_window_layers: int = 0
    mtp_depth: int = 0

    @property
    def n_layers(self) -> int:
        return self.n_dense_layers + self.n_moe_layers

    @property
    def attention_weights(self) -> int:
        """Matmul weights of one attention layer (V3: 187.1M)."""
        output = self.n_heads * self.value_width * self.dim
        if not self.kv_rank:
            query = self.dim * self.n_heads * self.key_width
            return query + self.dim * self.n_kv_heads * (self.key_width + self.value_width) + output
        query_width = self.n_heads * self.key_width
        query = self.q_rank * (self.dim + query_width) if self.q_rank else self.dim * query_width
        down = self.dim * (self.kv_rank + self.rope_width)
        up = self.kv_rank * self.n_heads * (self.key_width - self.rope_width + self.value_width)
        return query + down + up + output

    @property
    def dense_weights(self) -> int:
        return self.mlp_matrices * self.dim * self.dense_width

    @property
    def shared_weights(self) -> int:
        return self.mlp_matrices * self.dim * self.shared_width

    @property
    def expert_weights(self) -> int:
        """Weights of one routed expert."""
        return self.mlp_matrices * self.dim * self.expert_width

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.dim

    @property
    def active_parameters(self) -> int:
        """Matmul weights that one token meets, with embedding, head and gate; norms and biases are not in."""
        moe = self.shared_weights + self.top_k * self.expert_weights + self.n_experts * self.dim
        layers = self.n_layers * self.attention_weights
        layers += self.n_dense_layers * self.dense_weights + self.n_moe_layers * moe
        return layers + 2 * self.head_weights


def shape_of(config: ModelConfig) -> Shape:
    """The shape of a model of this package."""
    latent = config.attention is Attention.mla
    kv_heads = {Attention.gqa: config.n_kv_heads, Attention.mqa: 1}
    return Shape(
        dim=config.dim,
        vocab_size=config.vocab_size,
        n_heads=config.n_heads,
        n_kv_heads=kv_heads.get(config.attention, config.n_heads),
        key_width=config.qk_head_dim if latent else config.v_head_dim,
        value_width=config.v_head_dim,
        n_dense_layers=config.n_dense_layers,
        dense_width=config.inter_dim,
        n_moe_layers=config.n_layers - config.n_dense_layers,
        n_experts=config.n_routed_experts,
        top_k=config.n_activated_experts,
        expert_width=config.moe_inter_dim,
        shared_width=config.n_shared_experts * config.moe_inter_dim,
        q_rank=config.q_lora_rank if latent else 0,
        kv_rank=config.kv_lora_rank if latent else 0,
        rope_width=config.qk_rope_head_dim if latent else 0,
        mtp_depth=config.mtp.depth,
    )


def shape_of_row(row: dict[str, str]) -> Shape:
    """The shape in a row of `published_runs.csv` or `model_shapes.csv`, whose columns differ in name only.

    A row without `dense_layers` is dense throughout if it has no experts, and MoE throughout otherwise.
    Raises ValueError naming the column that is missing or wrong.
    """
    layers, experts = _positive(row, "layers"), whole(row, "n_experts", 0)
    dense_default = 0 if experts else layers
    n_dense = whole(row, "dense_layers", dense_default)
    if n_dense > layers:
        raise ValueError(f"column dense_layers: {n_dense} exceeds layers={layers}")
    column = "ffn" if "ffn" in row else "dense_ffn"
    heads = _positive(row, "heads")
    return Shape(
        dim=_positive(row, "hidden"),
        vocab_size=_positive(row, "vocab"),
        n_heads=heads,
        n_kv_heads=_positive(row, "kv_heads", heads),
        n_dense_layers=n_dense,
        dense_width=_positive(row, column) if n_dense else 0,
        n_moe_layers=layers - n_dense,
        n_experts=experts,
        top_k=_positive(row, "top_k") if experts else 0,
        expert_width=_positive(row, "expert_ffn") if experts else 0,
        shared_width=whole(row, "shared_ffn", 0),
        mlp_matrices=_positive(row, "ffn_mats", 3),
        window=whole(row, "window", 0),
        n_window_layers=whole(row, "window_layers", 0),
        mtp_depth=whole(row, "mtp_depth", 0),
        **_heads(row),
    )


def _heads(row: dict[str, str]) -> dict[str, int]:
    """Widths of a head, from `128` or from `MLA(q rank, kv rank, nope, rope, value)`."""
    text = " ".join(value for key, value in row.items() if key.startswith(("head_dim", "mla")) and value)
    latent = re.search(r"MLA\(([\d, ]+)\)", text)
    if latent is None:
        match = re.match(r"[1-9]\d*\b", text)
        if match is None:
            raise ValueError(
                f"column head_dim: {text!r} is neither a width nor MLA(q, kv, nope, rope, value)"
            )
        return {"key_width": int(match[0]), "value_width": int(match[0])}
    values = [int(part) for part in latent[1].split(",")]
    if len(values) != 5:
        raise ValueError(f"{latent[0]} must name q rank, kv rank, nope, rope and value width")
    q_rank, kv_rank, nope, rope, value = values
    widths = {"key_width": nope + rope, "value_width": value}
    return widths | {"q_rank": q_rank, "kv_rank": kv_rank, "rope_width": rope}


def _positive(row: dict[str, str], column: str, default: int = 0) -> int:
    """`default` if the cell is empty; 0 is none."""
    value = whole(row, column, default)
    if not value:
        raise ValueError(f"column {column}: {row.get(column)!r} is not a positive whole number")
    return value
