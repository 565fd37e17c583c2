"""Training for a notebook: the bags of a run, and a training in this process."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch

from distmil.api.prediction import torch_device
from distmil.bags.bag import Bag, BagEntry, open_all_bags
from distmil.config.loading import build_config, load_config, per_job_keys
from distmil.config.root import Config
from distmil.encoders.registry import EncoderSpec, encoder_state, stored_spec, with_width
from distmil.errors import ConfigError, StorageError, TrainingError
from distmil.inference.bundle import Bundle
from distmil.inference.scoring import READ_OUTS
from distmil.inference.shift import reach_of, sampled, usual_patches
from distmil.inference.thresholds import temperatures_of, threshold_of
from distmil.models.regions import PatchEvidence
from distmil.storage.roots import resolve_root
from distmil.storage.store import Store
from distmil.training.run import Run, open_run
from distmil.training.run_files import checkpoint_folder, run_file
from distmil.training.workers import Workers

SPLITS = ("train", "val")
LEARNING = ("bags", "model", "losses", "training")
"""Sections that a new training may choose; the others were decided when the bags were made."""

Row = dict[str, float | None]


class Bags(Sequence[Bag]):
    """Slides with their embeddings and labels, and how these were made: what ``fit`` trains on."""

    def __init__(self, bags: Sequence[Bag], *, config: Config, spec: EncoderSpec, store: Store) -> None:
        self._bags = list(bags)
        self.config = config
        """Of the run that the bags were made for."""
        self.spec = spec
        """The encoder of their embeddings."""
        self.store = store

    @property
    def classes(self) -> list[str]:
        """List the class names in index order."""
        return self.config.cohort.classes

    def __len__(self) -> int:
        return len(self._bags)

    @overload
    def __getitem__(self, index: int) -> Bag: ...

    @overload
    def __getitem__(self, index: slice) -> "Bags": ...

    def __getitem__(self, index: int | slice) -> "Bag | Bags":
        if isinstance(index, slice):
            return Bags(self._bags[index], config=self.config, spec=self.spec, store=self.store)
        return self._bags[index]

    def __repr__(self) -> str:
        patches = sum(map(len, self._bags))
        return f"Bags({len(self)} slides, {patches} patches, {self.spec.dimension} {self.spec.name} features)"


@dataclass(frozen=True, repr=False)
class FittedRun:
    """A finished training: its history, and the trained model as a bundle."""

    history: list[Row]
    """One row per epoch: ``loss``, ``loss_<name>`` of each loss, and validation metrics ``val_<name>``."""
    best_epoch: int
    """The row of the best epoch by ``training.select_by``, counted from 0."""
    bundle: Bundle
    """The weights of the last epoch; with ``training.patience`` above 0 those of the best."""

    def __repr__(self) -> str:
        return f"FittedRun({len(self.history)} epochs, best {self.best_epoch}, loss {self.history[-1]['loss']:.4g})"

    def save(self, folder: str | Path) -> str:
        """Write the bundle into a folder, which ``distmil.load_bundle`` opens; see ``Bundle.save``."""
        return self.bundle.save(folder)


def open_bags(root: str | Path | None = None, *, run: str, split: str | None = None) -> Bags:
    """Open the bags that a run was trained on: embeddings and labels that the job `train` made.

    Embeddings are memory-mapped, and nothing is copied.

    Args:
        root: The storage root; None: ``$DISTMIL_HOME``, else ``~/.distmil``.
        run: Name of the run.
        split: ``train`` or ``val``; None: both.

    Raises:
        ConfigError: If the run does not exist, or ``split`` is another word.
        StorageError: If a file is damaged or gone.
        SlideError: If an embedding is not finite.
    """
    if split not in (None, *SPLITS):
        raise ConfigError(f"split = {split!r}: expected train or val; a run holds no other slides")
    store = Store(resolve_root(None if root is None else str(root), key="root"))
    folder = checkpoint_folder(run)
    try:
        claim = store.read_checked(run_file(run, "run"), owner=run)
        values = store.read_checked(run_file(run, "cohort"), owner=run)
        config, spec = _made_with(claim["settings"])
        entries = [BagEntry.from_json(value) for value in values]
    except FileNotFoundError as error:
        raise ConfigError(
            f"run = {run!r}: there is no trained run of that name under {store.path('checkpoints')}; run the job train"
        ) from error
    except (KeyError, TypeError) as error:
        raise StorageError(f"{store.path(folder)} is not the folder of a training run; run the job train") from error
    spec = with_width(spec, store)
    chosen = [entry for entry in entries if split in (None, entry.split)]
    bags = open_all_bags(store, chosen, num_classes=len(config.cohort.classes), form=config.labels.form)
    return Bags(bags, config=config, spec=spec, store=store)


def fit(
    bags: Bags,
    *,
    val: Sequence[Bag] = (),
    config: str | Path | Mapping[str, Any] | Config | None = None,
    device: str | None = None,
    on_epoch: Callable[[Row], object] | None = None,
) -> FittedRun:
    """Train a network in this process, to the last epoch. Nothing is written; ``save`` keeps the result.

    One worker of the job `train` takes the same steps.

    Args:
        bags: Training bags, of ``open_bags``.
        val: Bags to evaluate on after every epoch; thresholds are chosen on them.
        config: A YAML file, nested values, or a Config, whose sections bags, model, losses and training count; None:
            those of the run that the bags were made for.
        device: A torch device such as ``cpu`` or ``cuda``; default: the GPU where there is one.
        on_epoch: Called with each new row of the history, as to show progress.

    Raises:
        ConfigError: If a key is wrong, or sets what was decided when the bags were made.
        TrainingError: If slides of two classes are missing, no loss is left, or a loss is not finite.
    """
    wanted = _settings(bags, config)
    labels = {bag.label for bag in bags}
    if len(labels) < 2 or None in labels:
        raise TrainingError("training needs labelled slides of at least two classes; open the bags of the split train")
    place = torch_device(device)
    with torch.random.fork_rng(
        devices=[place] if place.type == "cuda" else []
    ):  # the caller's own random numbers stay as they were
        run = open_run(wanted, bags, val, bags.spec, bags.store, name=None, device=place)
        nets = run.learner.eval_model
        best = None
        while not run.is_finished:
            if run.advance(Workers()) and wanted.training.patience:
                best = copy.deepcopy(nets.state_dict())
            if on_epoch:
                on_epoch(dict(run.history.rows[-1]))
    if best is not None:
        nets.load_state_dict(best)
    nets.train(False)
    return FittedRun(run.history.rows, run.history.best_epoch, _bundle(run, bags, wanted))


def _bundle(run: Run, bags: Bags, config: Config) -> Bundle:
    """Make the bundle of a finished run, as the job does."""
    rows, history, nets = run.history.rows, run.history, run.learner.eval_model
    epoch = history.best_epoch if config.training.patience else len(rows) - 1
    some = [] if config.encoder.trainable else sampled(list(bags))
    return Bundle(
        run=config.training.run or "fit",
        config=config,
        heads=(nets.head,),
        encoder_state=encoder_state(bags.spec, bags.store, trained=nets.encoder),
        patch_threshold=threshold_of(rows[epoch], "patch"),
        slide_thresholds={name: threshold_of(rows[epoch], name) for name in READ_OUTS},
        temperatures=temperatures_of(rows[epoch], READ_OUTS),
        reach=reach_of(nets.head.normaliser, (bag.source for bag in some), seed=config.training.seed),
        usual_patches=usual_patches([len(bag) for bag in bags]),
        evidence=PatchEvidence.in_row(rows[epoch]),
        metrics={"epoch": epoch, "epochs": len(rows), "last": rows[epoch]},
    )


def _made_with(settings: Mapping[str, Any]) -> tuple[Config, EncoderSpec]:
    """Rebuild the configuration and the encoder of a run from the settings that it was started with."""
    spec = stored_spec(**settings["encoder"])
    is_one = spec.weights_file is not None and "+" not in spec.name
    weights = {"weights": Path(str(spec.weights_file)).name} if is_one else {}
    values: dict[str, Any] = {"encoder": {"name": spec.name, **weights}, "tiling": settings["tiling"]}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if name and section in {*LEARNING, "labels", "encoder", "cohort"}:
            values.setdefault(section, {})[name] = value
    return build_config(values), spec


def _settings(bags: Bags, config: str | Path | Mapping[str, Any] | Config | None) -> Config:
    """Lay the sections of learning over the bags' configuration. Raises: ConfigError if another section differs."""
    if config is None:
        return bags.config
    if not isinstance(config, Config):
        config = build_config(config) if isinstance(config, Mapping) else load_config(config)
    if config.training.folds:
        raise ConfigError(f"training.folds = {config.training.folds}: folds are of the job train; leave it out")
    made = bags.config.flat()
    decided = ("cohort.classes", "tiling.", "labels.", "encoder.name", "encoder.trainable")
    for key, value in config.explicit().items():
        if key.startswith(decided) and key in made and key not in per_job_keys() and made[key] != value:
            raise ConfigError(f"{key} = {value!r}: the bags were made with {made[key]!r}; leave it out")
    return bags.config.model_copy(update={name: getattr(config, name) for name in LEARNING})
