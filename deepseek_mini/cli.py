"""The command line: `python train.py [options] [group=option ...] [key=value ...]`.

The settings are composed and checked before torch is imported, so that a mistake is answered at once. Exit
codes: 0 done, 2 the user's input is at fault, 130 ended by Ctrl-C, 1 anything else.
"""

import difflib
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepseek_mini.compose import ConfigError, compose, default_choices, group_options
from deepseek_mini.run_dir import run_directory
from deepseek_mini.sweep import INTERRUPTED, child_command, plan, run_jobs

USER_ERROR = 2

FLAGS = ("--help", "-h", "--multirun", "-m", "--config-dir")

HELP = """\
Trains a DeepSeek-V3 in miniature: latent attention, fine-grained experts, bias balancing and
multi-token prediction, on this computer, with every device-second accounted for.

  python train.py [--config-dir DIR] [-m] [group=option ...] [key=value ...]

Groups, each a folder of configs/ (* is the default; recipe follows model)
{groups}

Options
  -m, --multirun    run once for each combination of values, one after the other
  --config-dir DIR  look for options in DIR/model/, DIR/experiment/, ... as well

Examples
  python train.py                                       about ten minutes on a laptop
  python train.py model=small precision=bf16            about 150M parameters, on one GPU
  python train.py optimizer.lr=1e-3 trainer.max_steps=500
  python train.py data=text_files 'data.path="books/*.txt"'
  python train.py model=v3_671b check=true              parameters, FLOPs and memory only
  python train.py -m model.attention=mla,mha,gqa        three runs

The same command goes on with its own run, below runs/. deepseek_mini/config.py explains every key;
README.md tells the rest.
"""


@dataclass(slots=True)
class Arguments:
    """The words of the command line, by kind."""

    help: bool = False
    multirun: bool = False
    config_dir: Path | None = None
    overrides: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line (by default that of this process) says; return the exit code.

    A ValueError, of a config or of a run, is the user's to mend: its message is shown without a traceback,
    unless HYDRA_FULL_ERROR=1. Other exceptions are not caught.
    """
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        if arguments.help:
            print(help_text(arguments.config_dir), end="")
            return 0
        return _sweep(arguments) if arguments.multirun else _run(arguments)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        more = "`python train.py --help` shows groups, options and examples"
        if not isinstance(error, ConfigError):
            more = "HYDRA_FULL_ERROR=1 shows where this was raised"
        print(f"error: {error}\n{more}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Sort the words of a command line; raises ConfigError for an unknown option."""
    arguments = Arguments()
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if not word.startswith("-"):
            arguments.overrides.append(word)
        elif word in ("-h", "--help"):
            arguments.help = True
        elif word in ("-m", "--multirun"):
            arguments.multirun = True
        elif flag == "--config-dir":
            folder = value if equals else next(words, "")
            if not folder:
                raise ConfigError("--config-dir: which folder? Write --config-dir DIR")
            arguments.config_dir = Path(folder)
        else:
            raise ConfigError(_unknown_option(word))
    return arguments


def _unknown_option(word: str) -> str:
    flag, equals, _ = word.partition("=")
    guesses = difflib.get_close_matches(flag, FLAGS, 1)
    hint = f"did you mean {guesses[0]}?" if guesses else f"options are {', '.join(FLAGS)}"
    if equals:
        hint = f"a setting has no dashes; write {word.lstrip('-')}"
    return f"{word}: there is no such option; {hint}"


def _run(arguments: Arguments) -> int:
    """Check the config, then train."""
    _refuse_ranks(arguments)
    composed = compose(arguments.overrides, arguments.config_dir)
    if missing := [key for key in composed.sweep if key not in composed.settings]:
        raise ConfigError(
            f"experiment={composed.experiment} sweeps over {', '.join(missing)}; add -m, or set what is swept"
        )

    from deepseek_mini.training.trainer import run  # imports torch

    return run(composed.config, run_directory(composed), arguments.overrides)


def _sweep(arguments: Arguments) -> int:
    _refuse_ranks(arguments)
    jobs = plan(arguments.overrides, arguments.config_dir)
    return run_jobs(jobs, child_command(arguments.config_dir), announce=lambda text: print(text, flush=True))


def _refuse_ranks(arguments: Arguments) -> None:
    """Refuse to be one of several processes of `torchrun`, and to sweep below it at all."""
    ranks = os.environ.get("WORLD_SIZE")
    if ranks is not None and arguments.multirun:
        raise ConfigError("-m starts its own processes and cannot run under torchrun; use python train.py -m")
    if ranks not in (None, "1"):
        raise ConfigError(
            f"WORLD_SIZE={ranks}: training on several processes is not available yet; start one with "
            "python train.py"
        )


def help_text(user_dir: Path | None = None) -> str:
    """One screen: what this is, the groups and their options as found in configs/, examples."""
    defaults, lines = default_choices(), []
    for group, options in group_options(user_dir).items():
        names = "  ".join(f"{name}*" if name == defaults.get(group) else name for name in options)
        lines.append(textwrap.fill(names, 96, initial_indent=f"  {group:<12}", subsequent_indent=" " * 14))
    return HELP.format(groups="\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
