"""Multi-head latent attention (V3 Eq. 1-11) in its naive form, and the MHA, GQA and MQA baselines.

`c` is anything with the field names of DeepSeek's config_671B.json, and `attention` and `n_kv_heads`.
Token t sees the tokens up to itself, of its own document where `documents` is given.
"""

from typing import Any

from oracles.autodiff import dot
from oracles.layers import Matrix, Parameters, Vector, linear, rms_norm, softmax
from oracles.rope import frequencies, rotate, softmax_scale


def attention(parameters: Parameters, h: Matrix, c: Any, documents: list[int] | None = None) -> Matrix:
    """Outputs, one row per token."""
    heads = mla_heads if c.attention == "mla" else baseline_heads
    queries, keys, values = heads(parameters, h, c)
    scale = softmax_scale(c, len(queries[0][0]))
    outputs = []
    for t in range(len(h)):
        seen = [s for s in range(t + 1) if documents is None or documents[s] == documents[t]]
        joined: Vector = []
        for head in range(c.n_heads):
            query = queries[t][head]
            weights = softmax([dot(query, keys[s][head]) * scale for s in seen])
            joined += [dot(weights, [values[s][head][i] for s in seen]) for i in range(len(values[0][head]))]
        outputs.append(linear(parameters["wo.weight"], joined))
    return outputs


def mla_heads(parameters: Parameters, h: Matrix, c: Any) -> tuple[list[Matrix], list[Matrix], list[Matrix]]:
    """Queries, keys and values: [token][head][number]."""
    nope, rope, value = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
    angles = frequencies(c, rope)
    queries, keys, values = [], [], []
    for t, h_t in enumerate(h):
        if c.q_lora_rank:
            latent = rms_norm(parameters["q_norm.weight"], linear(parameters["wq_a.weight"], h_t))  # Eq. 6
            q = linear(parameters["wq_b.weight"], latent)  # Eq. 7, 8
        else:
            q = linear(parameters["wq.weight"], h_t)
        compressed = linear(parameters["wkv_a.weight"], h_t)  # Eq. 1, 3
        latent = rms_norm(parameters["kv_norm.weight"], compressed[: c.kv_lora_rank])
        shared_key = rotate(compressed[c.kv_lora_rank :], t, angles)  # Eq. 3: one key for all heads
        kv = linear(parameters["wkv_b.weight"], latent)  # Eq. 2, 5
        queries.append([head[:nope] + rotate(head[nope:], t, angles) for head in split(q, nope + rope)])
        keys.append([head[:nope] + shared_key for head in split(kv, nope + value)])  # Eq. 4
        values.append([head[nope:] for head in split(kv, nope + value)])
    return queries, keys, values


def baseline_heads(
    parameters: Parameters, h: Matrix, c: Any
) -> tuple[list[Matrix], list[Matrix], list[Matrix]]:
    """The same for heads of width v_head_dim, turned as a whole, that share keys and values in groups."""
    kv_heads = {"mha": c.n_heads, "gqa": c.n_kv_heads, "mqa": 1}[c.attention]
    share = c.n_heads // kv_heads
    angles = frequencies(c, c.v_head_dim)
    queries, keys, values = [], [], []
    for t, h_t in enumerate(h):
        q = split(linear(parameters["wq.weight"], h_t), c.v_head_dim)
        k = split(linear(parameters["wk.weight"], h_t), c.v_head_dim)
        v = split(linear(parameters["wv.weight"], h_t), c.v_head_dim)
        queries.append([rotate(head, t, angles) for head in q])
        keys.append([rotate(k[i // share], t, angles) for i in range(c.n_heads)])
        values.append([v[i // share] for i in range(c.n_heads)])
    return queries, keys, values


def split(x: Vector, width: int) -> Matrix:
    return [x[i : i + width] for i in range(0, len(x), width)]
