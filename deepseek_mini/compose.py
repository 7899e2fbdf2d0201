"""From the words of a command line to a checked `Config`, with Hydra's compose API.

Hydra composes the group choices (`model=tiny`). Values (`optimizer.lr=1e-3`) are set here, one by one, so
that what is wrong with one can be told in terms of its key. Imports no torch.
"""

import copy
import functools
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from deepseek_mini.config import Config
from deepseek_mini.keys import config_keys, describe, legal_values, nearest
from deepseek_mini.matching import solve
from deepseek_mini.optim.schedule import check_length

LIST_GROUP = "logger"
"""The one group that takes several options, as in `logger=[wandb,tensorboard]`."""


class ConfigError(ValueError):
    """The user's settings are at fault; the message names the key, what is legal and the nearest name."""


@dataclass(frozen=True, slots=True)
class Composed:
    """A checked config and what it was made of."""

    config: Config
    settings: dict[str, Any]
    """Key or group -> value, as given on the command line."""
    model: str
    """The chosen option of `model`, be it by the command line, an experiment or default."""
    experiment: str | None
    sweep: dict[str, str]
    """`hydra.sweeper.params` of the experiment: key -> its values as one text, `1e-3,2e-3`."""


def load_config(overrides: Sequence[str], user_dir: Path | None = None) -> Config:
    """The config of `python train.py *overrides`. Raises ConfigError."""
    return compose(overrides, user_dir).config


def compose(overrides: Sequence[str], user_dir: Path | None = None) -> Composed:
    """Compose and check the config of one run.

    `overrides` are `group=option` and `key=value` in Hydra's grammar, without sweeps; `user_dir` holds yaml
    files of the user's own, in folders named like the groups. Raises ConfigError, also for a contradiction
    between fields.
    """
    groups = group_options(user_dir)
    parsed = parse(overrides, groups)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: several values for one run. Add -m to run once with each, or, if it "
                f"is one text, quote it: '{override.key_or_group}=\"...\"'"
            )
    choices = [override for override in parsed if override.key_or_group in groups]
    for override in choices:
        _check_choice(override, groups[override.key_or_group])
    words = [str(override.input_line) for override in choices]
    if user_dir is not None:
        words.append("hydra.searchpath=['{}']".format(str(user_dir.resolve()).replace("'", r"\'")))
    kept, chosen, sweep = _compose_choices(tuple(words))
    tree = copy.deepcopy(kept)
    for override in parsed:
        if override not in choices:
            _set_value(tree, override)
    settings = {override.key_or_group: override.value() for override in parsed}
    return Composed(_to_config(tree), settings, chosen["model"], chosen.get("experiment"), sweep)


def default_choices() -> dict[str, str]:
    """Group -> the option that is taken where the command line chooses none."""
    return _compose_choices(())[1]


def config_dir() -> Path:
    """Where the shipped yaml files lie: in the package where it was installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def group_options(user_dir: Path | None = None) -> dict[str, list[str]]:
    """Group -> its options, shipped and from `--config-dir`.

    Raises ConfigError if `user_dir` is no folder, or holds a file of the same name as a shipped one: one of
    the two would be ignored.
    """
    groups = {folder.name: _options(folder) for folder in sorted(config_dir().iterdir()) if folder.is_dir()}
    if user_dir is None:
        return groups
    if not user_dir.is_dir():
        raise ConfigError(f"--config-dir {user_dir}: there is no such folder")
    for group, names in groups.items():
        own = _options(user_dir / group)
        if taken := [name for name in own if name in names]:
            raise ConfigError(
                f"{user_dir / group / taken[0]}.yaml has the name of a shipped file; give it another name"
            )
        names.extend(own)
    return groups


def _options(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def parse(overrides: Sequence[str], groups: dict[str, list[str]]) -> list[Override]:
    """Parse `key=value` words, sweeps included, after checking that each key exists and is given once."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for text in overrides:
        key, value = _check_key(text, groups)
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            value = value.strip("\"'")
            raise ConfigError(
                f"{text}: the value cannot be read. Special characters need quotes, and the shell needs its "
                f"own around them: '{key}=\"{value}\"'"
            ) from error
    for key, count in Counter(override.key_or_group for override in parsed).items():
        if count > 1:
            raise ConfigError(f"{key} is given {count} times; give it once")
    return parsed


