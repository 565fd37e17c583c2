"""One slide scored in this process: no Ray, no store, and the same scores as the job `predict` gives.

Patches are cut, embedded and scored by the functions that the job's workers call, shard by shard, and pixels of one
shard are held at a time.
"""

import re
from functools import partial
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from distmil.api.engine import open_encoder
from distmil.bags.source import EmbeddingSource
from distmil.cohort import Slide
from distmil.encoders.embedder import embed_patches
from distmil.encoders.registry import Encoder
from distmil.errors import BundleError, ConfigError, MissingSlide, NoResolution, SlideError, UnreadableSlide
from distmil.inference.bundle import Bundle
from distmil.inference.predictor import reading_of
from distmil.inference.scoring import READ_OUTS, score_bag
from distmil.inference.shift import shift_doubts, size_doubts
from distmil.inference.slide_prediction import SlidePrediction
from distmil.inference.tables import patch_table, slide_row
from distmil.models.regions import Places
from distmil.slides.file_version import slide_in_folder
from distmil.tiling.plan import TilingPlan, open_reading, plan_tiling
from distmil.tiling.tiler import seen_images

_ID_LENGTH = 128


def predict_slide(
    bundle: Bundle,
    path: str | Path,
    *,
    mpp: float | None = None,
    slide_id: str | None = None,
    tissue_path: str | Path | None = None,
    slide_score: str = "bag",
    device: str | None = None,
    engine: str = "auto",
    precision: str = "auto",
) -> SlidePrediction:
    """Tile, embed and score one slide in this process, with the settings of the bundle.

    The encoder is computed by the engine that the job ``predict`` takes in the bundle's store, so that both give the
    same scores, number for number, on the same kind of machine. A bundle that lies in no store has none; its encoder is
    computed by torch in fp32, which gives nearly the same. Nothing is written.

    Args:
        bundle: The model, of ``distmil.load_bundle``; its network moves to the device.
        path: The slide: a file, or the folder of a DICOM or MIRAX slide.
        mpp: Um per level-0 pixel, over what the file states; needed where the file states none.
        slide_id: The slide's name in tables and maps; default: the file's name without its suffix.
        tissue_path: A mask or outlines of tissue to take in place of detected tissue.
        slide_score: The read-out that becomes ``probability``: ``bag``, ``max``, ``topk_mean`` or ``regions``.
        device: A torch device such as ``cpu`` or ``cuda``; default: the GPU where there is one.
        engine: As the key ``encoder.engine``: ``auto``, ``torch``, ``openvino`` or ``compile``. But for ``auto``, and
            for ``torch`` in fp32, it must have been chosen in the bundle's store, by a job with the same two keys.
        precision: As the key ``encoder.precision``: ``auto``, ``fp32``, ``bf16``, ``fp16`` or ``int8``.

    Raises:
        SlideError: If the slide cannot be used: it is missing, unreadable, too small, too coarse, without tissue or
            without resolution.
        BundleError: If the bundle's network does not take what its encoder gives.
        ConfigError: If an argument is out of range.
        EncoderError: If the engine was not chosen in the bundle's store, or is not installed.
    """
    if not isinstance(bundle, Bundle):
        raise ConfigError(f"bundle = {bundle!r:.100}: expected an opened bundle; see distmil.load_bundle")
    if slide_score not in READ_OUTS:
        raise ConfigError(f"slide_score = {slide_score!r}: expected {', '.join(READ_OUTS)}")
    bundle.check_gives(slide_score)
    bundle.check_reads_slides()
    slide = _slide(path, mpp=mpp, slide_id=slide_id, tissue_path=tissue_path)
    place, config = torch_device(device), bundle.config
    encoder, batch_size = open_encoder(bundle, engine=engine, precision=precision, device=str(place))
    found = _plan(slide, bundle)
    source = _embed(slide, found, bundle, encoder, batch_size=batch_size)
    _check_width(bundle, source)
    scores = score_bag(
        [head.to(place) for head in bundle.heads],
        source,
        lambda embedding_TE: torch.as_tensor(embedding_TE, device=place).float(),
        top_k=config.bags.top_k,
        top_k_share=config.bags.top_k_share,
        with_shift=True,
    )
    scores = scores.with_regions(Places.of(found.grid), bundle.evidence)
    if not scores.is_finite:
        raise SlideError(
            "the slide's scores are not finite numbers; its pixels are unlike any that the bundle has seen"
        )
    row = slide_row(
        scores,
        slide_id=slide.slide_id,
        label=None,
        classes=bundle.classes,
        slide_score=slide_score,
        threshold=bundle.slide_thresholds[slide_score],
    )
    table = patch_table(scores, found.grid, classes=bundle.classes, threshold=bundle.patch_threshold)
    reading = reading_of(bundle, row, slide_score=slide_score)
    return SlidePrediction(
        slide,
        row,
        table,
        reading,
        found.info["mpp"],
        (
            *found.info["doubts"],
            *shift_doubts(scores.shift, bundle.reach, num_patches=table.num_rows),
            *size_doubts(table.num_rows, bundle.usual_patches, slide_score=slide_score),
        ),
        (found.info["width_px"], found.info["height_px"]),
        found.info["bounds"] and tuple(found.info["bounds"]),
    )


