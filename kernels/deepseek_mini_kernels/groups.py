"""Finding an expert's tile from a program's number, on the device: group sizes never visit the host."""

import triton
import triton.language as tl


@triton.jit
def locate(counts_ptr, tile, E, BLOCK_M: tl.constexpr, GROUPS: tl.constexpr):
    """Group of the `tile`-th tile, where every group has ceil(count / BLOCK_M) of them.

    Returns (group, first row of the tile, rows from there to the group's end, group's first tile). Past
    the last tile the group is E and there are no rows. `GROUPS` is a power of two, at least E.
    """
    groups = tl.arange(0, GROUPS)
    counts = tl.load(counts_ptr + groups, mask=groups < E, other=0).to(tl.int32)
    tiles = tl.cdiv(counts, BLOCK_M)
    ends = tl.cumsum(tiles, 0)
    group = tl.sum(tl.where((groups < E) & (ends <= tile), 1, 0), 0)
    before = groups < group
    group_row = tl.sum(tl.where(before, counts, 0), 0)
    group_tile = tl.sum(tl.where(before, tiles, 0), 0)
    count = tl.sum(tl.where(groups == group, counts, 0), 0)
    skipped = (tile - group_tile) * BLOCK_M
    return group, group_row + skipped, count - skipped, group_tile


def power_of_two_above(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
