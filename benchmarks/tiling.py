"""How fast slides become patches: distmil beside the libraries that its peers read with, in one run.

    python benchmarks/tiling.py speed [--slide FILE] [--rounds 5]       one core, whole slide into synced Parquet
    python benchmarks/tiling.py scale [--slides 8]                      two workers, and the job, beside plain loops
    python benchmarks/tiling.py exact [--data FOLDER] [--patches 10000] pixels compared with OpenSlide's and tifffile's
    python benchmarks/tiling.py giant                                   a sparse slide of 100,000 x 100,000 px

Peers that are not installed are left out: ``pip install -e .[bench]``. Without --slide one of 20,000 x 18,000 px is
made. Ratios are of figures from the same run, medians of rounds in turn; the machine is named.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.slidemaking import make_giant, make_slide
from benchmarks.tilingchecks import compare_pixels, watch_memory
from benchmarks.tilingways import places_of

ROOT = Path(__file__).parents[1]
BASELINE = "openslide"
WAYS = {
    "256 px on the tile grid": (
        {"patch_px": 256, "mpp": 0.25, "encode": "jpeg"},
        {
            "distmil, tiles passed through": ("distmil", {"encode": "reuse"}),
            "distmil": ("distmil", {}),
            "simplejpeg decode + encode alone": ("codec", {}),
        },
    ),
    "224 px off the grid": ({"patch_px": 224, "mpp": 0.25, "encode": "jpeg"}, {"distmil": ("distmil", {})}),
    "256 px at twofold reduction": (
        {"patch_px": 256, "mpp": 0.5, "encode": "jpeg"},
        {"distmil, by area": ("distmil", {}), "distmil, by DCT": ("distmil", {"reduce": "dct"})},
    ),
}
PEERS = {
    "openslide-python + PIL": BASELINE,
    "tiffslide + PIL": "tiffslide",
    "pyvips + PIL": "pyvips",
    "cuCIM + PIL": "cucim",
}


def measure(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Run one way in a process of its own on one core."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
    command = ["taskset", "-c", str((os.cpu_count() or 1) - 1)] if shutil.which("taskset") else []
    try:
        done = subprocess.run(
            [*command, sys.executable, "-m", "benchmarks.tilingways"],
            input=json.dumps(job | {"folder": str(folder)}),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{job['way']}: {done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder)


def speed(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Compare all ways on one slide, in turn, round by round."""
    slide = str(options.slide or make_slide(scratch / "slide.tif"))
    results: dict[str, Any] = {}
    for case, (wanted, own) in WAYS.items():
        values = wanted | ({"mpp": None} if options.native else {})
        places, extent = places_of(slide, scratch / "places", values)
        ways = {name: (way, values | more) for name, (way, more) in own.items()}
        ways |= {name: (way, values) for name, way in PEERS.items()}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, (way, given) in ways.items():
                if runs[name] and "missing" in runs[name][0]:
                    continue
                job = {"way": way, "slide": slide, "tiling": given, "extent": extent}
                runs[name].append(measure(job | ({} if way == "distmil" else {"places": places}), scratch))
        results[case] = _table(case, runs)
    return results


