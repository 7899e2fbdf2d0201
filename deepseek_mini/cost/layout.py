"""Which layers lie on which pipeline stage: V3's own is not published, three candidates stand for it."""

from dataclasses import dataclass

from deepseek_mini.cost.shape import Shape


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage holds."""

    n_dense: int = 0
    n_moe: int = 0
    n_mtp: int = 0
    """MTP blocks, each one MoE layer and a projection."""
    n_heads: int = 0
    """Products with the output head: the main one and one per MTP block."""


LAYOUTS = ("light_last", "spread", "light_ends")
"""Where the candidates save the layers that would fill all stages to the same number."""
MIDDLE_LAYOUT = "light_ends"
"""Where one has to stand for all: the second of the three in V3's step time."""


def stages(shape: Shape, n_stages: int, layout: str) -> list[Stage]:
    """Stages of the model under a layout; the last holds head and MTP (arXiv:2412.19437, section 3.2.3).

    Every stage has ceil(layers / stages), less what is too much: `light_last` takes it off the last stage
    while that keeps a layer, `spread` one each off the last stages, `light_ends` off the last and the first
    in turn. V3 on 16 stages: (4 x 15, 1), (4 x 13, 3 x 3), (3, 4 x 14, 2).

    Raises ValueError if there are more stages than layers.
    """
    if not 1 <= n_stages <= shape.n_layers:
        raise ValueError(f"{n_stages} pipeline stages for {shape.n_layers} layers; change --pp")
    result, before = [], 0
    for index, count in enumerate(_counts(shape.n_layers, n_stages, layout)):
        dense = max(0, min(shape.n_dense_layers - before, count))
        last = index == n_stages - 1
        depth = shape.mtp_depth if last else 0
        result.append(Stage(dense, count - dense, depth, 1 + depth if last else 0))
        before += count
    return result


def _counts(n_layers: int, n_stages: int, layout: str) -> list[int]:
    full = -(-n_layers // n_stages)
    counts = [full] * n_stages
    last, ends = n_stages - 1, [end for i in range(n_stages) for end in (n_stages - 1 - i, i)]
    order = {
        "light_last": [last - i // max(full - 1, 1) for i in range(n_stages)],
        "spread": [last - i for i in range(n_stages)],
        "light_ends": [ends[2 * (i // (2 * max(full - 1, 1))) + i % 2] for i in range(n_stages)],
    }
    for index in order[layout][: full * n_stages - n_layers]:
        counts[index] -= 1
    return counts
