"""The command line of the scripts that make text."""

import argparse
from pathlib import Path

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
    return Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)


def read_stop(texts: list[str], tokenizer: Tokenizer) -> set[int]:
    """The end of a document, and what --stop names. Raises ValueError for a text that is not one token."""
    stop = {tokenizer.eos_id}
    for text in texts:
        text = text.replace("\\n", "\n").replace("\\t", "\t")
        ids = tokenizer.encode(text)
        if len(ids) != 1:
            parts = ", ".join(repr(tokenizer.decode([i])) for i in ids) or "nothing"
            raise ValueError(f"stop {text!r}: not a token of this tokenizer, which reads it as {parts}")
        stop.add(ids[0])
    return stop
