"""Tiling by steps in a child process, and the outcome for a slide or a store that fails at a step."""

import errno
import logging
import time
from dataclasses import dataclass
from typing import Any

import cv2

from distmil.cohort import Slide
from distmil.config.data import TilingConfig
from distmil.defects import failure_record
from distmil.errors import SlideError, StorageError, UnreadableSlide
from distmil.processes.child import Child, ChildCrashed, ChildTimedOut
from distmil.storage.records import Record
from distmil.storage.store import Store
from distmil.tiling.tiler import SlideTiler

logger = logging.getLogger(__name__)

TRIES = 3
PAUSE_S = 0.5
# A store that says one of these will say it again.
_FINAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


@dataclass(frozen=True)
class Answer:
    """The result of one or more steps of a slide."""

    record: Record | None = None
    """The slide's record, once there is one."""
    chunks: int = 0
    """Number of chunks, once it is planned."""
    fatal: str = ""
    """Why no slide can be tiled any more."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {"record": self.record and self.record.to_json(), "chunks": self.chunks, "fatal": self.fatal}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Answer":
        """Rebuild it."""
        record = values["record"] and Record.from_json(values["record"])
        return cls(record, values["chunks"], values["fatal"])


Step = tuple[Slide, TilingConfig, Store, int | None]
"""What the child process is asked to do: a chunk, or the plan where the number is None."""


def work(step: Step) -> dict[str, Any]:
    """Do one step, and return its answer as JSON-ready values; the child process's function."""
    cv2.setNumThreads(1)
    slide, config, store, chunk = step
    try:
        answer = do_step(SlideTiler(slide, config, store), chunk)
    except StorageError as error:
        answer = Answer(fatal=str(error))
    except Exception as error:  # noqa: BLE001 (it would look as if the file had crashed this process)
        answer = Answer(failure_record(slide.slide_id, error, hidden=(slide.path, slide.tissue_path)))
    return answer.to_json()


def do_step(tiler: SlideTiler, chunk: int | None) -> Answer:
    """Plan a slide, or write one chunk and commit the slide if that was the last; errors become part of the answer."""
    for attempt in range(1, TRIES + 1):
        try:
            return _plan(tiler) if chunk is None else _write(tiler, chunk)
        except StorageError as error:
            if attempt == TRIES or getattr(error.__cause__, "errno", None) in _FINAL:
                return Answer(fatal=str(error))
        except (OSError, UnreadableSlide) as error:
            if attempt == TRIES or isinstance(error, FileNotFoundError):
                return Answer(tiler.fail(error))
        except Exception as error:  # noqa: BLE001 (one bad slide is one status row)
            return Answer(tiler.fail(error))
        logger.info("%s: trying again", tiler.slide.slide_id)
        time.sleep(PAUSE_S * attempt)
    raise AssertionError("the last try returns")


def _plan(tiler: SlideTiler) -> Answer:
    record = tiler.finished() or tiler.revived()
    return Answer(record, len(record.parts)) if record else Answer(chunks=tiler.plan())


def _write(tiler: SlideTiler, chunk: int) -> Answer:
    try:
        tiler.write_chunk(chunk)
    except FileNotFoundError:
        record = tiler.finished()  # another process may have committed the slide, and its plan is gone
        if record:
            return Answer(record, len(record.parts))
        tiler.plan()
        tiler.write_chunk(chunk)
    return Answer(tiler.commit_if_whole())


class SlideWorker:
    """Tiles slides by steps in a child process, which a damaged slide may crash or hang."""

    def __init__(self, config: TilingConfig, store: Store) -> None:
        self._config, self._store = config, store
        self._child = Child(f"{__name__}:{work.__name__}")

    def tile(self, slide: Slide, *, most_chunks: int) -> Answer:
        """Plan a slide and write its chunks, but no more than ``most_chunks``."""
        answer = self.step(slide, None)
        chunks = answer.chunks
        for chunk in range(min(chunks, most_chunks)):
            if answer.record or answer.fatal:
                break
            answer = self.step(slide, chunk)
        return Answer(answer.record, chunks, answer.fatal)

    def step(self, slide: Slide, chunk: int | None) -> Answer:
        """Do one step in the child; one that dies twice, or does not end, becomes the slide's status."""
        where = "its plan" if chunk is None else f"chunk {chunk}"
        crash = ""
        for _ in range(2):
            try:
                step: Step = (slide, self._config, self._store, chunk)
                return Answer.from_json(self._child.call(step, timeout_s=self._config.chunk_timeout_s))
            except ChildTimedOut:
                return self._failed(
                    slide,
                    SlideError(
                        f"{where} took more than tiling.chunk_timeout_s = {self._config.chunk_timeout_s} s; is the "
                        "file damaged, or its disk too slow?"
                    ),
                )
            except ChildCrashed as error:
                crash = str(error)
        if "SIGKILL" in crash:  # mostly the system, out of memory: another try may go better
            return self._failed(slide, SlideError(f"{where}: the process was killed twice; is the memory full?"))
        return self._failed(slide, UnreadableSlide(f"{where} crashed its reader twice ({crash}); the file is damaged"))

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def _failed(self, slide: Slide, error: Exception) -> Answer:
        try:
            return Answer(SlideTiler(slide, self._config, self._store).fail(error))
        except StorageError as failure:
            return Answer(fatal=str(failure))