def _slide(path: str | Path, *, mpp: float | None, slide_id: str | None, tissue_path: str | Path | None) -> Slide:
    """Check the arguments that name the slide. Raises: ConfigError, SlideError."""
    if mpp is not None and not 0 < mpp <= 1000:
        raise ConfigError(f"mpp = {mpp!r}: expected um per pixel, above 0 and at most 1000")
    if slide_id is not None and not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{_ID_LENGTH}}}", slide_id):
        raise ConfigError(f"slide_id = {slide_id!r}: expected letters, digits, . _ - ({_ID_LENGTH} at most)")
    file = Path(path).expanduser().absolute()
    if not file.exists():
        raise MissingSlide(f"there is no slide {str(path)!r}; give the path of a file, or of a DICOM or MIRAX folder")
    name = slide_id or re.sub(r"[^A-Za-z0-9._-]+", "-", file.name if file.is_dir() else file.stem)[:_ID_LENGTH]
    if file.is_dir():
        try:
            file = slide_in_folder(file)
        except (ValueError, OSError) as error:
            raise UnreadableSlide(f"the folder {str(path)!r} cannot be read as one slide: {error}") from error
    tissue = None if tissue_path is None else str(Path(tissue_path).expanduser().absolute())
    if tissue is not None and not Path(tissue).is_file():
        raise ConfigError(f"tissue_path = {str(tissue_path)!r}: there is no such file")
    return Slide(slide_id=name, path=str(file), mpp=mpp, tissue_path=tissue)


def torch_device(name: str | None) -> torch.device:
    """Choose the named device; None: the GPU where there is one. Raises: ConfigError if torch does not have it."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device = {name!r}: torch cannot use it here ({reason}); leave it out") from error
    return device


def _plan(slide: Slide, bundle: Bundle) -> TilingPlan:
    """Plan the slide. Raises: SlideError, whose text fits a call in place of a job where no resolution is known."""
    try:
        return plan_tiling(slide, bundle.config.tiling)
    except NoResolution as error:
        reason = str(error).partition("; set mpp")[0]
        raise NoResolution(f"{reason}; give mpp=, um per level-0 pixel") from error


def _embed(slide: Slide, found: TilingPlan, bundle: Bundle, encoder: Encoder, *, batch_size: int) -> EmbeddingSource:
    """Cut and embed every patch of a planned slide, in the shards of the job. Raises: SlideError."""
    tiling, size = bundle.config.tiling, (found.info["width_px"], found.info["height_px"])
    parts = []
    with (
        threadpool_limits(limits=1, user_api="blas"),  # the matrices are small: threads would wait for each other
        open_reading(slide, found.reading, reader=tiling.reader, size=size) as image,
    ):
        decode = partial(seen_images, image=image, reading=found.reading, config=tiling)
        for start in range(0, found.grid.num_rows, tiling.chunk_patches):
            grid = found.grid.slice(start, tiling.chunk_patches)
            parts.append(embed_patches(grid, encoder, batch_size=batch_size, decode=decode))
    return EmbeddingSource(parts)


def _check_width(bundle: Bundle, source: EmbeddingSource) -> None:
    width, given = bundle.embedding_dim, source.parts[0].shape[1]
    if width != given:
        raise BundleError(
            f"the bundle takes embeddings of width {width}, its encoder {bundle.config.encoder.name} gives {given}; "
            "train the run again"
        )
