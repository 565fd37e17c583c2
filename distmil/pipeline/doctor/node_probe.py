"""The look from one node of a cluster. Ray sends this module's code along, so that it runs where distmil is absent."""

import importlib
import importlib.metadata
import platform
from typing import Any


def look(root: str | None, marker: str) -> dict[str, Any]:
    """Return the versions on this node, and what is wrong with the store there.

    Args:
        root: The storage root; None: do not look at it.
        marker: Name of a file that the driver wrote into it.
    """
    facts = {"python": platform.python_version(), "ray": importlib.metadata.version("ray")}
    try:
        facts["distmil"] = importlib.import_module("distmil").__version__
        facts["source"] = importlib.import_module("distmil.tracking.provenance").source_digest()[:8]
        if root is not None:
            facts["store"] = importlib.import_module("distmil.pipeline.nodes").look_at_store(root, marker)
    except Exception as error:  # noqa: BLE001 (whatever is wrong there is reported)
        facts["error"] = f"{type(error).__name__}: {error}"
    return facts
