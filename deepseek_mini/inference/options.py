"""The command line of the scripts that make text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # --help comes without waiting for torch
    from deepseek_mini.data import Tokenizer
    from deepseek_mini.inference.sampling import Sampling


def add_options(parser: argparse.ArgumentParser) -> None:
    """The run, and how its text is drawn."""
    parser.add_argument("run", type=Path, help="directory of a run or of an import, such as runs/tiny")
    parser.add_argument("--max-new-tokens", type=int, default=100, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0: the likeliest token")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest that make up P"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TOKEN", help="end before this token, such as '\\n'"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speculative", action="store_true", help="draft with the MTP modules")


def read_sampling(arguments: argparse.Namespace) -> Sampling:
    """Raises ValueError naming the option that is out of range."""
    from deepseek_mini.inference.sampling import Sampling

    return Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)


def speed(n_tokens: int, tokens_per_second: float | None, acceptance_rate: float | None) -> str:
    """What is said of a text that was made."""
    said = ["1 token" if n_tokens == 1 else f"{n_tokens} tokens"]
    if tokens_per_second is not None:
        said.append(f"{tokens_per_second:.1f} tokens/s")
    if acceptance_rate is not None:
        said.append(f"{acceptance_rate:.0%} of drafts accepted")
    return ", ".join(said)


def read_text(name: str, text: str) -> str:
    """Text of the user's as UTF-8, whatever the locale. Raises ValueError naming it if it is none."""
    try:
        return text.encode(errors="surrogateescape").decode()
    except UnicodeError as error:
        raise ValueError(f"{name} {text!r}: not UTF-8") from error


def read_stop(texts: list[str], tokenizer: Tokenizer) -> set[int]:
    """The end of a document, and what --stop names. Raises ValueError for a text that is not one token."""
    stop = {tokenizer.eos_id}
    for text in texts:
        text = read_text("stop", text).replace("\\n", "\n").replace("\\t", "\t")
        ids = tokenizer.encode(text)
        if len(ids) != 1:
            parts = ", ".join(repr(tokenizer.decode([i])) for i in ids) or "nothing"
            raise ValueError(f"stop {text!r}: not a token of this tokenizer, which reads it as {parts}")
        stop.add(ids[0])
    return stop
