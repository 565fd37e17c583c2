"""Committed patches checked again, on all CPUs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.defects import attempt
from distmil.errors import DamagedStore, StorageError
from distmil.pipeline.cluster import Row, stream_actors
from distmil.pipeline.job import Job
from distmil.storage.store import Record, Store
from distmil.tiling.tiler import SlideTiler
from distmil.tiling.verification import find_damage


def verify(job: Job, slides: Sequence[Slide]) -> int:
    """Check what was committed of these slides, and return how many were damaged and may now be made anew.

    Raises:
        DamagedStore: If something is damaged and ``tiling.verify`` is not ``repair``.
        StorageError: If the store cannot be read.
    """
    items = [{"slide": json.dumps(asdict(slide))} for slide in slides]
    damaged: list[tuple[str, str]] = []
    with job.console.progress("verify", len(items), "slides") as advance:
        for row in stream_actors(items, Verifier, {"config": job.config.tiling, "store": job.store}):
            if row["fatal"]:
                raise StorageError(row["fatal"])
            damaged += [(row["slide_id"], text) for text in json.loads(row["damage"])]
            if row["failure"]:
                job.ledger.note_failure(Record.from_json(json.loads(row["failure"])), "it cannot be verified")
            advance()
    bad = {slide_id for slide_id, _ in damaged}
    job.console.note(f"verified {len(items)} slides, {len(bad)} damaged")
    if not bad:
        return 0
    job.console.table(f"{len(bad)} of {len(items)} slides are damaged", ("slide", "what"), sorted(damaged))
    if job.config.tiling.verify != "repair":
        raise DamagedStore(f"{len(bad)} of {len(items)} slides are damaged; tiling.verify=repair makes them anew")
    for slide in slides:
        if slide.slide_id in bad:
            job.store.delete(SlideTiler(slide, job.config.tiling, job.store).record_name)
    return len(bad)


class Verifier:
    """Checks one slide after the other."""

    def __init__(self, config: TilingConfig, store: Store) -> None:
        self._config, self._store = config, store

    def __call__(self, row: Mapping[str, Any]) -> Row:
        """Check one."""
        slide = Slide(**json.loads(row["slide"]))
        answer = {"slide_id": slide.slide_id, "damage": "[]", "failure": "", "fatal": ""}
        try:
            damage, failure = attempt(
                lambda: self._check(slide), slide_id=slide.slide_id, hidden=(slide.path, slide.tissue_path)
            )
        except StorageError as error:
            return answer | {"fatal": str(error)}
        if failure:
            return answer | {"failure": json.dumps(failure.to_json())}
        return answer | {"damage": json.dumps(damage)}

    def _check(self, slide: Slide) -> list[str]:
        """Say what is damaged; tidy up where nothing is."""
        tiler = SlideTiler(slide, self._config, self._store)
        damage = find_damage(slide, self._config, self._store)
        record = None if damage else tiler.finished()
        if record:
            tiler.tidy(record)
        return damage
