"""The typed configuration from slides to embeddings: cohort, storage, tiles, encoder."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from distmil.config.section import NO_IDENTITY, PER_JOB, Fraction, Section
from distmil.encoders.catalog.names import FOLDER, check_name
from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.catalog.rows import ROWS

_FOR_ALL = ("auto", "DEFAULT", "random")
"""Weights that every encoder has."""
DEFAULT_BATCH = 64
"""Patches per forward pass where nothing was measured."""


class CohortConfig(Section):
    """Which slides, and what their labels mean."""

    manifest: str | None = None
    """CSV or Parquet file of the slides, absolute or relative to the current folder. `tile`, `embed` and `predict` take
    a folder of slides or one slide too, with the names of the files as ids."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """distmil's column -> the manifest's own name for it, such as `{patient_id: "Patient ID"}`; null: the manifest has
    no such column, whatever looks like it."""
    synthetic: int = Field(default=0, ge=0, le=10_000)
    """Number of synthetic slides to make under the storage root if no manifest is given; 0: none."""
    classes: list[str] = Field(default_factory=lambda: ["negative", "positive"], min_length=2, max_length=100)
    """Class names in index order; the first is normal."""
    class_names: dict[str, str] = Field(default_factory=dict)
    """Label as the manifest has it -> class, such as `{tumor: positive, 0: negative}`."""
    val_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of patients drawn into `val` where the manifest has no split column."""
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of patients drawn into `test` where the manifest has no split column."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of that draw. It does not follow training.seed, so that repeats compare on the same slides."""

    @field_validator("class_names", mode="before")
    @classmethod
    def _names_as_text(cls, names: Any) -> Any:
        """Take numbers as the text that they are in a manifest. Raises: ValueError for YAML's truth values."""
        if not isinstance(names, dict):
            return names
        if odd := [name for name in names if isinstance(name, bool)]:
            raise ValueError(
                f"cohort.class_names: YAML reads yes, no, on, off, true and false as {odd[0]}; write the label in "
                "quotes, as the manifest has it"
            )
        return {str(name) if isinstance(name, int | float) else name: value for name, value in names.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.classes)) != len(self.classes) or not all(name.strip() for name in self.classes):
            raise ValueError(f"cohort.classes = {self.classes!r}: expected names that are distinct and not empty")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"cohort.val_fraction = {self.val_fraction} and cohort.test_fraction = {self.test_fraction}: "
                "expected a sum below 1"
            )
        return self


class StorageConfig(Section):
    """The storage root."""

    root: str | None = None
    """Absolute local or shared folder, or s3:// or gs:// URI; default $DISTMIL_HOME, else ~/.distmil."""
    access: Literal["private", "group"] = Field(default="private", json_schema_extra=NO_IDENTITY)
    """Who may read a new root: this user alone, or the root's group too. An existing root keeps its access: it is
    shared if its group may write it."""


