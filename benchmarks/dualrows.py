"""The rows of `dual_supervision`: what is trained with which labels, and one factor of the recipe at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

VIEWS = 4
"""Views with shifted stains that rows may train with."""
CHOSEN = {"bags.sample": 100, "encoder.views": VIEWS}
"""What differs from the defaults in the table: chosen by patch AP on folds and stain groups inside train."""
NARROW = {"model.feature_dim": 256, "model.attention_dim": 128, "model.dropout": 0.5, "bags.sample": 100}
"""A network of half the width, which trains in half the time: what all other rows are made with."""
HARD = {"bags.hard_negatives": True}
WEAK = {"losses.patch": 0.0, "losses.attention": 0.0}
QUARTER, TENTH = 0.25, 0.1


@dataclass(frozen=True)
class Setting:
    """A row: what is overridden, which share of positive slides has outlines, and which share of them is there."""

    name: str
    share: float
    overrides: dict[str, Any]
    positives: float = 1.0
    stops: bool = False
    """A quarter of the training slides is set aside; with patience they are judged, and the best epoch is kept."""


def narrow(
    name: str, share: float, overrides: dict[str, Any], positives: float = 1.0, *, stops: bool = False
) -> Setting:
    """Return a row of the narrow network."""
    return Setting(name, share, {**NARROW, **overrides}, positives, stops)


def rows_of(base: dict[str, Any]) -> list[Setting]:
    """Return the rows of a table: slide labels alone, every baseline, each loss added, every budget."""
    rows = [
        ("slide labels: L2", 0.0, WEAK | {"losses.topk": 0.0}),
        (_WEAK, 0.0, WEAK),
        *((f"slide labels: {name}", 0.0, {"model.name": name})
          for name in ("attention", "gated_attention", "mean", "max", "instance")),
        ("a quarter: L1 + L2", QUARTER, {"losses.topk": 0.0, "losses.attention": 0.0}),
        ("a quarter: L1 + L2 + L3", QUARTER, {"losses.attention": 0.0}),
        ("a quarter: L1 + L2 + L4", QUARTER, {"losses.topk": 0.0}),
        *((f"dual, {share:.0%} annotated", share, {}) for share in (TENTH, QUARTER, 0.5, 1.0)),
        *((f"patches only, {share:.0%} annotated", share, {"model.name": "patches"}) for share in (QUARTER, 1.0)),
        *((f"hard negatives, {share:.0%} annotated", share, HARD) for share in (QUARTER, 1.0)),
    ]  # fmt: skip
    return [Setting(name, share, {**base, **overrides}) for name, share, overrides in rows]


def viewed(rows: Sequence[Setting], prefixes: Sequence[str]) -> list[Setting]:
    """Return some of the rows as they are with views of shifted stains to train on."""
    return [
        replace(row, name=f"{row.name}, stain views", overrides=row.overrides | {"encoder.views": VIEWS})
        for row in rows
        if row.name.startswith(tuple(prefixes))
    ]


_WEAK, _QUARTER, _FULL = "slide labels: L2 + L3", "dual, 25% annotated", "dual, 100% annotated"
_LABELS = [f"slide labels: {name}" for name in ("L2", "attention", "gated_attention")]
TABLE = rows_of(CHOSEN)
_NARROW = rows_of(NARROW)
NARROW_TABLE = _NARROW + viewed(_NARROW, [*_LABELS, "dual"])
FOLDS = _NARROW + viewed(_NARROW, [_QUARTER, _FULL])
_ON_STAINS = (_WEAK, _LABELS[1], _QUARTER, _FULL)
STAINS = [row for row in _NARROW if row.name in {*_ON_STAINS, "patches only, 25% annotated"}]
STAINS += viewed(_NARROW, _ON_STAINS)

_FAST = {"training.lr": 1e-2}
_CONSTANT = {"training.schedule": "constant"}
_PATIENT, _BY_AP = {"training.patience": 10}, {"training.select_by": "patch_ap_probability"}
_LONG = {"training.epochs": 120}
RECIPES = [
    narrow("as it is", QUARTER, {}),
    narrow("bags whole", QUARTER, {"bags.sample": 0}),
    narrow("no warm-up", QUARTER, {"training.warmup_steps": 0}),
    narrow("no clipping", QUARTER, {"training.clip_norm": 1e6}),
    narrow("clipping at 1", QUARTER, {"training.clip_norm": 1.0}),
    narrow("constant rate", QUARTER, _CONSTANT),
    narrow("constant rate, EMA 0.98", QUARTER, _CONSTANT | {"training.ema": 0.98}),
    narrow("a quarter of the slides set aside", QUARTER, {}, stops=True),
    narrow("best epoch by slide AUC", QUARTER, _PATIENT, stops=True),
    narrow("best epoch by patch AP", QUARTER, _PATIENT | _BY_AP, stops=True),
    narrow("best epoch by patch AP, constant rate", QUARTER, _PATIENT | _BY_AP | _CONSTANT, stops=True),
    narrow("120 epochs", QUARTER, _LONG),
    narrow("120 epochs, best epoch by patch AP", QUARTER, _LONG | _PATIENT | _BY_AP, stops=True),
    narrow("EMA 0.98", QUARTER, {"training.ema": 0.98}),
    narrow("paired", QUARTER, {"bags.paired": True}),
    narrow("oversample 3", QUARTER, {"bags.oversample": 3.0}),
    narrow("L4 ramped over 10 epochs", QUARTER, {"losses.ramp": {"attention": 10}}),
    narrow("pooled mixed bags", QUARTER, {"bags.mixed": "pooled"}),
    narrow("10 % annotated", TENTH, {}),
    narrow("10 % annotated, oversample 3", TENTH, {"bags.oversample": 3.0}),
    narrow("lr 1e-2", QUARTER, _FAST),
    narrow("lr 1e-2, no warm-up", QUARTER, _FAST | {"training.warmup_steps": 0}),
    narrow("lr 1e-2, no clipping", QUARTER, _FAST | {"training.clip_norm": 1e6}),
    narrow("a quarter of the positive slides", QUARTER, {}, QUARTER),
    narrow("a quarter of the positive slides, class weights", QUARTER, {"losses.class_weights": "balanced"}, QUARTER),
    narrow("a quarter of the positive slides, paired", QUARTER, {"bags.paired": True}, QUARTER),
]

_PLAIN_PAIRS = (
    (_WEAK, _QUARTER, "patch_ap_probability"),
    (_LABELS[0], _QUARTER, "patch_ap_probability"),
    (_QUARTER, _FULL, "patch_ap_probability"),
    (_WEAK, _QUARTER, "patch_ap_fused"),
    (_WEAK, _QUARTER, "patch_auc_attention"),
    (_WEAK, _FULL, "patch_auc_attention"),
    *((name, dual, "slide_auc_bag") for dual in (_QUARTER, _FULL) for name in _LABELS),
)
PAIRS = (
    *_PLAIN_PAIRS,
    *((name, hard, column)
      for name, hard in ((_QUARTER, "hard negatives, 25% annotated"), (_FULL, "hard negatives, 100% annotated"))
      for column in ("patch_ap_probability", "patch_auc_attention", "slide_auc_bag")),
    ("a quarter: L1 + L2 + L3", _QUARTER, "patch_auc_attention"),
    ("a quarter: L1 + L2 + L3", _QUARTER, "patch_ap_probability"),
    *((f"{one}, stain views", f"{other}, stain views", column) for one, other, column in _PLAIN_PAIRS),
    *((name, f"{name}, stain views", column)
      for name in _ON_STAINS
      for column in ("patch_ap_probability", "patch_auc_attention", "slide_auc_bag")),
)  # fmt: skip
"""Rows that are compared, the second less the first."""
