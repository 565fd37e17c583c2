"""OpenVINO as an engine, in fp32, bf16 or quantised to int8; it comes with ``pip install 'distmil[openvino]'``.

N patches, E embedding; H, W of an image.
"""

import contextlib
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
        output = self._requests[edges].infer([_given(self._encoder, images_NHWC)])[0]
        return np.array(output, np.float32)  # a copy: the request owns its output

    def _compile(self, height: int, width: int) -> Any:
        core = runtime.openvino().Core()
        packed = self._quantised or _packed(convert(self._encoder, height, width))
        xml, weights = _unpacked(packed)
        model = core.read_model(_with_full(xml, self._choice.full_layers), weights)
        return core.compile_model(model, "CPU", self._settings).create_infer_request()


def convert(encoder: nn.Module, height: int, width: int) -> Any:
    """Convert an encoder to an OpenVINO model for any number of patches.

    Sizes are constants and paddings part of their convolutions: a padding of its own would round the image to bf16.
    """
    offline = importlib.import_module("openvino._offline_transformations")
    example = torch.from_numpy(_given(encoder, np.zeros((2, height, width, 3), np.uint8)))
    network = _FromSized(encoder) if example.dtype == torch.float32 else encoder
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the tracer, on sizes that do not change here
        model = runtime.openvino().convert_model(network.eval(), example_input=example, input=[tuple(example.shape)])
    offline.apply_moc_transformations(model, cf=True)
    model.reshape([-1, *example.shape[1:]])
    return model


class _FromSized(nn.Module):
    """What an encoder does with patches of the network's size."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.encoder.from_sized(images_NCHW)  # type: ignore[operator]
        return found


def _given(encoder: nn.Module, images_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8 | np.float32]:
    """Make the input of the model: the patches, or where the encoder resizes them, the images that torch resized.

    OpenVINO resizes at half the speed. In bf16 it rounds such an input, so that the gate may prefer fp32 there.
    """
    images = np.ascontiguousarray(images_NHWC)
    if not hasattr(encoder, "at_size"):
        return images
    with torch.inference_mode():
        sized_NCHW = encoder.at_size(torch.from_numpy(images))  # type: ignore[operator]
    return images if sized_NCHW.shape[-2:] == images.shape[1:3] else np.asarray(sized_NCHW)


def quantise(encoder: nn.Module, images_NHWC: NDArray[np.uint8]) -> bytes:
    """Quantise an encoder to int8 by its activations on some patches, and return the model as a zip file.

    Source: nncf's post-training quantisation with bias correction, activations asymmetric.
    """
    nncf = runtime.nncf()
    model = convert(encoder, *images_NHWC.shape[1:3])
    batches = [
        _given(encoder, images_NHWC[start : start + _CALIBRATION_BATCH])
        for start in range(0, len(images_NHWC), _CALIBRATION_BATCH)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        given, preset = nncf.Dataset(batches), nncf.QuantizationPreset.MIXED
        made = nncf.quantize(model, given, preset=preset, subset_size=len(batches))
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
