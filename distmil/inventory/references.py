"""What the records of a store say: which run, bundle, search or prediction was made from which folders."""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from distmil.inference.bundle_place import bundle_digest
from distmil.inventory.listing import WALKERS, Item, Listing
from distmil.inventory.settings import (
    Recipe,
    patches_words,
    recipe_of_bundle,
    recipe_of_report,
    recipe_of_run,
    size_words,
)
from distmil.storage.records import Record
from distmil.storage.store import RECORD_FILE, Store

_PRETRAINING, _PRETRAINED = "pretrain-", "pretrained"
"""What the names of pre-trainings begin with, and the folder of their results."""
_TRIAL = re.compile(r"(.+)-[0-9a-f]{12}")
SAMPLES = 3
"""Slides by which a folder is compared with the folders that it may have been made from."""


@dataclass(frozen=True)
class Reference:
    """An item that is a result, in words, and what it was made from."""

    words: str
    slides: int | None = None
    uses: frozenset[str] = frozenset()
    """Names of items."""
    recipe: Recipe | None = None
    is_unknown: bool = False
    """Whether its records do not say what it uses: then it may use everything."""
    is_half: bool = False
    """Whether it is not finished."""
    lacks_encoder: bool = False
    """Whether embeddings by an encoder that is not known may be its own."""
    digest: str = ""
    """Of a bundle."""
    bundle: str = ""
    """Digest of the bundle that predictions were made with."""


