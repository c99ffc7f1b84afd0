"""`hyperfuse settings`: what can be set, with defaults; and a commented file to begin with."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
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


def described(model: type[BaseModel], group: str = "") -> Iterator[Setting]:
    """All settings, in the order in which they are declared."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from described(inner, f"{group}{name}.")
            continue
        choices = get_args(inner) if get_origin(inner) is Literal else ()
        values = " | ".join(map(str, choices)) if choices else str(inner).removeprefix("<class '").removesuffix("'>")
        yield Setting(
            name=f"{group}{name}",
            values=values.replace("typing.", "").replace("pathlib.", "").replace("NoneType", "None"),
            default=... if field.is_required() else field.get_default(call_default_factory=True),
            about=" ".join((field.description or "").split()),
        )


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

    every = list(described(RunConfig))
    wanted = options.name
    chosen = [one for one in every if wanted is None or one.name == wanted or one.name.startswith(f"{wanted}.")]
    if not chosen:
        raise UsageError(f"there is no setting {wanted}; `hyperfuse settings` lists all")
    rows = [
        {
            "name": one.name,
            "values": one.values,
            "required": one.default is ...,
            "default": _plain(one.default),
            "about": one.about,
        }
        for one in chosen
    ]
    if options.write is not None:
        if options.write.exists():
            raise UsageError(f"--write {options.write}: exists; choose another name")
        if not options.write.absolute().parent.is_dir():
            raise UsageError(f"--write {options.write}: its folder does not exist; create it first")
        write_atomic(options.write, commented(rows))
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


def commented(rows: list[dict[str, Any]]) -> str:
    """Settings as YAML in which all but the required ones are comments."""
    lines = ["# Settings of `hyperfuse fuse --config FILE`; what is commented out has the default that is shown."]
    group = ""
    for one in rows:
        parent, _, leaf = one["name"].rpartition(".")
        if parent != group:
            lines.append(f"\n{parent}:" if parent else "")
            group = parent
        indent = "  " if parent else ""
        lines += [f"{indent}# {line}" for line in textwrap.wrap(one["about"], 110)]
        value = "" if one["required"] else json.dumps(one["default"])
        lines.append(f"{indent}{'' if one['required'] else '# '}{leaf}: {value}".rstrip())
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return (
        None
        if value is ...
        else str(value)
        if isinstance(value, Path)
        else list(value)
        if isinstance(value, tuple)
        else value
    )


def _text(one: dict[str, Any]) -> str:
    if one["required"]:
        return "must be given"
    return yaml.safe_dump(one["default"], default_flow_style=True).partition("\n")[0]
