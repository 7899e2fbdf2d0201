"""Text from a run: python scripts/sample.py RUN --prompt TEXT [--max-new-tokens N --temperature T --json]."""

import argparse
import json
import sys
import time
from pathlib import Path

from deepseek_mini import run_files


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a run, such as runs/tiny")
    parser.add_argument("--prompt", default="def ", help="text to go on from")
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    try:
        answer = sample(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(answer))
    else:
        print(arguments.prompt + answer["text"])
        print(f"{len(answer['tokens'])} tokens, {answer['tokens_per_second']:.1f} tokens/s", file=sys.stderr)
    return 0


def sample(arguments: argparse.Namespace) -> dict:
    """Load the newest checkpoint and generate. Raises ValueError for what the user can mend."""
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {arguments.max_new_tokens}: ask for at least 1")
    if arguments.temperature < 0:
        raise ValueError(f"--temperature {arguments.temperature}: must not be negative")
    config = run_files.read_config(arguments.run)

    from deepseek_mini.cost.hardware import choose_device
    from deepseek_mini.data import load_tokenizer
    from deepseek_mini.inference.generate import generate
    from deepseek_mini.inference.load import load_model

    device, _ = choose_device(config.device)
    tokenizer = load_tokenizer(arguments.run / run_files.TOKENIZER)
    model = load_model(arguments.run, config.model, device)
    prompt = tokenizer.encode(arguments.prompt)
    begin = time.perf_counter()
    (ids,) = generate(
        model, [prompt], arguments.max_new_tokens, arguments.temperature, arguments.seed, tokenizer.eos_id
    )
    seconds = time.perf_counter() - begin
    return {
        "text": tokenizer.decode(ids),
        "tokens": ids,
        "tokens_per_second": len(ids) / seconds,
        "acceptance_rate": None,
    }


if __name__ == "__main__":
    sys.exit(main())
