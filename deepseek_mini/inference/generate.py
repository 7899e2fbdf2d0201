"""Plain sampling. Legend: B prompts, T positions, V vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek_mini.model.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    stop: int,
) -> list[list[int]]:
    """New token ids of each prompt, without the stop token that ended it.

    All prompts run together. Rows are padded on the right, which a causal model never sees. Temperature 0
    takes the likeliest token. Each step runs the whole sequence again.

    Raises ValueError for an empty prompt, or one that leaves no room within `max_seq_len`.
    """
    check_prompts(prompts, model.config.max_seq_len)
    device = model.head.weight.device
    generator = torch.Generator().manual_seed(seed)
    rows = [list(prompt) for prompt in prompts]
    open_rows = set(range(len(rows)))
    for _ in range(max_new_tokens):
        logits_BV = _last_logits(model, rows, device).cpu()
        for i, token in enumerate(_choose(logits_BV, temperature, generator).tolist()):
            if i in open_rows:
                rows[i].append(token)
                if token == stop or len(rows[i]) == model.config.max_seq_len:
                    open_rows.discard(i)
        if not open_rows:
            break
    new = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [ids[:-1] if ids and ids[-1] == stop else ids for ids in new]


def check_prompts(prompts: Sequence[Sequence[int]], max_seq_len: int) -> None:
    """Raise ValueError for a prompt without tokens, or one that leaves no room for another."""
    for prompt in prompts:
        if not prompt:
            raise ValueError("the prompt is empty: give at least one token of text")
        if len(prompt) >= max_seq_len:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, which leaves no room within model.max_seq_len="
                f"{max_seq_len}: shorten it"
            )


def _last_logits(model: Transformer, rows: list[list[int]], device: torch.device) -> Tensor:
    """Logits `[B, V]` behind the last token of each row."""
    length = max(map(len, rows))
    tokens_BT = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
    hidden_BTD, _ = model.trunk(tokens_BT)
    last_B = torch.tensor([len(row) - 1 for row in rows], device=device)
    hidden_BD = hidden_BTD[torch.arange(len(rows), device=device), last_B]
    return model.head(model.norm(hidden_BD)).float()


def _choose(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(-1)
    probs_BV = (logits_BV / temperature).softmax(-1)
    return torch.multinomial(probs_BV, 1, generator=generator).squeeze(1)
