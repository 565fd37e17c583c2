"""OpenVINO and nncf, imported where they are wanted: they are an extra, and must not send anything home."""

import importlib
import logging
import sys
from typing import Any

from distmil.errors import EncoderError

_CAPABILITIES = {"bf16": "BF16", "fp16": "FP16", "int8": "INT8"}


def openvino() -> Any:
    """Import OpenVINO. Raises: EncoderError if it is not installed."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # looks uninstalled: no usage is sent
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise EncoderError(
            f"the engine openvino is not installed ({error}); run pip install 'distmil[openvino]', or set "
            "encoder.engine=torch"
        ) from error


def nncf() -> Any:
    """Import nncf, which quantises OpenVINO's models. Raises: EncoderError if it is not installed."""
    openvino()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of the CUDA that it does not need
    try:
        return importlib.import_module("nncf")
    except ImportError as error:
        raise EncoderError(
            f"nncf, which quantises to int8, is not installed ({error}); run pip install 'distmil[openvino]', or set "
            "encoder.precision=bf16"
        ) from error


def check_installed(*, engine: str, precision: str) -> None:
    """Check before hours of work that the libraries of a configured engine are there.

    Raises:
        EncoderError: If one is not.
    """
    if precision == "int8":
        nncf()
    elif engine == "openvino":
        openvino()


def has_openvino(precision: str) -> bool:
    """Return whether OpenVINO is installed (for int8 with nncf) and has a precision on this machine's CPU."""
    try:
        runtime = openvino()
        if precision == "int8":
            nncf()
    except EncoderError:
        return False
    wanted = _CAPABILITIES.get(precision)
    return wanted is None or wanted in runtime.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
