"""Tiles a second and milliseconds a tile of the viewer's server, with several clients at once.

    python -m benchmarks.viewing SLIDE [--clients 8] [--seconds 5]

The server runs in a process of its own; the clients are threads of this one, each with one connection, which ask for
random tiles. Untouched: tiles of the finest level that the slide's file has as they are. Resampled: those of the levels
between the file's own. A slide without JPEG tiles has no untouched ones.
"""

import argparse
import http.client
import json
import multiprocessing
import random
import re
import statistics
import threading
import time
from typing import Any

from distmil.viewing.library import Library
from distmil.viewing.slide_list import Listed
from distmil.viewing.tiles import SlideTiles


class _Bare:
    """Stands for a slide's view: tiles alone."""

    def __init__(self, path: str) -> None:
        self.tiles = SlideTiles(path)


def _serve(path: str, port: Any) -> None:
    from distmil.viewing.server import bind, serve

    view: Any = _Bare(path)
    library = Library({}, [Listed("s", 0.5, 0.5, "")], lambda _: view)
    listener = bind("127.0.0.1", 0)
    port.send(listener.getsockname()[1])
    serve(library, host="127.0.0.1").run([listener])


def tiles_of(path: str, seed: int = 0) -> dict[str, list[str]]:
    """List addresses of tiles by kind, shuffled."""
    tiles, found = SlideTiles(path), {"untouched": [], "resampled": []}
    zoom = tiles.zoom
    for level in range(zoom.num_levels):
        columns, rows = zoom.num_tiles(level)
        kind = "untouched" if level in tiles.own_levels else "resampled"
        inner = [
            (i, j) for i in range(columns - 1) for j in range(rows - 1)
        ]  # the last ones are cut, so never as stored
        found[kind] += [
            f"/slide-s/tiles/{level}/{i}_{j}.jpg" for i, j in inner or [(0, 0)] if kind == "resampled" or inner
        ]
    tiles.close()
    for addresses in found.values():
        random.Random(seed).shuffle(addresses)
    return found


def measure(port: int, addresses: list[str], *, clients: int, seconds: float) -> dict[str, float]:
    """Ask for tiles until the time is over, and return milliseconds a tile and tiles a second."""
    took: list[float] = []
    end = time.monotonic() + seconds

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        i = number
        while time.monotonic() < end:
            start = time.perf_counter()
            connection.request("GET", addresses[i % len(addresses)])
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, (answer.status, addresses[i % len(addresses)])
            took.append(1000 * (time.perf_counter() - start))
            i += clients
        connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.monotonic() - start
    took.sort()
    return {
        "tiles": len(took),
        "tiles_per_s": round(len(took) / wall_s),
        "median_ms": round(statistics.median(took), 1),
        "p99_ms": round(took[int(0.99 * (len(took) - 1))], 1),
    }


def cpu_of(path: str) -> dict[str, float]:
    """Return CPU milliseconds a tile without the web."""
    tiles, found = SlideTiles(path), {}
    for kind, addresses in tiles_of(path).items():
        places = [[int(text) for text in re.findall(r"\d+", address)] for address in addresses[:50]]
        start = time.process_time()
        for place in places:
            tiles.tile(*place)
        if places:
            found[kind] = round(1000 * (time.process_time() - start) / len(places), 2)
    tiles.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    print(json.dumps({"cpu_ms_per_tile": cpu_of(given.slide)}), flush=True)
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(given.slide, theirs), daemon=True)
    server.start()
    port = ours.recv()
    try:
        for kind, addresses in tiles_of(given.slide).items():
            if addresses:
                for clients in (1, given.clients):
                    found = measure(port, addresses, clients=clients, seconds=given.seconds)
                    print(json.dumps({"kind": kind, "clients": clients, **found}), flush=True)
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
