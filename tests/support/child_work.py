"""What the tests of the child process let it do."""

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any


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
    return annotation_worker.work({**request, **wanted})
