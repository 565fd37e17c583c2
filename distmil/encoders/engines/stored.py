"""The engine that the embeddings of a store are made by: chosen once for an encoder and its patches, then kept there.

Every worker, every later run and every other cohort with the same encoder and tiling reads the same choice, so that
their embeddings are the same. torch takes seconds to import, and is imported only where a network runs. N patches.
"""

import importlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distmil.command.versions import version_of
from distmil.config.root import Config, fingerprint
from distmil.encoders.embedder import decode_patches, embeddings_folder
from distmil.encoders.engines import runtime
from distmil.encoders.engines.choice import EngineChoice, digest_of_model, model_file
from distmil.encoders.registry import Encoder, EncoderSpec, load_encoder
from distmil.errors import SlideError, StorageError
from distmil.storage.records import Part, Record
from distmil.storage.store import Store
from distmil.tiling.shards import patches_folder, read_patches, shard_schema

SAMPLE = 144
"""Most patches that a choice looks at."""
SAMPLED_SHARDS = 12
_REMEDY = "delete the folder engines of the store and run the same command again"


@dataclass(frozen=True)
class StoredEngine:
    """The choice of an encoder's engine, in its place in the store."""

    spec: EncoderSpec
    config: Config
    store: Store

    @property
    def name(self) -> str:
        """Return the file, named by what is asked for."""
        asked = self.config.encoder
        values = {
            "encoder": self.spec.identity(),
            "patches": patches_folder(self.config.tiling),
            "engine": asked.engine,
            "precision": asked.precision,
        }
        return f"engines/{fingerprint(values)}.json"

    def read(self, *, device: str) -> tuple[EngineChoice, ...] | None:
        """Return the choice for each network, or None where it must be made.

        Nothing is chosen for torch in fp32, where the store has embeddings from before there was a choice, and for an
        encoder that was trained: it embeds as it did in training.

        Raises:
            EncoderError: If the engine that was chosen is not installed here.
        """
        asked = self.config.encoder
        if self.spec.weights_file is None or (asked.engine, asked.precision) == ("torch", "fp32"):
            return ()
        values = self.store.or_none(lambda: self.store.read_checked(self.name, owner=self.name))
        if values is not None:
            choices = tuple(EngineChoice(**choice) for choice in values["choices"])
            needs_openvino = any(choice.engine == "openvino" for choice in choices)
            if needs_openvino and device == "cuda":  # chosen before there was a GPU
                return None
            if needs_openvino:
                runtime.openvino()
            return choices
        is_open = asked.engine == asked.precision == "auto"
        is_plain = asked.trainable or self.store.folders(embeddings_folder(self.config, self.spec))
        return () if is_open and is_plain else None

    def choose(self, images_NHWC: NDArray[np.uint8], *, device: str) -> tuple[EngineChoice, ...]:
        """Try the engines of each network on a sample of patches, keep the choices with their figures, return them.

        Raises:
            EncoderError: If the engine that is asked for does not pass the gate, or is not here.
        """
        asked = self.config.encoder
        selections = [
            _module("selection").select_engine(
                network,
                images_NHWC,
                engine=asked.engine,
                precision=asked.precision,
                batch_size=None if asked.batch_size == "auto" else asked.batch_size,
                device=device,
            )
            for network in _module("parts").networks_of(load_encoder(self.spec, self.store, device=device))
        ]
        for model in (selection.model for selection in selections if selection.model is not None):
            self.store.write(model_file(digest_of_model(model)), model)
        choices = tuple(selection.choice for selection in selections)
        values = {
            "choices": [asdict(choice) for choice in choices],
            "figures": [selection.to_json() for selection in selections],
            "encoder": self.spec.identity(),
            "libraries": {name: version_of(name) for name in ("torch", "openvino", "nncf")},
        }
        self.store.write_checked(self.name, values, owner=self.name)
        return choices


def sampled_shards(records: Sequence[Record]) -> list[tuple[Record, Part]]:
    """Choose some shards of different slides, always the same ones of the same slides."""
    generator = np.random.default_rng(0)
    ordered = sorted((record for record in records if record.ok and record.parts), key=lambda record: record.name)
    chosen = generator.permutation(len(ordered))[:SAMPLED_SHARDS]
    return [(ordered[i], ordered[i].parts[generator.integers(len(ordered[i].parts))]) for i in chosen]


def sample_patches(
    store: Store,
    config: Config,
    shards: Sequence[tuple[Record, Part]],
    *,
    decode: Callable[[Record, pa.Table], NDArray[np.uint8]] = lambda _, table: decode_patches(table),
) -> NDArray[np.uint8]:
    """Decode patches out of some shards in random order, N x H x W x 3, as many of each shard.

    A slide that cannot be read is left out: embedding it will say why.

    Args:
        store: Where they are.
        config: The configuration.
        shards: What ``sampled_shards`` gives.
        decode: From a slide's record and rows of its patches to pixels.
    """
    generator = np.random.default_rng(0)
    found = [np.zeros((0, config.tiling.patch_px, config.tiling.patch_px, 3), np.uint8)]
    for record, part in shards:
        name = f"{patches_folder(config.tiling)}/{record.name}/{part.name}"
        table = read_patches(store, name, schema=shard_schema(config.tiling), part=part)
        rows = np.sort(generator.permutation(len(table))[: -(-SAMPLE // len(shards))])
        with suppress(SlideError):
            found.append(decode(record, table.take(rows)))
    images_NHWC = np.concatenate(found)
    return images_NHWC[generator.permutation(len(images_NHWC))[:SAMPLE]]


def load_engine(spec: EncoderSpec, store: Store, *, patch_px: int, device: str) -> Encoder:
    """Load a prepared encoder with the engine of its spec.

    Raises:
        StorageError: If its weights or its quantised model are damaged or gone.
        EncoderError: If the engine is not installed.
    """
    return with_engines_of(load_encoder(spec, store, device=device), spec, store, patch_px=patch_px, device=device)


def with_engines_of(encoder: Encoder, spec: EncoderSpec, store: Store | None, *, patch_px: int, device: str) -> Encoder:
    """Have a loaded encoder computed by the engine of its spec.

    Args:
        encoder: The encoder, on the device.
        spec: Names the engine of each network; none: torch in fp32.
        store: Where quantised models are; None: none is needed.
        patch_px: Edge of the patches.
        device: Where torch computes.

    Raises:
        StorageError: If a quantised model is damaged or gone.
        EncoderError: If the engine is not installed.
    """
    if spec.weights_file is None:
        return encoder
    build, parts = _module("selection").build_engine, _module("parts")
    networks = parts.networks_of(encoder)
    choices = spec.engines or (EngineChoice("torch", "fp32"),) * len(networks)
    engines = [
        build(network, choice, patch_px=patch_px, device=device, model=_stored_model(store, choice.model_digest))
        for network, choice in zip(networks, choices, strict=True)
    ]
    made: Encoder = parts.with_engines(encoder, engines)
    return made


def _stored_model(store: Store | None, digest: str | None) -> bytes | None:
    """Read a quantised model, if an engine has one. Raises: StorageError if it is damaged or gone."""
    if digest is None or store is None:
        return None
    name = model_file(digest)
    try:
        data = store.read(name)
    except FileNotFoundError as error:
        raise StorageError(f"{store.path(name)} is gone; {_REMEDY}") from error
    if digest_of_model(data) != digest:
        raise StorageError(f"{store.path(name)} is damaged; {_REMEDY}")
    return data


def _module(name: str) -> Any:
    return importlib.import_module(f"distmil.encoders.engines.{name}")
