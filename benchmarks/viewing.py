"""Tiles a second and milliseconds a tile of the viewer's server, with several clients at once.

    python -m benchmarks.viewing SLIDE [--clients 8] [--seconds 5]
    python -m benchmarks.viewing SLIDE --patches 150000

The server runs in a process of its own; the clients are threads of this one, each with one connection, which ask for
random tiles. Untouched: tiles of the finest level that the slide's file has as they are. Resampled: those of the levels
between the file's own. A slide without JPEG tiles has no untouched ones.

With ``--patches`` the slide gets that many scored patches, and what its first view takes is measured: from opening the
slide to the description, a map, the regions and the tiles of a screen of 1600 x 900 px. A slide that is not there is
made, 100,000 px wide and high.
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
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.exporting import make_table
from benchmarks.slidemaking import make_giant
from distmil.exporting.frame import frame_of
from distmil.exporting.scores import scored_patches
from distmil.exporting.slide_export import SlideExport
from distmil.slides.reader import open_slide
from distmil.tiling.overview import MAX_PX
from distmil.viewing.drawing import Drawing
from distmil.viewing.library import Library
from distmil.viewing.slide_list import Listed
from distmil.viewing.slide_view import SlideView
from distmil.viewing.tiles import SlideTiles

GIANT_PX = 100_000


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


def first_view(path: Path, num_patches: int) -> dict[str, float]:
    """Return seconds, of one thread's processor time, until a slide is on the screen for the first time."""
    make_giant(path, edge_px=GIANT_PX)
    with open_slide(path) as image:
        size = image.size
    height = round(MAX_PX * size[1] / size[0])
    picture = np.full((height, MAX_PX, 3), 240, np.uint8)  # as large as that which tiling leaves beside the patches
    table = make_table(min(size), num_patches)
    start, took = time.process_time(), {"patches": float(table.num_rows)}

    def lap(name: str) -> None:
        took[name] = round(time.process_time() - start - sum(took.values()) + took["patches"], 3)

    patches = scored_patches(table, abnormal="positive")
    export = SlideExport("s", patches, frame_of(size, None, origin="slide"), 0.25, 0.75)
    view = SlideView(export, lambda: SlideTiles(str(path), picture=lambda: picture), Drawing, "")
    view.describe()
    lap("describe_s")
    view.maps.png("fused")
    lap("map_s")
    zoom, num_tiles = view.tiles.zoom, 0
    for level in range(zoom.num_levels):
        if max(zoom.level_size(level)) > 1600:
            break
        if max(zoom.level_size(level)) > MAX_PX:
            lap("first_tiles_s")
        columns, rows = zoom.num_tiles(level)
        num_tiles += sum(view.tiles.tile(level, i, j) is not None for i in range(columns) for j in range(rows))
    lap("sharp_tiles_s")
    view.regions()
    lap("regions_s")
    return took | {"tiles": num_tiles, "regions": len(export.regions)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--patches", type=int)
    given = parser.parse_args()
    if given.patches:
        print(json.dumps(first_view(Path(given.slide), given.patches)), flush=True)
        return
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
