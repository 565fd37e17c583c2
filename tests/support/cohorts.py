"""A cohort of small slides as files: large and small ones, and one that cannot be read."""

import csv
from pathlib import Path

from tests.support.jpeg_tiff import save_jpeg_tiff
from tests.support.slides import tissue_image

SIZES = {"large": (700, 420), "wide": (1100, 300), "small": (90, 70), "tall": (130, 350)}


def save_cohort(folder: Path, sizes: dict[str, tuple[int, int]] = SIZES, *, has_broken: bool = True) -> Path:
    """Save slides of JPEG tiles at 0.5 um per pixel and their manifest, half of them positive."""
    rows = []
    if has_broken:
        (folder / "broken.svs").write_bytes(b"no slide at all")
        rows.append({"slide_id": "broken", "slide_path": "broken.svs", "label": "negative"})
    for seed, (slide_id, size) in enumerate(sizes.items()):
        save_jpeg_tiff(folder / f"{slide_id}.tif", tissue_image(size, seed=seed), mpp=0.5)
        label = "positive" if seed % 2 else "negative"
        rows.append({"slide_id": slide_id, "slide_path": f"{slide_id}.tif", "label": label})
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return manifest
