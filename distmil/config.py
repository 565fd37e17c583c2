"""The typed configuration: every key with its unit, bounds and meaning, and nothing else.

``distmil.configfile`` reads it from YAML and overrides and explains what is wrong with them.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1000)]

# Marks for fields: NO_IDENTITY does not change what a stage makes; PER_JOB may differ from the bundle's at prediction.
NO_IDENTITY: JsonDict = {"identity": False}
PER_JOB: JsonDict = {"identity": False, "per_job": True}


class Section(BaseModel):
    """One section of the configuration: strict, frozen, without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide what this section's stage makes."""
        fields = type(self).model_fields
        return {
            name: getattr(self, name) for name, field in fields.items() if has_mark(field, "identity", default=True)
        }


class CohortConfig(Section):
    """Which slides, and what their labels mean."""

    manifest: str | None = None
    """CSV or Parquet file of the slides, absolute or relative to the current folder."""
    synthetic: int = Field(default=0, ge=0, le=10_000)
    """Number of synthetic slides to make under the storage root where no manifest is given; 0 = none."""
    classes: list[str] = Field(default_factory=lambda: ["negative", "positive"], min_length=2, max_length=100)
    """Class names in index order; the first is normal."""
    val_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of patients drawn into `val` where the manifest has no split column."""
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of patients drawn into `test` where the manifest has no split column."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of that draw; it does not follow training.seed, so that repeats compare on the same slides."""

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
    """Where everything is kept."""

    root: str | None = None
    """Absolute local or shared folder, or s3:// or gs:// URI; default $DISTMIL_HOME, else ~/.distmil."""


class TilingConfig(Section):
    """How a slide becomes patches."""

    strategy: Literal["foreground", "crop", "pad"] = "foreground"
    """foreground: where tissue is; crop: every whole patch inside the image; pad: all of it, edges filled blank."""
    patch_px: int = Field(default=224, ge=8, le=4096)
    """Patch edge in pixels of the stored image."""
    stride_px: int | None = Field(default=None, ge=1, le=65_536)
    """Distance between patches in pixels of the stored image; default: patch_px, no overlap."""
    mpp: float | None = Field(default=0.5, gt=0, le=1000)
    """Wanted resolution in um per pixel; null works in the file's own pixels (plain images)."""
    mpp_tolerance: float = Field(default=0.02, ge=0, le=0.5)
    """Relative difference up to which a level's resolution counts as the wanted one and is not resampled."""
    default_mpp: float | None = Field(default=None, gt=0, le=1000, json_schema_extra=PER_JOB)
    """Resolution in um per pixel to take for slides that state none; null refuses them with `no_mpp`."""
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
    chunk_patches: int = Field(default=1024, ge=16, le=65_536)
    """Patches per shard, the unit of work."""
    chunk_timeout_s: int = Field(default=600, ge=1, le=86_400, json_schema_extra=PER_JOB)
    """Seconds after which a chunk that is not done is given up, and its slide for this run."""
    checksum: Literal["none", "fast", "full"] = Field(default="none", json_schema_extra=PER_JOB)
    """Of each slide's file, beside size and time: none, samples all over it (fast), or SHA-256 of all of it (full)."""
    verify: Literal["repair"] | bool = Field(default=False, json_schema_extra=PER_JOB)
    """In `tile`: check every committed shard again; true reports damage, repair makes damaged slides anew."""
    max_bad_fraction: Fraction = Field(default=0.9, json_schema_extra=PER_JOB)
    """Share of slides that may end in another status than `ok` before the job fails."""

    @property
    def stride(self) -> int:
        """Return the stride in pixels of the stored image."""
        return self.stride_px or self.patch_px


