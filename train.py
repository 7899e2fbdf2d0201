"""Train a model: `python train.py model=tiny [key=value ...]`; `--help` shows what can be set."""

import sys

from deepseek_mini.cli import main

if __name__ == "__main__":
    sys.exit(main())
