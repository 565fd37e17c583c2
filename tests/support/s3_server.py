"""An S3 server on this machine: moto's, behind a proxy that fails, stalls and cuts off, seeded and counted."""

import contextlib
import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.ports import free_port

BUCKET = "bucket"
DENIED = "denied"
"""A bucket that nobody may use; it is not there, either."""
HOST = "127.0.0.1"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
FAULTS = ("500", "503", "lost", "cut", "slow")
"""Refused; refused as too busy; done, but answered by 500; done, but cut off in the answer; answered late."""
_START_LIMIT_S = 60.0
_CODES = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}
_OF_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}


@dataclass
class Behaviour:
    """How the proxy treats requests; may be changed while it runs."""

    share: float = 0.0
    """Of requests that meet a fault."""
    slow_s: float = 1.0
    kinds: tuple[str, ...] = FAULTS
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    done: Counter[str] = field(default_factory=Counter)
    """Requests by method, and faults by kind."""
    keys: set[str] = field(default_factory=set)
    """Path of everything that was asked for."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, method: str, path: str) -> str:
        """Count a request and return the fault it meets, if any."""
        with self._lock:
            fault = self.rng.choice(self.kinds) if self.rng.random() < self.share else ""
            self.done.update([method, *[fault] * bool(fault)])
            self.keys.add(unquote(urlsplit(path).path))
            return fault

    @property
    def num_faults(self) -> int:
        """Return the number of faults so far."""
        return sum(self.done[kind] for kind in FAULTS)


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server of this machine, but for what the behaviour says."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, behaviour: Behaviour) -> None:
        super().__init__((HOST, 0), _Handler)
        self.upstream, self.behaviour = port, behaviour

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _serve(self) -> None:
        body = self._body()
        behaviour = self.server.behaviour
        fault = behaviour.choose(self.command, self.path)
        if "Authorization" not in self.headers or self.path.split("?")[0].split("/")[1] == DENIED:
            return self._refuse(403)
        if fault in {"500", "503"}:
            return self._refuse(int(fault))
        if fault == "slow":
            time.sleep(behaviour.slow_s)
        status, headers, answer = self._ask(body)
        if fault == "lost":
            return self._refuse(500)
        if fault == "cut":
            self.close_connection = True
            if not answer:
                return None  # hang up without a word
        return self._answer(status, headers, answer, length=len(answer) // 2 if fault == "cut" else len(answer))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _body(self) -> bytes:
        """Read the request's content, whole or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        blocks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in {*_OF_ONE_HOP, "expect"}}
        upstream = http.client.HTTPConnection(HOST, self.server.upstream, timeout=60)
        with contextlib.closing(upstream):
            upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()

    def _refuse(self, status: int) -> None:
        code = _CODES[status]
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} by the proxy</Message></Error>".encode()
        text = b"" if self.command == "HEAD" else text
        self._answer(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))], text)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, *, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _OF_ONE_HOP:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:length])
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@dataclass(frozen=True)
class S3:
    """A running server with one empty bucket."""

    endpoint: str
    behaviour: Behaviour

    def uri(self, folder: str, bucket: str = BUCKET) -> str:
        """Return a storage root that says where the server is."""
        return f"s3://{bucket}/{folder}?endpoint_override={self.endpoint}"

    @property
    def environment(self) -> Mapping[str, str]:
        """Return the variables by which a process finds the server and may use it."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint}


@contextlib.contextmanager
def s3_server(log: Path, *, seed: int = 0) -> Iterator[S3]:
    """Start the server and its proxy, and end both.

    Args:
        log: File for what the server says.
        seed: Of the faults.
    """
    port = free_port()
    script = Path(sys.executable).with_name("moto_server")
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with log.open("wb") as output:
        server = subprocess.Popen([script, "-H", HOST, "-p", str(port)], stdout=output, stderr=output, env=environment)
    try:
        _wait_for(server, port, log)
        urllib.request.urlopen(urllib.request.Request(f"http://{HOST}:{port}/{BUCKET}", method="PUT")).close()
        behaviour = Behaviour(rng=random.Random(seed))
        with Proxy(port, behaviour) as proxy:
            thread = threading.Thread(target=proxy.serve_forever, daemon=True)
            thread.start()
            try:
                yield S3(f"http://{HOST}:{proxy.server_port}", behaviour)
            finally:
                proxy.shutdown()
                thread.join()
    finally:
        server.terminate()
        server.wait()


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        try:
            socket.create_connection((HOST, port), 1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')}") from None
            time.sleep(0.05)
