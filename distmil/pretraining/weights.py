"""The result of a pre-training: a folder of weights that ``encoder.weights`` takes, with the history beside them."""

import json

from distmil.encoders.catalog.row import EncoderRow
from distmil.encoders.networks.patch_encoder import PatchEncoder
from distmil.encoders.registry import EncoderSpec, encoder_state
from distmil.encoders.weights.states import encode_state
from distmil.pretraining.history import History
from distmil.storage.records import Record
from distmil.storage.store import Committed, Store

FOLDER = "pretrained"
"""Of the results in a store, by run."""
WEIGHTS, CONFIG, HISTORY, LOSSES = "model.safetensors", "config.json", "history.json", "losses.csv"
FORMAT_VERSION = 1


def weights_folder(run: str) -> str:
    """Name the folder of a pre-training's result."""
    return f"{FOLDER}/{run}"


def save_weights(store: Store, run: str, encoder: PatchEncoder, spec: EncoderSpec, history: History) -> Record:
    """Write the encoder in the format of a repository of timm, and commit it.

    The encoder's answer to the fixed image stands beside its weights: another machine that answers otherwise is
    refused when it loads them.

    Args:
        store: Where the folder goes.
        run: The run's name.
        encoder: The pre-trained encoder.
        spec: The encoder that it began as.
        history: Of the run.

    Raises:
        EncoderError: If the encoder's answer to the fixed image is not finite.
        StorageError: If the store cannot be written.
    """
    state = encoder_state(spec, store, trained=encoder)
    assert state is not None
    folder = weights_folder(run)
    files = {
        WEIGHTS: encode_state(state),
        CONFIG: _as_json(config_of(encoder.row)),
        HISTORY: _as_json(history.to_json()),
        LOSSES: _losses(history),
    }
    parts = [store.write_part(folder, name, data, rows=1) for name, data in files.items()]
    key = {"format_version": FORMAT_VERSION, "began_as": spec.identity()}
    return Committed(store, folder, run).commit(key, parts=parts)


def config_of(row: EncoderRow) -> dict[str, object]:
    """Describe a network as timm's ``config.json`` does."""
    edge = row.input_px or 224
    return {
        "architecture": row.arch,
        "num_classes": 0,
        "model_args": dict(row.args),
        "pretrained_cfg": {
            "mean": list(row.mean), "std": list(row.std), "interpolation": row.interpolation,
            "input_size": [3, edge, edge],
        },
    }  # fmt: skip


def _as_json(values: object) -> bytes:
    return json.dumps(values, indent=1).encode()


def _losses(history: History) -> bytes:
    lines = [f"{step},{loss!r}" for step, loss in enumerate(history.losses, start=1)]
    return "\n".join(["step,loss", *lines, ""]).encode()
