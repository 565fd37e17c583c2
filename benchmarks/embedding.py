"""How fast one core embeds: engines against plain torch in fp32, and whole shards against the engine alone.

    python -m benchmarks.embedding speed efficientnet_lite0
    python -m benchmarks.embedding speed resnet50
    python -m benchmarks.embedding shards efficientnet_lite0
    python -m benchmarks.embedding texture

Patches of 96 px out of ``pcam_cohort`` (a folder under $DISTMIL_DATA), enlarged to 224 px; shards hold its patches of
224 px, some hundreds a slide. Rates are images per second of CPU time on one thread: neighbours matter little there.
Engines take turns, and a ratio is that of one turn: the median is given with the least and the most. Where there is a
GPU, ``speed`` measures on it, by the clock.
"""

import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from distmil.cohort import Slide
from distmil.config.loading import build_config
from distmil.encoders.embedder import SlideEmbedder, decode_patches
from distmil.encoders.engines import (
    StoredEngine,
    build_engine,
    load_engine,
    sample_patches,
    sampled_shards,
    select_engine,
)
from distmil.encoders.engines.parts import networks_of
from distmil.encoders.registry import EncoderSpec, load_encoder, prepare_encoder
from distmil.encoders.texture import texture
from distmil.storage.store import Store
from distmil.tiling.shards import patches_folder, read_patches
from tests.support.tiles import tile_slide

ROUNDS = 5
NUM_PATCHES = 144
EDGE_PX = 224
NUM_SLIDES = 6


def main(what: str, name: str = "texture") -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(f"machine: {machine()}; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        if what == "speed":
            measure_engines(store, name)
        elif what == "shards":
            measure_shards(store, name)
        else:
            measure_texture()


def machine() -> str:
    """Name the processor with the instructions that matter here, and the GPU."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line), "unknown")
    has = [flag for flag in ("avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if f" {flag} " in f"{info} "]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {model}, {os.cpu_count()} cores ({', '.join(has)}){gpu}"


def slides() -> list[Path]:
    """Return the slides of the cohort's train split."""
    return sorted((Path(os.environ["DISTMIL_DATA"]) / "pcam_cohort/slides").glob("train_*.tif"))


def enlarged_patches(count: int) -> NDArray[np.uint8]:
    """Cut patches of 96 px from many slides and enlarge them, N x H x W x 3."""
    generator, found = np.random.default_rng(0), []
    for path in slides()[:NUM_SLIDES]:
        pixels = cv2.cvtColor(np.asarray(cv2.imread(str(path))), cv2.COLOR_BGR2RGB)
        height, width = (edge // 96 for edge in pixels.shape[:2])
        for _ in range(-(-count // NUM_SLIDES)):
            y, x = generator.integers(height) * 96, generator.integers(width) * 96
            found.append(cv2.resize(pixels[y : y + 96, x : x + 96], (EDGE_PX, EDGE_PX), interpolation=cv2.INTER_CUBIC))
    return np.stack(found)[:count]


def prepared(name: str, store: Store, **more: Any) -> tuple[Any, EncoderSpec]:
    """Return the configuration and the encoder; a ResNet has random weights, for its own need a download."""
    weights = {"weights": "random"} if name.startswith("resnet") else {}
    tiling = {"strategy": "crop", "patch_px": EDGE_PX, "stride_px": EDGE_PX // 4, "mpp": None}
    config = build_config({"tiling": tiling, "encoder": {"name": name, **weights, **more}})
    return config, prepare_encoder(config.encoder, store)


def measure_engines(store: Store, name: str) -> None:
    """Select an engine as a job does, then time every one that passed beside plain torch and texture."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images_NHWC = enlarged_patches(NUM_PATCHES)
    _, spec = prepared(name, store)
    [network] = networks_of(load_encoder(spec, store, device=device))
    started = time.perf_counter()
    made = select_engine(network, images_NHWC, device=device)
    print(f"{name}: {made.choice.words} chosen in {time.perf_counter() - started:.0f} s")
    work = {"plain torch fp32": lambda: network.embed(images_NHWC[:16])}  # type: ignore[operator]
    for trial in made.trials:
        words = f"{trial.choice.words}: {trial.agreement and trial.agreement.words}"
        if trial.refusal:
            print(f"  refused: {words if trial.agreement else trial.refusal}")
            continue
        size = made.choice.batch_size if trial.choice.engine == made.choice.engine else 16
        model = made.model if trial.choice.model_digest else None
        engine = build_engine(network, trial.choice, patch_px=EDGE_PX, device=device, model=model)
        work[words] = (
            lambda engine=engine, size=size: [  # type: ignore[misc]
                engine.embed(images_NHWC[at : at + size]) for at in range(0, 16, size)
            ]
        )
    work["texture"] = lambda: texture(images_NHWC[:16])
    report(in_turns(work, clock=time.process_time if device == "cpu" else time.perf_counter), 16, "plain torch fp32")


def in_turns(work: Mapping[str, Callable[[], object]], *, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Return the seconds of each piece of work in each round, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(ROUNDS + 1):
        for name, do in work.items():
            started = clock()
            do()
            if number:
                seconds[name].append(clock() - started)
    return seconds


def report(seconds: Mapping[str, Sequence[float]], count: int, base: str) -> None:
    """Print each rate, and its ratio to the base in the same round."""
    for name, taken in seconds.items():
        ratios = [plain / own for plain, own in zip(seconds[base], taken, strict=True)]
        rate = count / statistics.median(taken)
        spread = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {rate:7.1f} images/s  {spread}  {name}")
    print(f"  largest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def measure_shards(store: Store, name: str) -> None:
    """Embed whole slides, decoding and writing included, beside the bare engine on the same decoded patches."""
    config, spec = prepared(name, store)
    records = [tile_slide(Slide(path.stem, str(path)), config.tiling, store) for path in slides()[:2]]
    if spec.weights_file is not None:
        choices = StoredEngine(spec, config, store).choose(
            sample_patches(store, config, sampled_shards(records)), device="cpu"
        )
        spec = replace(spec, engines=choices)
        print(f"{name}: {'; '.join(choice.words for choice in choices)}")
    encoder = load_engine(spec, store, patch_px=EDGE_PX, device="cpu")
    embedders = [SlideEmbedder(record, config, spec, store) for record in records]
    size, folder = embedders[0].batch_size, patches_folder(config.tiling)
    images_NHWC = np.concatenate([
        decode_patches(read_patches(store, f"{folder}/{record.name}/{part.name}"))
        for record in records for part in record.parts
    ])  # fmt: skip

    def bare() -> None:
        for at in range(0, len(images_NHWC), size):
            encoder.embed(images_NHWC[at : at + size])

    def shards() -> None:
        for embedder in embedders:
            for file in store.names(embedder.folder):
                store.delete(f"{embedder.folder}/{file}")
            embedder.commit([embedder.write_shard(part, encoder) for part in embedder.patches.parts])

    report(in_turns({"engine alone": bare, "shards, committed": shards}, clock=time.process_time),
           len(images_NHWC), "engine alone")  # fmt: skip


def measure_texture() -> None:
    """Time the texture encoder on both sizes."""
    large = enlarged_patches(NUM_PATCHES)
    small = np.stack([cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA) for image in large])
    for edge_px, images in ((EDGE_PX, large), (96, small)):
        taken = in_turns({"texture": lambda images=images: texture(images)}, clock=time.process_time)  # type: ignore[misc]
        print(
            json.dumps({"edge_px": edge_px, "images_per_s": round(len(images) / statistics.median(taken["texture"]))})
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
