"""Parameters, FLOPs per token and key-value cache of a model, exact and from the config alone.

Imports no torch, so `v3_671b` is counted as fast as `tiny`. A test builds the real modules without memory
and finds the same numbers.

FLOPs are those of the matrix products of training: a weight that meets a token is one multiply-add (2 FLOPs)
in the forward pass, and the backward pass costs twice the forward. Norms, activations, softmax and the
embedding look-up count nothing. The conventions in which published figures differ (causal or full attention,
MTP in or out, gate in or out) are explicit arguments.
"""

from deepseek_mini.config import Attention, Balance, ModelConfig

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


def flops_per_token(
    config: ModelConfig, sequence_length: int, *, causal: bool = True, mtp: bool = False, gate: bool = False
) -> float:
    """Training FLOPs per token, 3 (2 P + A): V3 at 4096 tokens is 249.81e9.

    P are the matmul weights that a token meets: head in, embedding out. A is the attention core of a forward
    pass, over all `sequence_length` keys or, `causal`, over half of them (the FlashAttention convention).
    `mtp` adds each depth's block, projection and second product with the head; `gate` adds the router, which
    DeepSeek and NVIDIA leave out.
    """
    n_moe_layers = config.n_layers - config.n_dense_layers
    depth = config.mtp.depth if mtp else 0
    n_blocks = config.n_layers + depth
    weights = (
        n_blocks * _attention_weights(config)
        + config.n_dense_layers * _mlp(config, config.inter_dim)
        + (n_moe_layers + depth) * _experts_per_token(config)
        + (1 + depth) * config.vocab_size * config.dim
        + depth * 2 * config.dim**2
    )
    if gate:
        weights += (n_moe_layers + depth) * config.n_routed_experts * config.dim
    query_key_width, value_width = _head_widths(config)
    keys = sequence_length / 2 if causal else sequence_length
    core = n_blocks * 2 * config.n_heads * (query_key_width + value_width) * keys
    return float(3 * (2 * weights + core))


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
    return _attention_weights(config) + latents


def _attention_weights(config: ModelConfig) -> int:
    """Matmul weights of one attention layer."""
    output = config.n_heads * config.v_head_dim * config.dim
    if config.attention is not Attention.mla:
        key_value = 2 * _kv_heads(config) * config.v_head_dim * config.dim
        return 2 * output + key_value
    query_width = config.n_heads * config.qk_head_dim
    if config.q_lora_rank:
        query = config.q_lora_rank * (config.dim + query_width)
    else:
        query = config.dim * query_width
    down = config.dim * (config.kv_lora_rank + config.qk_rope_head_dim)
    up = config.kv_lora_rank * config.n_heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + down + up + output


def _kv_heads(config: ModelConfig) -> int:
    heads = {Attention.mha: config.n_heads, Attention.gqa: config.n_kv_heads, Attention.mqa: 1}
    return heads[config.attention]


def _head_widths(config: ModelConfig) -> tuple[int, int]:
    """Width of one head's query and key, and of its value."""
    mla = config.attention is Attention.mla
    return config.qk_head_dim if mla else config.v_head_dim, config.v_head_dim


def _mlp(config: ModelConfig, width: int) -> int:
    """Weights of a SwiGLU: gate, up and down."""
    return 3 * config.dim * width


def _experts_per_token(config: ModelConfig) -> int:
    n_experts = config.n_shared_experts + config.n_activated_experts
    return n_experts * _mlp(config, config.moe_inter_dim)
