"""A night: what is due in an archive, worked off scene by scene, whatever becomes of any of them.

Every scene ends in one record: its product, or a dead letter. A night may be killed at any moment and started again; it
finds what is done by the same records that `pipeline.archive.backlog` reads, and unfinished scenes go on with their tiles.

Who fuses a scene is given: `flows.child` does it in a process of its own, so that a crash, a leak or an exhausted memory
ends that scene and nothing else.
"""

from __future__ import annotations

import contextvars
import logging
import random
import shlex
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hyperfuse.catalogs.errors import Busy, ExpectedSkip, HyperFuseError, InputRejected, Transient, UsageError
from hyperfuse.catalogs.stac.catalog import Contents
from hyperfuse.pipeline.archive.backlog import Backlog, Task, take_stock
from hyperfuse.pipeline.archive.built_from import Made
from hyperfuse.pipeline.archive.dead_letters import DeadLetter, DeadLetters
from hyperfuse.pipeline.archive.locks import alone_in, alone_on
from hyperfuse.pipeline.archive.outcome import Outcome, at_fault, missing
from hyperfuse.pipeline.archive.settings import ArchiveConfig, folder_name, open_catalog, product_catalog
from hyperfuse.pipeline.execution.exchange import drop_abandoned
from hyperfuse.pipeline.job.product_files import PROVENANCE
from hyperfuse.pipeline.progress import Progress, silent
from hyperfuse.pipeline.reports.index_page import INDEX, IndexEntry, product_entry, write_index

log = logging.getLogger(__name__)

RETRIES = 2
"""Times that a scene is tried again in the same night when a disk or a network did not answer."""
RETRY_SECONDS = 10.0
"""Pause before the first of these; the second is three times as long, and both vary by half."""
_WORKING_SPACE = 2.0
"""Free disk space that a scene needs while it is made, in sizes of its product."""

Fuse = Callable[[Task], Outcome]
"""Fuses one scene, on the device that its configuration names; raises nothing but interrupts."""


@dataclass(frozen=True, kw_only=True)
class Night:
    """What a night came to."""

    before: Backlog
    after: Backlog
    started: tuple[str, ...]
    """Scenes that were started, in order."""
    left: dict[str, str]
    """Scenes that were due and not started, with the reason."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: the backlog as it is now, and what was done."""
        told = {"before": self.before.counts, "started": list(self.started), "left": self.left}
        return self.after.to_json() | {"night": told}


def work_off(
    archive: ArchiveConfig, fuse: Fuse, *, stop: Callable[[], None] = lambda: None, progress: Progress = silent
) -> Night:
    """Fuse what is due in an archive.

    Parameters
    ----------
    archive : ArchiveConfig
    fuse : callable
        Fuses one scene; called by one thread per device.
    stop : callable, optional
        Ends the fusions that run, when the night is interrupted.
    progress : callable, optional

    Raises
    ------
    Busy
        If another night works on this archive.
    InputRejected, UsageError
        If the archive cannot be written, or its catalogue or settings cannot be used at all.
    """
    catalog = open_catalog(archive)
    with alone_in(archive):
        before = take_stock(archive, catalog.read())
        _tidy(archive, before)
        shift = _Shift(archive=archive, fuse=fuse, progress=progress, due=before.due)
        shift.work(stop)
        contents = catalog.read()
        after = take_stock(archive, contents)
        _join(archive, contents, after)
        if shift.started or before.counts != after.counts or not (archive.folder / INDEX).exists():
            _show(archive, after)
    return Night(before=before, after=after, started=tuple(shift.started), left=shift.left)


def forget(archive: ArchiveConfig, scenes: Iterable[str] | None) -> list[str]:
    """Take back the verdicts on scenes, so that the next night tries them as if they were new.

    Parameters
    ----------
    archive : ArchiveConfig
    scenes : iterable of str or None
        Identifiers; None takes back all.

    Returns
    -------
    list of str
        Identifiers of those whose records were removed, sorted.

    Raises
    ------
    UsageError
        If there is no record of a scene.
    """
    letters = DeadLetters(archive.folder)
    wanted = letters.scenes() if scenes is None else sorted(set(scenes))
    if unknown := [scene for scene in wanted if scene not in letters]:
        raise UsageError(
            f"{letters.folder}: holds no record of {unknown[0]}; `hyperfuse archive --dry-run` lists the scenes and their states"
        )
    for scene in wanted:
        letters.remove(scene)
    return wanted


