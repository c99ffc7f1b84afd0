"""What a product was made of, by its provenance, and what has changed since."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.job.product_files import PROVENANCE
from hyperfuse.pipeline.job.records import job_key

Change = Literal["input", "settings", "weights", "code"]
CHANGES: tuple[Change, ...] = ("input", "settings", "weights", "code")
"""What can make a product stale."""
_ROLES = ("hsi", "msi")
_SHOWN = 3
_ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides a product, as far as a catalogue tells before a scene is opened."""

    addresses: tuple[str, str]
    """Where the hyperspectral and the multispectral input are."""
    inputs: tuple[str | None, str | None]
    """SHA-256 of both; None for items that others made."""
    settings: dict[str, Any]
    """`RunConfig.decisive`."""
    weights: str | None
    """SHA-256 of the weight file."""
    code: str
    """`pipeline.job.records.code_version`."""
    samples_code: str
    """`pipeline.job.records.samples_code`: a product is stale by this one, for another report is not worth another fusion."""

    @property
    def key(self) -> str:
        """SHA-256 of all of it."""
        return job_key(vars(self))


@dataclass(frozen=True, kw_only=True)
class Made:
    """A product, as far as its provenance tells what it was made of and what it took."""

    recipe: Recipe
    """Settings are empty where this version no longer understands them."""
    method: str
    """Method."""
    samples: int
    """Pixels times bands."""
    seconds: float | None
    """Duration of the run; None if it went on with the tiles of another."""
    ended: str
    """RFC 3339."""
    job_key: str
    """Digest of everything that decided its content."""

    @classmethod
    def read(cls, folder: Path) -> Made | None:
        """The record of a product; None for a folder that holds no product."""
        try:
            record = json.loads((folder / PROVENANCE).read_bytes())
            inputs = [record["inputs"][role] for role in _ROLES]
            facts = record["product"]
            took = datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])
            return cls(
                recipe=Recipe(
                    addresses=(str(inputs[0]["uri"]), str(inputs[1]["uri"])),
                    inputs=(str(inputs[0]["sha256"]), str(inputs[1]["sha256"])),
                    settings=_settings(record["config"]),
                    weights=record["method"]["weights_sha256"],
                    code=str(record["software"]["code_version"]),
                    samples_code=str(record.get("samples", {}).get("code", _ABSENT)),
                ),
                method=str(record["method"]["name"]),
                samples=prod(facts["shape"]) * len(facts["wavelength_nm"]),
                seconds=None if record["tiles"]["resumed"] else max(took.total_seconds(), 1.0),
                ended=str(record["ended"]),
                job_key=str(record["job_key"]),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def changes(self, today: Recipe) -> Iterator[tuple[Change, str]]:
        """What has changed since, each with a sentence of its own; nothing if the product is what it would be today."""
        was, others = self.recipe, set()
        for role, old, new, at, now_at in zip(
            _ROLES, was.inputs, today.inputs, was.addresses, today.addresses, strict=True
        ):
            # An item that others made has no digest: then its address stands for its content.
            if (new is not None and new != old) or (new is None and now_at != at):
                others.add(role)
                yield "input", f"the {role} is {_short(now_at, new)}, it was {_short(at, old)}"
        # How another scene has to be read goes without saying.
        if told := _differences(was.settings, today.settings, without=others):
            yield "settings", told
        if was.weights != today.weights:
            yield "weights", f"the weights are {_digest(today.weights)}, they were {_digest(was.weights)}"
        if was.samples_code != today.samples_code:
            yield "code", f"the code is {today.code}, it was {was.code}"


def _settings(config: Any) -> dict[str, Any]:
    try:
        return RunConfig.model_validate(config).decisive()
    except ValidationError:
        return {}


def _differences(was: dict[str, Any], now: dict[str, Any], *, without: set[str]) -> str:
    old, new = ({key: value for key, value in settings.items() if key not in without} for settings in (was, now))
    old, new = dict(_flat(old)), dict(_flat(new))
    for role in _ROLES:
        # A reader that was found by content is the same reader as one that was named.
        if None in (old.get(f"{role}.sensor"), new.get(f"{role}.sensor")):
            old.pop(f"{role}.sensor", None)
            new.pop(f"{role}.sensor", None)
    differ = [key for key in sorted(old.keys() | new.keys()) if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    shown = [f"{key} is {new.get(key, _ABSENT)}, it was {old.get(key, _ABSENT)}" for key in differ[:_SHOWN]]
    return "; ".join(shown) + (f"; and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else "")


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(address: str, digest: str | None) -> str:
    return f"{Path(address).name} ({_digest(digest)})"


def _digest(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256[:12]
