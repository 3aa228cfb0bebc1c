"""A dataclass is a schema, a YAML file holds what differs from its defaults, ``--dotted.name value`` overrides; by jsonargparse."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

C = TypeVar("C")


class ConfigError(ValueError):
    """Settings that make no sense; the message names the key."""


def load(schema: type[C], arguments: Sequence[str] | None = None) -> C:
    """Settings from command-line arguments: ``--config file.yaml --dotted.name value``.

    A config that is no file is looked up among those that ship, ``ac_flow/shapes.yaml`` say.

    Raises:
        ConfigError: unknown key (near ones are named), wrong type, missing file.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    arguments = _shipped(list(sys.argv[1:] if arguments is None else arguments))
    parser = ArgumentParser(exit_on_error=False, description=(schema.__doc__ or "").strip().split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(schema)
    try:
        parsed = parser.parse_args(arguments)
        parsed.pop("config", None)
        return schema(**vars(parser.instantiate(parsed)))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(str(error), schema)) from None


def _shipped(arguments: list[str]) -> list[str]:
    """Resolve ``--config NAME`` to the package's own configs where no such file is at hand."""
    for index, argument in enumerate(arguments[:-1]):
        if argument == "--config" and not Path(arguments[index + 1]).is_file():
            candidate = Path(str(resources.files("genrl.configs"))) / arguments[index + 1].removeprefix("configs/")
            if candidate.is_file():
                arguments[index + 1] = str(candidate)
    return arguments


def keys(schema: type, prefix: str = "") -> list[str]:
    """All dotted keys of a schema."""
    found = []
    hints = get_type_hints(schema)
    for entry in fields(schema):
        kind = hints[entry.name]
        found += keys(kind, f"{prefix}{entry.name}.") if isinstance(kind, type) and is_dataclass(kind) else [prefix + entry.name]
    return found


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> plain value (lists and mappings as JSON has them): what checkpoints compare and trackers show."""
    flat: dict[str, Any] = {}
    for key, value in asdict(settings).items() if not isinstance(settings, dict) else settings.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def dump(settings: Any) -> str:
    """The settings as YAML."""
    return yaml.safe_dump(asdict(settings), sort_keys=False)


def _explain(message: str, schema: type) -> str:
    unknown = re.search(r"(?:--|option '|Option ')([\w.]+)", message)
    if unknown and ("not accept" in message or "unrecognized" in message):
        group = re.search(r"Group '([\w.]+)'", message)
        name = f"{group[1]}.{unknown[1]}" if group else unknown[1]
        near = difflib.get_close_matches(name, keys(schema), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "--help lists all keys"
        return f"unknown setting {name!r}; {hint}"
    return " ".join(message.split())
