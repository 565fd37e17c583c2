"""The encoder of a bundle, computed by the engine that the jobs of its store use. Nothing is chosen or written here."""

from dataclasses import replace

from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.embedder import patches_per_pass
from distmil.encoders.engines.choice import EngineChoice
from distmil.encoders.engines.stored import StoredEngine, with_engines_of
from distmil.encoders.registry import Encoder, EncoderSpec, carried_spec, load_carried
from distmil.errors import EncoderError
from distmil.inference.bundle import Bundle
from distmil.storage.store import Store


def open_encoder(bundle: Bundle, *, engine: str, precision: str, device: str) -> tuple[Encoder, int]:
    """Load the encoder of a bundle as the job ``predict`` would, and return it with the patches per forward pass.

    The job takes what was chosen in its store for this encoder, tiling, engine and precision. Where nothing was, both
    ``auto`` give torch in fp32.

    Args:
        bundle: The model.
        engine: As ``encoder.engine``.
        precision: As ``encoder.precision``.
        device: A torch device.

    Raises:
        ConfigError: If engine or precision is none of theirs.
        EncoderError: If the engine that is asked for was not chosen in the bundle's store, or is not installed.
        StorageError: If the store does not answer, or its quantised model is damaged.
    """
    config = _asking(bundle.config, engine=engine, precision=precision)
    spec = carried_spec(config.encoder.name, bundle.encoder_state)
    store = None if bundle.home is None else Store(bundle.home)
    choices = _chosen(config, spec, store, device=device.partition(":")[0])
    if choices is None and (engine, precision) != ("auto", "auto"):
        where = f"in {bundle.home}" if bundle.home else "for it, as it lies in no storage root"
        raise EncoderError(
            f"engine = {engine!r}, precision = {precision!r}: the bundle {bundle.run} has no such engine {where}; run "
            f"the job predict with encoder.engine={engine} encoder.precision={precision} there, which compares it with "
            "fp32 first; or leave both out"
        )
    spec = replace(spec, engines=choices or ())
    encoder = load_carried(config.encoder.name, bundle.encoder_state, device=device)
    made = with_engines_of(encoder, spec, store, patch_px=config.tiling.patch_px, device=device)
    return made, patches_per_pass(config, spec)


def _asking(config: Config, *, engine: str, precision: str) -> Config:
    """Ask for an engine in place of what the configuration does. Raises: ConfigError."""
    values = config.model_dump()
    return build_config(values | {"encoder": values["encoder"] | {"engine": engine, "precision": precision}})


def _chosen(config: Config, spec: EncoderSpec, store: Store | None, *, device: str) -> tuple[EngineChoice, ...] | None:
    """Read the choice for each network, () where none is needed, None where none was made. Raises: EncoderError."""
    if store is not None:
        return StoredEngine(spec, config, store).read(device=device)
    is_plain = (config.encoder.engine, config.encoder.precision) == ("torch", "fp32")
    return () if is_plain or spec.weights_file is None else None
