"""The typed configuration of features that other tools made: where they are, and what their files do not say."""

from typing import Literal

from pydantic import Field

from distmil.config.section import PER_JOB, Section


class FeaturesConfig(Section):
    """Features that other tools made, in place of patches and embeddings of distmil's own."""

    folder: str | None = Field(default=None, json_schema_extra=PER_JOB)
    """Folder of the features of one encoder, a file a slide. `import_features`, `train`, `tune`, `evaluate` and
    `predict` then use them and neither tile nor embed; `export_features` writes them in another layout."""
    export_folder: str | None = Field(default=None, json_schema_extra=PER_JOB)
    """Folder that `export_features` writes into, in the tool's own folders below it."""
    layout: Literal["auto", "clam", "trident", "stamp", "slide2vec", "lazyslide"] = Field(
        default="auto", json_schema_extra=PER_JOB
    )
    """Tool whose files they are; auto: by the content of each file."""
    export_layout: Literal["clam", "trident", "stamp", "slide2vec", "lazyslide"] = Field(
        default="trident", json_schema_extra=PER_JOB
    )
    """Tool that `export_features` writes for."""
    encoder: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._+-]{1,128}$")
    """Name of the encoder that made them; default: as the files say, most of which do. Files that name another one are
    refused. A bundle keeps it: it scores features of no other encoder."""
    dimension: int | None = Field(default=None, ge=1, le=65_536)
    """Numbers a patch; default: as most files have it. A bundle keeps it."""
    edge_px: int | None = Field(default=None, ge=1, le=65_536, json_schema_extra=PER_JOB)
    """Patch edge in pixels as the encoder's tool cut it, where the files do not say so."""
    patch_mpp: float | None = Field(default=None, gt=0, le=1000, json_schema_extra=PER_JOB)
    """Um per pixel of these patches, where the files do not say so."""
    extent_px: int | None = Field(default=None, ge=1, le=1_000_000, json_schema_extra=PER_JOB)
    """Patch edge in level-0 pixels, where the files do not say so: those of CLAM without its `patches` folder."""
    stamp_version: str = Field(default="2.4.0", pattern=r"^\d+\.\d+\.\d+$", json_schema_extra=PER_JOB)
    """Version that `export_features` writes into files for STAMP, which refuses those newer than itself."""
