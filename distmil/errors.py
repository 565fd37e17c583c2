"""The error tree: every failure a user can act on, with the exit code it ends a job in.

Messages say what is wrong with the value, what was expected, which slide or key, and what to do about it. Each
class takes one string, because exceptions cross process borders by pickle; add context with ``add_note``.
"""


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


class SlideError(DistmilError):
    """One slide cannot be used. It costs that slide a status row, never the job.

    ``status`` is one of ``distmil.storage.schemas.STATUSES``.
    """

    status = "failed"


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


class TooManyBadSlides(DistmilError):
    """More slides failed than ``tiling.max_bad_fraction`` allows."""


class DefectError(DistmilError):
    """Work on slides raised what nobody expected: a fault of the program. The other slides were finished first."""
