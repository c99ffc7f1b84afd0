"""Directives of the site: tables that are made of the code when the site is built, so that they cannot be out of date."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from hyperfuse.flows.cli import parser
from hyperfuse.flows.commands.settings import Setting, default_text, described


class SettingsTables(SphinxDirective):
    """The settings of a pydantic model, given by its dotted name: a section with a table for each group.

    Its groups have headings of their own, `tiles` for example, to which other pages can link.
    """

    required_arguments = 1
    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """The sections."""
        module, _, name = self.arguments[0].rpartition(".")
        model = getattr(importlib.import_module(module), name)
        groups: dict[str, list[Setting]] = {"": []}  # those without a group come before the headings
        for one in described(model):
            groups.setdefault(one.name.rpartition(".")[0], []).append(one)
        return [node for group, settings in groups.items() if settings for node in self._section(name, group, settings)]

    def _section(self, model: str, group: str, settings: Sequence[Setting]) -> list[nodes.Node]:
        table = table_of(
            ("setting", "values", "default", "what it decides"),
            (
                (nodes.literal(text=one.name), nodes.literal(text=one.values), _default(one), one.about)
                for one in settings
            ),
            widths=(22, 20, 14, 44),
        )
        if not group:
            return [table]
        section = nodes.section(ids=[nodes.make_id(f"{model}-{group}")], names=[f"{model} {group}".lower()])
        section += nodes.title("", "", nodes.literal(text=group))
        section += table
        return [section]


def table_of(head: Sequence[str], rows: Iterable[Sequence[nodes.Node | str]], *, widths: Sequence[int]) -> nodes.table:
    """A table of texts and nodes; `widths` are the shares of its columns."""
    table = nodes.table()
    group = nodes.tgroup(cols=len(head))
    table += group
    for width in widths:
        group += nodes.colspec(colwidth=width)
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *map(_row, rows))
    return table


def command_line() -> argparse.ArgumentParser:
    """The parser of `hyperfuse`, without the exit codes below the help of every single command."""
    made = parser()
    for action in made._subparsers._group_actions if made._subparsers else ():  # noqa: SLF001 (argparse shows them to nobody)
        for command in dict(action.choices or {}).values():
            command.epilog = None
    return made


def setup(app: Sphinx) -> dict[str, Any]:
    """Make them known to Sphinx."""
    app.add_directive("settings-tables", SettingsTables)
    return {"version": "1", "parallel_read_safe": True}


def _default(one: Setting) -> nodes.Node:
    if one.default is ... or one.by_machine:
        return nodes.emphasis(text="required" if one.default is ... else "by machine")
    return nodes.literal(text=default_text(one.default))


def _row(cells: Sequence[nodes.Node | str]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        row += nodes.entry("", nodes.paragraph("", "", *(_coded(cell) if isinstance(cell, str) else [cell])))
    return row


def _coded(text: str) -> list[nodes.Node]:
    """A text in which what stands between backticks is code."""
    return [
        nodes.literal(text=part) if position % 2 else nodes.Text(part) for position, part in enumerate(text.split("`"))
    ]
