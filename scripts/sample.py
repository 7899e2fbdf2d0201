"""Text from a run or an import: python scripts/sample.py RUN --prompt TEXT [--temperature T ... --json]."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any


def main(argv: list[str] | None = None) -> int:
    from deepseek_mini.inference.options import add_options

    parser = argparse.ArgumentParser(prog="sample.py", description=__doc__)
    add_options(parser)
    parser.add_argument("--prompt", default="def ", metavar="TEXT", help="text to go on from")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args(argv)
    try:
        if arguments.json:
            print(json.dumps(sample(arguments, show=lambda text: None)))
        else:
            answer = sample(arguments, show=lambda text: print(text, end="", flush=True))
            print()
            print(describe(answer, arguments), file=sys.stderr)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    return 0


def sample(arguments: argparse.Namespace, show: Callable[[str], None]) -> dict[str, Any]:
    """Load the newest checkpoint and generate. Raises ValueError for what the user can mend."""
    from deepseek_mini.inference.generate import Generation
    from deepseek_mini.inference.load import load_run
    from deepseek_mini.inference.options import read_sampling, read_stop
    from deepseek_mini.inference.text import TextStream

    sampling = read_sampling(arguments)
    model, tokenizer = load_run(arguments.run)
    prompts = [tokenizer.encode(arguments.prompt)]
    stop = read_stop(arguments.stop, tokenizer)
    length, speculative = arguments.max_new_tokens, arguments.speculative
    generation = Generation(model, prompts, length, sampling, stop, speculative)
    stream, ids = TextStream(tokenizer), []
    show(arguments.prompt)
    begin = time.perf_counter()
    for (tokens,) in generation:
        ids += tokens
        show(stream.feed(tokens))
    show(stream.flush())
    return {
        "text": tokenizer.decode(ids),
        "tokens": ids,
        "tokens_per_second": len(ids) / (time.perf_counter() - begin),
        "acceptance_rate": generation.acceptance_rate,
    }


def describe(answer: dict[str, Any], arguments: argparse.Namespace) -> str:
    """One line about speed; of speculation also what it gained over plain decoding of the same prompt."""
    line = f"{len(answer['tokens'])} tokens, {answer['tokens_per_second']:.1f} tokens/s"
    if answer["acceptance_rate"] is None:
        return line
    arguments.speculative = False
    plain = sample(arguments, show=lambda text: None)["tokens_per_second"]
    gain = answer["tokens_per_second"] / plain
    return f"{line}, {answer['acceptance_rate']:.0%} of drafts accepted, {gain:.2f}x plain decoding"


if __name__ == "__main__":
    sys.exit(main())
