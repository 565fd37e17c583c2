"""Checks of the Python libraries: each is imported, and its version is read."""

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

from distmil.pipeline.doctor.finding import FAILED, OK, WARNING, Finding, reason

MAIN = {
    "torch": "torch",
    "torchvision": "torchvision",
    "ray": "ray.data",
    "pyarrow": "pyarrow.fs",
    "mlflow": "mlflow",
    "opencv-python-headless": "cv2",
}
"""The module of each large library by its distribution; each is imported in a process of its own."""
SMALL = {
    "numpy": "numpy",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
    "rich": "rich",
    "shapely": "shapely",
    "safetensors": "safetensors",
    "defusedxml": "defusedxml",
    "simplejpeg": "simplejpeg",
    "tifffile": "tifffile",
    "scikit-learn": "sklearn.metrics",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "pillow": "PIL.Image",
}
OPTIONAL = {
    "boto3": ("boto3", "MLflow artifacts on s3://", "pip install 'distmil[aws]'"),
    "optuna": ("optuna", "search.algorithm=optuna", "pip install 'distmil[optuna]'"),
    "google-cloud-storage": ("google.cloud.storage", "MLflow artifacts on gs://", "pip install google-cloud-storage"),
    "psutil": ("psutil", "tracking.system_metrics=true", "pip install psutil"),
    "nvidia-ml-py": ("pynvml", "GPUs in tracking.system_metrics", "pip install nvidia-ml-py"),
}
"""By distribution: the module, the feature that needs it, how to install it."""
OPENSLIDE_ADVICE = (
    "install the native library with `pip install openslide-bin`, or the system's (Debian, Ubuntu: `apt-get install "
    "libopenslide0`). Without it no job can open slides"
)


def _import(distribution: str, module: str) -> Finding:
    try:
        importlib.import_module(module)
    except BaseException as error:  # noqa: BLE001 (a broken library may raise anything)
        return Finding(FAILED, distribution, f"cannot be imported: {reason(error)}", install_advice(distribution))
    return Finding(OK, distribution, _version(distribution, module))


def install_advice(distribution: str) -> str:
    """Return how to install a library again."""
    return f"install it again: pip install --force-reinstall {distribution}"


def _version(distribution: str, module: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # such as another build of OpenCV
        return str(getattr(importlib.import_module(module.partition(".")[0]), "__version__", "unknown version"))


def check_library(distribution: str) -> list[Finding]:
    """Import one large library."""
    return [_import(distribution, MAIN[distribution])]


def check_small() -> list[Finding]:
    """Import the other required libraries; one line if all are there, else a line for each that is not."""
    found = [_import(distribution, module) for distribution, module in SMALL.items()]
    broken = [finding for finding in found if finding.level != OK]
    good = ", ".join(f"{finding.name} {finding.text}" for finding in found if finding.level == OK)
    return [Finding(OK, "libraries", good), *broken] if good else broken


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
    module, use, install = OPTIONAL[distribution]
    name = f"optional {distribution}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        wanted = "needed by this configuration" if absent != OK else "only needed"
        return Finding(absent, name, f"not installed; {wanted} for {use}", install)
    except BaseException as error:  # noqa: BLE001 (a broken library may raise anything)
        level = WARNING if absent == OK else absent
        return Finding(level, name, f"cannot be imported: {reason(error)}; used for {use}", install)
    return Finding(OK, name, f"{_version(distribution, module)}, for {use}")


def check_gpus(use_gpu: Any, *, has_cluster: bool) -> list[Finding]:
    """Compare the GPUs that torch sees on this machine with those that Ray would count.

    Args:
        use_gpu: ``training.use_gpu``.
        has_cluster: The GPUs may be on other machines.
    """
    torch = importlib.import_module("torch")
    accelerators = importlib.import_module("ray._private.accelerators")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if _has_cuda(torch) else []
    try:
        in_ray = int(accelerators.get_accelerator_manager_for_resource("GPU").get_current_node_num_accelerators())
    except Exception:  # noqa: BLE001 (a private function of Ray)
        in_ray = len(names)
    text = f"torch sees {', '.join(names) or 'none'}; Ray counts {in_ray} on this machine"
    if len(names) != in_ray:
        advice = f"torch {torch.__version__} may not fit the NVIDIA driver; compare nvidia-smi, CUDA_VISIBLE_DEVICES"
        return [Finding(WARNING, "GPUs", text, advice)]
    if not names and Path("/proc/driver/nvidia/version").exists():
        advice = f"install a torch build for its CUDA version, or a newer driver (torch {torch.__version__})"
        return [Finding(WARNING, "GPUs", f"{text}, but there is an NVIDIA driver", advice)]
    if not names and use_gpu is True and not has_cluster:
        return [Finding(FAILED, "GPUs", f"{text}, but training.use_gpu is true", "set training.use_gpu=auto")]
    return [Finding(OK, "GPUs", text)]


def _has_cuda(torch: Any) -> bool:
    return bool(torch.cuda.is_available())
