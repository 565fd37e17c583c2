"""The fastest engine of an encoder: each that this machine has is tried on patches, and must pass the gate.

N patches, E embedding.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distmil.config.data import DEFAULT_BATCH
from distmil.encoders.engines import runtime
from distmil.encoders.engines.choice import EngineChoice, digest_of_model
from distmil.encoders.engines.gate import LEAST_COSINE, Agreement, agreement
from distmil.encoders.engines.layers import layers_in_order
from distmil.encoders.engines.openvino_engine import OpenVINOEngine, quantise
from distmil.encoders.engines.timing import fastest_batch, filled, rates_in_turns
from distmil.encoders.engines.torch_engine import TorchEngine
from distmil.encoders.registry import Encoder
from distmil.errors import EncoderError

logger = logging.getLogger(__name__)

CALIBRATION = 48
"""Most patches that quantisation sees; the gate looks at the others."""
FULL_SHARES = (0.0, 1 / 24, 1 / 6, 1 / 3, 1 / 2)
"""Shares of first layers that are tried in fp32, in turn, until a lower precision passes."""
_BATCH = 8
_PLAIN_S, _FEWEST = 20.0, 16
"""Seconds after which plain fp32 gets no more patches, unless it has seen fewer than 16: a large network is slow."""
_MAX_BATCH = {"cpu": 64, "cuda": 512}


@dataclass(frozen=True)
class Trial:
    """One engine as it did on the sample."""

    choice: EngineChoice
    agreement: Agreement | None = None
    images_per_s: float | None = None
    refusal: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class Selection:
    """The engine that was taken, and what the others did."""

    choice: EngineChoice
    trials: tuple[Trial, ...]
    facts: dict[str, Any]
    """Of the measurement: patches, device, threads, plain torch's rate."""
    model: bytes | None = field(default=None, repr=False)
    """The quantised model."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values, without the choice and its quantised model."""
        return {**self.facts, "trials": [trial.to_json() for trial in self.trials]}


@dataclass(frozen=True)
class _Bench:
    """What every trial needs."""

    encoder: nn.Module
    device: str
    calibration_NHWC: NDArray[np.uint8]
    sample_NHWC: NDArray[np.uint8]
    plain_NE: NDArray[np.float32]
    batch_size: int
    """Of a compiled engine, which takes no other."""

    def build(self, choice: EngineChoice, model: bytes | None = None) -> Encoder:
        patch_px = max(self.sample_NHWC.shape[1:3])
        return build_engine(self.encoder, choice, patch_px=patch_px, device=self.device, model=model)


def build_engine(
    encoder: nn.Module, choice: EngineChoice, *, patch_px: int, device: str, model: bytes | None
) -> Encoder:
    """Build a chosen engine, with torch's number of threads.

    Args:
        encoder: The encoder in evaluation mode, on the device.
        choice: The engine.
        patch_px: Edge of the patches.
        device: Where torch computes.
        model: The quantised model, where the choice has one.

    Raises:
        EncoderError: If the engine is not installed.
    """
    if choice.engine == "openvino":
        return OpenVINOEngine(encoder, choice, threads=torch.get_num_threads(), quantised=model)
    return TorchEngine(encoder, choice, patch_px=patch_px, device=device)


