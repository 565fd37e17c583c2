"""What the features of a cohort have in common: encoder, width and resolution, by which the others are refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from distmil.cohort import Slide
from distmil.config.features import FeaturesConfig
from distmil.config.root import Config
from distmil.config.section import Section
from distmil.errors import ConfigError, SlideError
from distmil.features.contents import Header, odd
from distmil.features.finding import FeatureFolder
from distmil.features.grid import is_near

S = TypeVar("S", bound=Section)

_NOMINAL_DIGITS = 2
_NAMED = 5


@dataclass(frozen=True)
class Kind:
    """What must be equal over the features of a cohort."""

    encoder: str | None
    dimension: int
    patch_px: int | None
    mpp: float | None
    """Um per pixel, rounded."""


def read_headers(slides: Sequence[Slide], folder: FeatureFolder, config: FeaturesConfig) -> dict[str, Header]:
    """Read what the file of each slide states, of those that can be read; none of empty slides."""
    found = {}
    for slide in slides:
        try:
            with folder.find(slide).opened(config) as contents:
                if contents.header.num_patches:
                    found[slide.slide_id] = contents.header
        except (SlideError, OSError):
            continue  # the import itself says why
    return found


def settle(config: Config, headers: Mapping[str, Header]) -> Config:
    """Lay what most files have in common over a job's configuration; what the user states comes first.

    Raises:
        ConfigError: If no file can be used, or no file says which encoder made it and the user does not either.
    """
    given, kinds = config.features, Counter(map(kind_of, headers.values()))
    usable = [kind for kind, _ in kinds.most_common() if _may_be(kind, given)]
    if not usable:
        raise ConfigError(_none_usable(given, list(kinds)))
    kind = usable[0]
    encoder = given.encoder or kind.encoder
    if encoder is None:
        raise ConfigError(
            "features.encoder: the files do not say which encoder made them; name it, such as "
            "features.encoder=uni_v1: the name is kept, so that features of another one are refused"
        )
    patch_px = kind.patch_px or given.edge_px or given.extent_px or config.tiling.patch_px
    tiling = {"strategy": "features", "patch_px": min(max(patch_px, 8), 4096), "mpp": kind.mpp or given.patch_mpp}
    features = _with(given, {"encoder": encoder, "dimension": kind.dimension})
    return _with(config, {"features": features, "tiling": _with(config.tiling, tiling)})


def _with(section: S, values: Mapping[str, Any]) -> S:
    """Replace values that the user did not set: a command that is written from the configuration leaves them out."""
    own = {name: getattr(section, name) for name in type(section).model_fields}
    return cast("S", type(section).model_construct(_fields_set=section.model_fields_set, **(own | dict(values))))


def _none_usable(given: FeaturesConfig, kinds: Sequence[Kind]) -> str:
    if not kinds:
        return (
            f"features.folder = {given.folder!r}: no slide of the manifest has features there that can be read; files "
            "are named as the slide's id or as its file, and `import_features` says for each slide what is wrong"
        )
    shown = ", ".join(f"{kind.encoder or 'an unnamed encoder'} ({kind.dimension} wide)" for kind in kinds[:_NAMED])
    wanted = f"{given.encoder or 'any encoder'}" + (f" ({given.dimension} wide)" if given.dimension else "")
    return f"features.folder = {given.folder!r} holds features of {shown}, none of {wanted}"


def _may_be(kind: Kind, given: FeaturesConfig) -> bool:
    is_encoder = not (given.encoder and kind.encoder) or kind.encoder == given.encoder
    return is_encoder and given.dimension in {None, kind.dimension}


def kind_of(header: Header) -> Kind:
    """Take what must be equal from a header."""
    return Kind(header.encoder, header.dimension, header.patch_px, header.mpp and _rounded(header.mpp))


def _rounded(mpp: float) -> float:
    return float(f"{mpp:.{_NOMINAL_DIGITS}g}")


def check_header(header: Header, config: Config) -> None:
    """Refuse features of another kind than the cohort's or the bundle's. Raises: UnreadableSlide."""
    wanted = config.features
    if wanted.layout not in {"auto", header.layout}:
        raise odd(f"they are {header.layout}'s, features.layout says {wanted.layout}")
    if header.num_patches == 0:
        return
    if header.encoder and wanted.encoder and header.encoder != wanted.encoder:
        raise odd(f"{header.encoder} made them, {wanted.encoder} those of the cohort or the bundle")
    if wanted.dimension and header.dimension != wanted.dimension:
        raise odd(f"they are {header.dimension} wide, those of the cohort or the bundle {wanted.dimension}")


def check_fits(config: Config, headers: Mapping[str, Header], *, run: str) -> None:
    """Refuse a cohort whose features are none of a bundle's.

    Args:
        config: The job's, with the bundle's encoder, width and resolution.
        headers: Of the slides' files.
        run: Name of the bundle's run.

    Raises:
        ConfigError: If not one of them fits.
    """
    wanted, mpp = config.features, config.tiling.mpp
    kinds = set(map(kind_of, headers.values()))

    def fits(kind: Kind) -> bool:
        return _may_be(kind, wanted) and is_near(kind.mpp, mpp)

    if kinds and not any(map(fits, kinds)):
        kind = next(iter(kinds))
        shown = [
            f"{k.encoder or 'an unnamed encoder'}, {k.dimension} wide" + (f", at {k.mpp:g} um/px" if k.mpp else "")
            for k in (kind, Kind(wanted.encoder, wanted.dimension or 0, None, mpp))
        ]
        raise ConfigError(
            f"features.folder holds features of {shown[0]}: the bundle {run} was trained on those of {shown[1]}"
        )
