"""The files of the viewer's page, which need no build step."""

from importlib import resources

_MODULES = (
    "viewer.js", "address.js", "draw_panel.js", "drawing.js", "geometry.js", "overlay.js", "pane.js", "panel.js",
    "pencil.js", "slides.js",
)  # fmt: skip
PAGE = {
    "index.html": "text/html; charset=utf-8",
    **dict.fromkeys(_MODULES, "text/javascript; charset=utf-8"),
    "viewer.css": "text/css; charset=utf-8",
    "openseadragon.min.js": "text/javascript; charset=utf-8",
    "openseadragon.LICENSE.txt": "text/plain; charset=utf-8",
}
"""Name and media type of each."""


def page_file(name: str) -> bytes:
    """Read a file of the page."""
    return (resources.files("distmil.viewing") / "page" / name).read_bytes()
