"""The backlog of an archive: every HSI scene in exactly one state, with its reason and what it will cost.

    new          never fused, or never as it would be today
    done         its product is what today's inputs, settings, weights and code would give
    stale        its product is not: the reason says what has changed
    refused      pointless as it is: no partner, rejected input, a quality gate
    failed       ended for a reason that may pass; the next night tries again
    quarantined  failed too often, killed its process, or met a bug: waits for a person
    busy         another process works on it now

States follow from small records alone (the catalogue's items, the products' provenance, the dead letters); no scene is
opened, so that ten thousand take seconds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.locks import is_held
from hyperfuse.catalogs.pairing.likeness import cloud_of
from hyperfuse.catalogs.pairing.ranking import Candidate, Pairing, pair
from hyperfuse.catalogs.stac.catalog import Contents, Refusal
from hyperfuse.catalogs.weight_cards import read_card
from hyperfuse.pipeline.archive.built_from import Made, Recipe
from hyperfuse.pipeline.archive.cost import FREE, Cost, ScenePace
from hyperfuse.pipeline.archive.dead_letters import DeadLetters
from hyperfuse.pipeline.archive.settings import ArchiveConfig, Recipes, folder_name
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.fusion.weights import shipped_weights
from hyperfuse.pipeline.job.records import code_version, samples_code

State = Literal["new", "done", "stale", "refused", "failed", "quarantined", "busy"]
STATES: tuple[State, ...] = ("new", "done", "stale", "refused", "failed", "quarantined", "busy")
DUE: dict[State, int] = {"new": 0, "failed": 1, "stale": 2}
"""States that a night works on, in this order: what nobody has yet comes before what is only out of date."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The fusion of one scene with the partner that was chosen for it."""

    id: str
    """Identifier of the HSI scene in the catalogue."""
    pair: Candidate
    config: RunConfig
    """What would be run."""
    recipe: Recipe
    """What the product would be made of."""
    cost: Cost = FREE
    """Expected; nothing where nothing is due."""

    @property
    def product(self) -> Path:
        """Where the product stands or will stand."""
        return self.config.output

    @property
    def inputs(self) -> tuple[str, str]:
        """Addresses of both images."""
        return self.recipe.addresses


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One scene of the backlog."""

    id: str
    """Identifier in the catalogue."""
    state: State
    code: str = ""
    """Reason code: what changed of a stale scene, the error's of others; empty for `new` and `done`."""
    reason: str
    """One sentence."""
    address: str
    """Where its hyperspectral image is, or the item that cannot be used."""
    product: Path
    """Where its product stands or will stand."""
    job_key: str = ""
    """That of the product which stands there, current or not; empty without one."""
    task: Task | None = None
    """What would be run; None without a partner."""
    attempts: int = 0
    """Nights that tried it as it is."""
    observed: float | None = None
    """Figure for which it is refused ..."""
    allowed: float | None = None
    """... and its limit."""

    def row(self) -> dict[str, Any]:
        """Plain JSON, for tables and records."""
        cost = FREE if self.task is None else self.task.cost
        return {
            "id": self.id,
            "state": self.state,
            "code": self.code,
            "reason": self.reason,
            "partner": None if self.task is None else self.task.pair.msi.id,
            "attempts": self.attempts,
            "hours": round(cost.hours, 4),
            "gigabytes": round(cost.gigabytes, 4),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Backlog:
    """All scenes of an archive."""

    entries: tuple[Entry, ...]
    """Sorted by identifier."""
    pace: ScenePace
    """What the estimates rest on."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of scenes in each state; all states are named."""
        found = Counter(entry.state for entry in self.entries)
        return {state: found[state] for state in STATES}

    @property
    def due(self) -> tuple[Task, ...]:
        """What a night works on, in order."""
        waiting = [entry for entry in self.entries if entry.state in DUE]
        waiting.sort(key=lambda entry: (DUE[entry.state], entry.id))
        return tuple(entry.task for entry in waiting if entry.task is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        due = self.due
        return {
            "counts": self.counts,
            "due": {
                "scenes": len(due),
                "hours": round(sum(task.cost.hours for task in due), 3),
                "gigabytes": round(sum(task.cost.gigabytes for task in due), 3),
                "estimate": self.pace.told,
            },
            "scenes": [entry.row() for entry in self.entries],
        }


def take_stock(archive: ArchiveConfig, contents: Contents) -> Backlog:
    """The state of every HSI scene of a catalogue.

    Parameters
    ----------
    archive : ArchiveConfig
    contents : Contents
        The catalogue, as it was read.

    Raises
    ------
    UsageError, InputRejected
        If settings or weights are wrong for whole sensors; what is wrong with one scene is its state.
    """
    shelf = _Shelf(archive)
    entries = [shelf.entry(pairing) for pairing in pair(contents.scenes, archive.rules)]
    entries += [_unusable(archive, refusal) for refusal in contents.refused]
    # The pace is known only after all products were seen.
    pace = ScenePace.of(shelf.made)
    priced = (_priced(entry, pace) for entry in entries)
    return Backlog(entries=tuple(sorted(priced, key=lambda entry: entry.id)), pace=pace)


class _Shelf:
    """What lies in the folder of an archive."""

    def __init__(self, archive: ArchiveConfig) -> None:
        self._archive = archive
        self._recipes = Recipes(archive)
        self._letters = DeadLetters(archive.folder)
        self._taken, self._held = _listing(archive.folder)
        self._weights: dict[Path, str] = {}
        self.made: list[Made] = []
        """Products that were seen."""

    def entry(self, pairing: Pairing) -> Entry:
        """The state of one scene, by the first rule that applies."""
        scene, chosen = pairing.hsi, pairing.chosen
        name = folder_name(scene.id)
        product = self._archive.folder / name
        made = Made.read(product) if name in self._taken else None
        if made is not None:
            self.made.append(made)
        key = "" if made is None else made.job_key
        found = Entry(
            id=scene.id, state="new", reason=pairing.reason, address=scene.uri, product=product, job_key=key
        )  # fmt: skip
        if name in self._held:
            return replace(found, state="busy", code="busy", reason="another process works on it")
        if chosen is None and made is not None:
            return replace(found, state="done", reason=f"made {made.ended}; now {pairing.reason}")
        if chosen is None:
            return _without_partner(found, pairing, self._archive)
        try:
            config = self._recipes.config(scene, chosen.msi, replace=made is not None)
        except UsageError as error:
            return replace(found, state="refused", code="bad_item", reason=str(error))
        recipe = self._recipe(chosen, config)
        found = replace(found, task=Task(id=scene.id, pair=chosen, config=config, recipe=recipe))
        if name in self._taken and made is None:
            told = f"{product}: exists and is no product; move it away"
            return replace(found, state="refused", code="occupied", reason=told)
        return self._compared(found, made, recipe)

    def _compared(self, found: Entry, made: Made | None, recipe: Recipe) -> Entry:
        """The entry by its product and its letter."""
        changes = [] if made is None else [c for c in made.changes(recipe) if c[0] in self._archive.stale]
        if made is not None and not changes:
            return replace(found, state="done", reason=f"made {made.ended}")
        letter = self._letters.read(found.id)
        if letter is not None and letter.recipe == recipe.key:
            return replace(
                found,
                state=letter.state,
                code=letter.reason,
                reason=letter.message + ("; the product of before stays" if made is not None else ""),
                attempts=letter.attempts,
            )
        if made is None:
            return found
        code = ",".join(dict.fromkeys(change for change, _ in changes))
        return replace(found, state="stale", code=code, reason="; ".join(sentence for _, sentence in changes))

    def _recipe(self, chosen: Candidate, config: RunConfig) -> Recipe:
        hsi, msi = (None if item.fingerprint is None else item.fingerprint.sha256 for item in (chosen.hsi, chosen.msi))
        weights = config.weights or shipped_weights(config.method)
        if weights is not None and weights not in self._weights:
            self._weights[weights] = read_card(weights).sha256
        return Recipe(
            addresses=(chosen.hsi.uri, chosen.msi.uri),
            inputs=(hsi, msi),
            settings=config.decisive(),
            weights=None if weights is None else self._weights[weights],
            code=code_version(),
            samples_code=samples_code(),
        )


def _listing(folder: Path) -> tuple[set[str], set[str]]:
    """Names that are taken in the folder of the products, and those of the products that a process works on."""
    taken: set[str] = set()
    held: set[str] = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.endswith(".staging"):
            taken.add(path.name)
        elif is_held(path):
            held.add(path.name[1:].rsplit(".", 2)[0])
    return taken, held


def _without_partner(found: Entry, pairing: Pairing, archive: ArchiveConfig) -> Entry:
    cloud, limit = cloud_of(pairing.hsi), archive.rules.max_cloud
    if cloud > limit:
        return replace(found, state="refused", code="cloudy", observed=cloud, allowed=limit)
    return replace(found, state="refused", code="no_partner")


def _unusable(archive: ArchiveConfig, item: Refusal) -> Entry:
    product = archive.folder / folder_name(item.href)
    return Entry(id=item.href, state="refused", code="bad_item", reason=item.reason, address=item.href, product=product)


def _priced(entry: Entry, pace: ScenePace) -> Entry:
    if entry.state not in DUE or entry.task is None:
        return entry
    return replace(entry, task=replace(entry.task, cost=pace.cost(entry.task.pair, entry.task.config)))
