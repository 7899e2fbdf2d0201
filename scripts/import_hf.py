"""A DeepSeek-V3 checkpoint made into a run: python scripts/import_hf.py IN OUT.

IN is a directory with config.json and safetensors files: DeepSeek's own release (FP8 blocks included), what
transformers saves, or what export_hf.py wrote. OUT can be sampled from, exported and trained on
(model.init_from=OUT).
"""

import argparse
import sys
from pathlib import Path

from deepseek_mini.ending import exit_code


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", metavar="in", type=Path, help="directory with config.json and safetensors")
    parser.add_argument("out", type=Path, help="directory to make; there must be nothing yet")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: convert(arguments.source, arguments.out))


def convert(source: Path, out: Path) -> None:
    from deepseek_mini.interop.load import import_release

    print(f"{out}: {import_release(source, out)}")


if __name__ == "__main__":
    sys.exit(main())
