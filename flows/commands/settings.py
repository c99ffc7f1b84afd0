"""`hyperfuse settings`: what can be set, with defaults; and a commented file to begin with."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from rich.table import Table

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.flows.display import Display


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a fusion, for people."""

    name: str
    """Dotted."""
    values: str
    """What it takes."""
    default: Any
    """`...` where it must be given."""
    about: str
    """What it decides."""
    by_machine: bool
    """Whether the default was found on this machine, and is another elsewhere."""


def described(model: type[BaseModel], group: str = "") -> Iterator[Setting]:
    """All settings, in the order in which they are declared."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from described(inner, f"{group}{name}.")
            continue
        limits = [
            f"{sign} {getattr(one, key):g}" for one in field.metadata for key, sign in _LIMITS if hasattr(one, key)
        ]
        yield Setting(
            name=f"{group}{name}",
            values=", ".join([_values(inner), *limits]),
            default=... if field.is_required() else field.get_default(call_default_factory=True),
            by_machine=callable(field.default_factory) and not isinstance(field.default_factory, type),
            about=" ".join((field.description or "").split()),
        )


_LIMITS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
"""Attributes of pydantic's limits, and their signs."""


def _values(kind: Any) -> str:
    """What a type takes, for people: names of plain types, and words to choose from."""
    inner = get_args(kind)
    origin = get_origin(kind)
    if origin is Annotated:
        return _values(inner[0])
    if origin is Literal or origin is Union or isinstance(kind, UnionType):
        return " | ".join(map(str, inner) if origin is Literal else map(_values, inner))
    if origin is tuple:
        return f"[{', '.join('...' if one is ... else _values(one) for one in inner)}]"
    if origin is dict:
        return f"{{{_values(inner[0])}: {_values(inner[1])}}}"
    return "None" if kind is NoneType else getattr(kind, "__name__", str(kind))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a setting or a group, for example tiles or tiles.core")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write all of them as a commented YAML file for --config; must not exist",
    )


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    """The settings.

    Raises
    ------
    UsageError
        If there is none of that name, or the file exists.
    """
    from hyperfuse.pipeline.config import RunConfig  # noqa: PLC0415 (torch takes seconds, --help must not)

    wanted = options.name
    chosen = [
        one for one in described(RunConfig) if wanted is None or one.name == wanted or one.name.startswith(f"{wanted}.")
    ]
    if not chosen:
        raise UsageError(f"there is no setting {wanted}; `hyperfuse settings` lists all")
    rows = rows_of(chosen)
    if options.write is not None:
        write_commented(options.write, rows)
    return {"settings": rows, "written": None if options.write is None else str(options.write)}


def show(display: Display, record: dict[str, Any]) -> None:
    """One setting whole, several a line each."""
    if record["written"] is not None:
        display.row("settings", record["written"])
        return
    rows = record["settings"]
    if len(rows) == 1:
        (one,) = rows
        display.show_rows(
            [("setting", one["name"]), ("values", one["values"]), ("default", _text(one)), ("", one["about"])]
        )
        return
    table = Table("setting", "default", "what it decides", box=None, pad_edge=False)
    for one in rows:
        table.add_row(one["name"], _text(one), textwrap.shorten(one["about"], 110, placeholder=" ..."))
    display.show_table(table)


def rows_of(settings: Iterable[Setting]) -> list[dict[str, Any]]:
    """Settings as records."""
    return [
        {
            "name": one.name,
            "values": one.values,
            "required": one.default is ...,
            "default": _plain(one.default),
            "about": one.about,
        }
        for one in settings
    ]


def write_commented(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write settings to a new file, as `commented` has them.

    Raises
    ------
    UsageError
        If the file exists, or its folder does not.
    """
    if path.exists():
        raise UsageError(f"{path}: exists; choose another name")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: its folder does not exist; create it first")
    write_atomic(path, commented(rows))


def commented(rows: list[dict[str, Any]]) -> str:
    """Settings as YAML in which all but the required ones are comments; a required one has its value if it is `given`."""
    lines = ["# Settings of `hyperfuse fuse --config FILE`; what is commented out has the default that is shown."]
    group = ""
    for one in rows:
        parent, _, leaf = one["name"].rpartition(".")
        if parent != group:
            lines.append(f"\n{parent}:" if parent else "")
            group = parent
        indent = "  " if parent else ""
        lines += [f"{indent}# {line}" for line in textwrap.wrap(one["about"], 110)]
        value = json.dumps(one["given"]) if "given" in one else "" if one["required"] else json.dumps(one["default"])
        lines.append(f"{indent}{'' if one['required'] else '# '}{leaf}: {value}".rstrip())
    return "\n".join(lines) + "\n"


def default_text(value: Any) -> str:
    """A default as it would stand in a settings file."""
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=1000).partition("\n")[0]


def _plain(value: Any) -> Any:
    """A default as plain JSON; None where there is none."""
    return None if value is ... else to_jsonable_python(value)


def _text(one: dict[str, Any]) -> str:
    return "must be given" if one["required"] else default_text(one["default"])