class TilingConfig(Section):
    """How a slide becomes patches."""

    strategy: Literal["foreground", "crop", "pad", "features"] = "foreground"
    """foreground: where tissue is; crop: every whole patch inside the image; pad: all of it, edges filled blank.
    features stands for the grid of `features.folder`, and is set by it."""
    patch_px: int = Field(default=224, ge=8, le=4096)
    """Patch edge in pixels of the stored image."""
    stride_px: int | None = Field(default=None, ge=1, le=65_536)
    """Distance between patches in pixels of the stored image; default: patch_px, no overlap."""
    mpp: float | None = Field(default=0.5, gt=0, le=1000)
    """Wanted resolution in um per pixel; null works in the file's own pixels (plain images)."""
    mpp_tolerance: float = Field(default=0.02, ge=0, le=0.5)
    """Relative difference up to which a level's resolution counts as the wanted one and is not resampled."""
    default_mpp: float | None = Field(default=None, gt=0, le=1000, json_schema_extra=PER_JOB)
    """Resolution in um per pixel of slides whose file states none; null refuses them with `no_mpp`."""
    min_tissue: Fraction = 0.1
    """Smallest share of tissue a patch needs under `foreground`; 0 keeps the whole rectangle."""
    snap: bool = False
    """Widen the rectangle of `foreground` to whole tiles of the file."""
    encode: Literal["jpeg", "png", "reuse"] = "reuse"
    """Encoding of the stored patches; reuse: the file's own JPEG tile where a patch is exactly one, else jpeg."""
    jpeg_quality: int = Field(default=90, ge=50, le=100)
    """JPEG quality, 4:4:4 chroma from 95 on, else 4:2:0."""
    reduce: Literal["area", "dct"] = "area"
    """Two- and four-fold reduction by averaging, or faster and a little softer by libjpeg's scaling."""
    reader: Literal["auto", "openslide"] = Field(default="auto", json_schema_extra=PER_JOB)
    """auto: JPEG tiles directly, else OpenSlide where it knows the format, else a plain image; openslide: only that."""
    store: Literal["image", "coords"] = "image"
    """What a patch shard holds. image: the encoded patches; coords: their places and a checksum of each one's pixels,
    which `embed` reads from the slide again, as they are before any encoding. That takes a thousandth of the disk; the
    slides must stay where they are."""
    chunk_patches: int = Field(default=1024, ge=16, le=65_536)
    """Patches per shard, the unit of work."""
    chunk_timeout_s: int = Field(default=600, ge=1, le=86_400, json_schema_extra=PER_JOB)
    """Seconds after which an unfinished chunk is given up, and with it the slide for this run."""
    stream: Literal["auto"] | bool = Field(default="auto", json_schema_extra=PER_JOB)
    """In jobs that embed: embed a slide as soon as it is tiled, while others are tiled. auto: where embedding has GPUs;
    without one both need the same cores, and one after the other takes half the memory. The files are the same."""
    checksum: Literal["none", "fast", "full"] = Field(default="none", json_schema_extra=PER_JOB)
    """Checksum of each slide's file, beside its size and time: none; fast: of samples; full: SHA-256 of the whole."""
    verify: Literal["repair"] | bool = Field(default=False, json_schema_extra=PER_JOB)
    """In `tile`: check every committed shard again; true reports damage, repair tiles damaged slides again."""
    max_bad_fraction: Fraction = Field(default=0.1, json_schema_extra=PER_JOB)
    """Share of slides that may end in another status than `ok` before the job fails."""

    @property
    def stride(self) -> int:
        """Return the stride in pixels of the stored image."""
        return self.stride_px or self.patch_px

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the patches; ``image`` was the only way to store them before it had a name."""
        values = super().identity()
        return values if self.store != "image" else {name: values[name] for name in values if name != "store"}


class EncoderConfig(Section):
    """What turns a patch into an embedding."""

    name: str = Field(
        default="texture+efficientnet_lite0", min_length=1, max_length=1000, json_schema_extra={"words": list(ROWS)}
    )
    """A name that `distmil encoders` lists, such as `uni2-h`; `timm:MODEL` for any network of timm; `hf-hub:OWNER/NAME`
    or `local-dir:/path` for a repository or folder in timm's format; several side by side as `texture+uni2-h`."""
    weights: str = "auto"
    """auto: the encoder's published ones; a folder with the files of its repository; a local .safetensors or state-dict
    file; for a ResNet torchvision's name of weights (DEFAULT, IMAGENET1K_V1, ...); or `random`, for tests only. Side by
    side they are those of each encoder that has weights, in order, as in `auto+/folder`; of one alone just its own."""
    allow_remote_code: bool = Field(default=False, json_schema_extra=PER_JOB)
    """Run the code that the repository of an encoder brings; `distmil encoders` says which ones need it."""
    trainable: bool | Literal["last", "lora"] = False
    """Train the encoder too, on the patches themselves; needs one encoder with weights. false or none: no; true or all:
    all of it; last: its last blocks; lora: low-rank additions to its linear layers, for vision transformers."""
    trained_blocks: int = Field(default=1, ge=1, le=1000)
    """Blocks that are trained under `encoder.trainable=last`; what follows them is trained too."""
    lora_rank: int = Field(default=8, ge=1, le=1024)
    """Rank of the additions under `encoder.trainable=lora`."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of a layer of a trainable encoder as a share of the rate of the layer behind it."""
    checkpointing: bool = Field(default=False, json_schema_extra=NO_IDENTITY)
    """Keep less of a trainable encoder for the gradient, and compute it again: less memory, a third more time."""
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)] = Field(
        default="auto", json_schema_extra=PER_JOB
    )
    """Patches per forward pass; with `encoder.trainable`, of a training step too. auto: measured with the engine, and
    64 where there is none."""
    views: int = Field(default=0, ge=0, le=32)
    """Number of copies of each training patch with randomly shifted H&E stains, embedded beside it; 0: none. In a step,
    each slide shows one of these copies or the patches themselves, so that the network learns to ignore stain. For a
    trainable encoder the copies are made when they are needed, and are turned and mirrored at random too."""
    stain_shift: float = Field(default=0.15, gt=0, le=1)
    """Standard deviation of these shifts, in the logarithm of a stain's strength."""
    engine: Literal["auto", "torch", "openvino", "compile"] = Field(default="auto", json_schema_extra=PER_JOB)
    """What computes the encoder's network: torch; openvino, on a CPU, of `distmil[openvino]`; compile: torch.compile;
    auto: the fastest that gives the same embeddings on patches of the cohort (cosine of at least 0.999 to fp32)."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(default="auto", json_schema_extra=PER_JOB)
    """Precision of the engine; int8: quantised for OpenVINO on patches of the cohort; auto: the fastest that gives the
    same embeddings."""

    @property
    def patches_per_pass(self) -> int:
        """Return the patches per forward pass where no engine was measured."""
        return DEFAULT_BATCH if self.batch_size == "auto" else self.batch_size

    @property
    def rows(self) -> list[EncoderRow]:
        """Return the catalog's row of each encoder, in order."""
        return check_name(self.name)

    @property
    def has_weights(self) -> bool:
        """Return whether any of the encoders has weights."""
        return any(row.has_weights for row in self.rows)

    @property
    def each_weights(self) -> dict[str, str]:
        """Return where the weights of each encoder that has some come from, by its name."""
        names = [row.name for row in self.rows if row.has_weights]
        if len(names) < 2 or self.weights in _FOR_ALL:
            return dict.fromkeys(names, self.weights)
        return dict(zip(names, self.weights.split("+"), strict=True))

    @property
    def part_with_weights(self) -> EncoderRow:
        """Return the one encoder that has weights. Raises: ValueError if there is none, or several have."""
        (row,) = (row for row in self.rows if row.has_weights)
        return row

    def only(self, row: EncoderRow) -> "EncoderConfig":
        """Take one encoder out of those side by side, with its weights."""
        return self.model_copy(update={"name": row.name, "weights": self.each_weights.get(row.name, "auto")})

    @property
    def weights_name(self) -> str:
        """Return the name of the weights without their folder, which would name the machine."""
        if not self.has_weights:
            return "none"
        places = [place.partition("?")[0] if "://" in place else place for place in self.each_weights.values()]
        names = ["DEFAULT" if place == "auto" else Path(place).name for place in places]
        return names[0] if set(names) <= {names[0]} & {*_FOR_ALL} else "+".join(names)

    @field_validator("trainable", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        """Take the words for no and yes; files keep false and true, as earlier versions wrote them."""
        return {"none": False, "all": True}.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _folder_as_weights(cls, values: Any) -> Any:
        """Take the path of ``local-dir:/path`` as the weights, so that the name of the encoder tells no folder."""
        name = values.get("name") if isinstance(values, dict) else None
        if not isinstance(name, str) or not name.startswith(FOLDER) or "/" not in name:
            return values
        path = Path(name.removeprefix(FOLDER)).expanduser()
        if values.get("weights", "auto") not in {"auto", str(path)}:
            raise ValueError(
                f"encoder.weights = {values['weights']!r}: {FOLDER} names the weights already; leave it out"
            )
        return {**values, "name": f"{FOLDER}{path.name}", "weights": str(path)}

    @model_validator(mode="after")
    def _check(self) -> Self:
        rows = self.rows
        if not self.has_weights and self.weights not in {"auto", "none"}:
            raise ValueError(f"encoder.weights = {self.weights!r}: the texture encoder has no weights; leave it out")
        if self.has_weights and self.weights == "none":
            raise ValueError(
                f"encoder.weights = 'none': {self.name} is of no use without weights; expected auto, a name such as "
                "DEFAULT or IMAGENET1K_V1, a file ending in .safetensors, .pt or .pth, a folder, or random"
            )
        if self.precision == "int8" and self.engine not in {"auto", "openvino"}:
            raise ValueError(
                f"encoder.precision = 'int8': encoder.engine = {self.engine!r} does not quantise; use openvino or auto"
            )
        with_weights, places = [row.name for row in rows if row.has_weights], self.weights.split("+")
        if len(with_weights) > 1 and self.weights not in _FOR_ALL and len(places) != len(with_weights):
            raise ValueError(
                f"encoder.weights = {self.weights!r}: expected auto, or the weights of {', '.join(with_weights)} in "
                f"this order, such as {'+'.join(['auto'] * (len(with_weights) - 1))}+/path/of/a/folder"
            )
        if self.trainable and not self.has_weights:
            raise ValueError(
                "encoder.trainable: the texture encoder has nothing to train; choose efficientnet_lite0 or resnet18"
            )
        if self.trainable and len(rows) > 1:
            raise ValueError(
                f"encoder.trainable: one encoder can be trained, not {self.name} side by side; choose one with "
                "weights, such as efficientnet_lite0"
            )
        return self
