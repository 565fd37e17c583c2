"""A bundle's files, read with suspicion: checksums, types, ranges and shapes come before any allocation."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from distmil.config.learning import MAX_FOLDS
from distmil.config.root import Config
from distmil.errors import BundleError
from distmil.inference.bundle_place import BUNDLE_VERSION, FIRST_VERSION, bundle_digest
from distmil.inference.scoring import READ_OUTS
from distmil.inference.thresholds import DEFAULT_THRESHOLD
from distmil.models.baselines import make_network
from distmil.models.network import Network
from distmil.models.regions import PatchEvidence
from distmil.storage.records import Part, Record
from distmil.storage.store import Store

HEAD_FILE = "model.safetensors"
ENCODER_FILE = "encoder.safetensors"
JSON_FILES = ("config.json", "labels.json", "metrics.json")
MAX_EMBEDDING_DIM = 1_000_000


def of_today(values: Mapping[str, Any], version: int) -> Mapping[str, Any]:
    """Translate a bundle's configuration of an earlier version into today's keys.

    In the first version a ResNet with the weights ``none`` had random ones.
    """
    encoder = values.get("encoder", {})
    values = {"features": {"encoder": None, "dimension": None}, **values}  # bundles of earlier distmils lack them
    if version == FIRST_VERSION and encoder.get("name") != "texture" and encoder.get("weights") == "none":
        return {**values, "encoder": {**encoder, "weights": "random"}}
    return values


class BundleFiles:
    """The files that a bundle's record names, each compared with its checksum when it is read."""

    def __init__(self, store: Store, record: Record) -> None:
        self._store, self._record = store, record
        self._parts: dict[str, Part] = {part.name: part for part in record.parts}
        self.version = record.key["format_version"]
        if self.version not in (FIRST_VERSION, BUNDLE_VERSION) or isinstance(self.version, bool):
            raise BundleError(
                f"{store.root} has format version {str(self.version)[:20]}, this distmil reads {FIRST_VERSION} and "
                f"{BUNDLE_VERSION}"
            )
        needed = {HEAD_FILE, *(JSON_FILES if self.version > FIRST_VERSION else ())}
        if self._parts.keys() - {ENCODER_FILE} != needed or not record.ok:
            raise BundleError(f"{store.root} is not a finished bundle: its record does not name a bundle's files")

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read weights."""
        state: dict[str, Tensor] = load_safetensors(self._store.read_part(".", self._parts[name]))
        return state

    def json(self, name: str) -> Any:
        """Read JSON, which holds no NaN."""
        try:
            return json.loads(self._read(name), parse_constant=_refuse)
        except RecursionError as error:
            raise ValueError(f"{name} is nested too deeply") from error

    def _read(self, name: str) -> bytes:
        return self._store.read_part(".", self._parts[name]) if name in self._parts else self._store.read(name)

    def digest(self) -> str:
        """Hash everything that predictions depend on."""
        return bundle_digest(self._record, self.json)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def wrong(name: str, value: Any, expected: str) -> BundleError:
    """Make the error for a value of a bundle."""
    return BundleError(f"the bundle's {name} = {value!r:.100}: {expected}")


def slide_thresholds_in(labels: Mapping[str, Any], version: int) -> dict[str, float]:
    """Check the threshold of every read-out. Raises: BundleError."""
    if version == FIRST_VERSION:
        return dict.fromkeys(READ_OUTS, checked_threshold("slide_threshold", labels["slide_threshold"]))
    given = {"regions": DEFAULT_THRESHOLD, **labels["slide_thresholds"]}  # bundles of earlier distmils lack it
    return {name: checked_threshold(name, given[name]) for name in READ_OUTS}


def reach_in(labels: Mapping[str, Any]) -> float | None:
    """Check the reach, which bundles of earlier distmils lack. Raises: BundleError."""
    reach = labels.get("reach")
    if reach is not None and not (isinstance(reach, float) and 0 <= reach < math.inf):
        raise wrong("labels.json: reach", reach, "expected a number, at least 0")
    return reach


def usual_patches_in(labels: Mapping[str, Any]) -> int | None:
    """Check the usual number of patches, which bundles of earlier distmils lack. Raises: BundleError."""
    usual = labels.get("usual_patches")
    if usual is not None and not (type(usual) is int and usual > 0):
        raise wrong("labels.json: usual_patches", usual, "expected a whole number above 0")
    return usual


def evidence_in(labels: Mapping[str, Any]) -> PatchEvidence | None:
    """Check the evidence of a patch, which bundles of earlier distmils lack. Raises: BundleError."""
    values = labels.get("evidence")
    if values is None:
        return None
    numbers = [values[name] for name in ("slope", "offset")]
    if not all(isinstance(value, float) and math.isfinite(value) for value in numbers) or not numbers[0] > 0:
        raise wrong("labels.json: evidence", values, "expected a slope above 0 and an offset")
    return PatchEvidence(*numbers)


def checked_threshold(name: str, value: Any) -> float:
    """Check a threshold. Raises: BundleError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise wrong(f"threshold {name}", value, "expected a number from 0 to 1")
    return float(value)


