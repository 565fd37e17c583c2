"""The files of the viewer's page, which need no build step."""

from importlib import resources

PAGE = {
    "index.html": "text/html; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
    "slides.js": "text/javascript; charset=utf-8",
    "overlay.js": "text/javascript; charset=utf-8",
    "viewer.css": "text/css; charset=utf-8",
    "openseadragon.min.js": "text/javascript; charset=utf-8",
    "openseadragon.LICENSE.txt": "text/plain; charset=utf-8",
}
"""Name and media type of each."""


def page_file(name: str) -> bytes:
    """Read a file of the page."""
    return (resources.files("distmil.viewing") / "page" / name).read_bytes()
