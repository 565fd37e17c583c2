"""OpenVINO as an engine, in fp32, bf16 or quantised to int8; it comes with ``pip install 'distmil[openvino]'``.

N patches, E embedding; H, W of an image.
"""

import importlib
import io
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distmil.encoders.engines import runtime
from distmil.encoders.engines.choice import EngineChoice

_LAYERS = {"Convolution", "GroupConvolution", "MatMul"}
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_CALIBRATION_BATCH = 8


class OpenVINOEngine:
    """An encoder computed by OpenVINO on the CPU."""

    def __init__(self, encoder: nn.Module, choice: EngineChoice, *, threads: int, quantised: bytes | None) -> None:
        if choice.precision == "int8" and quantised is None:
            raise ValueError("int8 needs the quantised model")
        self._encoder, self._choice, self._quantised = encoder, choice, quantised
        self._settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[choice.precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",  # one stream: a worker has one core
            "ENABLE_CPU_PINNING": False,
        }
        self._requests: dict[tuple[int, ...], Any] = {}

    def embed(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings, N x E, of RGB patches."""
        if len(images_NHWC) == 0:
            return self.embed(np.zeros((1, *images_NHWC.shape[1:]), np.uint8))[:0]
        edges = images_NHWC.shape[1:3]
        if edges not in self._requests:
            self._requests[edges] = self._compile(*edges)
        output = self._requests[edges].infer([np.ascontiguousarray(images_NHWC)])[0]
        return np.array(output, np.float32)  # a copy: the request owns its output

    def _compile(self, height: int, width: int) -> Any:
        core = runtime.openvino().Core()
        packed = self._quantised or _packed(convert(self._encoder, height, width))
        xml, weights = _unpacked(packed)
        model = core.read_model(_with_full(xml, self._choice.full_layers), weights)
        return core.compile_model(model, "CPU", self._settings).create_infer_request()


def convert(encoder: nn.Module, height: int, width: int) -> Any:
    """Convert an encoder to an OpenVINO model of N x H x W x 3 for any N.

    Sizes are constants and paddings part of their convolutions: a padding of its own would round the image to bf16.
    """
    offline = importlib.import_module("openvino._offline_transformations")
    size = (2, height, width, 3)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the tracer, on sizes that do not change here
        model = runtime.openvino().convert_model(
            encoder.eval(), example_input=torch.zeros(size, dtype=torch.uint8), input=[size]
        )
    offline.apply_moc_transformations(model, cf=True)
    model.reshape([-1, height, width, 3])
    return model


def quantise(encoder: nn.Module, images_NHWC: NDArray[np.uint8]) -> bytes:
    """Quantise an encoder to int8 by its activations on some patches, and return the model as a zip file.

    Source: nncf's post-training quantisation with bias correction, activations asymmetric.
    """
    nncf = runtime.nncf()
    model = convert(encoder, *images_NHWC.shape[1:3])
    batches = [
        images_NHWC[start : start + _CALIBRATION_BATCH] for start in range(0, len(images_NHWC), _CALIBRATION_BATCH)
    ]
    made = nncf.quantize(model, nncf.Dataset(batches), preset=nncf.QuantizationPreset.MIXED, subset_size=len(batches))
    return _packed(made)


def _with_full(xml: bytes, count: int) -> bytes:
    """Mark in a model's description every node up to the ``count``-th layer to stay in fp32.

    Nodes are listed in the order in which they run. Source: OpenVINO's IR, the attribute ``precise`` of a layer. Were a
    version not to read it, the gate would see a model wholly in low precision.
    """
    tree, passed = ElementTree.fromstring(xml), 0  # noqa: S314 (OpenVINO wrote it)
    for layer in tree.iterfind("layers/layer"):
        passed += layer.get("type") in _LAYERS
        if passed > count:
            break
        info = layer.find("rt_info")
        if info is None:
            info = ElementTree.Element("rt_info")
            layer.insert(len(layer.findall("data")), info)
        ElementTree.SubElement(info, "attribute", name="precise", version="0")
    return ElementTree.tostring(tree)


def _packed(model: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"model.{suffix}") for suffix in ("xml", "bin")]
        runtime.openvino().serialize(model, *map(str, paths))
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for path in paths:
                archive.write(path, path.name)
        return file.getvalue()


def _unpacked(packed: bytes) -> Sequence[bytes]:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return [archive.read(f"model.{suffix}") for suffix in ("xml", "bin")]
