"""Bubbles in closed form (arXiv:2412.19437, Table 2; arXiv:2104.04473 for the interleaved one).

They hold where all stages take equally long, nothing is spent on the way, and there are enough
micro-batches. What the simulator finds then is the same; real stages differ, which is why it exists.
"""


def bubble(name: str, n_stages: int, f: float, i: float, w: float, pair: float | None = None) -> float:
    """Seconds that each rank idles; `f`, `i`, `w` are those of one stage, `pair` of F and B overlapped.

    V3's Table 2 has the whole backward B = i + w. The interleaved one is for two stages per rank.
    """
    b = i + w
    pair = f + b if pair is None else pair
    if name == "1f1b":
        return (n_stages - 1) * (f + b)
    if name == "interleaved":
        return (n_stages // 2 - 1) * (f + b)
    if name == "zb1p":
        return (n_stages - 1) * (f + b - 2 * w)
    assert name in ("dualpipe", "dualpipe_v"), name
    return (n_stages // 2 - 1) * (pair + b - 3 * w)
