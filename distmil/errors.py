"""The error tree: every failure a user can act on, with the exit code it ends a job in.

Messages say what is wrong with the value, what was expected, which slide or key, and what to do about it. Each
class takes one string, because exceptions cross process borders by pickle; add context with ``add_note``. A slide's
error may hold a ``Reason`` too, by which equal ones are counted together.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self


class DistmilError(Exception):
    """A failure whose message is for the user; jobs print it without a traceback."""

    exit_code = 1


class BadInput(DistmilError):
    """Something the user gave cannot be used; nothing was started."""

    exit_code = 2


class ConfigError(BadInput):
    """A configuration key is unknown, of the wrong type, out of range, or in conflict with another."""


class ManifestError(BadInput):
    """The manifest breaks its rules; the message lists every offending row."""


class BundleError(BadInput):
    """A model bundle is missing, incomplete, damaged, or made by another format version."""


@dataclass(frozen=True)
class Reason:
    """Why a slide cannot be used, in few words, and the setting under which it could be used."""

    found: str = ""
    """What was found, with its numbers: "finest 0.972 um/px"; "": the error's message says it."""
    key: str = ""
    """The setting, such as ``tiling.mpp``."""
    value: float | str | None = None
    """The setting's value that fits this slide; None: to be found by the user, or from the other slides."""
    fits: Literal["only", "least", "most"] = "only"
    """Whether larger values fit too (``value`` is the least), or smaller ones (it is the most)."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> Self | None:
        """Rebuild it; None where a record has none, or one of another version."""
        try:
            return cls(**values) if isinstance(values, Mapping) else None
        except TypeError:
            return None


class SlideError(DistmilError):
    """One slide cannot be used. It costs that slide a status row, never the job.

    ``status`` is one of ``distmil.storage.schemas.STATUSES``.
    """

    status = "failed"

    def __init__(self, text: str = "", *, reason: Reason | None = None) -> None:
        super().__init__(text)
        self.reason = reason


class UnreadableSlide(SlideError):
    """No reader can open the file, or its pixels cannot be decoded."""

    status = "unreadable"


class MissingSlide(SlideError):
    """The file is not there (any more)."""

    status = "missing"


class ReplacedSlide(SlideError):
    """The file became another one while it was read."""


class NoResolution(SlideError):
    """Neither manifest nor file says how many um a pixel covers."""

    status = "no_mpp"


class TooCoarse(SlideError):
    """The file's finest resolution is coarser than the wanted one."""

    status = "too_coarse"


class TooSmall(SlideError):
    """The image is smaller than one patch."""

    status = "too_small"


class NoTissue(SlideError):
    """No patch holds enough tissue."""

    status = "no_tissue"


class AnnotationError(SlideError):
    """An annotation cannot be read, or contradicts the slide."""

    status = "bad_annotation"


class StorageError(DistmilError):
    """The storage root cannot be written or read, or what it holds is damaged."""


class DamagedStore(StorageError):
    """What was committed is not what is there."""


class EncoderError(DistmilError):
    """An encoder's weights cannot be had or do not fit."""


class TrainingError(DistmilError):
    """Training cannot go on: no usable slides, or a loss that is not finite."""


class BadAnnotations(BadInput):
    """Annotations cannot be used, and ``labels.on_bad_annotation`` is ``fail``."""


class TooManyBadSlides(DistmilError):
    """More slides failed than ``tiling.max_bad_fraction`` allows."""


class DefectError(DistmilError):
    """Work on slides raised what nobody expected: a fault of the program. The other slides were finished first."""
