"""The keys of a run: which exist, what each takes, and which one a mistyped one may stand for."""

import difflib
import functools
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Any

from deepseek_mini.config import Config


@dataclass(frozen=True, slots=True)
class Keys:
    """The dotted keys below `Config`, in the order of its fields."""

    values: dict[str, Any]
    """Key of a value (`optimizer.lr`) -> its annotation."""
    sections: list[str]
    """Keys of dataclasses (`model`, `model.moe`)."""

    def within(self, section: str) -> list[str]:
        """The keys of all values below a section, without its name; of "", those of the run itself."""
        if not section:
            return [key for key in self.values if "." not in key]
        return [key.removeprefix(f"{section}.") for key in self.values if key.startswith(f"{section}.")]


@functools.cache
def config_keys() -> Keys:
    """All keys of `Config`."""
    keys = Keys({}, [])
    _collect(Config, "", keys)
    return keys


def _collect(cls: type, section: str, keys: Keys) -> None:
    for name, annotation in typing.get_type_hints(cls).items():
        key = f"{section}.{name}" if section else name
        inner = _without_none(annotation)
        if is_dataclass(inner):
            keys.sections.append(key)
            _collect(typing.cast(type, inner), key, keys)
        else:
            keys.values[key] = annotation


def _without_none(annotation: Any) -> Any:
    """`X` of `X | None`; any other annotation as it is."""
    if isinstance(annotation, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def legal_values(annotation: Any) -> list[str]:
    """The names that an enum takes; empty for all other types."""
    inner = _without_none(annotation)
    return list(inner.__members__) if isinstance(inner, type) and issubclass(inner, Enum) else []


def describe(annotation: Any) -> str:
    """What a key with this annotation takes, in words."""
    inner = _without_none(annotation)
    if names := legal_values(annotation):
        words = "one of " + ", ".join(names)
    elif typing.get_origin(inner) is list:
        words = "a list of {" + ", ".join(typing.get_type_hints(typing.get_args(inner)[0])) + "}"
    else:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[inner]
    return words if inner is annotation else f"{words}, or null"


def nearest(key: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known keys that `key` may stand for, the likeliest first.

    Keys that end in the same name (`lr`, `optim.lr` and `model.lr` all mean `optimizer.lr`), only those of a
    similar section if there is one; else keys of the same section that end in a similar name, else, if there
    is no such section, keys that are similar as a whole, or in their last name.
    """
    known, key = list(known), key.lower()
    section, _, leaf = key.rpartition(".")
    same_leaf = [name for name in known if _leaf(name) == leaf]
    near = [name for name in same_leaf if difflib.get_close_matches(section, [name.rpartition(".")[0]])]
    in_section = [name for name in known if section and name.rpartition(".")[0] == section]
    by_leaf = {_leaf(name): name for name in in_section}
    similar = [by_leaf[match] for match in difflib.get_close_matches(leaf, by_leaf, count)]
    if same_leaf or in_section:
        return (near or same_leaf or similar)[:count]
    same_kind = [name for name in known if bool(section) == ("." in name)]
    alike = difflib.get_close_matches(key, same_kind, count, 0.7)
    leaves = difflib.get_close_matches(leaf, {_leaf(name): None for name in known}, count, 0.7)
    return (alike or [name for match in leaves for name in known if _leaf(name) == match])[:count]


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]
