"""The networks in an encoder: none, one or several side by side; taken out, and put back as engines."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from distmil.encoders.registry import Encoder


def networks_of(encoder: Encoder) -> list[nn.Module]:
    """Return the networks of an encoder in order; the texture encoder has none."""
    return [part for part in getattr(encoder, "parts", (encoder,)) if isinstance(part, nn.Module)]


def with_engines(encoder: Encoder, engines: Sequence[Encoder]) -> Encoder:
    """Return an encoder with an engine in place of each of its networks, in order."""
    coming = iter(engines)
    if not hasattr(encoder, "parts"):
        return _engine_for(encoder, coming)
    given: Any = encoder
    return replace(given, parts=tuple(_engine_for(part, coming) for part in given.parts))  # type: ignore[no-any-return]


def _engine_for(part: Encoder, coming: Iterator[Encoder]) -> Encoder:
    return next(coming) if isinstance(part, nn.Module) else part
