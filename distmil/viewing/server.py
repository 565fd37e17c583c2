"""The viewer's web server. It answers this machine alone unless asked otherwise, and takes nothing but outlines."""

import logging
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from distmil.errors import ConfigError, SlideError, StorageError
from distmil.viewing.drawing import MAX_BYTES
from distmil.viewing.drawn_files import StaleDrawing
from distmil.viewing.library import Library
from distmil.viewing.page_files import PAGE, page_file

logger = logging.getLogger(__name__)

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
LAST_ANSWERS_S = 5
"""For which a server that ends waits for browsers to take their answers."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_KIND = "application/geo+json"
_VERSION = re.compile(r'"([0-9]{1,9})"')
_Next = Callable[[Request], Awaitable[Response]]


def make_app(library: Library, *, host: str = "127.0.0.1") -> FastAPI:
    """Make the application.

    Args:
        library: What it shows.
        host: The address that it listens at. On a loopback address, requests under any other name are refused: a page
            elsewhere could else have its own name resolved to this machine, and read the slides.
    """
    app = FastAPI(title="distmil view", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: _Next) -> Response:
        if host in LOOPBACK and _name_of(request.headers.get("host", "")) not in LOOPBACK:
            response = _refusal(403, "this viewer answers to localhost only")
        elif request.method not in {"GET", "PUT"}:
            response = _refusal(405, "this viewer shows, and takes outlines; nothing else can be written")
        else:
            response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    @app.get("/{address:path}")
    async def show(address: str) -> Response:
        if address in PAGE or not address:
            name = address or "index.html"
            return Response(page_file(name), media_type=PAGE[name])
        return await run_in_threadpool(_answer, library, address)

    @app.put("/{address:path}")
    async def save(address: str, request: Request) -> Response:
        refusal = _check_write(request, host)
        if refusal:
            return refusal
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > MAX_BYTES:
                return _refusal(413, f"the outlines take more than {MAX_BYTES} bytes; draw fewer on one slide")
        version = _VERSION.fullmatch(request.headers.get("if-match", ""))
        if version is None:
            return _refusal(428, "outlines are saved over a version: If-Match has to name it")
        return await run_in_threadpool(_save, library, address, data, int(version[1]))

    return app


def serve(library: Library, *, host: str) -> uvicorn.Server:
    """Make a server that ``run([listener])`` lets answer at a bound socket until its ``should_exit`` is set."""
    app = make_app(library, host=host)
    return uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=LAST_ANSWERS_S
        )
    )


def bind(host: str, port: int) -> socket.socket:
    """Take an address; port 0: a free one. Raises: ConfigError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol named, asyncio sends a tile's end at once; else each tile waits 40 ms for its acknowledgement
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # who comes before the server is up waits
    except OSError as error:
        listener.close()
        raise ConfigError(f"view.port = {port}: {host} cannot be listened at ({error.strerror}); set another, or 0 for "
                          "any that is free") from error  # fmt: skip
    return listener


def _answer(library: Library, address: str) -> Response:
    """Answer with a file, 404 without one, and 422 where the slide cannot be shown."""
    try:
        found = library.answer(address)
    except SlideError as error:
        return _refusal(422, str(error))
    except StorageError:
        logger.exception("a slide's predictions cannot be read")
        return _refusal(422, "its predictions are damaged or gone; run predict again")  # the message has a path
    except OSError:
        return _refusal(422, "a file of the slide cannot be read")
    return Response(found.data, media_type=found.kind) if found else _refusal(404, "there is no such file")


def _check_write(request: Request, host: str) -> Response | None:
    """Refuse what does not come from the viewer's own page on this machine."""
    headers = request.headers
    if host not in LOOPBACK:
        return _refusal(403, "outlines are drawn only where the viewer listens on this machine alone")
    is_own = headers.get("origin") == f"http://{headers.get('host')}"
    if not is_own or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return _refusal(403, "outlines are saved by the viewer's own page only")
    if headers.get("content-type") != _KIND:  # a form of another page cannot send it without being asked first
        return _refusal(415, f"outlines are sent as {_KIND}")
    return None


def _save(library: Library, address: str, data: bytes, over: int) -> Response:
    """Save outlines: 404 where nothing can be drawn, 412 over another version than the newest, 422 with the reason."""
    try:
        saved = library.save(address, data, over=over)
    except StaleDrawing as error:
        return _refusal(412, str(error))
    except SlideError as error:
        return _refusal(422, str(error))
    except StorageError:
        logger.exception("a slide's predictions cannot be read")
        return _refusal(422, "its predictions are damaged or gone; run predict again")
    except OSError as error:
        return _refusal(422, f"nothing was saved: the folder cannot be written ({error.strerror})")
    return JSONResponse(asdict(saved)) if saved else _refusal(404, "there is no such file")


def _refusal(status: int, text: str) -> Response:
    return Response(text + "\n", status_code=status, media_type="text/plain; charset=utf-8")


def _name_of(host: str) -> str:
    """Return the name in a Host header, without brackets and port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
