"""Speculative decoding with the multi-token prediction modules (V3 sections 2.2 and 5.4.3).

The MTP modules draft the tokens that may follow, the model reads them all in one pass and keeps those that
pass a test. The test leaves the distribution of the text as it is (arXiv:2211.17192, appendix A.1).

Legend: B rows, T new tokens, D model width, V vocabulary, K drafts per row, X = K + 1.
"""

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from deepseek_mini.inference.blocks import CachedBlocks
from deepseek_mini.inference.decode import Decoder, pick
from deepseek_mini.inference.sampling import Sampling, draw
from deepseek_mini.model.transformer import Transformer


class SpeculativeDecoder(Decoder):
    """Drafts one token per MTP module; a pass adds from one token to one more than there are drafts.

    Greedy text is that of plain decoding, but for ties within the rounding of the matrix products. A prompt
    shorter than the number of modules limits the drafts of all rows to its length.
    Raises ValueError for a model without MTP.
    """

    def __init__(self, model: Transformer, n_rows: int, capacity: int, sampling: Sampling) -> None:
        if not model.mtp:
            raise ValueError(
                "the model has no MTP module to draft with (model.mtp.depth=0): decode without speculation, "
                "or train one with model.mtp.depth=1"
            )
        super().__init__(model, n_rows, capacity + len(model.mtp), sampling)
        self.drafted = self.accepted = 0

    def start(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        n_drafts = min(len(self.model.mtp), *map(len, prompts))
        self.drafter = Drafter(self, n_drafts)
        counts = [len(prompt) for prompt in prompts]
        hidden_BTD = self.read(prompts)
        new = self._choose(hidden_BTD, counts)
        following = [[*prompt[1:], *tokens] for prompt, tokens in zip(prompts, new, strict=True)]
        self.drafts, self.q_BKV = self.drafter.draft(hidden_BTD, following)
        return new

    def advance(self) -> list[list[int]]:
        rows = [[newest, *drafts] for newest, drafts in zip(self.newest, self.drafts, strict=True)]
        hidden_BXD = self.read(rows)
        p_BXV = self.distribution(self.model.head(self.model.norm(hidden_BXD)))
        new = [
            accept(drafts, q_KV, p_XV, random)
            for drafts, q_KV, p_XV, random in zip(self.drafts, self.q_BKV, p_BXV, self.randoms, strict=True)
        ]
        n_drafts = self.q_BKV.shape[1]
        self.drafted += n_drafts * len(new)
        self.accepted += sum(len(tokens) - 1 for tokens in new)
        self.trunk.cache.rewind([n_drafts + 1 - len(tokens) for tokens in new])
        self.newest = [tokens[-1] for tokens in new]
        self.drafts, self.q_BKV = self.drafter.draft(hidden_BXD, new)
        return new

    def keep_rows(self, rows: Sequence[int]) -> None:
        super().keep_rows(rows)
        self.drafter.keep_rows(rows)
        self.drafts, self.q_BKV = [self.drafts[row] for row in rows], self.q_BKV[rows]


class Drafter:
    """The MTP modules, each with a cache of its own.

    Position i of depth k holds what depth k - 1 made of position i, and token i + k. After a pass a row has
    n tokens, so depth k is sure of its positions up to n - 1 - k. It also runs k - 1 further ones on drafts,
    to have the draft of its own, and forgets these.
    """

    def __init__(self, decoder: Decoder, n_drafts: int) -> None:
        model, main = decoder.model, decoder.trunk.cache
        self.decoder = decoder
        self.modules = model.mtp_modules()[:n_drafts]
        self.depths = [
            CachedBlocks([module.block], model.config, len(main.lengths), main.capacity)
            for module in self.modules
        ]
        self.carried: list[Tensor] = []
        """What each depth but the last made of its last sure position, `[B, D]`: the next depth needs it."""

    def draft(self, hidden_BTD: Tensor, tokens: Sequence[Sequence[int]]) -> tuple[list[list[int]], Tensor]:
        """Drafts of each row, and the distributions `[B, K, V]` that they were drawn from.

        `tokens` are those that were added, and `hidden_BTD` the model's states just before each of them.
        """
        drafts, distributions, carried = [[] for _ in tokens], [], []
        known = [list(row) for row in tokens]
        hidden_BTD = hidden_BTD[:, : max(map(len, tokens))]
        for depth, (module, blocks) in enumerate(zip(self.modules, self.depths, strict=True), start=1):
            if depth > 1 and self.carried:
                hidden_BTD = torch.cat((self.carried[depth - 2].unsqueeze(1), hidden_BTD), dim=1)
            elif depth > 1:
                known = [row[1:] for row in known]
            counts = [len(row) for row in known]
            hidden_BTD = blocks.extend(module.combine(self.decoder.embed(known), hidden_BTD), counts)
            blocks.cache.rewind([depth - 1] * len(known))
            carried.append(pick(hidden_BTD, [count - depth for count in counts]))
            normed_BD = module.norm(pick(hidden_BTD, [count - 1 for count in counts]))
            q_BV = self.decoder.distribution(self.decoder.model.head(normed_BD))
            for row, draft, q_V, random in zip(known, drafts, q_BV, self.decoder.randoms, strict=True):
                draft.append(draw(q_V, random))
                row.append(draft[-1])
            distributions.append(q_BV)
        self.carried = carried
        return drafts, torch.stack(distributions, dim=1)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        for blocks in self.depths:
            blocks.cache.keep_rows(rows)
        self.carried = [vector_BD[rows] for vector_BD in self.carried]


def accept(drafts: Sequence[int], q_KV: Tensor, p_XV: Tensor, random: Random) -> list[int]:
    """The tokens that follow, distributed as if each were drawn from the model's own p.

    A draft drawn from q stays with probability min(1, p / q). The first that does not is replaced by a
    token drawn from max(0, p - q), and the drafts behind it are void. If all stay, one more token comes
    from the last p.
    """
    for place, draft in enumerate(drafts):
        p_V, q_V = p_XV[place], q_KV[place]
        if random.random() * q_V[draft] >= p_V[draft]:
            return [*drafts[:place], draw((p_V - q_V).clamp(min=0), random)]
    return [*drafts, draw(p_XV[-1], random)]
