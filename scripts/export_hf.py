"""A run in Hugging Face's layout: python scripts/export_hf.py RUN OUT [--fp8 --dtype D --max-shard-size S].

transformers loads OUT with AutoModelForCausalLM and AutoTokenizer, offline and without own code.
"""

import argparse
import re
import sys
from pathlib import Path

from deepseek_mini.ending import exit_code

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a run, such as runs/tiny")
    parser.add_argument("out", type=Path, help="directory to make; there must be nothing yet")
    parser.add_argument("--fp8", action="store_true", help="DeepSeek's FP8 layout: E4M3 in 128 x 128 blocks")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of what is not FP8; float32 without --fp8, which loses nothing, else bfloat16",
    )
    parser.add_argument("--max-shard-size", default="5GB", help="bytes per file of weights, such as 500MB")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: export(arguments))


def export(arguments: argparse.Namespace) -> None:
    """Write OUT and say so. Raises ValueError for what the user can mend."""
    max_bytes = shard_bytes(arguments.max_shard_size)

    import torch

    from deepseek_mini.interop.card import FP8_READERS
    from deepseek_mini.interop.export import Encoding, export_run

    dtype = arguments.dtype or ("bfloat16" if arguments.fp8 else "float32")
    encoding = Encoding(getattr(torch, dtype), arguments.fp8)
    print(f"{arguments.out}: {export_run(arguments.run, arguments.out, encoding, max_bytes)}")
    if arguments.fp8:
        print(f"note: {FP8_READERS}")


def shard_bytes(text: str) -> int:
    """Bytes of a size such as 500MB. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]B)", text.upper())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"--max-shard-size {text}: write a size such as 500MB or 5GB")
    return int(float(found[1]) * UNITS[found[2]])


if __name__ == "__main__":
    sys.exit(main())