class LabelsConfig(Section):
    """How an annotation becomes patch labels."""

    positive_at: Fraction = 0.0
    """Covered share from which a patch is positive; 0 = any overlap."""
    negative_below: float | None = Field(default=None, gt=0, le=1)
    """Covered share below which a patch is negative, unknown between the two; default: positive_at."""
    form: Literal["class", "fraction"] = Field(default="class", json_schema_extra=NO_IDENTITY)
    """Train on the class, or on the covered share as a soft target."""
    groups: dict[str, str] = Field(default_factory=dict)
    """Annotation group name -> class name, or `exclude` for carve-outs; lies over the built-in names."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.negative_below is not None and self.negative_below > self.positive_at:
            raise ValueError(
                f"labels.negative_below = {self.negative_below}: expected at most labels.positive_at, "
                f"which is {self.positive_at}"
            )
        return self


class EncoderConfig(Section):
    """What turns a patch into an embedding."""

    name: Literal["texture", "resnet18", "resnet50"] = "texture"
    """texture: built-in colour and texture statistics, no weights; resnet18, resnet50: torchvision's."""
    weights: str = "none"
    """A torchvision weights name (DEFAULT, IMAGENET1K_V1, ...), a local .safetensors or state-dict file, or none."""
    trainable: bool = False
    """Adjust the encoder too, from the patches themselves; needs a ResNet."""
    batch_size: int = Field(default=64, ge=1, le=65_536, json_schema_extra=PER_JOB)
    """Patches per forward pass."""
    views: int = Field(default=0, ge=0, le=32)
    """Copies of each training patch with its H&E stains shifted at random, embedded beside it. A step sees one of them,
    or the patch itself, slide by slide, so that another laboratory's stains are nothing new; 0: none."""
    stain_shift: float = Field(default=0.15, gt=0, le=1)
    """Standard deviation of those shifts, as the logarithm of a stain's strength."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trainable and self.views:
            raise ValueError(f"encoder.views = {self.views}: a trainable encoder has no stored embeddings; use 0")
        if self.name == "texture" and self.weights != "none":
            raise ValueError(f"encoder.weights = {self.weights!r}: the texture encoder has no weights; use none")
        if self.name == "texture" and self.trainable:
            raise ValueError("encoder.trainable: the texture encoder has nothing to train; choose resnet18 or resnet50")
        return self


class BagsConfig(Section):
    """What one training step sees. Sizes are of the step as a whole, over all workers."""

    mixed: Literal["per_class", "per_slide", "pooled"] = "per_class"
    """How mixed bags are drawn: positives and negatives apart, some of every slide in play, or from all at once."""
    n: int = Field(default=128, ge=2, le=1_000_000)
    """Patches in a mixed bag under `per_slide` and `pooled`."""
    k_positive: int = Field(default=32, ge=1, le=1_000_000)
    """Positive patches in a mixed bag under `per_class`, shared among the positive classes."""
    k_negative: int = Field(default=96, ge=1, le=1_000_000)
    """Negative patches in a mixed bag under `per_class`."""
    top_k: int = Field(default=8, ge=1, le=1_000_000)
    """Patches of highest attention that take the slide's label; at most a tenth of the bag, at least one."""
    mixed_bag_loss: bool = False
    """Put the bag loss on the mixed bag as well."""
    slides_per_step: int = Field(default=4, ge=1, le=65_536)
    """Most slide bags in a step."""
    patches_per_step: int = Field(default=32_768, ge=16, le=100_000_000)
    """Most slide-bag patches that pass through the network at once; a larger bag is trained on in chunks, exactly."""
    sample: int = Field(default=0, ge=0, le=100_000_000)
    """Patches drawn anew in every epoch from a bag that has more; 0: every bag whole. Evaluation never samples."""
    oversample: float = Field(default=1.0, ge=1, le=100)
    """How often annotated slides come in the first epoch; falls to once in the last."""
    paired: bool = False
    """Take positive and negative slides in turn, repeating those of the smaller class; a slide larger than
    patches_per_step is a step of its own all the same."""


class ModelConfig(Section):
    """The network."""

    name: Literal["dual", "attention", "gated_attention", "max", "mean", "instance", "patches"] = "dual"
    """dual: sigmoid attention pooling with two classifiers. The others are baselines of one loss each: softmax
    attention (plain or gated), max and mean pooling, a classifier of patches that all take the slide's label, and one
    of labelled patches alone."""
    feature_dim: int = Field(default=512, ge=1, le=65_536)
    """Width F of the patch feature."""
    attention_dim: int = Field(default=256, ge=1, le=65_536)
    """Width of the gated attention."""
    dropout: float = Field(default=0.25, ge=0, lt=1)
    """Dropout on the patch feature."""
    input_dropout: float = Field(default=0.25, ge=0, lt=1)
    """Dropout on the normalised embedding: whole dimensions, the same for all patches of a step."""
    patch_feature: Literal["plain", "attended"] = "plain"
    """What C1 judges of a single patch: f, or sigmoid(a) f."""
    topk_feature: Literal["plain", "attended"] = "plain"
    """What C2 judges of a top-K patch: f, or sigmoid(a) f."""
    topk_detach: bool = False
    """Keep the top-K loss from training the attention block."""


