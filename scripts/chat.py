"""Write with a model: python scripts/chat.py RUN [--temperature T ...].

The models here are base models: they go on from your text and follow no instructions. Each line that you
type begins a new text; an empty line goes on with the last one.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console

from deepseek_mini.ending import exit_code
from deepseek_mini.inference.options import add_options, read_sampling, read_stop, read_text, speed

HELP = "type the beginning of a text; Enter alone goes on with it; Ctrl-C stops the text; Ctrl-D ends"


def main(argv: list[str] | None = None) -> int:
    summary, _, notes = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="chat.py", description=summary, epilog=notes)
    add_options(parser)
    arguments = parser.parse_args(argv)
    return exit_code(lambda: Chat(arguments, Console()).run())


class Chat:
    """A model, and the text that is being written."""

    def __init__(self, arguments: argparse.Namespace, console: Console) -> None:
        from deepseek_mini.cost.flops import total_params
        from deepseek_mini.inference.load import load_run

        self.arguments, self.console = arguments, console
        self.sampling = read_sampling(arguments)
        self.model, self.tokenizer = load_run(arguments.run)
        self.stop = read_stop(arguments.stop, self.tokenizer)
        self.ids: list[int] = []
        parameters = total_params(self.model.config) / 1e6
        self.note(f"{arguments.run}: {parameters:,.1f}M parameters; a base model, which only continues text")
        self.note(HELP)

    def run(self) -> None:
        """Line after line, until they end."""
        for turn, line in enumerate(self.lines()):
            if line:
                line = read_text("text", line)
                self.ids = self.tokenizer.encode(line)
            if not self.ids:
                self.note(HELP)
                continue
            try:
                self.go_on(line, self.arguments.seed + turn)
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                self.note("\nstopped")

    def lines(self) -> Iterator[str]:
        """What is typed, or what stands in a file or a pipe."""
        if not sys.stdin.isatty():
            yield from (line.rstrip("\n") for line in sys.stdin)
            return
        import contextlib

        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  editing and history for input()
        while True:
            try:
                line = input("> ")
            except EOFError:
                self.console.print()
                return
            yield line

    def go_on(self, shown: str, seed: int) -> None:
        """Continue the text, on the screen as it comes, and tell the speed."""
        from deepseek_mini.inference.generate import Generation
        from deepseek_mini.inference.text import TextStream

        longest = self.model.config.max_seq_len
        room = max(longest - self.arguments.max_new_tokens, longest // 2)
        if len(self.ids) > room:
            self.note(f"the text is {len(self.ids)} tokens long: it goes on from the last {room}")
        self.ids = self.ids[-room:]
        generation = Generation(
            self.model,
            [self.ids],
            self.arguments.max_new_tokens,
            replace(self.sampling, seed=seed),
            self.stop,
            self.arguments.speculative,
        )
        stream, start = TextStream(self.tokenizer), len(self.ids)
        self.write(shown, "bold")
        for (tokens,) in generation:
            self.ids = self.ids + tokens
            self.write(stream.feed(tokens))
        self.write(stream.flush())
        said = speed(len(self.ids) - start, generation.tokens_per_second, generation.acceptance_rate)
        self.note(f"\n{said}")

    def write(self, text: str, style: str | None = None) -> None:
        self.console.out(text, style=style, highlight=False, end="")
        self.console.file.flush()

    def note(self, text: str) -> None:
        """What is not the model's text."""
        self.write(f"{text}\n", "dim")


if __name__ == "__main__":
    sys.exit(main())
