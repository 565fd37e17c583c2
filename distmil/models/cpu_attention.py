"""The attention block on a CPU, block by block: T x E values in fp32 never exist as a whole.

A block of rows is centred and goes through the products; the backward pass centres each block again. Features and gates
are kept. Plain operations take 1.06 times the CPU time of an epoch, and 268 MB more for a step's centred embeddings.

T patches, E embedding, F feature, A attention, G both gates (2 A), O and I a layer's outputs and inputs.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmil.models.normaliser import Normaliser

_BLOCK = 4096
"""Rows: with fewer the products wait for each other, with more a block leaves the last cache."""


def features_in_blocks(
    normaliser: Normaliser, embedding_TE: Tensor, weight_FE: Tensor, bias_F: Tensor, *, drop: float
) -> Tensor:
    """Compute dropout(relu(centred embeddings x weight + bias)), T x F, in autocast's precision.

    Args:
        normaliser: Centres the embeddings; its factors are in the weight already.
        embedding_TE: Raw embeddings on a CPU, which need no gradient.
        weight_FE: Weight.
        bias_F: Bias.
        drop: Share to drop, in steps of 1/256.
    """
    feature_TF, _ = _apply(normaliser, embedding_TE, drop, torch.is_grad_enabled(), *_cast(weight_FE, bias_F))
    return feature_TF


def attended_in_blocks(  # noqa: PLR0917  # two layers and a score, in the order in which they come
    normaliser: Normaliser,
    embedding_TE: Tensor,
    weight_FE: Tensor,
    bias_F: Tensor,
    gate_weight_GF: Tensor,
    gate_bias_G: Tensor,
    score_weight_A: Tensor,
    score_bias: Tensor,
    *,
    drop: float,
) -> tuple[Tensor, Tensor]:
    """Compute features as ``features_in_blocks`` does, and their raw gated attention scores, T, fp32 at least.

    score = w x (tanh(v) sigmoid(u)) + b, where v and u are the halves of the gates of the feature.
    """
    layers = _cast(weight_FE, bias_F, gate_weight_GF, gate_bias_G)
    return _apply(normaliser, embedding_TE, drop, torch.is_grad_enabled(), *layers, score_weight_A, score_bias)


def _cast(*weights: Tensor) -> list[Tensor]:
    """Cast weights to autocast's precision."""
    half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return [weight if half is None else weight.to(half) for weight in weights]


def _apply(*given: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):  # half-precision inputs are so already; scores are not
        found: tuple[Tensor, Tensor] = _AttentionBlock.apply(*given)
    return found