def temperatures_in(labels: Mapping[str, Any]) -> dict[str, float]:
    """Check the temperatures of read-outs, which bundles of earlier distmils lack. Raises: BundleError."""
    values = labels.get("temperatures", {})
    is_known = isinstance(values, dict) and all(name in READ_OUTS for name in values)
    if not is_known or not all(type(value) is float and 0 < value < math.inf for value in values.values()):
        raise wrong("labels.json: temperatures", values, f"expected numbers above 0 of {', '.join(READ_OUTS)}")
    return dict(values)


def tensors_of(heads: Sequence[Network]) -> dict[str, Tensor]:
    """Name the tensors of a bundle's networks: as the network does, of several ones after the number of each."""
    return {
        f"{i}.{key}" if len(heads) > 1 else key: value.detach().cpu().contiguous()
        for i, head in enumerate(heads)
        for key, value in head.state_dict().items()
    }


def heads_of(config: Config, values: Mapping[str, Any], state: dict[str, Tensor]) -> tuple[Network, ...]:
    """Build the networks of a bundle from its tensors.

    Args:
        config: The bundle's configuration.
        values: Its config.json.
        state: Its tensors.

    Raises:
        BundleError: If they do not belong together.
    """
    embedding_dim, members = values["embedding_dim"], values.get("members", 1)
    if type(embedding_dim) is not int or not 1 <= embedding_dim <= MAX_EMBEDDING_DIM:
        raise wrong("embedding_dim", embedding_dim, f"expected an integer from 1 to {MAX_EMBEDDING_DIM}")
    if type(members) is not int or not 1 <= members <= MAX_FOLDS:
        raise wrong("members", members, f"expected an integer from 1 to {MAX_FOLDS}")
    if members == 1:
        return (_network_of(config, embedding_dim, state),)
    states: list[dict[str, Tensor]] = [{} for _ in range(members)]
    for key, tensor in state.items():
        number, _, name = key.partition(".")
        if not (number.isdecimal() and int(number) < members):
            raise BundleError(f"the bundle's tensor {key!r:.80} belongs to none of its {members} networks")
        states[int(number)][name] = tensor
    return tuple(_network_of(config, embedding_dim, each) for each in states)


def _network_of(config: Config, embedding_dim: int, state: dict[str, Tensor]) -> Network:
    """Build a network from its tensors. Raises: BundleError if they are not those of its config."""
    num_classes = len(config.cohort.classes)
    with torch.device("meta"):  # shapes alone, whatever the file claims
        expected = make_network(config.model, embedding_dim=embedding_dim, num_classes=num_classes).state_dict()
    if {k: (v.shape, v.dtype) for k, v in state.items()} != {k: (v.shape, v.dtype) for k, v in expected.items()}:
        raise BundleError("the bundle's weights do not have the names, shapes and types of its configured network")
    low, high = state["normaliser.low"], state["normaliser.high"]
    _check_finite({k: v for k, v in state.items() if k not in {"normaliser.low", "normaliser.high"}})
    if not bool((low <= high).all()):  # infinite where nothing is clipped, but in order, and never NaN
        raise BundleError("the bundle's normalisation statistics are out of order")
    head = make_network(config.model, embedding_dim=embedding_dim, num_classes=num_classes)
    head.load_state_dict(state)
    return head.eval()


def encoder_state_of(config: Config, files: BundleFiles) -> dict[str, Tensor] | None:
    """Read the encoder's weights, None where there are none: of texture, and of features. Raises: BundleError."""
    has_weights = config.encoder.has_weights and config.tiling.strategy != "features"
    if has_weights != (ENCODER_FILE in files):
        raise BundleError(f"the bundle's {ENCODER_FILE} and its encoder {config.encoder.name} do not fit")
    if ENCODER_FILE not in files:
        return None
    state = files.tensors(ENCODER_FILE)
    _check_finite(state)
    return state


def _check_finite(state: Mapping[str, Tensor]) -> None:
    wrong = [name for name, values in state.items() if not math.isfinite(values.double().abs().sum().item())]
    if wrong:
        raise BundleError(f"the bundle's weights {', '.join(wrong[:5])} are not finite")