class LossesConfig(Section):
    """Weights of the four losses; 0 leaves one out."""

    patch: Weight = 1.0
    """L1: cross entropy of C1 on labelled patches."""
    bag: Weight = 1.0
    """L2: cross entropy of C1 on the pooled slide bag."""
    topk: Weight = 1.0
    """L3: cross entropy of C2 on the top-K patches under the slide's label."""
    attention: Weight = 1.0
    """L4: binary cross entropy of attention times probability on labelled patches."""
    ramp: dict[Literal["patch", "bag", "topk", "attention"], Annotated[int, Field(ge=0, le=100_000)]] = Field(
        default_factory=dict
    )
    """Epochs in which a loss's weight grows from 0 to its full value, by loss."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: slide losses count each class alike, whatever its number of training slides."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any((self.patch, self.bag, self.topk, self.attention)):
            raise ValueError("losses: at least one weight must be above 0")
        return self


class TrainingConfig(Section):
    """How the network is trained."""

    run: str | None = Field(default=None, pattern=NAME_PATTERN, json_schema_extra=NO_IDENTITY)
    """Name of the run; the same name goes on where it stopped. Default: made from the configuration and the cohort."""
    epochs: int = Field(default=40, ge=1, le=100_000)
    """Passes over the training slides."""
    lr: float = Field(default=1e-3, gt=0, le=10)
    """Peak learning rate of AdamW."""
    encoder_lr: float = Field(default=1e-5, gt=0, le=10)
    """Peak learning rate of a trainable encoder."""
    weight_decay: float = Field(default=1e-2, ge=0, le=10)
    """Weight decay of AdamW."""
    warmup_steps: int = Field(default=20, ge=0, le=1_000_000)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up: fall to 0 along a cosine over all epochs, or stay."""
    clip_norm: float = Field(default=5.0, gt=0, le=1e6)
    """Largest gradient norm."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of initialisation, order, draws and dropout."""
    num_workers: int = Field(default=1, ge=1, le=10_000, json_schema_extra=NO_IDENTITY)
    """Workers of the training group; the result does not depend on it but for dropout and rounding."""
    use_gpu: Literal["auto"] | bool = Field(default="auto", json_schema_extra=NO_IDENTITY)
    """One GPU per worker; auto takes them where the cluster has or can start enough."""
    start_timeout_s: int = Field(default=900, ge=1, le=86_400, json_schema_extra=NO_IDENTITY)
    """Seconds to wait for an autoscaling cluster's workers to start."""
    min_workers: int | None = Field(default=None, ge=1, le=10_000, json_schema_extra=NO_IDENTITY)
    """Go on with as few workers as this when nodes are gone, and grow back to num_workers; null: always num_workers."""
    precision: Literal["fp32", "bf16", "auto"] = Field(default="auto", json_schema_extra=NO_IDENTITY)
    """Precision of the wide products; auto: bf16 on GPUs that have it. Attention scores and losses are always fp32."""
    resident: Literal["auto"] | bool = Field(default="auto", json_schema_extra=NO_IDENTITY)
    """Keep all training embeddings in the GPU's memory; auto: where they fill at most half of what is free."""
    cuda_graphs: bool = Field(default=True, json_schema_extra=NO_IDENTITY)
    """Replay a step's kernels in one launch on a GPU; false: launch each, several times as slowly, to look into one."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay a step of the moving average of weights that is evaluated and kept; 0: the weights themselves."""
    max_failures: int = Field(default=3, ge=0, le=1000, json_schema_extra=NO_IDENTITY)
    """Worker failures after which training gives up; each restart goes on from the last checkpoint. Nodes that are
    taken away by announcement do not count; failures while a group starts count apart."""
    select_by: Literal["patch_ap_probability", "slide_auc", "slide_ap", "loss"] = "slide_auc"
    """Validation metric that early stopping and the choice of the epoch go by; `loss` where it is not known."""
    patience: int = Field(default=0, ge=0, le=100_000)
    """Epochs without a better metric before training stops; 0 never stops early and keeps the last epoch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"training.min_workers = {self.min_workers}: expected at most training.num_workers, "
                f"which is {self.num_workers}"
            )
        return self


def _default_space() -> dict[str, Any]:
    return {
        "bags.top_k": {"choice": [1, 2, 4, 8, 16, 32]},
        **{f"losses.{name}": {"loguniform": [0.1, 10.0]} for name in ("patch", "bag", "topk", "attention")},
    }


class SearchConfig(Section):
    """What `tune` searches, and how it makes sure of the result."""

    run: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the search; the same name goes on where it stopped. Default: made from the configuration and cohort."""
    space: dict[str, Any] = Field(default_factory=_default_space)
    """What is searched, by dotted key of bags, model, losses or training: {choice: [...]} or [...], {uniform: [a, b]},
    {loguniform: [a, b]}, or {int: [a, b]} with both ends."""
    trials: int = Field(default=24, ge=1, le=100_000)
    """Trials, the first of which has the default values; a finished search goes on with more. A space with fewer
    settings is gone through whole, and so is a grid."""
    algorithm: Literal["random", "optuna", "grid"] = "random"
    """How trials are drawn: at random, by Optuna's TPE (the extra `optuna`), or every combination of choices."""
    metric: Literal["patch_ap_probability", "slide_auc", "slide_ap", "loss"] = "patch_ap_probability"
    """What trials are compared by, on slides that they do not train on; slide_auc where no patch label is positive."""
    stopping: Literal["asha", "none"] = "asha"
    """asha: end trials early that are behind at the same epoch; none: train all to the end."""
    grace_epochs: int = Field(default=5, ge=1, le=100_000)
    """Epochs before a trial may be ended early."""
    reduction: float = Field(default=3.0, gt=1, le=100)
    """At each of ASHA's rungs the best of so many go on."""
    folds: int = Field(default=0, ge=0, le=100)
    """Folds of train, by patient and class, that every trial of one worker is trained and judged on, so that val stays
    unseen; 0: trials are judged on val."""
    repeats: int = Field(default=5, ge=0, le=1000)
    """Seeds with which the best and the default values are trained again at the end and compared; 0: not at all."""
    ablations: bool = True
    """Train the best values without each of their losses as well, as often."""
    concurrent: int | None = Field(default=None, ge=1, le=10_000)
    """Most trials at once; null: as many as the cluster's CPUs or GPUs carry."""
    gpus_per_trial: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU that a trial of one worker takes, where there are GPUs."""
    max_failures: int = Field(default=3, ge=0, le=1000)
    """How often a trial may be started again after its process or node was lost, or its storage failed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folds == 1 or self.repeats == 1:
            name = "folds" if self.folds == 1 else "repeats"
            raise ValueError(f"search.{name} = 1: expected 0, or at least 2")
        if not self.space:
            raise ValueError("search.space = {}: expected at least one key")
        return self


