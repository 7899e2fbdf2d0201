"""Text from a run or an import: python scripts/sample.py RUN --prompt TEXT [--temperature T ... --json]."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from deepseek_mini.ending import exit_code
from deepseek_mini.inference.options import add_options, read_sampling, read_stop, read_text, speed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sample.py", description=__doc__)
    add_options(parser)
    parser.add_argument("--prompt", default="def ", metavar="TEXT", help="text to go on from")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: answer(arguments))


def answer(arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(sample(arguments, show=lambda text: None)))
        return
    made = sample(arguments, show=lambda text: print(text, end="", flush=True))
    print()
    print(describe(made, arguments), file=sys.stderr)


def sample(arguments: argparse.Namespace, show: Callable[[str], None]) -> dict[str, Any]:
    """Load the newest checkpoint and generate. Raises ValueError for what the user can mend."""
    from deepseek_mini.inference.generate import Generation
    from deepseek_mini.inference.load import load_run
    from deepseek_mini.inference.text import TextStream

    sampling, prompt = read_sampling(arguments), read_text("prompt", arguments.prompt)
    model, tokenizer = load_run(arguments.run)
    prompts = [tokenizer.encode(prompt)]
    stop = read_stop(arguments.stop, tokenizer)
    length, speculative = arguments.max_new_tokens, arguments.speculative
    generation = Generation(model, prompts, length, sampling, stop, speculative)
    stream, ids = TextStream(tokenizer), []
    show(prompt)
    for (tokens,) in generation:
        ids += tokens
        show(stream.feed(tokens))
    show(stream.flush())
    return {
        "text": tokenizer.decode(ids),
        "tokens": ids,
        "tokens_per_second": generation.tokens_per_second,
        "acceptance_rate": generation.acceptance_rate,
    }


def describe(made: dict[str, Any], arguments: argparse.Namespace) -> str:
    """One line about speed; of speculation also what it gained over plain decoding of the same prompt."""
    line = speed(len(made["tokens"]), made["tokens_per_second"], made["acceptance_rate"])
    if not arguments.speculative:
        return line
    arguments.speculative = False
    plain = sample(arguments, show=lambda text: None)["tokens_per_second"]
    if plain is None or made["tokens_per_second"] is None:
        return line
    return f"{line}, {made['tokens_per_second'] / plain:.2f}x plain decoding"


if __name__ == "__main__":
    sys.exit(main())
