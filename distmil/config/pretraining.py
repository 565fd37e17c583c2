"""The typed configuration of self-supervised pre-training."""

from typing import Annotated, Literal

from pydantic import Field

from distmil.config.section import NAME_PATTERN, NO_IDENTITY, Section

Method = Literal["vicreg", "simclr", "dino"]


class PretrainingConfig(Section):
    """How an encoder is pre-trained on the patches of the train slides, without any label."""

    run: str | None = Field(default=None, max_length=100, pattern=NAME_PATTERN, json_schema_extra=NO_IDENTITY)
    """Name of the pre-training; the same name continues where it stopped. Default: made from the configuration and
    cohort."""
    method: Method = "vicreg"
    """What two views of a patch are to fulfil. vicreg: equal embeddings whose dimensions vary and differ, which small
    batches and cohorts suffice for; simclr: more alike than views of other patches; dino: a student agrees with the
    moving average of itself."""
    epochs: int = Field(default=20, ge=1, le=100_000)
    """Passes over all patches of the train slides."""
    steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Most steps, for an end within an epoch; null: all epochs."""
    batch_patches: int = Field(default=128, ge=8, le=65_536)
    """Patches of a step, over all workers. They pass the encoder `encoder.batch_size` at a time, with exact
    gradients."""
    view_px: int | None = Field(default=None, ge=32, le=1024)
    """Edge of a view in pixels; null: what the encoder takes. Half the edge takes a quarter of the time. Vision
    transformers take one size alone."""
    crop_scale: float = Field(default=0.4, gt=0, le=1)
    """Least share of a patch that a view shows; a view's share is drawn between this and 1."""
    stain_shift: float = Field(default=0.2, ge=0, le=1)
    """Standard deviation of the shifts of a view's H&E stains, in the logarithm of a stain's strength; 0: none."""
    trained: Literal["all", "last", "lora"] = "all"
    """The part of the encoder that is trained, as in `encoder.trainable`: all of it; last: its last
    `encoder.trained_blocks` blocks; lora: low-rank additions of `encoder.lora_rank`."""
    learning_rate: float = Field(default=1e-4, gt=0, le=10)
    """Peak learning rate of AdamW on the encoder. Under vicreg and simclr the projector, which is new, learns ten times
    as fast."""
    weight_decay: float = Field(default=1e-2, ge=0, le=10)
    """Weight decay of AdamW."""
    warmup_steps: int = Field(default=20, ge=0, le=1_000_000)
    """Steps of linear warm-up; then the rate falls to 0 by a cosine over all steps."""
    hidden_dim: int = Field(default=1024, ge=8, le=65_536)
    """Width of the projector's hidden layers; the projector is thrown away at the end."""
    projection_dim: int = Field(default=1024, ge=8, le=65_536)
    """Width of the projector's output; under dino the number of prototypes."""
    probe_patches: int = Field(default=2000, ge=64, le=100_000)
    """Patches, spread over the train slides, on which every epoch is measured."""
    checkpoint_minutes: Annotated[float, Field(gt=0, le=100_000)] = Field(default=10, json_schema_extra=NO_IDENTITY)
    """Minutes between two checkpoints; the end of an epoch is one too."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of the projector, the order of patches, the views and the probe."""
