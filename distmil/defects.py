"""Work on one slide that may fail: a slide that cannot be used is a status, an unexpected exception is a defect.

A defect is a fault of the program, not of the file. It costs its slide the status ``failed`` too, and its short form
stands under ``DEFECT`` in the record's info, so that the job can finish the other slides, and then fail and name it.
"""

import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from distmil.errors import DistmilError, Reason, SlideError, StorageError
from distmil.storage.records import Record

DEFECT = "defect"
"""Key of a record's info: the exception's short form."""
REASON = "reason"
"""Key of a record's info: the ``Reason`` of a slide's error, as JSON; older records have none."""

T = TypeVar("T")
_ROOT = Path(__file__).parent
_EXPECTED = (DistmilError, OSError, MemoryError)
_PATH = re.compile(r"""'/[^']*'|"/[^"]*"|(?:\w+:/|(?<![\w.]))/(?:[^\s/'":,;()]+/)+[^\s'":,;()]*""")
_MOST_CHARACTERS = 400
_SHORT = 3  # characters: so short a name means nothing, and is found in numbers and words


def is_defect(error: BaseException) -> bool:
    """Tell a fault of the program from what files, disks and memory do."""
    is_memory = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # torch's, without torch
    return not isinstance(error, _EXPECTED) and not is_memory


def describe(error: BaseException, *, hidden: Sequence[str | None] = ()) -> str:
    """Name an exception's type, its message, and the last place inside distmil.

    Args:
        error: The exception.
        hidden: Files of the slide. Their names and folders name people, and are left out.
    """
    text = without_paths(f"{type(error).__name__}: {error}", hidden=hidden)[:_MOST_CHARACTERS]
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_ROOT)
    ]
    if not frames:
        return text
    place = Path(frames[-1].filename).relative_to(_ROOT).as_posix()
    return f"{text} ({place}:{frames[-1].lineno} in {frames[-1].name})"


def without_paths(text: str, *, hidden: Sequence[str | None] = ()) -> str:
    """Take the slide's own files and every absolute path out of a message."""
    names = {name for path in hidden if path for name in (path, Path(path).name) if len(name) > _SHORT}
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "the file", text)
    return _PATH.sub("a file", text)


def failure_record(slide_id: str, error: Exception, *, hidden: Sequence[str | None] = ()) -> Record:
    """Make the record of a slide whose work raised."""
    if isinstance(error, SlideError):
        text = without_paths(str(error), hidden=hidden)
        return Record(slide_id, {}, status=error.status, error=text, info=reason_info(error.reason))
    if not is_defect(error):
        text = without_paths(f"{type(error).__name__}: {error}", hidden=hidden)
        return Record(slide_id, {}, status="failed", error=text)
    text = describe(error, hidden=hidden)
    return Record(slide_id, {}, status="failed", error=text, info={DEFECT: text})


def reason_info(reason: Reason | None) -> dict[str, Any]:
    """Return a reason as a record's info."""
    return {REASON: reason.to_json()} if reason else {}


def attempt(work: Callable[[], T], *, slide_id: str, hidden: Sequence[str | None] = ()) -> T | Record:
    """Do work on one slide.

    Args:
        work: What to do.
        slide_id: The slide.
        hidden: Its files; see ``describe``.

    Returns:
        The result of the work, or the slide's record with a status other than ``ok``.

    Raises:
        StorageError: If the store failed: that concerns all slides.
    """
    try:
        return work()
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001 (one bad slide is one status row)
        return failure_record(slide_id, error, hidden=hidden)