@dataclass(kw_only=True)
class _Shift:
    """One night's work: the queue, and what became of it."""

    archive: ArchiveConfig
    fuse: Fuse
    progress: Progress
    due: tuple[Task, ...]
    started: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._letters = DeadLetters(self.archive.folder)
        self._deadline = self.archive.deadline(datetime.now(UTC))
        self._queue = iter(self.due)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._done = 0

    def work(self, stop: Callable[[], None]) -> None:
        """Work off the queue, this thread on the first device and one more thread on each other; an interrupt ends all."""
        first, *others = self.archive.devices
        self.progress("archive", 0, len(self.due))
        pool = ThreadPoolExecutor(max(len(others), 1))
        # Each thread carries this one's context: that is where Prefect keeps the parent run.
        threads = [pool.submit(contextvars.copy_context().run, self._work_on, device) for device in others]
        try:
            self._work_on(first)
            for thread in threads:
                thread.result()
        except BaseException:
            self._over.set()
            stop()
            raise
        finally:
            pool.shutdown()

    def _work_on(self, device: str) -> None:
        while not self._over.is_set():
            with alone_on(device):
                task = self._next()
                if task is None:
                    return
                self._one(replace(task, config=task.config.model_copy(update={"device": device})))
            with self._lock:
                self._done += 1
                self.progress("archive", self._done, len(self.due))

    def _next(self) -> Task | None:
        """The next scene that may be started."""
        with self._lock:
            for task in self._queue:
                obstacle = self._obstacle(task)
                if obstacle is None:
                    self.started.append(task.id)
                    return task
                self.left[task.id] = obstacle
                self._done += 1
        return None

    def _obstacle(self, task: Task) -> str | None:
        limit = self.archive.max_scenes
        if limit is not None and len(self.started) >= limit:
            return f"not started: {limit} were, as many as a night may start"
        end = datetime.now(UTC) + timedelta(hours=task.cost.hours)
        if self._deadline is not None and end > self._deadline:
            return (
                f"not started: expected to end at {end.astimezone():%H:%M}, after {self._deadline.astimezone():%H:%M}"
            )
        free, needed = shutil.disk_usage(self.archive.folder).free / 1e9, _WORKING_SPACE * task.cost.gigabytes
        if free < needed:
            return f"not started: about {needed:.1f} GB needed while it is made, {free:.1f} GB free; free some space"
        return None

    def _one(self, task: Task) -> None:
        """Fuse one scene and file what became of it."""
        log.info("%s: fused with %s", task.id, task.pair.msi.id)
        outcome = self._tried(task)
        if outcome.exit_code == Busy.exit_code:
            log.warning("%s: %s", task.id, outcome.message)
            return
        made = Made.read(task.product)
        if made is None or outcome.exit_code not in {0, ExpectedSkip.exit_code}:
            self._file(task, outcome)
            return
        changed = [sentence for change, sentence in made.changes(task.recipe) if change == "input"]
        if changed:
            # The product is of the bytes that are there, and the catalogue speaks of others: it would be stale every night.
            message = f"{'; '.join(changed)}: it changed since it was catalogued; run `hyperfuse catalog add` on it"
            self._file(task, Outcome(exit_code=InputRejected.exit_code, reason="outdated", message=message))
            return
        self._letters.remove(task.id)
        log.info("%s: published %s", task.id, task.product)

    def _tried(self, task: Task) -> Outcome:
        """The outcome, after a few more tries where a disk or a network did not answer."""
        for attempt in range(RETRIES + 1):
            outcome = missing(task.inputs) or self.fuse(task)
            if outcome.exit_code == InputRejected.exit_code:
                # A disk that went away in the middle looks like a damaged file.
                outcome = missing(task.inputs) or outcome
            if outcome.exit_code != Transient.exit_code or attempt == RETRIES:
                break
            pause = RETRY_SECONDS * 3**attempt * random.uniform(0.5, 1.5)  # noqa: S311 (only spreads the tries)
            log.warning("%s: %s; tried again in %.0f s", task.id, outcome.message, pause)
            if self._over.wait(pause):
                break
        return outcome

    def _file(self, task: Task, outcome: Outcome) -> None:
        now = datetime.now(UTC)
        before = self._letters.read(task.id)
        again = before if before is not None and before.recipe == task.recipe.key else None
        attempts = 1 if again is None else again.attempts + 1
        letter = DeadLetter(
            scene=task.id,
            state=outcome.verdict(attempts, self.archive.attempts),
            reason=outcome.reason,
            message=outcome.message,
            files=at_fault(task.inputs, outcome.message),
            observed=outcome.observed,
            allowed=outcome.allowed,
            attempts=attempts,
            first=now if again is None else again.first,
            last=now,
            recipe=task.recipe.key,
            replay="",
            log=outcome.log,
        )
        self._letters.write(letter, task.config)
        log.warning("%s: %s (%s): %s", task.id, letter.state, letter.reason, letter.message)


