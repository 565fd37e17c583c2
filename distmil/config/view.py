"""The typed configuration of the viewer."""

from typing import Literal

from pydantic import Field

from distmil.config.section import Section

Shown = Literal["split", "site", "patient_id"]


class ViewConfig(Section):
    """How `view` shows finished predictions in a browser. Regions are those of `export` (`export.threshold`)."""

    port: int = Field(default=8765, ge=0, le=65535)
    """Port of the page; 0: any that is free."""
    host: str = "127.0.0.1"
    """Address to listen at. Nobody has to log in: at another address than this machine's own, everyone who reaches it
    sees the slides."""
    show: list[Shown] = Field(default=[])
    """Columns of the manifest that the list of slides shows too. patient_id names people; paths are never shown."""
    num_top: int = Field(default=24, ge=1, le=200)
    """Top patches of a slide."""
    export: str | None = None
    """Folder that takes the viewer as plain files, for any file server; null: it is served here."""
    export_px: int | None = Field(default=8192, ge=256)
    """Longer edge of the finest picture of a slide in `view.export`; null: all that the slide has."""
