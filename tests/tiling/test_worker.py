"""What becomes of a slide, or of the store, that fails in the middle of the work."""

import errno
import json
from pathlib import Path

import pytest

from distmil.cohort import Slide
from distmil.defects import DEFECT
from distmil.errors import StorageError, UnreadableSlide
from distmil.processes.child import ChildCrashed, ChildTimedOut
from distmil.storage.store import Store
from distmil.tiling import worker as tilework
from distmil.tiling.tiler import SlideTiler
from distmil.tiling.worker import Answer, SlideWorker, do_step
from tests.support.jpeg_tiff import save_jpeg_tiff
from tests.support.tiles import PIXELS, contents, make_slide, tile_slide, tiling


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(tilework, "PAUSE_S", 0)


@pytest.fixture
def tiler(tmp_path, store):
    return SlideTiler(make_slide(tmp_path), tiling(), store)


def run(tiler, *, chunks=None):
    """Do every step in this process and return the last answer."""
    answer = do_step(tiler, None)
    for chunk in range(answer.chunks) if chunks is None else chunks:
        answer = do_step(tiler, chunk)
    return answer


def test_steps_end_in_the_record_of_the_plain_loop(tmp_path, tiler):
    answer = run(tiler)
    other = Store(str(tmp_path / "other"))
    assert answer.record == tile_slide(tiler.slide, tiler.config, other)
    assert contents(tiler.store.root) == contents(other.root)
    assert Answer.from_json(answer.to_json()) == answer


def test_a_step_of_a_finished_slide_finds_it_finished(tiler):
    record = run(tiler).record
    assert do_step(tiler, None) == Answer(record, 4)
    assert do_step(tiler, 2) == Answer(record, 4)  # a step that is done again after a node was lost
    assert do_step(tiler, 99) == Answer(record, 4)


def test_a_chunk_whose_plan_another_process_took_away_is_planned_again(tiler):
    do_step(tiler, None)
    tiler.store.delete(f"{tiler.folder}/plan.json")
    assert do_step(tiler, 1) == Answer()
    assert run(tiler).record.ok


def failing(monkeypatch, error, *, times, name="write_chunk"):
    """Let a method of the tiler fail a few times; return how often it was called."""
    called = []
    method = getattr(SlideTiler, name)

    def fails(self, *given):
        called.append(given)
        if len(called) <= times:
            raise error
        return method(self, *given)

    monkeypatch.setattr(SlideTiler, name, fails)
    return called


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), UnreadableSlide("a block"), StorageError("gone")])
def test_what_passes_by_itself_is_tried_again(tiler, monkeypatch, error):
    called = failing(monkeypatch, error, times=2)
    assert do_step(tiler, None).chunks == 4
    assert do_step(tiler, 0) == Answer()
    assert called == [(0,), (0,), (0,)]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (OSError(errno.EIO, "I/O error"), "failed", "I/O error"),
        (UnreadableSlide("damaged at x=1"), "unreadable", "damaged at x=1"),
        (MemoryError("no room"), "failed", "MemoryError: no room"),
        (ZeroDivisionError("a defect"), "failed", "ZeroDivisionError: a defect"),
    ],
)
def test_what_does_not_pass_becomes_the_slides_status(tiler, monkeypatch, error, status, text):
    failing(monkeypatch, error, times=99)
    do_step(tiler, None)
    record = do_step(tiler, 0).record
    assert record.status == status
    assert text in record.error
    assert (tiler.finished() == record) is (status == "unreadable")  # the others may go better next time


@pytest.mark.parametrize(
    ("error", "is_defect"),
    [
        (ValueError("max() arg is an empty sequence"), True),
        (MemoryError("no room"), False),
        (OSError(errno.EIO, "I/O error"), False),
        (UnreadableSlide("damaged"), False),
    ],
)
def test_only_an_exception_that_nobody_expects_is_a_defect(tiler, monkeypatch, error, is_defect):
    failing(monkeypatch, error, times=99, name="plan")
    record = do_step(tiler, None).record
    assert (DEFECT in record.info) is is_defect
    if is_defect:
        assert record.error.startswith("ValueError: max() arg is an empty sequence (tiling/worker.py:")
        assert record.error.endswith(" in _plan)")
        assert record.info[DEFECT] == record.error


def test_a_message_tells_neither_the_slides_name_nor_its_folder(tiler, monkeypatch):
    path = Path(tiler.slide.path)
    failing(monkeypatch, ValueError(f"no such thing in {path} or {path.name} or /home/jane doe"), times=99, name="plan")
    record = do_step(tiler, None).record
    assert record.error.startswith("ValueError: no such thing in the file or the file or a file doe (")


