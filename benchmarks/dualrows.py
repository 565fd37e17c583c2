"""The rows of `dual_supervision`: what is trained with which labels, and one factor of the recipe at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

CHOSEN = {"model.feature_dim": 256, "model.attention_dim": 128, "model.dropout": 0.5, "bags.sample": 100}
"""What differs from the defaults in every row but those of `select`: chosen on folds inside train."""
WEAK = {"losses.patch": 0.0, "losses.attention": 0.0}
QUARTER, TENTH = 0.25, 0.1
VIEWS = 4
"""Views with shifted stains that rows may train with."""


@dataclass(frozen=True)
class Setting:
    """A row: what is overridden, which share of positive slides has outlines, and which share of them is there."""

    name: str
    share: float
    overrides: dict[str, Any]
    positives: float = 1.0


def chosen(name: str, share: float, overrides: dict[str, Any], positives: float = 1.0) -> Setting:
    """Return a row of the chosen network."""
    return Setting(name, share, {**CHOSEN, **overrides}, positives)


_DUAL = [chosen(f"dual, {share:.0%} annotated", share, {}) for share in (TENTH, QUARTER, 0.5, 1.0)]
_L2 = chosen("slide labels: L2", 0.0, WEAK | {"losses.topk": 0.0})
_WEAK = chosen("slide labels: L2 + L3", 0.0, WEAK)
_ATTENTION, _GATED, *_OTHERS = (
    chosen(f"slide labels: {name}", 0.0, {"model.name": name})
    for name in ("attention", "gated_attention", "mean", "max", "instance")
)
_PATCHES = [
    chosen(f"patches only, {share:.0%} annotated", share, {"model.name": "patches"}) for share in (QUARTER, 1.0)
]


def viewed(rows: Sequence[Setting]) -> list[Setting]:
    """Return rows as they are with views of shifted stains to train on."""
    return [
        replace(row, name=f"{row.name}, stain views", overrides=row.overrides | {"encoder.views": VIEWS})
        for row in rows
    ]


FOLDS = [
    _L2, _WEAK, _ATTENTION, _GATED, *_OTHERS,
    chosen("a quarter: L1 + L2", QUARTER, {"losses.topk": 0.0, "losses.attention": 0.0}),
    chosen("a quarter: L1 + L2 + L3", QUARTER, {"losses.attention": 0.0}),
    chosen("a quarter: L1 + L2 + L4", QUARTER, {"losses.topk": 0.0}),
    *_DUAL, *_PATCHES,
]  # fmt: skip
TABLE = FOLDS + viewed([_L2, _WEAK, _ATTENTION, _GATED, *_DUAL])
STAINS = [row for one in (_WEAK, _ATTENTION, _DUAL[1], _DUAL[3]) for row in (one, *viewed([one]))]

_FAST = {"training.lr": 1e-2}
RECIPES = [
    chosen("as chosen", QUARTER, {}),
    chosen("bags whole", QUARTER, {"bags.sample": 0}),
    chosen("no warm-up", QUARTER, {"training.warmup_steps": 0}),
    chosen("no clipping", QUARTER, {"training.clip_norm": 1e6}),
    chosen("clipping at 1", QUARTER, {"training.clip_norm": 1.0}),
    chosen("EMA 0.98", QUARTER, {"training.ema": 0.98}),
    chosen("paired", QUARTER, {"bags.paired": True}),
    chosen("oversample 3", QUARTER, {"bags.oversample": 3.0}),
    chosen("L4 ramped over 10 epochs", QUARTER, {"losses.ramp": {"attention": 10}}),
    chosen("pooled mixed bags", QUARTER, {"bags.mixed": "pooled"}),
    chosen("10 % annotated", TENTH, {}),
    chosen("10 % annotated, oversample 3", TENTH, {"bags.oversample": 3.0}),
    chosen("lr 1e-2", QUARTER, _FAST),
    chosen("lr 1e-2, no warm-up", QUARTER, _FAST | {"training.warmup_steps": 0}),
    chosen("lr 1e-2, no clipping", QUARTER, _FAST | {"training.clip_norm": 1e6}),
    chosen("a quarter of the positive slides", QUARTER, {}, QUARTER),
    chosen("a quarter of the positive slides, class weights", QUARTER, {"losses.class_weights": "balanced"}, QUARTER),
    chosen("a quarter of the positive slides, paired", QUARTER, {"bags.paired": True}, QUARTER),
]

_BASE, _QUARTER, _FULL = (row.name for row in (_WEAK, _DUAL[1], _DUAL[3]))
_PLAIN_PAIRS = (
    (_BASE, _QUARTER, "patch_ap_probability"),
    (_L2.name, _QUARTER, "patch_ap_probability"),
    (_QUARTER, _FULL, "patch_ap_probability"),
    (_BASE, _QUARTER, "patch_ap_fused"),
    (_BASE, _QUARTER, "patch_auc_attention"),
    (_BASE, _FULL, "patch_auc_attention"),
    *((row.name, dual, "slide_auc_bag") for dual in (_QUARTER, _FULL) for row in (_L2, _ATTENTION, _GATED)),
)
PAIRS = (
    *_PLAIN_PAIRS,
    ("a quarter: L1 + L2 + L3", _QUARTER, "patch_auc_attention"),
    ("a quarter: L1 + L2 + L3", _QUARTER, "patch_ap_probability"),
    *((f"{one}, stain views", f"{other}, stain views", column) for one, other, column in _PLAIN_PAIRS),
    *((row.name, f"{row.name}, stain views", column)
      for row in (_WEAK, _ATTENTION, _DUAL[1], _DUAL[3])
      for column in ("patch_ap_probability", "patch_auc_attention", "slide_auc_bag")),
)  # fmt: skip
"""Rows that are compared, the second less the first."""