def _join(archive: ArchiveConfig, contents: Contents, backlog: Backlog) -> None:
    """Put products into the catalogue that are not in it, of this night or of one that was killed before it could."""
    try:
        catalog = product_catalog(archive)
        ours = catalog == open_catalog(archive)
        products = contents.products if ours else catalog.known_products()
    except HyperFuseError as error:
        log.warning("%s: its products are in no catalogue: %s", archive.folder, error)
        return
    listed = {product.folder: product.job_key for product in products}
    for scene in backlog.entries:
        published = (scene.product / f"{scene.product.name}.json").is_file()
        if not published or scene.job_key == listed.get(scene.product.resolve()):
            continue
        try:
            catalog.add_product(scene.product, scenes=None if ours else contents)
        except (HyperFuseError, OSError) as error:
            # The product stands; it can be added by hand.
            log.warning("%s: is not in the catalogue: %s", scene.id, error)


def _show(archive: ArchiveConfig, backlog: Backlog) -> None:
    """Write the page of the archive: products with their scores, and the other scenes with their reasons."""
    shown = []
    for scene in backlog.entries:
        found = IndexEntry(id=scene.id, state=scene.state, reason=scene.reason)
        if (scene.product / PROVENANCE).is_file():
            product = product_entry(scene.product)
            found = product if scene.state == "done" else replace(product, state=scene.state, reason=scene.reason)
        shown.append(found)
    try:
        write_index(archive.folder, shown)
    except OSError as error:
        log.warning("%s: the page was not written: %s", archive.folder / INDEX, error)


def _tidy(archive: ArchiveConfig, backlog: Backlog) -> None:
    """Make the records say what the states say: letters on scenes that have no partner, none on those that are done."""
    letters, now = DeadLetters(archive.folder), datetime.now(UTC)
    staged = {path.name[1:].rsplit(".", 2)[0] for path in archive.folder.glob(".*.staging")}
    for entry in backlog.entries:
        if entry.state == "done":
            letters.remove(entry.id)
            if folder_name(entry.id) in staged:
                # Its run died between putting the product in place and removing what it was made from.
                drop_abandoned(entry.product)
        elif entry.state == "refused" and entry.attempts == 0:
            before = letters.read(entry.id)
            if before is not None and (before.reason, before.message) == (entry.code, entry.reason):
                continue
            replay = ["hyperfuse", "archive", archive.catalog, "--output", str(archive.folder), "--retry", entry.id]
            letter = DeadLetter(
                scene=entry.id,
                state="refused",
                reason=entry.code,
                message=entry.reason,
                files=(entry.address,) if entry.task is None else entry.task.inputs,
                observed=entry.observed,
                allowed=entry.allowed,
                first=now,
                last=now,
                recipe=None,
                replay=shlex.join(replay),
            )
            letters.write(letter)
