"""The verdict on the slides and annotations that were looked at: notes, or a refusal where all of them fail alike."""

from collections import Counter
from collections.abc import Sequence

from distmil.config.data import EncoderConfig, TilingConfig
from distmil.errors import ConfigError, ManifestError
from distmil.preflight.looks import Look
from distmil.slides.grid import rounded

NAMED = 3
"""Slides that a message names."""
_NO_SLIDE_MPP = 100.0
"""No microscope's pixel is as large, in um."""
_NANOMETRES = ", but no microscope's pixels are as large: if the manifest has nm, divide its mpp by 1000"
_UNSURE = {"failed", "missing"}
"""Another try may go better."""
_REMEDIES = {
    "no_mpp": "set tiling.default_mpp, or mpp in the manifest; tiling.mpp=null works in pixels, for plain images",
    "no_tissue": "lower tiling.min_tissue, or tile all of each slide with tiling.strategy=crop",
    "too_small": "lower tiling.patch_px, or fill the patches up with tiling.strategy=pad",
}


def judge_slides(
    looks: Sequence[Look], config: TilingConfig, *, noun: str = "slide", encoder: str | None = None
) -> list[str]:
    """Judge the slides that were looked at.

    Args:
        looks: One a slide.
        config: Of the tiling.
        noun: What a slide is called: slide or image.
        encoder: Name of the encoder, where it takes one resolution alone.

    Returns:
        A note for each kind of slide that will be skipped.

    Raises:
        ConfigError: If all of them fail for a reason that a setting mends.
        ManifestError: If none of them can be read.
    """
    bad = [look for look in looks if look.status != "ok"]
    kinds = Counter(look.status for look in bad)
    if looks and len(kinds) == 1 and len(bad) == len(looks) and not kinds.keys() & _UNSURE:
        (status,) = kinds
        what = f"the {noun} is" if len(bad) == 1 else f"all {len(bad)} {noun}s that were looked at are"
        text = f"{what} {status}: {_reason(bad, config, encoder)}"
        raise (ManifestError if status == "unreadable" else ConfigError)(text)
    return [
        f"note: {count} of {len(looks)} {noun}s that were looked at will be skipped, {status} ({_names(alike)}): "
        + _reason(alike, config, encoder).removeprefix(f"{alike[0].slide.slide_id}: ")
        for status, count in kinds.items()
        for alike in [[look for look in bad if look.status == status]]
    ]


def judge_annotations(looks: Sequence[Look]) -> list[str]:
    """Judge the annotations that were read.

    Returns:
        A note where some of them cannot be used.

    Raises:
        ManifestError: If none of several can be used.
    """
    read = [look for look in looks if look.annotation_s is not None]
    bad = [look for look in read if look.annotation_error]
    if not bad:
        return []
    lines = "".join(f"\n  {look.slide.slide_id}: {look.annotation_error}" for look in bad[:NAMED])
    more = f"\n  and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    if len(bad) == len(read) and len(bad) > 1:
        raise ManifestError(f"none of the {len(bad)} annotations that were looked at can be used:{lines}{more}")
    return [f"note: {len(bad)} of {len(read)} annotations that were looked at cannot be used:{lines}{more}"]


def fitting_mpp(looks: Sequence[Look], config: TilingConfig) -> str:
    """Choose the value of ``tiling.mpp`` that fits every slide: the coarsest one's, in as few digits as do."""
    coarsest = max(look.mpp for look in looks if look.mpp is not None)
    text = f"{coarsest:.3g}"
    return text if coarsest / float(text) - 1 <= config.mpp_tolerance else f"{rounded(coarsest, up=True):g}"


def _reason(alike: Sequence[Look], config: TilingConfig, encoder: str | None) -> str:
    """Say why slides of one status cannot be used, and what to do about it."""
    first = alike[0]
    if first.status == "too_coarse" and config.mpp is not None:
        found = sorted(look.mpp for look in alike if look.mpp is not None)
        if found:
            span = f"{found[0]:.4g}" if found[0] == found[-1] else f"{found[0]:.4g} to {found[-1]:.4g}"
            remedy = f"tiling.mpp={fitting_mpp(alike, config)} fits them"
            if encoder is not None:
                remedy = f"{encoder} takes no other; {remedy} with an encoder of any resolution, such as "
                remedy += EncoderConfig().name
            return f"their finest resolution is {span} um/px, coarser than tiling.mpp = {config.mpp:g}; {remedy}" + (
                _NANOMETRES if found[0] > _NO_SLIDE_MPP else ""
            )
    text = (
        f"{first.slide.slide_id}: {first.error}"
        if len(alike) == 1
        else f"such as {first.slide.slide_id}: {first.error}"
    )
    remedy = _REMEDIES.get(first.status, "")
    return text if not remedy or _is_said(first.error, remedy) else f"{text}; {remedy}"


def _is_said(error: str | None, remedy: str) -> bool:
    """Tell whether a slide's own message names the first setting of the remedy."""
    keys = [word.strip(",;") for word in remedy.split() if word.startswith("tiling.")]
    return any(key.partition("=")[0] in (error or "") for key in keys)


def _names(looks: Sequence[Look]) -> str:
    names = ", ".join(look.slide.slide_id for look in looks[:NAMED])
    return names + (", ..." if len(looks) > NAMED else "")
