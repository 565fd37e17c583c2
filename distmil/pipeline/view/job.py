"""The job that shows finished predictions in a browser, or writes the viewer as plain files."""

import importlib.util
import threading
import time
from pathlib import Path
from typing import Any

from distmil.defects import attempt
from distmil.errors import ConfigError, StorageError
from distmil.pipeline.job import Job, check_bad_fraction, status_counts
from distmil.pipeline.view.shelf import Shelf, open_shelf
from distmil.storage.records import Record
from distmil.viewing.static_export import write_page, write_slide

POLL_S = 0.1


def run(job: Job) -> dict[str, Any]:
    """Show the slides until the job is interrupted, or write them to a folder.

    Raises:
        ConfigError: If there is nothing to show, or the port or the folder cannot be had.
    """
    if job.config.view.export is None:
        _check_server()
        return _serve(job)
    return _export(job, open_shelf(job))


def _check_server() -> None:
    """Refuse to start without a web server. Raises: ConfigError."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"view needs {' and '.join(missing)}: pip install 'distmil[view]', or write plain files with "
                          "view.export=FOLDER")  # fmt: skip


def _serve(job: Job) -> dict[str, Any]:
    """Serve until interrupted."""
    from distmil.viewing.server import LOOPBACK, bind, serve  # noqa: PLC0415 (the web server is an extra)

    view = job.config.view
    shelf = open_shelf(job, is_open=view.host in LOOPBACK)
    listener = bind(view.host, view.port)
    port = listener.getsockname()[1]
    address = f"http://{f'[{view.host}]' if ':' in view.host else view.host}:{port}/"
    noun = job.outcomes.noun
    job.console.note(
        f"{len(shelf.chosen)} {noun}s of the predictions {shelf.run} are shown at {address}; end with Ctrl-C"
    )
    _tell_drawn(job, shelf)
    if view.host not in LOOPBACK:
        job.console.note(
            f"view.host = {view.host}: everyone who reaches this address sees the {noun}s, without a password"
        )
    server = serve(shelf.library(), host=view.host)
    ended: list[bool] = []

    def run() -> None:
        try:
            server.run([listener])
        finally:
            ended.append(True)

    # In a thread of its own uvicorn leaves the signals to the job. Neither a join nor a lock waits for it: a join that
    # a signal interrupts takes a running thread for ended (Python before 3.13), an interrupted lock may stay locked.
    threading.Thread(target=run, name="viewer").start()
    try:
        while not ended:
            time.sleep(POLL_S)
    finally:
        server.should_exit = True
        while not ended:
            time.sleep(POLL_S)
        listener.close()
    raise StorageError("the web server ended by itself; its message stands above")


def _tell_drawn(job: Job, shelf: Shelf) -> None:
    """Say where outlines are saved, and write their manifest again, which may have been left behind by a crash."""
    if shelf.desk is None or not shelf.is_open:
        return
    job.console.note(f"outlines that are drawn in the page are saved in {shelf.desk.files.folder}; train with them by "
                     f"{shelf.desk.key}")  # fmt: skip
    try:
        shelf.desk.files.write_manifest()
    except OSError as error:
        job.console.note(f"view.drawn: the manifest of the drawn outlines cannot be written ({error.strerror})")


def _export(job: Job, shelf: Shelf) -> dict[str, Any]:
    """Write the viewer as plain files."""
    folder, library = _folder(job), shelf.library()
    max_px = job.config.view.export_px
    records: dict[str, Record] = {}
    with job.console.progress("view", len(shelf.chosen), f"{job.outcomes.noun}s") as advance:
        for slide_id, (slide, scores) in shelf.chosen.items():

            def write(slide_id: str = slide_id, scores: Record = scores) -> Record:
                num_tiles = write_slide(library, slide_id, folder, max_px=max_px)
                info = {"num_patches": scores.info["num_patches"], "num_tiles": num_tiles, "doubts": []}
                return Record(slide_id, {}, info=info)

            records[slide_id] = attempt(write, slide_id=slide_id, hidden=(slide.path, slide.annotation_path))
            advance()
    try:
        write_page(library, folder, only={name for name, record in records.items() if record.ok})
    except OSError as error:
        raise StorageError(f"view.export = {str(folder)!r}: it cannot be written ({error.strerror})") from error
    check_bad_fraction(job, records)
    num_tiles = sum(record.info.get("num_tiles") or 0 for record in records.values())
    return {"run": shelf.run, "view": str(folder), "num_tiles": num_tiles, "slides": status_counts(records)}


def _folder(job: Job) -> Path:
    """Return the folder, which must be empty, absent or of an earlier export. Raises: ConfigError."""
    folder = Path(str(job.config.view.export)).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"view.export = {str(folder)!r}: expected a folder, and this is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "slides.json").exists():
        raise ConfigError(f"view.export = {str(folder)!r}: the folder holds other files; name an empty or a new one")
    return folder