def _check_key(text: str, groups: dict[str, list[str]]) -> tuple[str, str]:
    """Key and value of a word; raises ConfigError if it does not set a key that exists."""
    keys = config_keys()
    word, equals, value = text.partition("=")
    key = word.lstrip("+~")
    exists = key in keys.values or key in groups
    if word != key:
        fix = f"write {key}={value or 'VALUE'}" if exists else _suggestion(key, groups)
        raise ConfigError(f"{text}: keys can only be set, not added (+) or deleted (~); {fix}")
    if not equals and (group := next((group for group, options in groups.items() if key in options), None)):
        raise ConfigError(f"{text}: missing '='; write {group}={key}")
    if key in keys.sections and not exists:
        legal = _listing(f"keys of {key}", keys.within(key))
        raise ConfigError(f"{text}: {key} is a section; set its keys one by one\n{legal}")
    if not exists:
        raise ConfigError(f"{text}: {_suggestion(key, groups)}")
    if not equals:
        raise ConfigError(f"{text}: missing '='; write {key}=VALUE")
    return key, value


def _suggestion(key: str, groups: dict[str, list[str]]) -> str:
    """What to say about a key that does not exist: the nearest ones, and those that do."""
    keys = config_keys()
    section = key.rpartition(".")[0]
    guesses = nearest(key, [*groups, *keys.values])
    hint = f"; did you mean {' or '.join(guesses)}?" if guesses else ""
    while section and section not in keys.sections:
        section = section.rpartition(".")[0]
    if section:
        legal = _listing(f"keys of {section}", keys.within(section))
    else:
        legal = _listing("groups", groups) + "\n" + _listing("keys outside a group", keys.within(""))
    return f"there is no key '{key}'{hint}\n{legal}"


def _listing(title: str, names: Iterable[str]) -> str:
    text = f"{title}: " + ", ".join(names)
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _check_choice(override: Override, options: list[str]) -> None:
    """Refuse an option that a group does not have."""
    group, value = override.key_or_group, override.value()
    names = value if isinstance(value, list) and group == LIST_GROUP else [value]
    for name in names:
        if name not in options:
            guesses = nearest(str(name), options)
            hint = f"; did you mean {group}={guesses[0]}?" if guesses else ""
            text = f"{override.input_line}: {group} takes one of {', '.join(options)}"
            legal = textwrap.fill(text, 100, subsequent_indent="    ", break_on_hyphens=False)
            raise ConfigError(legal + hint)


@functools.cache
def _compose_choices(words: tuple[str, ...]) -> tuple[DictConfig, dict[str, str], dict[str, str]]:
    """The chosen yaml files laid over the schema, group -> chosen option, and the experiment's sweep.

    Kept, so that a sweep over values reads the files once.
    """
    ConfigStore.instance().store(name="schema", node=Config)
    try:
        with initialize_config_dir(config_dir=str(config_dir()), job_name="train", version_base="1.3"):
            tree = hydra_compose("config", overrides=list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(_file_error(error)) from error
    chosen, sweep = dict(tree.hydra.runtime.choices), dict(tree.hydra.sweeper.params or {})
    with open_dict(tree):
        del tree["hydra"]
    return tree, chosen, sweep


def _file_error(error: Exception) -> str:
    """What Hydra says about a yaml file, without its search path and types, and with the nearest key."""
    message = str(error).split("\nConfig search path:")[0]
    found = re.search(r"^ *full_key: (\S+)", message, re.MULTILINE)
    key = found[1] if found else ""
    message = re.sub(r": \w+ raised while composing config:", ":", message)
    lines = [
        line for line in message.splitlines() if line.strip() and not re.match(r" *\w+(_type=|_key:)", line)
    ]
    keys = config_keys()
    if key in ("experiment", "recipe"):
        lines.append(f"a file of {key}/ begins with the line '# @package _global_'")
    elif key in keys.values:
        lines.append(f"{key} takes {describe(keys.values[key])}")
    elif guesses := nearest(key, [*keys.sections, *keys.values]):
        lines.append(f"{key}: did you mean {' or '.join(guesses)}?")
    return "\n".join(lines)


def _set_value(tree: DictConfig, override: Override) -> None:
    """Set one value in the tree, or say what its key takes."""
    key, value = override.key_or_group, override.value()
    section = key.rpartition(".")[0]
    if section and OmegaConf.select(tree, section) is None:
        raise ConfigError(f"{override.input_line}: {section} is off; add {section.replace('.', '=')}")
    try:
        OmegaConf.update(tree, key, value, merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{override.input_line}: {key} takes {_takes(key, value)}") from error


def _takes(key: str, value: Any) -> str:
    """What a key takes, and what of that the wrong `value` may have meant."""
    annotation = config_keys().values[key]
    words = describe(annotation)
    if isinstance(value, float) and value.is_integer() and "whole number" in words:
        return f"{words}; write {key}={int(value)}"
    guesses = nearest(str(value), legal_values(annotation))
    return f"{words}; did you mean {guesses[0]}?" if guesses else words


def _to_config(tree: DictConfig) -> Config:
    """The dataclasses, whose own checks see contradictions between fields."""
    try:
        config = OmegaConf.to_object(tree)
        assert isinstance(config, Config)
        config = solve(config)
        check_length(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config