def select_engine(
    encoder: nn.Module,
    images_NHWC: NDArray[np.uint8],
    *,
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    device: str = "cpu",
) -> Selection:
    """Take the fastest engine that passes the gate, among those asked for.

    Args:
        encoder: The encoder in evaluation mode, on the device.
        images_NHWC: A sample of the cohort's patches, at least two; some serve quantisation, the others the gate.
        engine: torch, openvino, compile, or auto for all that this machine has.
        precision: fp32, bf16, fp16, int8, or auto for all.
        batch_size: Patches per forward pass; None: measured.
        device: cpu or cuda.

    Raises:
        EncoderError: If none passes, with each one's figure.
    """
    half = min(CALIBRATION, len(images_NHWC) // 2)
    plain, plain_s = _plain(encoder, images_NHWC[half:], device)
    sample = images_NHWC[half : half + len(plain)]
    bench = _Bench(encoder, device, images_NHWC[:half], sample, plain, batch_size or DEFAULT_BATCH)
    tried = [_try(bench, one) for one in _candidates(engine, precision, device)]
    passed = [(trial, built, model) for trial, built, model in tried if built is not None]
    if not passed:
        raise EncoderError(_refusal(engine, precision, [trial for trial, _, _ in tried], len(bench.sample_NHWC)))
    batches = [
        filled(bench.sample_NHWC, bench.batch_size if trial.choice.is_compiled else _BATCH) for trial, *_ in passed
    ]
    rates = rates_in_turns([built for _, built, _ in passed], batches)
    best = int(np.argmax(rates))
    trial, built, model = passed[best]
    size = batch_size or trial.choice.batch_size
    if batch_size is None and not trial.choice.is_compiled:
        size = fastest_batch(built, bench.sample_NHWC, most=_MAX_BATCH[device])
    timed = {id(one): rate for (one, _, _), rate in zip(passed, rates, strict=True)}
    trials = tuple(replace(one, images_per_s=timed.get(id(one))) for one, _, _ in tried)
    facts = {
        "patches": len(bench.sample_NHWC),
        "device": device,
        "threads": torch.get_num_threads(),
        "plain_images_per_s": len(bench.sample_NHWC) / plain_s,
        "least_cosine": LEAST_COSINE,
    }
    for one in trials:
        logger.debug("%s: %s", one.choice.words, one.refusal or f"{one.images_per_s:.1f} images/s, {one.agreement}")
    return Selection(replace(trial.choice, batch_size=size), trials, facts, model)


def _candidates(engine: str, precision: str, device: str) -> list[tuple[str, str]]:
    """List the engines and precisions to try. Raises: EncoderError if the one asked for is not there."""
    if device == "cuda":
        offered = [("compile", "bf16"), ("compile", "fp16"), ("torch", "bf16"), ("torch", "fp16"), ("torch", "fp32")]
    else:
        offered = [("torch", "bf16"), ("torch", "fp32")]
        if engine == "openvino":
            runtime.openvino()
        offered += [("openvino", kind) for kind in ("int8", "bf16", "fp16", "fp32") if runtime.has_openvino(kind)]
        offered += [("compile", kind) for kind in ("bf16", "fp32") if engine == "compile"]
    found = [pair for pair in offered if engine in ("auto", pair[0]) and precision in ("auto", pair[1])]
    if not found:
        have = ", ".join(" ".join(pair) for pair in offered)
        raise EncoderError(
            f"encoder.engine={engine} encoder.precision={precision}: not on this machine, which has {have}; "
            "choose one of them, or auto for both"
        )
    return found


def _try(bench: _Bench, candidate: tuple[str, str]) -> tuple[Trial, Encoder | None, bytes | None]:
    """Build an engine and compare its embeddings, with more of its first layers in fp32 until it passes."""
    trial = Trial(EngineChoice(*candidate))
    try:
        for choice, model in _variants(bench, *candidate):
            built = bench.build(choice, model)
            found = agreement(_embedded(built, bench.sample_NHWC), bench.plain_NE)
            trial = Trial(choice, found, refusal=None if found.passes else found.words)
            if found.passes:
                return trial, built, model
    except Exception as error:  # each engine has its own ways to say that it cannot take a network
        logger.debug("%s cannot be used", trial.choice.words, exc_info=True)
        return replace(trial, refusal=f"cannot be used: {str(error).strip().partition(chr(10))[0][:300]}"), None, None
    return trial, None, None


def _variants(bench: _Bench, engine: str, precision: str) -> Iterator[tuple[EngineChoice, bytes | None]]:
    """Give the forms of an engine in the order of their speed."""
    if precision == "int8":
        if not len(bench.calibration_NHWC):
            raise ValueError("one patch is too few to quantise by")
        model = quantise(bench.encoder, bench.calibration_NHWC)
        yield EngineChoice(engine, precision, model_digest=digest_of_model(model)), model
        return
    shares = FULL_SHARES if precision in {"bf16", "fp16"} else (0.0,)
    image = torch.from_numpy(bench.sample_NHWC[:1]).to(bench.device)
    num_layers = len(layers_in_order(bench.encoder, image)) if len(shares) > 1 else 0
    for full_layers in dict.fromkeys(round(share * num_layers) for share in shares):
        yield EngineChoice(engine, precision, full_layers, batch_size=bench.batch_size), None


def _plain(encoder: nn.Module, images_NHWC: NDArray[np.uint8], device: str) -> tuple[NDArray[np.float32], float]:
    """Embed by the encoder's own forward in fp32, the first patches where it is slow, and return the seconds too."""
    started, parts = time.perf_counter(), []
    with torch.inference_mode():
        for at in range(0, len(images_NHWC), _BATCH):
            if at >= _FEWEST and time.perf_counter() - started > _PLAIN_S:
                break
            parts.append(encoder(torch.from_numpy(images_NHWC[at : at + _BATCH]).to(device)).float().cpu().numpy())
    return np.concatenate(parts), time.perf_counter() - started


def _embedded(engine: Encoder, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([engine.embed(images_NHWC[at : at + _BATCH]) for at in range(0, len(images_NHWC), _BATCH)])


def _refusal(engine: str, precision: str, trials: Sequence[Trial], num_patches: int) -> str:
    """Word why no engine is left."""
    rows = "\n".join(f"  {trial.choice.words}: {trial.refusal}" for trial in trials)
    return (
        f"encoder.engine={engine} encoder.precision={precision} is refused: on {num_patches} patches of this cohort a "
        f"cosine of at least {LEAST_COSINE} was expected for 99 of 100\n{rows}\n"
        "set both to auto, which takes the fastest engine that passes, or encoder.engine=torch encoder.precision=fp32"
    )