def test_what_breaks_around_a_step_is_a_defect_and_no_damaged_file(tiler, monkeypatch):
    failing(monkeypatch, UnreadableSlide("damaged"), times=99, name="plan")
    failing(monkeypatch, KeyError("oh"), times=99, name="fail")
    values = tilework.work((tiler.slide, tiler.config, tiler.store, None))
    answer = tilework.Answer.from_json(json.loads(json.dumps(values)))
    assert answer.record.status == "failed"
    assert answer.record.info[DEFECT].startswith("KeyError: 'oh'")


def test_a_file_that_goes_away_is_missing(tiler):
    do_step(tiler, None)
    Path(tiler.slide.path).unlink()
    assert do_step(tiler, 0).record.status == "missing"


def test_a_file_that_may_not_be_read_is_no_damaged_file(tiler, monkeypatch):
    failing(monkeypatch, UnreadableSlide("slide.tif: cannot open"), times=99, name="plan")
    real_open = Path.open

    def refused(self, *given, **more):
        if str(self) == tiler.slide.path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(self, *given, **more)

    monkeypatch.setattr("pathlib.Path.open", refused)
    record = do_step(tiler, None).record
    assert (record.status, record.error) == ("failed", "the slide cannot be read: Permission denied")
    assert tiler.finished() is None


@pytest.mark.parametrize(("code", "tries"), [(errno.ENOSPC, 1), (errno.EROFS, 1), (errno.EACCES, 1), (errno.EIO, 3)])
def test_a_store_that_cannot_be_written_stops_everything(tiler, monkeypatch, code, tries):
    error = StorageError("cannot write")
    error.__cause__ = OSError(code, "why")
    called = failing(monkeypatch, error, times=99)
    do_step(tiler, None)
    assert do_step(tiler, 0) == Answer(fatal="cannot write")
    assert len(called) == tries
    assert not tiler.store.exists(tiler.committed.record_name)


# --- the child process


@pytest.fixture
def worker(store):
    made = SlideWorker(tiling(chunk_timeout_s=30), store)
    yield made
    made.close()


@pytest.fixture
def chunk_of(tmp_path, worker):
    """Do one chunk of a slide."""
    slide = make_slide(tmp_path)
    return lambda chunk: worker.step(slide, chunk)


def test_a_slide_is_tiled_in_a_child_and_no_further_than_asked(tmp_path, worker, store):
    slide = make_slide(tmp_path)
    assert worker.tile(slide, most_chunks=2) == Answer(chunks=4)
    assert worker.step(slide, 3) == Answer()
    answer = worker.step(slide, 2)
    assert answer.record == SlideTiler(slide, tiling(), store).finished()
    assert worker.tile(slide, most_chunks=9) == Answer(answer.record, 4)


def test_a_slide_that_cannot_be_used_comes_back_as_its_status(tmp_path, worker):
    path = tmp_path / "broken.svs"
    path.write_bytes(b"no slide")
    assert worker.tile(Slide("s1", str(path)), most_chunks=9).record.status == "unreadable"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ChildCrashed("killed by SIGSEGV"), "unreadable", "chunk 1 crashed its reader twice (killed by SIGSEGV)"),
        (ChildCrashed("killed by SIGKILL"), "failed", "is the memory full?"),
        (ChildTimedOut("it took more than 30 s"), "failed", "more than tiling.chunk_timeout_s = 30 s"),
    ],
)
def test_a_child_that_dies_or_hangs_costs_one_slide(chunk_of, monkeypatch, error, status, text):
    called = []

    def call(self, request, *, timeout_s):
        called.append(timeout_s)
        raise error

    monkeypatch.setattr("distmil.processes.child.Child.call", call)
    record = chunk_of(1).record
    assert record.status == status
    assert text in record.error
    assert called == [30] * (1 if isinstance(error, ChildTimedOut) else 2)


def test_the_same_shards_come_out_of_jpeg_tiles_in_a_child(tmp_path, worker, store):
    path = save_jpeg_tiff(tmp_path / "j.tif", PIXELS)
    slide = Slide("s1", str(path))
    record = worker.tile(slide, most_chunks=9).record
    assert record.info["reader"] == "rawtiles"
    assert record == tile_slide(slide, tiling(), Store(str(tmp_path / "other")))
