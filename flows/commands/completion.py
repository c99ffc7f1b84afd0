"""`hyperfuse completion`: a script with which a shell completes commands, options, methods, settings and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shtab

from hyperfuse.flows.commands.settings import described
from hyperfuse.flows.display import Display

_FILES = {"HSI", "MSI", "PRODUCT", "CATALOG", "CUBE", "FILE", "DIR", "PATH", "TABLE"}
"""Metavariables of arguments that are files or folders, but may be addresses as well and so are read as text."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "shell",
        choices=shtab.SUPPORTED_SHELLS,
        help='in ~/.bashrc: eval "$(hyperfuse completion bash)"; for zsh a file _hyperfuse in a folder of $fpath',
    )


def run(options: argparse.Namespace, display: Display) -> dict[str, Any]:  # noqa: ARG001
    """The script; it is made once and asks nothing of HyperFuse while somebody types."""
    from hyperfuse.flows.cli import parser  # noqa: PLC0415 (that module lists this one)
    from hyperfuse.models import available  # noqa: PLC0415 (torch takes seconds, --help must not)
    from hyperfuse.pipeline.config import RunConfig  # noqa: PLC0415

    made = parser()
    names = [one.name for one in described(RunConfig)]
    words = {"--method": available(), "--network": available()}
    for command, action in _actions(made):
        if command.endswith(" settings") and action.dest == "name":
            action.choices = [*dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name), *names]
        elif (word := next((option for option in action.option_strings if option in words), None)) is not None:
            action.choices = words[word]
        elif action.type is Path or action.metavar in _FILES:
            setattr(action, "complete", shtab.FILE)  # noqa: B010 (argparse does not know the attribute)
    return {"shell": options.shell, "script": shtab.complete(made, shell=options.shell)}


def show(display: Display, record: dict[str, Any]) -> None:  # noqa: ARG001
    """The script as it is: no display may wrap it."""
    print(record["script"])  # noqa: T201


def _actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """All options and arguments with the command that they belong to."""
    for action in parser._actions:  # noqa: SLF001 (argparse has no other way to list them)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in {id(one): one for one in action.choices.values()}.values():
                yield from _actions(below)
        else:
            yield parser.prog, action