def _table(case: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print one case and return its figures."""
    rates = {
        name: [run["patches"] / run["seconds"] for run in found]
        for name, found in runs.items()
        if "missing" not in found[0]
    }
    base = next(rates[name] for name, way in PEERS.items() if way == BASELINE)
    print(f"\n{case}: {runs['openslide-python + PIL'][0]['patches']} patches")
    print(
        f"  {'':36}{'patches/s':>10}  {'least to most':>16}{'MB/s':>8}{'peak MB':>9}{'ratio':>8}  ratios of the rounds"
    )
    rows = {}
    for name, found in rates.items():
        ratios = [one / other for one, other in zip(found, base, strict=True)]
        rate, ratio = statistics.median(found), statistics.median(ratios)
        mb = statistics.median(run["mb"] / run["seconds"] for run in runs[name])
        peak = max(run["peak_mb"] for run in runs[name])
        spread = f"{min(found):.0f} to {max(found):.0f}"
        each = " ".join(f"{value:.2f}" for value in ratios)
        print(f"  {name:36}{rate:10.0f}  {spread:>16}{mb:8.1f}{peak:9.0f}{ratio:8.2f}  {each}", flush=True)
        rows[name] = {"patches_per_s": found, "mb_per_s": mb, "peak_mb": peak, "ratio": ratio, "ratios": ratios}
    for name in sorted(runs.keys() - rates.keys()):
        print(f"  {name}: not installed")
    return rows


def scale(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Tile several slides by one plain loop, by two plain processes, and by the job with two workers."""
    slides = [make_slide(scratch / f"s{i}.tif", edge_px=23_000, seed=i, tissue=0.7) for i in range(options.slides)]
    figures: dict[str, Any] = {}
    for encode in ("jpeg", "reuse"):
        runs: dict[str, list[float]] = {"one plain loop": [], "two plain processes": [], "the job, two workers": []}
        for _ in range(options.rounds):
            half = len(slides) // 2
            runs["one plain loop"].append(_plain([slides[:half]], encode, scratch))
            runs["two plain processes"].append(_plain([slides[:half], slides[half:]], encode, scratch))
            runs["the job, two workers"].append(_job(slides, encode, scratch))
        two = runs["two plain processes"]
        print(f"\n{len(slides)} slides, 256 px on the tile grid, {encode}; start-up left out")
        for name, found in runs.items():
            ratios = " ".join(f"{one / other:.2f}" for one, other in zip(found, two, strict=True))
            print(f"  {name:24}{statistics.median(found):8.0f} patches/s   of two processes: {ratios}", flush=True)
        figures[encode] = runs
    figures["disk_mb_per_s"] = _disk(scratch)
    print(f"\nthe disk: {figures['disk_mb_per_s']:.0f} MB/s written in files of 25 MB, each synced")
    return figures


def _plain(groups: list[list[Path]], encode: str, scratch: Path) -> float:
    """Tile groups of slides side by side, a process each; return patches/s of all, imports left out."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    code = (
        "import json, sys, time, cv2\n"
        "from pathlib import Path\n"
        "from benchmarks.tilingways import tile_with_distmil\n"
        "cv2.setNumThreads(1); job = json.loads(sys.argv[1]); print('ready', flush=True); input()\n"
        "started = time.time(); patches = 0\n"
        "for i, slide in enumerate(job['slides']):\n"
        "    patches += tile_with_distmil(slide, Path(job['folder']) / str(i), job['tiling'])[0]\n"
        "print(json.dumps([patches, started, time.time()]))\n"
    )
    values = {"patch_px": 256, "mpp": 0.25, "encode": encode}
    processes = []
    for number, group in enumerate(groups):
        job = {"slides": [str(slide) for slide in group], "folder": str(folder / str(number)), "tiling": values}
        command = [sys.executable, "-c", code, json.dumps(job)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [json.loads(process.communicate()[0]) for process in processes]
    shutil.rmtree(folder)
    return sum(a[0] for a in answers) / (max(a[2] for a in answers) - min(a[1] for a in answers))


def _job(slides: list[Path], encode: str, scratch: Path) -> float:
    """Run the job; return patches/s from the first chunk's start to the last commit, by the files' times."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    manifest = folder / "manifest.csv"
    manifest.write_text("slide_id,slide_path\n" + "".join(f"s{i},{slide}\n" for i, slide in enumerate(slides)))
    values = [f"cohort.manifest={manifest}", f"storage.root={folder / 'store'}", "tiling.patch_px=256"]
    values += ["tiling.mpp=0.25", f"tiling.encode={encode}"]
    command = [sys.executable, str(ROOT / "jobs/tile.py"), *values]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"RAY_DEDUP_LOGS": "0"}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    patches = json.loads(done.stdout.splitlines()[-1])["num_patches"]
    grids = [path.stat().st_mtime for path in folder.glob("store/patches/*/*/grid.arrow")]
    ends = [path.stat().st_mtime for path in folder.glob("store/patches/*/*/commit.json")]
    shutil.rmtree(folder)
    return patches / (max(ends) - min(grids))


def _disk(scratch: Path) -> float:
    """Return MB/s of writing and syncing files of 25 MB."""
    data, path = os.urandom(25_000_000), scratch / "disk.bin"
    started = time.perf_counter()
    for _ in range(20):
        with path.open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
    path.unlink()
    return 20 * 25 / (time.perf_counter() - started)


def giant(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Tile a sparse slide of 100,000 x 100,000 px by the job and watch its processes' memory."""
    slide = make_giant(scratch / "giant.tif")
    manifest = scratch / "giant.csv"
    manifest.write_text(f"slide_id,slide_path\ngiant,{slide}\n")
    store = Path(tempfile.mkdtemp(dir=scratch))
    values = [f"cohort.manifest={manifest}", f"storage.root={store}", "tiling.patch_px=256", "tiling.mpp=0.25"]
    values += ["tiling.encode=jpeg"]
    found = watch_memory([sys.executable, str(ROOT / "jobs/tile.py"), *values])
    shutil.rmtree(store)
    print(f"{slide.stat().st_size / 1e6:.0f} MB, {found['patches']} patches in {found['seconds']:.0f} s")
    print(f"largest tiling process: {found['peak_mb']:.0f} MB; patches written by each: {found['shards']}")
    return found


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "scale", "exact", "giant"])
    parser.add_argument("--slide", type=Path, help="a slide of your own")
    parser.add_argument("--native", action="store_true", help="tile --slide in its own pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--patches", type=int, default=10_000)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DISTMIL_DATA", ROOT / "../shared/data")))
    parser.add_argument("--scratch", type=Path, help="folder for slides and shards; a temporary one without it")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    print(f"{platform.machine()}, {_cpu()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        figures = {"speed": speed, "scale": scale, "exact": compare_pixels, "giant": giant}[options.what](
            options, scratch
        )
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1))


def _cpu() -> str:
    names = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
