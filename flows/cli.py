"""The command `hyperfuse`. Every expected end is one sentence on stderr and an exit code; `--json` gives a record."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import ModuleType
from typing import Any, NoReturn

from hyperfuse.catalogs.addresses import without_user
from hyperfuse.catalogs.errors import HyperFuseError, singular_is_rejected
from hyperfuse.flows.commands import (
    adapt,
    archive,
    card,
    catalog,
    compare,
    completion,
    demo,
    evaluate,
    fuse,
    import_weights,
    index,
    info,
    init,
    methods,
    mosaic,
    plan,
    register,
    settings,
    train,
    verify,
)
from hyperfuse.flows.display import Display
from hyperfuse.flows.stopping import Terminated, stopped_by_sigterm

EXIT_CODES = """exit codes:
  0 done   2 usage   3 input rejected   4 expected skip   5 busy   6 resources   7 refused by a quality gate
  8 tiles set aside that kill workers   9 a disk or a network did not answer
  130 interrupted   143 terminated: run again to resume   1 a bug"""

_COMMANDS: dict[str, tuple[ModuleType, str]] = {
    "demo": (demo, "fuse a synthetic pair with known truth, and score it"),
    "fuse": (fuse, "fuse two scenes into one product"),
    "plan": (plan, "dry run: grids, checks, tiles, memory; writes nothing"),
    "register": (register, "only the co-registration: the displacement, and whether to believe it"),
    "catalog": (catalog, "scenes of an archive: add, list, find pairs"),
    "info": (info, "print what a reader understands of a product or image"),
    "mosaic": (mosaic, "blend several fused products into one area product"),
    "compare": (compare, "lay products of one scene beside each other: scores and differences"),
    "index": (index, "write index.html for a folder of products"),
    "verify": (verify, "check a product: manifest, checksums, grid, bands, STAC; offline"),
    "import-weights": (import_weights, "convert a published checkpoint to safetensors with a card"),
    "card": (card, "what a weight file says of itself; export as a STAC item"),
    "evaluate": (evaluate, "compare methods on cubes whose truth is known, or on real pairs"),
    "train": (train, "train a network on scenes; safe to kill and start again"),
    "adapt": (adapt, "fit a universal network to one scene, where held-back blocks of it agree"),
    "archive": (archive, "fuse every suitable pair of a catalogue; safe to start again"),
    "methods": (methods, "list the methods that can be chosen"),
    "settings": (settings, "list what can be set, or write a commented file of it"),
    "init": (init, "write a commented settings file to begin with"),
    "completion": (completion, "print what completes commands in a shell"),
}
"""Commands by name: a module with `add_options(parser)`, `run(options, display) -> record` and `show(display, record)`."""
_QUOTED = re.compile(r"invalid choice: '([^']+)'|unrecognized arguments: (--[\w-]+)")
_OLD_NAMES = {"methods": ["networks"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parser().parse_args(arguments)
    # Libraries log every block that they read at DEBUG, which takes longer than reading it; our own steps are ours to tell.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    level = logging.DEBUG if options.verbose else logging.WARNING if options.quiet else logging.INFO
    logging.getLogger("hyperfuse").setLevel(level)
    try:
        with stopped_by_sigterm(), singular_is_rejected(), Display(quiet=options.json or options.quiet) as display:
            command: Callable[[argparse.Namespace, Display], dict[str, Any]] = options.command
            record = command(options, display)
    except HyperFuseError as error:
        if options.json:
            told = {"error": without_user(str(error)), "reason": error.reason, "exit_code": error.exit_code}
            figures = {"observed": error.observed, "allowed": error.allowed}
            print(json.dumps(told | {key: value for key, value in figures.items() if value is not None}))  # noqa: T201
        # The last door: a library's error may quote an address as it was given.
        print(f"hyperfuse: {without_user(str(error))}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("hyperfuse: interrupted; run the same command again to resume", file=sys.stderr)  # noqa: T201
        return 130
    except Terminated:
        print("hyperfuse: terminated; run the same command again to resume", file=sys.stderr)  # noqa: T201
        return Terminated.exit_code
    if options.json:
        print(json.dumps(record, indent=2))  # noqa: T201
    else:
        options.show(display, record)
    return int(record.get("exit_code", 0))


class _Parser(argparse.ArgumentParser):
    """A parser that names the command or the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and the nearest name that there is."""
        given = _QUOTED.search(message)
        if given is not None and (near := difflib.get_close_matches(given[1] or given[2], self._known(), n=1)):
            message = f"{message.partition(' (choose from')[0]}; did you mean {near[0]}?"
        super().error(message)

    def _known(self) -> list[str]:
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        names = [option for action in shown for option in action.option_strings]
        for action in shown:
            for name, made in (action.choices or {}).items() if isinstance(action.choices, dict) else ():
                names += [name, *made._known()]  # noqa: SLF001 (a parser of this class)
        return names


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `command` and `show`."""
    top = _Parser(
        prog="hyperfuse",
        description="Fuse a low-resolution hyperspectral and a high-resolution multispectral scene into one published product.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print a JSON record instead of text")
    common.add_argument("--verbose", action="store_true", help="log every step")
    common.add_argument("--quiet", action="store_true", help="log warnings only, without progress")
    top.add_argument("--version", action="version", version=f"hyperfuse {version('hyperfuse')}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, about) in _COMMANDS.items():
        made = commands.add_parser(
            name, aliases=_OLD_NAMES.get(name, ()), help=about, description=about, parents=[common], epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        made.set_defaults(command=module.run, show=module.show)
        module.add_options(made)
    return top


if __name__ == "__main__":
    sys.exit(main())
