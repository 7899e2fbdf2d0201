"""Parameters, FLOPs per token and key-value cache of a model, exact and from the config alone.

Imports no torch, so `v3_671b` is counted as fast as `tiny`. A test builds the real modules without memory
and finds the same numbers.

FLOPs are those of the matrix products of training: a weight that meets a token is one multiply-add (2 FLOPs)
in the forward pass, and the backward pass costs twice the forward. Norms, activations, softmax and the
embedding look-up count nothing. The conventions in which published figures differ (causal or full attention,
MTP in or out, gate in or out) are explicit arguments.
"""

from deepseek_mini.config import Attention, Balance, ModelConfig
from deepseek_mini.cost.shape import Shape, shape_of

BF16_BYTES = 2


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of the main model by component; their sum is `total_params`. MTP is apart: `mtp_params`.

    `attention` holds the norms of its latents, `gate` the routing biases where `moe.balance=bias` keeps them,
    and `norms` those of the blocks and the final one.
    """
    return _components(config, config.n_routed_experts)


def count_active_parameters(config: ModelConfig) -> dict[str, int]:
    """As `count_parameters`, with only the routed experts that one token visits."""
    return _components(config, config.n_activated_experts)


def total_params(config: ModelConfig) -> int:
    """Parameters of the main model, without MTP (V3: 671,026,419,200)."""
    return sum(count_parameters(config).values())


def active_params(config: ModelConfig) -> int:
    """Parameters that take part in one token, embedding and head included, without MTP."""
    return sum(count_active_parameters(config).values())


def mtp_params(config: ModelConfig) -> int:
    """Parameters of all MTP modules, whose embedding and head are the main model's (V3: 11,610,068,224)."""
    n_experts = config.n_shared_experts + config.n_routed_experts
    block = _attention(config) + n_experts * _mlp(config, config.moe_inter_dim) + _gate(config)
    projection = 2 * config.dim**2
    norms = 5 * config.dim
    return config.mtp.depth * (block + projection + norms)


def flops_by_component(shape: Shape, sequence_length: int, *, causal: bool = True) -> dict[str, float]:
    """Training FLOPs per token of each component: 6 per weight that a token meets, and the attention core.

    Their sum is more than any published figure counts: `gate` and `mtp` are left out of most
    (see `flops_per_token`). A sliding window of w tokens is exact in the causal convention: s keys on
    average become w - w^2 / 2s; otherwise a query meets min(w, s) keys.
    """
    n_layers, n_windows = shape.n_layers, shape.n_window_layers
    per_key = 6 * shape.n_heads * (shape.key_width + shape.value_width)
    keys = sequence_length / 2 if causal else sequence_length
    windowed_keys = _windowed_keys(shape, sequence_length, causal)
    routed, gate = shape.top_k * shape.expert_weights, shape.n_experts * shape.dim
    block = shape.attention_weights + shape.shared_weights + routed
    mtp = 6 * (block + shape.head_weights + 2 * shape.dim**2) + per_key * keys
    flops = {
        "attention_projections": 6 * n_layers * shape.attention_weights,
        "attention_core": per_key * ((n_layers - n_windows) * keys + n_windows * windowed_keys),
        "dense": 6 * shape.n_dense_layers * shape.dense_weights,
        "shared_experts": 6 * shape.n_moe_layers * shape.shared_weights,
        "routed_experts": 6 * shape.n_moe_layers * routed,
        "head": 6 * shape.head_weights,
        "gate": 6 * shape.n_moe_layers * gate,
        "mtp": shape.mtp_depth * mtp,
        "mtp_gate": 6 * shape.mtp_depth * gate,
    }
    return {name: float(value) for name, value in flops.items()}


def flops_per_token(
    model: ModelConfig | Shape,
    sequence_length: int,
    *,
    causal: bool = True,
    mtp: bool = False,
    gate: bool = False,
) -> float:
    """Training FLOPs per token, 3 (2 P + A): V3 at 4096 tokens is 249.81e9.

    P are the matmul weights that a token meets: head in, embedding out. A is the attention core of a forward
    pass, over all `sequence_length` keys or, `causal`, over half of them (the FlashAttention convention).
    `mtp` adds each depth's block, projection and second product with the head; `gate` adds the router, which
    DeepSeek and NVIDIA leave out.
    """
    shape = model if isinstance(model, Shape) else shape_of(model)
    flops = flops_by_component(shape, sequence_length, causal=causal)
    left_out = set() if gate else {"gate", "mtp_gate"}
    left_out |= set() if mtp else {"mtp", "mtp_gate"}
    return sum(value for name, value in flops.items() if name not in left_out)


def six_n(config: ModelConfig) -> float:
    """The rule of thumb: 6 FLOPs per active parameter and token."""
    return 6.0 * active_params(config)


def flops_by_convention(config: ModelConfig, sequence_length: int) -> dict[str, float]:
    """Training FLOPs per token in every convention that published figures use."""
    return {
        "causal": flops_per_token(config, sequence_length),
        "noncausal": flops_per_token(config, sequence_length, causal=False),
        "causal_with_mtp": flops_per_token(config, sequence_length, mtp=True),
        "noncausal_with_mtp": flops_per_token(config, sequence_length, causal=False, mtp=True),
        "causal_with_gate": flops_per_token(config, sequence_length, gate=True),
        "six_n": six_n(config),
    }


def kv_cache_bytes_per_token(config: ModelConfig) -> dict[str, int]:
    """Bytes of BF16 cache per token, all layers of the main model, for each kind of attention on this shape.

    mla keeps one latent and one rotated key, shared by all heads (V3: 70,272 bytes); the others keep keys and
    values of width `v_head_dim` for all heads, for 8 of them (for all, where there are fewer) and for one.
    """
    per_head = 2 * config.v_head_dim
    values = {
        "mla": config.kv_lora_rank + config.qk_rope_head_dim,
        "mha": config.n_heads * per_head,
        "gqa8": min(8, config.n_heads) * per_head,
        "mqa": per_head,
    }
    return {kind: n * config.n_layers * BF16_BYTES for kind, n in values.items()}


def _components(config: ModelConfig, n_routed: int) -> dict[str, int]:
    """Parameters by component, with `n_routed` routed experts per MoE layer."""
    embedding = config.vocab_size * config.dim
    expert = _mlp(config, config.moe_inter_dim)
    n_moe_layers = config.n_layers - config.n_dense_layers
    return {
        "embedding": embedding,
        "head": embedding,
        "attention": config.n_layers * _attention(config),
        "dense": config.n_dense_layers * _mlp(config, config.inter_dim),
        "shared_experts": n_moe_layers * config.n_shared_experts * expert,
        "routed_experts": n_moe_layers * n_routed * expert,
        "gate": n_moe_layers * _gate(config),
        "norms": (2 * config.n_layers + 1) * config.dim,
    }


def _gate(config: ModelConfig) -> int:
    biases = config.n_routed_experts if config.moe.balance is Balance.bias else 0
    return config.n_routed_experts * config.dim + biases


def _attention(config: ModelConfig) -> int:
    latents = config.q_lora_rank + config.kv_lora_rank if config.attention is Attention.mla else 0
    return shape_of(config).attention_weights + latents


def _mlp(config: ModelConfig, width: int) -> int:
    """Weights of a SwiGLU: gate, up and down."""
    return 3 * config.dim * width


def _windowed_keys(shape: Shape, sequence_length: int, causal: bool) -> float:
    """Keys that a query of a layer with a sliding window meets, on average."""
    window = min(shape.window, sequence_length)
    return window - window**2 / (2 * sequence_length) if causal and window else window
