"""How much a job will make: patches of all slides by those that were looked at, and the bytes of every stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.preflight.looks import Look
from distmil.preflight.timing import Calls, answers_within, spread

PLACE_BYTES = 24
"""Of a patch's place in an embedding shard."""
LABEL_BYTES = 6
SCORE_BYTES = 40
MAPS_BYTES = 1_500_000
"""Of a slide's three maps and its sheet at ``prediction.map_px`` = 1024."""
SIZES_LIMIT_S = 2.0
MOST_SIZES = 500


@dataclass(frozen=True)
class Amounts:
    """Of some slides: how many, their patches, and the bytes of a stored patch."""

    num_slides: int
    num_patches: float
    patch_bytes: float

    def of(self, num_slides: int) -> "Amounts":
        """Scale the amounts to a number of the slides."""
        return replace(self, num_slides=num_slides, num_patches=self.num_patches * num_slides / self.num_slides)


def estimate_amounts(looks: Sequence[Look], slides: Sequence[Slide], sizes: dict[str, int]) -> Amounts | None:
    """Estimate the patches of slides by those that were planned or tiled: per byte of their files.

    Args:
        looks: What was looked at.
        slides: All slides of the job.
        sizes: Bytes of some slides' files.

    Returns:
        None if no slide was planned or tiled.
    """
    good = {look.slide.slide_id: look for look in looks if look.status == "ok" and look.num_patches}
    if not good:
        return None
    share_ok = _share_ok(looks)
    mean_patches = sum(look.num_patches or 0 for look in good.values()) / len(good)
    known = [size for slide_id, size in sizes.items() if slide_id in good]
    others = [sizes[slide.slide_id] for slide in slides if slide.slide_id in sizes]
    ratio = 1.0
    if others and len(known) == len(good) and sum(known):
        ratio = (sum(others) / len(others)) / (sum(known) / len(known))
    patches = [look.num_patches or 0 for look in good.values()]
    patch_bytes = sum(look.num_bytes * n for look, n in zip(good.values(), patches, strict=True)) / sum(patches)
    return Amounts(len(slides), len(slides) * share_ok * mean_patches * ratio, patch_bytes)


def _share_ok(looks: Sequence[Look]) -> float:
    """Return the share of slides that can be used."""
    status = {look.slide.slide_id: look.status for look in looks}
    return sum(value == "ok" for value in status.values()) / len(status)


def file_sizes(slides: Sequence[Slide]) -> dict[str, int]:
    """Look up the size of slides' files, of some where they are many, as long as the disk answers soon."""
    chosen = spread(slides, MOST_SIZES)

    def size(slide: Slide) -> int | None:
        try:
            return Path(slide.path).stat().st_size
        except OSError:
            return None

    found = answers_within(SIZES_LIMIT_S, chosen, lambda: Calls(size))
    return {chosen[number].slide_id: size for number, size in found.items() if size is not None}


def bytes_of(
    amounts: Amounts, config: Config, *, job: str, dimension: int, train_share: float, held_out: int
) -> dict[str, float]:
    """List the bytes that a job will write, by what they hold.

    Args:
        amounts: Of the slides that are left.
        config: The configuration.
        job: The job's name.
        dimension: Width of an embedding.
        train_share: Share of the slides that are in train, which get views.
        held_out: Slides that are predicted.
    """
    found = {"patches": amounts.num_patches * amounts.patch_bytes}
    is_kept = job not in {"tile", "pretrain"} and not (config.encoder.trainable and job in {"train", "tune"})
    if is_kept:
        copies = 1 + (config.encoder.views * train_share if job in {"train", "tune"} else 0)
        found["embeddings"] = amounts.num_patches * copies * (2 * dimension + PLACE_BYTES)
    if job in {"pretrain", "train", "tune", "evaluate"}:
        found["labels"] = amounts.num_patches * LABEL_BYTES
    if job in {"train", "evaluate", "predict"}:
        per_slide = amounts.num_patches / max(1, amounts.num_slides)
        maps = MAPS_BYTES * (config.prediction.map_px / 1024) ** 2 if config.prediction.maps else 0
        found["predictions"] = held_out * (per_slide * SCORE_BYTES + maps)
    return found