@dataclass
class References:
    """Reads the records of a store: small JSON files, several at a time."""

    store: Store
    listing: Listing
    found: dict[str, Reference] = field(default_factory=dict)
    """By item."""

    def read(self) -> dict[str, Reference]:
        """Read what every result says. Raises: StorageError if the store does not answer."""
        self._each(self._run, "checkpoints")
        self._each(self._bundle, "models")
        for kind, reader in (
            ("predictions", self._prediction), ("searches", self._search), ("reports", self._report),
            ("comparisons", self._comparison),
        ):  # fmt: skip
            self._each(reader, kind)
        return self.found

    def _each(self, reader: Callable[[Item], Reference], kind: str) -> None:
        items = self.listing.of(kind)
        with ThreadPoolExecutor(WALKERS) as pool:
            self.found |= dict(zip([item.name for item in items], pool.map(reader, items), strict=True))

    def _run(self, item: Item) -> Reference:
        """Read a run or a search, by what it noted when it began."""
        claim, entries = (self.json(item, name) for name in ("run.json", "cohort.json"))
        recipe = recipe_of_run(_get(claim, "settings") or {})
        slides, uses = (len(entries), _folders_of(entries)) if isinstance(entries, list) else (None, frozenset[str]())
        if uses is None or (recipe is None and not uses):
            return Reference("what it uses is not recorded", slides, is_unknown=True, is_half=True)
        if recipe is not None:
            uses |= recipe.folders().keys()
            uses |= {recipe.spec.weights_file} if recipe.spec and recipe.spec.weights_file else set()
        words, is_half = self._progress(item)
        return Reference(words, slides, uses, recipe, is_half=is_half)

    def _progress(self, item: Item) -> tuple[str, bool]:
        """Word how far a run is, and say whether it is unfinished."""
        latest = self.store.read_record(f"{item.name}/latest.json") if "latest.json" in item.inner else None
        if f"searches/{item.short}" in self.listing.items:
            return "notes of a search", False
        search = _TRIAL.fullmatch(item.short)
        if search and f"searches/{search[1]}" in self.listing.items:
            return f"a trial of the search {search[1]} in progress", True
        if latest is None:
            return "a run without a bundle, before its first epoch", True
        epochs = latest.key["epoch"] + 1
        if item.short.startswith(_PRETRAINING):
            place = f"{_PRETRAINED}/{item.short.removeprefix(_PRETRAINING)}"
            return self._pretraining(place, epochs)
        if self.is_finished(item):
            return f"checkpoints of a finished run, {epochs} epochs", False
        return f"a run without a bundle, {epochs} epochs done", True

    def _pretraining(self, place: str, epochs: int) -> tuple[str, bool]:
        """Word how far a pre-training is, by the folder of its result."""
        results = self.listing.others.get(_PRETRAINED)
        if results is not None and any(file.name == f"{place}/{RECORD_FILE}" for file in results.files):
            return f"checkpoints of a finished pre-training, {epochs} epochs; its weights are in {place}", False
        return f"a pre-training without its result, {epochs} epochs done", True

    def is_finished(self, run: Item) -> bool:
        """Whether a run's bundle was saved after its last checkpoint."""
        times = {file.name: file.written_s for file in run.files}
        bundle = self.listing.items.get(f"models/{run.short}")
        saved = [file.written_s for file in bundle.files if file.name.endswith(RECORD_FILE)] if bundle else []
        return bool(saved) and saved[0] >= times.get(f"{run.name}/latest.json", saved[0])

    def _bundle(self, item: Item) -> Reference:
        """Read a bundle's settings and digest."""
        record = self.store.read_record(f"{item.name}/{RECORD_FILE}")
        values = self.json(item, "config.json")
        recipe = recipe_of_bundle(values) if values else None
        if record is None:
            return Reference("an unfinished bundle, without a commit record", is_half=True)
        if recipe is None:
            return Reference("a bundle; its settings are not those of this distmil", is_unknown=True)
        uses = frozenset(recipe.folders())
        name, is_trained = values["config"]["encoder"]["name"], values["config"]["encoder"].get("trainable", False)
        run = self.found.get(f"checkpoints/{item.short}")
        if run is not None and run.recipe is not None and not is_trained:
            uses |= {used for used in run.uses if not used.startswith(("labels/", "outlines/"))}
        network = values["config"].get("model", {}).get("name", "network")
        return Reference(
            f"{network} on {name}, {size_words(recipe.config.tiling)}; {', '.join(recipe.config.cohort.classes)}",
            uses=uses, recipe=recipe, digest=self._digest(item, record, values),
            lacks_encoder=name != "texture" and (is_trained or run is None or run.recipe is None),
        )  # fmt: skip

    def _digest(self, item: Item, record: Record, config: Any) -> str:
        """Return a bundle's digest."""
        return bundle_digest(record, lambda name: config if name == "config.json" else self.json(item, name))

    def _prediction(self, item: Item) -> Reference:
        """Read which bundle was asked, and which embeddings were scored."""
        question = self.store.read_record(f"{item.name}/question.json")
        bundle = question.key.get("bundle", "") if question else ""
        slides = question.key.get("num_slides") if question else None
        names = {ref.digest: name for name, ref in self.found.items() if ref.digest}
        of = names.get(bundle, "a bundle that is not in this store" if bundle else "a bundle that is not recorded")
        done = {name for name in item.inner if name.startswith("records/") and name.count("/") == 1}
        has_maps = any(name.startswith("maps/") for name in item.inner)
        is_half = slides is not None and len(done) < slides and "slides.json" not in item.inner
        words = f"predictions{' and maps' * has_maps} of {of}{', unfinished' * is_half}"
        uses = frozenset({names[bundle]}) if bundle in names else frozenset[str]()
        slides = len(done) if slides is None else slides
        return Reference(words, slides, uses | self._scored(item, done), is_half=is_half, bundle=bundle)

    def _scored(self, item: Item, records: set[str]) -> frozenset[str]:
        """Find the embeddings whose shards were scored, by the shards' checksums."""
        found = set()
        for name in islice(sorted(records), SAMPLES):
            record = self.store.read_record(f"{item.name}/{name}")
            parts = set(record.key.get("parts", ())) if record else set()
            slide = name.rpartition("/")[2].removesuffix(".json")
            for embeddings in self.listing.of("embeddings"):
                made = self.stage_record(embeddings, slide) if parts else None
                if made is not None and parts & {part.sha256 for part in made.parts}:
                    found.add(embeddings.name)
        return frozenset(found)

    def _search(self, item: Item) -> Reference:
        """Count a search's trials."""
        trials = sum(name.startswith("trials/") for name in item.inner)
        is_half = "result.json" not in item.inner
        words = f"search{', unfinished' * is_half}; trials and repeats: {trials}"
        run = f"checkpoints/{item.short}"
        uses = frozenset({run}) if run in self.listing.items else frozenset[str]()
        return Reference(words, uses=uses, is_half=is_half)

    def _report(self, item: Item) -> Reference:
        """Read the settings of a tiling report; a report needs no other file."""
        summary = self.json(item, "summary.json")
        slides = sum(name.startswith("slides/") and name.endswith(".jpg") for name in item.inner)
        recipe = recipe_of_report(_get(summary, "settings") or {})
        words = f"tiling report: {patches_words(recipe.config.tiling)}" if recipe else "tiling report"
        return Reference(words, slides, recipe=recipe)

    def _comparison(self, item: Item) -> Reference:
        """Name the runs of a comparison, by its name; it needs no other file."""
        first, _, others = item.short.partition("--")
        return Reference(f"comparison of {others.replace('--', ' and ')} with {first}")

    def json(self, item: Item, name: str) -> Any:
        """Read a JSON file, without its checksum; None if it is absent or damaged.

        Raises:
            StorageError: If the store does not answer.
        """
        if name not in item.inner:
            return None
        found = self.store.or_none(lambda: self.store.read_json(f"{item.name}/{name}"))
        return found["values"] if isinstance(found, dict) and set(found) == {"values", "sha256"} else found

    def stage_record(self, item: Item, slide: str) -> Record | None:
        """Read the record of a slide in a folder of a stage, None if there is none."""
        inner = f"{slide}/{RECORD_FILE}" if item.kind in ("patches", "embeddings") else f"{slide}.json"
        return self.store.read_record(f"{item.name}/{inner}") if inner in item.inner else None

    def parent_of(self, item: Item) -> str | None:
        """Find the patches that a folder was made from, by the digests in its records; None if they are not found."""
        in_folders = item.kind == "embeddings"
        suffix = f"/{RECORD_FILE}" if in_folders else ".json"
        slides = sorted(name.removesuffix(suffix) for name in item.inner if name.endswith(suffix))
        for slide in slides[:SAMPLES]:
            record = self.stage_record(item, slide)
            for patches in self.listing.of("patches"):
                made = self.stage_record(patches, slide)
                if record is not None and made is not None and record.key.get("patches") == made.digest:
                    return patches.name
        return None


def _get(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, Mapping) else None


def _folders_of(entries: list[Any]) -> frozenset[str] | None:
    """Name the stages' folders that a run's slides were read from; None if an entry does not say."""
    try:
        names = [
            name
            for entry in entries
            for name in (entry["folder"], entry["labels"], *(view["folder"] for view in entry.get("views", ())))
            if name is not None
        ]
        return frozenset("/".join(name.split("/")[:2]) for name in names)
    except (AttributeError, KeyError, TypeError):
        return None