class PredictionConfig(Section):
    """What `predict`, `evaluate` and the end of `train` do."""

    model: str | None = None
    """Folder of a bundle, or the name of a run under the storage root."""
    run: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the output; default: the bundle's."""
    split: Literal["train", "val", "test"] | None = None
    """Slides to judge; null: all in `predict`; in `train` and `evaluate` all outside train."""
    slide_score: Literal["bag", "max", "topk_mean"] = "bag"
    """Read-out that becomes the slide's probability."""
    maps: bool = True
    """Draw the three maps of each slide."""
    map_px: int = Field(default=1024, ge=64, le=8192)
    """Longer edge of a map in pixels."""


class TrackingConfig(Section):
    """The record of runs."""

    uri: str | None = None
    """MLflow tracking URI; default: SQLite under a local storage root, else under ~/.distmil; `none`: no record."""
    experiment: str = Field(default="distmil", min_length=1, max_length=200)
    """MLflow experiment."""
    registered_model: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name in MLflow's registry under which `train` registers its network as a new version; null: not registered."""
    alias: str = Field(default="latest", min_length=1, max_length=128)
    """What that version is called in the registry; `latest` is MLflow's own name for the newest."""
    system_metrics: bool = False
    """Record processors, memory, disk, network and NVIDIA GPUs (with nvidia-ml-py) of the driver's machine."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not re.fullmatch(r"(?![vV]\d+$)[A-Za-z0-9_-]+", self.alias):
            raise ValueError(
                f"tracking.alias = {self.alias!r}: expected letters, digits, _ and -; v and a number is MLflow's own"
            )
        return self


class Config(Section):
    """The whole configuration."""

    cohort: CohortConfig = Field(default_factory=CohortConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    tiling: TilingConfig = Field(default_factory=TilingConfig)
    labels: LabelsConfig = Field(default_factory=LabelsConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    bags: BagsConfig = Field(default_factory=BagsConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    losses: LossesConfig = Field(default_factory=LossesConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    prediction: PredictionConfig = Field(default_factory=PredictionConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    def explicit(self) -> dict[str, Any]:
        """Return the keys that the user gave, dotted, with their values."""
        return {
            f"{name}.{key}": getattr(section, key)
            for name in type(self).model_fields
            if isinstance(section := getattr(self, name), Section)
            for key in section.model_fields_set
        }

    def flat(self) -> dict[str, Any]:
        """Return every key, dotted, with its value."""
        return {f"{name}.{key}": value for name, section in self.model_dump().items() for key, value in section.items()}


def fingerprint(values: Mapping[str, Any], *, length: int = 12) -> str:
    """Return a short hash of JSON-ready values that does not depend on their order."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def has_mark(field: FieldInfo, name: str, *, default: bool) -> bool:
    """Return a mark of a field, such as ``identity`` or ``per_job``."""
    extra = field.json_schema_extra
    return bool(extra.get(name, default)) if isinstance(extra, dict) else default
