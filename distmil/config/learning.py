"""The typed configuration of learning: patch labels, bags, network, losses, training."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from distmil.config.section import NAME_PATTERN, NO_IDENTITY, PER_JOB, Fraction, Section, Weight


class LabelsConfig(Section):
    """How an annotation becomes patch labels."""

    positive_at: Fraction = 0.0
    """Covered share from which a patch is positive; 0 = any overlap."""
    negative_below: float | None = Field(default=None, gt=0, le=1)
    """Covered share below which a patch is negative, unknown between the two; default: positive_at."""
    form: Literal["class", "fraction"] = Field(default="class", json_schema_extra=NO_IDENTITY)
    """Train on the class, or on the covered share as a soft target."""
    groups: dict[str, str] = Field(default_factory=dict)
    """Annotation group name, or value of a mask (`"2"`), -> class name, `exclude` for carve-outs, `ignore` for areas
    about which nothing is known, or `nothing` for outlines that mark nothing; added to the built-in names and those of
    `labels.preset`, which it may replace. `none` stands for outlines without a group."""
    preset: Literal["camelyon16", "camelyon17", "qupath"] | None = None
    """What the group names of a data set, or the standard classes of a program, mean."""
    scale: float | None = Field(default=None, gt=0, le=1e6)
    """Level-0 pixels per unit of the outlines' coordinates, such as 4 for outlines drawn on a picture of a quarter of
    the size; default: by the picture's size where the file states it, else 1."""
    affine: list[float] | None = None
    """a, b, c, d, e, f: x' = a x + b y + c and y' = d x + e y + f bring outlines to level-0 pixels, after the scale."""
    origin: Literal["auto", "slide", "bounds"] = "auto"
    """Where (0, 0) of outlines is. slide: the slide's corner; bounds: the corner of the scanned area (OpenSlide's
    bounds), as QuPath counts on MIRAX and Leica slides; auto: by the program that wrote them and by the fit to the
    tissue."""
    on_bad_annotation: Literal["skip", "label_only", "fail"] = Field(default="skip", json_schema_extra=PER_JOB)
    """What an annotation that cannot be used does to its slide. skip: leaves it out; label_only: keeps it with its own
    label, as a slide without annotation, and a doubt; fail: ends the job, which names all of them."""
    timeout_s: int = Field(default=300, ge=1, le=86_400, json_schema_extra=PER_JOB)
    """Seconds after which an annotation that is not read yet is given up, and its slide with it."""

    def identity(self) -> dict[str, Any]:
        """Return what decides labels; fields that earlier versions did not have count only where they are set."""
        later = {"preset", "scale", "affine"}
        return {key: value for key, value in super().identity().items() if key not in later or value is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.affine is not None and (len(self.affine) != 6 or not all(map(math.isfinite, self.affine))):
            raise ValueError(f"labels.affine = {self.affine}: expected 6 finite numbers, a to f")
        if self.affine and not self.affine[0] * self.affine[4] - self.affine[1] * self.affine[3]:
            raise ValueError("labels.affine: a e - b d is 0, so that it maps every outline to a line")
        if self.negative_below is not None and self.negative_below > self.positive_at:
            raise ValueError(
                f"labels.negative_below = {self.negative_below}: expected at most labels.positive_at, "
                f"which is {self.positive_at}"
            )
        return self


MAX_FOLDS = 100


class BagsConfig(Section):
    """The bags of one training step. Sizes count the whole step, over all workers."""

    mixed: Literal["per_class", "per_slide", "pooled"] = "per_class"
    """How mixed bags are drawn. per_class: positive and negative patches apart; per_slide: some patches of every slide
    of the step; pooled: from all patches at once. A mixed bag comes from at least two slides if two have patch labels.
    Under `per_slide` it has a positive patch. Where the step's slides cannot give this, other annotated slides do."""
    n: int = Field(default=128, ge=2, le=1_000_000)
    """Patches in a mixed bag under `per_slide` and `pooled`."""
    k_positive: int = Field(default=32, ge=1, le=1_000_000)
    """Positive patches in a mixed bag under `per_class`, shared among the positive classes."""
    k_negative: int = Field(default=96, ge=1, le=1_000_000)
    """Negative patches in a mixed bag under `per_class`."""
    top_k: int = Field(default=8, ge=1, le=1_000_000)
    """Patches of highest attention that get the slide's label: at least one, at most ``bags.top_k_share`` of a bag."""
    top_k_share: float = Field(default=0.1, gt=0, le=1)
    """Largest share of a bag that its top-K patches may make up; 1: no limit but the bag."""
    mixed_bag_loss: bool = False
    """Apply the bag loss to the mixed bag too."""
    hard_negatives: bool = False
    """Apply L1 and L4 to the top-K patches of negative slides too, beside the mixed bag's patches: each of them is
    certainly negative, however high its attention. Pseudo-labelled slides give none. See ``bags.top_k``."""
    slides_per_step: int = Field(default=4, ge=1, le=65_536)
    """Most slide bags in a step."""
    patches_per_step: int = Field(default=32_768, ge=16, le=100_000_000)
    """Most slide-bag patches in one pass of the network; a larger bag passes in chunks, with exact gradients.
    With `encoder.trainable` it is at most `encoder.batch_size`."""
    sample: int = Field(default=0, ge=0, le=100_000_000)
    """Patches drawn in every epoch from a larger bag; 0: every bag whole. Evaluation never samples."""
    oversample: float = Field(default=1.0, ge=1, le=100)
    """How often annotated slides appear in the first epoch; falls to once in the last."""
    paired: bool = False
    """Take positive and negative slides in turn, repeating those of the smaller class. A slide larger than
    patches_per_step is still a step of its own."""


class ModelConfig(Section):
    """The network."""

    name: Literal["dual", "attention", "gated_attention", "max", "mean", "instance", "patches"] = "dual"
    """dual: sigmoid attention pooling with two classifiers. The others are baselines of one loss each. attention,
    gated_attention: softmax attention; max, mean: pooling; instance: a classifier of patches that all get the slide's
    label; patches: a classifier of labelled patches alone."""
    feature_dim: int = Field(default=512, ge=1, le=65_536)
    """Width F of the patch feature."""
    attention_dim: int = Field(default=256, ge=1, le=65_536)
    """Width of the gated attention."""
    dropout: float = Field(default=0.25, ge=0, lt=1)
    """Dropout on the patch feature."""
    input_dropout: float = Field(default=0.25, ge=0, lt=1)
    """Dropout on the normalised embedding: whole dimensions, the same for all patches of a step."""
    patch_feature: Literal["plain", "attended"] = "plain"
    """Input of C1 for a single patch: f, or sigmoid(a) f."""
    topk_feature: Literal["plain", "attended"] = "plain"
    """Input of C2 for a top-K patch: f, or sigmoid(a) f."""
    topk_detach: bool = False
    """Stop the gradient of the top-K loss before the attention block."""


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
    """balanced: slide losses weigh each class equally, whatever its number of training slides."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any((self.patch, self.bag, self.topk, self.attention)):
            raise ValueError("losses: at least one weight must be above 0")
        return self


class TrainingConfig(Section):
    """How the network is trained."""

    run: str | None = Field(default=None, pattern=NAME_PATTERN, json_schema_extra=NO_IDENTITY)
    """Name of the run; the same name continues where it stopped. Default: made from the configuration and cohort."""
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
    """Learning rate after the warm-up. cosine: falls to 0 over all epochs; constant: stays."""
    clip_norm: float = Field(default=5.0, gt=0, le=1e6)
    """Largest gradient norm."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of initialisation, order, sampling and dropout."""
    num_workers: int = Field(default=1, ge=1, le=10_000, json_schema_extra=NO_IDENTITY)
    """Number of training workers. It changes nothing in the result but dropout and rounding."""
    use_gpu: Literal["auto"] | bool = Field(default="auto", json_schema_extra=NO_IDENTITY)
    """One GPU per worker; auto: if the cluster has enough or can start them."""
    start_timeout_s: int = Field(default=900, ge=1, le=86_400, json_schema_extra=NO_IDENTITY)
    """Seconds to wait for an autoscaling cluster's workers to start."""
    min_workers: int | None = Field(default=None, ge=1, le=10_000, json_schema_extra=NO_IDENTITY)
    """Fewest workers to continue with when nodes are lost, until there are num_workers again; null: num_workers."""
    precision: Literal["fp32", "bf16", "auto"] = Field(default="auto", json_schema_extra=NO_IDENTITY)
    """Precision of the wide products; auto: bf16 on GPUs that have it. Attention scores and losses are always fp32."""
    resident: Literal["auto"] | bool = Field(default="auto", json_schema_extra=NO_IDENTITY)
    """Keep all training embeddings in the GPU's memory; auto: if they fill at most half of what is free."""
    cuda_graphs: bool = Field(default=True, json_schema_extra=NO_IDENTITY)
    """Replay a step's kernels on a GPU in one launch; false: launch each, several times slower, for debugging."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay per step of the moving average of weights that is evaluated and kept; 0: the weights themselves."""
    max_failures: int = Field(default=3, ge=0, le=1000, json_schema_extra=NO_IDENTITY)
    """Worker failures after which training gives up; each restart continues from the last checkpoint. Announced
    removals of nodes do not count; failures while workers start are counted separately."""
    select_by: Literal["patch_ap_probability", "slide_auc", "slide_ap", "loss"] = "slide_auc"
    """Validation metric of early stopping and of the choice of the epoch; `loss` where it is undefined."""
    patience: int = Field(default=0, ge=0, le=100_000)
    """Epochs without a better metric before training stops; 0 never stops early and keeps the last epoch."""
    folds: int = Field(default=0, ge=0, le=MAX_FOLDS, json_schema_extra=NO_IDENTITY)
    """Folds of train, by patient and class. Each is predicted by a network that learned from the others; thresholds
    come from these predictions, and the bundle averages the networks. 0: one network of all, thresholds from val."""
    threshold_aim: str = Field(default="youden", max_length=40, json_schema_extra=NO_IDENTITY)
    """What the slides' thresholds serve on validation. youden: most sensitivity + specificity; `sensitivity=0.95`: the
    highest threshold of at least that sensitivity; `specificity=0.9`: the lowest one of at least that specificity. The
    threshold of patches is always that of youden."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not re.fullmatch(r"youden|(sensitivity|specificity)=(0?\.\d*[1-9]\d*|1(\.0*)?)", self.threshold_aim):
            raise ValueError(
                f"training.threshold_aim = {self.threshold_aim!r}: expected youden, or sensitivity or specificity with "
                "a share above 0 and at most 1, such as sensitivity=0.95"
            )
        if self.folds == 1:
            raise ValueError("training.folds = 1: expected 0 for none, or at least 2")
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"training.min_workers = {self.min_workers}: expected at most training.num_workers, "
                f"which is {self.num_workers}"
            )
        return self