class _AttentionBlock(torch.autograd.Function):
    """dropout(relu(x W + b)) of centred embeddings x, and gated attention over it where there are gates.

    Dropped and negative values are zero in the feature, which is all that the backward pass needs of them.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  # torch passes them by position
        ctx: Any,
        normaliser: Normaliser,
        embedding_TE: Tensor,
        drop: float,
        comes_back: bool,
        weight_FE: Tensor,
        bias_F: Tensor,
        *gating: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        threshold = round(256 * drop)
        ctx.normaliser, ctx.embedding_TE, ctx.keep = normaliser, embedding_TE, 1 - threshold / 256
        num_rows, num_gates = len(embedding_TE), len(gating[0]) if gating else 0
        feature_TF = weight_FE.new_empty(num_rows, len(weight_FE))
        gates_TG = weight_FE.new_empty(num_rows if comes_back else min(_BLOCK, num_rows), num_gates)
        attention_T = gating[2].new_empty(num_rows) if gating else None
        draws = _draws() if threshold else None
        scaled_FE, scaled_F = weight_FE / ctx.keep, bias_F / ctx.keep  # relu(s x) = s relu(x)
        for rows in _blocks(num_rows):
            centred_TE = normaliser.centred(embedding_TE[rows]).to(weight_FE.dtype)
            block_TF = torch.addmm(scaled_F, centred_TE, scaled_FE.T, out=feature_TF[rows]).clamp_(min=0)
            if draws is not None:
                block_TF.mul_(_keep_mask(block_TF, draws, threshold))
            if attention_T is not None:
                block_TG = gates_TG[rows] if comes_back else gates_TG[: len(block_TF)]
                attention_T[rows] = _score(block_TF, block_TG, *gating)
        ctx.save_for_backward(feature_TF, gates_TG, weight_FE, *gating)
        ctx.set_materialize_grads(False)
        return feature_TF, attention_T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        feature_TF, gates_TG, weight_FE, *gating = ctx.saved_tensors
        gradient_TF, gradient_T = gradients
        phi, gates = _LayerSums(weight_FE), _LayerSums(gating[0]) if gating else None
        of_score_A = torch.zeros_like(gating[2]) if gating else weight_FE.new_empty(0)
        for rows in reversed(list(_blocks(len(feature_TF)))):
            block_TF = feature_TF[rows]
            back_TF = None if gradient_TF is None else gradient_TF[rows]
            if gates is not None and gradient_T is not None:
                back_TG = _score_backward(gradient_T[rows], gates_TG[rows], gating[2], of_score_A)
                gates.add(back_TG, block_TF)
                through_TF = back_TG @ gating[0]
                back_TF = through_TF if back_TF is None else through_TF.add_(back_TF)
            if back_TF is not None:
                centred_TE = ctx.normaliser.centred(ctx.embedding_TE[rows]).to(weight_FE.dtype)
                phi.add(torch.ops.aten.threshold_backward(back_TF, block_TF, 0), centred_TE)
        found: list[Tensor | None] = [*phi.found(1 / ctx.keep)]
        if gates is not None and gradient_T is not None:
            found += [*gates.found(), of_score_A, gradient_T.sum()[None]]
        return None, None, None, None, *found, *[None] * (2 + len(gating) - len(found))


class _LayerSums:
    """Gradients of a layer's weight and bias, added up over blocks, and never in half precision."""

    def __init__(self, weight_OI: Tensor) -> None:
        self._dtype = weight_OI.dtype
        self._wide = torch.promote_types(self._dtype, torch.float32)
        self._weight_OI = torch.zeros_like(weight_OI, dtype=self._wide)
        self._bias_O = self._weight_OI.new_zeros(len(weight_OI))

    def add(self, back_TO: Tensor, input_TI: Tensor) -> None:
        """Add a block: the gradient of its output, and its input."""
        if self._dtype == self._wide:
            self._weight_OI.addmm_(back_TO.T, input_TI)
        else:
            self._weight_OI += back_TO.T @ input_TI
        self._bias_O += back_TO.sum(0, dtype=self._wide)

    def found(self, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """Scale both by a factor, in the layer's precision."""
        return (factor * self._weight_OI).to(self._dtype), (factor * self._bias_O).to(self._dtype)


def _score(  # noqa: PLR0917  # a layer and a score, in the order in which they come
    feature_TF: Tensor, out_TG: Tensor, weight_GF: Tensor, bias_G: Tensor, score_A: Tensor, bias: Tensor
) -> Tensor:
    """Compute raw attention scores, T, and leave both gates in ``out_TG``."""
    value_TA, gate_TA = torch.addmm(bias_G, feature_TF, weight_GF.T, out=out_TG).chunk(2, dim=1)
    both_TA = value_TA.tanh_() * gate_TA.sigmoid_()
    return both_TA.to(score_A.dtype) @ score_A + bias


def _score_backward(back_T: Tensor, gates_TG: Tensor, score_A: Tensor, sum_A: Tensor) -> Tensor:
    """Compute the gradient before the gates, T x G, and add the score's to ``sum_A``.

    For h = v u with v = tanh and u = sigmoid: dh/dv' = u (1 - v^2) = u - v h, and dh/du' = v u (1 - u) = h - u h.
    """
    value_TA, gate_TA = gates_TG.chunk(2, dim=1)
    both_TA = value_TA * gate_TA
    sum_A += back_T @ both_TA.to(back_T.dtype)
    back_TA = torch.outer(back_T, score_A).to(gates_TG.dtype)
    back_TG = torch.empty_like(gates_TG)
    of_value_TA, of_gate_TA = back_TG.chunk(2, dim=1)
    both_TA.mul_(back_TA)
    torch.addcmul(back_TA.mul_(gate_TA), both_TA, value_TA, value=-1, out=of_value_TA)
    torch.addcmul(both_TA, both_TA, gate_TA, value=-1, out=of_gate_TA)
    return back_TG


def _blocks(num_rows: int) -> Iterator[slice]:
    """Yield the rows of each block; the last one may be smaller."""
    return (slice(start, min(start + _BLOCK, num_rows)) for start in range(0, num_rows, _BLOCK))


def _draws() -> np.random.Generator:
    """Make a generator that torch's own seeds."""
    return np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))


def _keep_mask(like_TF: Tensor, draws: np.random.Generator, threshold: int) -> Tensor:
    """Draw 0 with a chance of threshold / 256, else 1, as bytes in the shape of ``like_TF``.

    From random bytes, eight to a draw, so that a seed drops the same values as in earlier versions.
    """
    drawn = draws.integers(0, 2**64 - 1, size=-(-like_TF.numel() // 8), dtype=np.uint64, endpoint=True)
    kept = drawn.view(np.uint8)[: like_TF.numel()] >= threshold
    return torch.from_numpy(kept.view(np.uint8)).view(like_TF.shape)
