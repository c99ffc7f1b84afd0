"""Options that several commands have."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfuse.catalogs.errors import UsageError

if TYPE_CHECKING:
    from hyperfuse.pipeline.config import RunConfig

log = logging.getLogger(__name__)


def assigned(pairs: Iterable[str] | None, *, example: str) -> dict[str, str]:
    """The settings of the options `--set KEY=VALUE`; the last of a key counts.

    Parameters
    ----------
    pairs : iterable of str or None
        As they were given; None if there is none.
    example : str
        One that the command understands, for the message.

    Raises
    ------
    UsageError
        If one has no value.
    """
    settings = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: expected KEY=VALUE, for example --set {example}")
        settings[key] = value
    return settings


def known_method(name: str) -> str:
    """The same name, if a method has it.

    Raises
    ------
    UsageError
        If none has; the message lists those that there are.
    """
    from hyperfuse.models import available  # noqa: PLC0415 (torch takes seconds, --help must not)

    if name not in available():
        raise UsageError(f"there is no method {name!r}; choose one of {', '.join(available())}")
    return name


def run_config(options: argparse.Namespace) -> RunConfig:
    """The settings of a fusion: those of `--config`, under those of `--set`, under the options that have a name."""
    from hyperfuse.pipeline.config import current_names, load_config  # noqa: PLC0415 (torch takes seconds, --help must not)

    settings: dict[str, Any] = assigned(options.set, example="hsi.crs=EPSG:32633")
    given = vars(options)
    named = {setting: given.get(option) for setting, option in _NAMED.items()}
    told = {key: str(value) if isinstance(value, Path) else value for key, value in named.items() if value is not None}
    if "hsi.uri" in told and "msi.uri" not in told | settings and options.config is None:
        told["msi.uri"] = told["hsi.uri"]  # files of some sensors hold both images
    return load_config(options.config, current_names(settings) | told)


_NAMED = {
    "hsi.uri": "hsi", "msi.uri": "msi", "output": "output", "method": "method", "weights": "weights", "ratio": "ratio",
    "device": "device", "tiles.memory_gb": "memory", "dask": "dask", "strict": "strict", "publish.uncertainty": "uncertainty",
}  # fmt: skip
"""Options by the settings that they give; a command has some of them."""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a fusion: scenes, product, method, and how it is run."""
    parser.add_argument(
        "hsi",
        nargs="?",
        metavar="HSI",
        help="low-resolution hyperspectral scene: file, folder, quoted glob of tiles, or address of a file or STAC item",
    )
    parser.add_argument(
        "msi",
        nargs="?",
        metavar="MSI",
        help="high-resolution multispectral scene (default: that in the file of HSI, as in PRISMA's)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="product folder; must not exist, its parent must")
    add_method(parser)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="trained weights of a network (safetensors)")
    parser.add_argument(
        "--ratio", type=int, metavar="N", help="fine pixels per coarse pixel (default: rounded GSD ratio)"
    )
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--strict", action="store_true", default=None, help="make the product agree with the HSI within the HSI's noise"
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="memory of a process; tiles are cut to fit (default: 8, or 0.7 of what it may use)",
    )
    add_dask(parser)
    parser.add_argument(
        "--uncertainty", action="store_true", default=None, help="publish a standard error for every sample"
    )
    add_settings(parser, example="hsi.crs=EPSG:32633, hsi.wavelengths=bands.csv, align.reference=hsi, tiles.core=1024")


def add_method(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Add `--method`, and its old name."""
    parser.add_argument(
        "--method", default=default, metavar="NAME", help="method (default: map_subspace); see `hyperfuse methods`"
    )
    add_old_name(parser, "--network", "--method")


def add_dask(parser: argparse.ArgumentParser) -> None:
    """Add `--dask`."""
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="local, or a Dask scheduler's address or JSON file (default: this process)"
    )


def add_settings(parser: argparse.ArgumentParser, *, example: str) -> None:
    """Add `--set` and `--config`."""
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help=f"any setting, for example {example}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings as YAML, TOML or JSON; options overrule it"
    )


def add_old_name(parser: argparse.ArgumentParser, old: str, new: str) -> None:
    """Accept an option under the name that it had before 0.1.0, with a line in the log; accepted until 0.2.0."""

    class OldName(argparse.Action):
        def __call__(
            self,
            parser: argparse.ArgumentParser,  # noqa: ARG002
            namespace: argparse.Namespace,
            values: str | Sequence[Any] | None,
            option_string: str | None = None,  # noqa: ARG002
        ) -> None:
            log.warning("%s is called %s now; the old name is accepted until HyperFuse 0.2", old, new)
            setattr(namespace, new.removeprefix("--"), values)

    parser.add_argument(old, action=OldName, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
