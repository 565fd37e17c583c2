"""What the tests of the child process let it do."""

import ctypes
import os
import stat
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class _Evil:
    """A pickle that writes a file where it is opened."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path(self._file), "taken over")


def _mode(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_mode
    except OSError:
        return 0


def act(request: dict[str, Any]) -> dict[str, Any]:
    """Do as the request says."""
    match request["do"]:
        case "echo":
            return {"said": request["text"], "pid": os.getpid()}
        case "print":
            os.write(1, b"noise from native code\n")
            sys.stdout.write("noise from Python\n")
        case "crash":
            ctypes.string_at(0)
        case "exit":
            os._exit(request.get("code", 7))
        case "files":
            return {"files": [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]}
        case "take over":  # as code in a damaged file would: it answers by itself
            pipe = next(fd for fd in range(3, 64) if stat.S_ISSOCK(_mode(fd)))
            with Connection(os.dup(pipe)) as own:
                own.send(_Evil(request["file"])) if request["by"] == "pickle" else own.send_bytes(b"[" * 10**6)
        case "sleep":
            time.sleep(request["seconds"])
        case "block":
            ctypes.PyDLL(None).sleep(60)  # native code that keeps the interpreter's lock
    return {}


def read_with_little_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Read an annotation with 100 MiB to spare."""
    from distmil.labels import annotation_worker  # noqa: PLC0415  # every other child starts without it

    annotation_worker.MEMORY_BYTES = 100 * 2**20
    wanted = {"bounds": None, "origin": "auto", "tissue": None, "scale": None, "known": [], "out": "/dev/null"}
    return annotation_worker.work({"slide_path": "", **request, **wanted})
