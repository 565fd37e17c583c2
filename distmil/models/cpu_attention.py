"""The attention block on a CPU, block by block: what stays in the cache does not wait for memory.

T x E values that go through memory once for every operation cost as much as the products themselves. Here a block of
rows is centred and goes through the products; the backward pass goes from the last block to the first, and makes those
anew that there was no room to keep. Features and gates are kept.

T patches, E embedding, F feature, A attention, G both gates (2 A), O and I a layer's outputs and inputs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmil.models.normaliser import Normaliser

_BLOCK = 4096  # rows: fewer leave the products waiting for each other, more leave the last cache
_STRIP = 128  # rows that are centred at once: they stay in a core's own cache
_KEPT_BYTES = 2**28  # of centred blocks that the backward pass finds as the forward pass left them


def features_in_blocks(
    normaliser: Normaliser, pieces: Sequence[Tensor], weight_FE: Tensor, bias_F: Tensor, *, drop: float
) -> Tensor:
    """Return dropout(relu(centred embeddings x weight + bias)), T x F, in autocast's precision.

    Args:
        normaliser: Centres the embeddings; its factors are in the weight already.
        pieces: Raw embeddings, T x E, on a CPU, which need no gradient; as they lie, one piece after the other.
        weight_FE: Weight.
        bias_F: Bias.
        drop: Share to drop, in steps of 1/256.
    """
    feature_TF, _ = _apply(normaliser, pieces, drop, torch.is_grad_enabled(), *_cast(weight_FE, bias_F))
    return feature_TF


def attended_in_blocks(  # noqa: PLR0917  # two layers and a score, in the order in which they come
    normaliser: Normaliser,
    pieces: Sequence[Tensor],
    weight_FE: Tensor,
    bias_F: Tensor,
    gate_weight_GF: Tensor,
    gate_bias_G: Tensor,
    score_weight_A: Tensor,
    score_bias: Tensor,
    *,
    drop: float,
) -> tuple[Tensor, Tensor]:
    """Return features as ``features_in_blocks`` does, and their raw gated attention scores, T, fp32 at least.

    score = w x (tanh(v) sigmoid(u)) + b, where v and u are the halves of the gates of the feature.
    """
    layers = _cast(weight_FE, bias_F, gate_weight_GF, gate_bias_G)
    return _apply(normaliser, pieces, drop, torch.is_grad_enabled(), *layers, score_weight_A, score_bias)


def _cast(*weights: Tensor) -> list[Tensor]:
    """Return weights in autocast's precision."""
    half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return [weight if half is None else weight.to(half) for weight in weights]


def _apply(*given: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):  # what is half precision is so already; scores are not
        found: tuple[Tensor, Tensor] = _AttentionBlock.apply(*given)
    return found


class _AttentionBlock(torch.autograd.Function):
    """dropout(relu(x W + b)) of centred embeddings x, and gated attention over it where there are gates.

    What was dropped or cut off is zero in the feature: nothing else is kept of it.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  # torch passes them by position
        ctx: Any,
        normaliser: Normaliser,
        pieces: Sequence[Tensor],
        drop: float,
        comes_back: bool,
        weight_FE: Tensor,
        bias_F: Tensor,
        *gating: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        threshold = round(256 * drop)
        ctx.blocks = _CentredBlocks(normaliser, pieces, weight_FE.dtype, comes_back=comes_back)
        ctx.keep = 1 - threshold / 256
        num_rows, num_gates = ctx.blocks.num_rows, len(gating[0]) if gating else 0
        feature_TF = weight_FE.new_empty(num_rows, len(weight_FE))
        gates_TG = weight_FE.new_empty(num_rows if comes_back else min(_BLOCK, num_rows), num_gates)
        attention_T = gating[2].new_empty(num_rows) if gating else None
        draws = _draws() if threshold else None
        score = _Score(*gating) if gating else None
        scaled_FE, scaled_F = weight_FE / ctx.keep, bias_F / ctx.keep  # relu(s x) = s relu(x)
        for rows, centred_TE in ctx.blocks:
            block_TF = torch.addmm(scaled_F, centred_TE, scaled_FE.T, out=feature_TF[rows]).clamp_(min=0)
            if draws is not None:
                block_TF.mul_(_keep_mask(block_TF, draws, threshold))
            if score is not None and attention_T is not None:
                block_TG = gates_TG[rows] if comes_back else gates_TG[: len(block_TF)]
                attention_T[rows] = score(block_TF, block_TG)
        ctx.save_for_backward(feature_TF, gates_TG, weight_FE, *gating)
        ctx.set_materialize_grads(False)
        return feature_TF, attention_T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        feature_TF, gates_TG, weight_FE, *gating = ctx.saved_tensors
        gradient_TF, gradient_T = gradients
        phi, gates = _LayerSums(weight_FE), _LayerSums(gating[0]) if gating else None
        of_score_A = torch.zeros_like(gating[2]) if gating else weight_FE.new_empty(0)
        for rows, centred_TE in reversed(ctx.blocks):
            block_TF = feature_TF[rows]
            back_TF = None if gradient_TF is None else gradient_TF[rows]
            if gates is not None and gradient_T is not None:
                back_TG = _score_backward(gradient_T[rows], gates_TG[rows], gating[2], of_score_A)
                gates.add(back_TG, block_TF)
                through_TF = back_TG @ gating[0]
                back_TF = through_TF if back_TF is None else through_TF.add_(back_TF)
            if back_TF is not None:
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
        """Take in a block: the gradient of its output, and its input."""
        if self._dtype == self._wide:
            self._weight_OI.addmm_(back_TO.T, input_TI)
        else:
            self._weight_OI += back_TO.T @ input_TI
        self._bias_O += back_TO.sum(0, dtype=self._wide)

    def found(self, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return both, times a factor."""
        return (factor * self._weight_OI).to(self._dtype), (factor * self._bias_O).to(self._dtype)


class _Score:
    """Raw attention scores of blocks.

    In single precision tanh(x) is 2 sigmoid(2 x) - 1, in a fifth of tanh's time, with the inner 2 in the weights; half
    precision would lose what the difference leaves.
    """

    def __init__(self, weight_GF: Tensor, bias_G: Tensor, score_A: Tensor, bias: Tensor) -> None:
        self._score_A, self._bias = score_A, bias
        self._is_half = weight_GF.dtype != score_A.dtype
        if not self._is_half:
            factor_G = torch.ones_like(bias_G)
            factor_G[: len(score_A)] = 2
            weight_GF, bias_G = factor_G[:, None] * weight_GF, factor_G * bias_G
        self._weight_GF, self._bias_G = weight_GF, bias_G

    def __call__(self, feature_TF: Tensor, out_TG: Tensor) -> Tensor:
        """Return the scores, T, and leave both gates in ``out_TG``."""
        torch.addmm(self._bias_G, feature_TF, self._weight_GF.T, out=out_TG)
        value_TA, gate_TA = out_TG.chunk(2, dim=1)
        if self._is_half:
            value_TA.tanh_()
            gate_TA.sigmoid_()
        else:
            out_TG.sigmoid_()
            value_TA.mul_(2).sub_(1)
        return (value_TA * gate_TA).to(self._score_A.dtype) @ self._score_A + self._bias


def _score_backward(back_T: Tensor, gates_TG: Tensor, score_A: Tensor, sum_A: Tensor) -> Tensor:
    """Return the gradient before the gates, T x G, and add the score's to ``sum_A``.

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


class _CentredBlocks:
    """Blocks of rows and their centred embeddings.

    A way forth and back centres the first blocks twice, in space that they share; as many of the last ones as there is
    room for stay.
    """

    def __init__(
        self, normaliser: Normaliser, pieces: Sequence[Tensor], dtype: torch.dtype, *, comes_back: bool
    ) -> None:
        self._normaliser = normaliser
        self._blocks = list(_cut(pieces))
        self.num_rows, width = sum(len(piece) for piece in pieces), pieces[0].shape[1]
        rows = min(_BLOCK, self.num_rows)
        places = max(1, _KEPT_BYTES // (rows * width * dtype.itemsize)) if comes_back else 1
        self._space = normaliser.mean.new_empty(min(places, len(self._blocks)), rows, width, dtype=dtype)
        self._strip_TE = normaliser.mean.new_empty(_STRIP, width)
        self._holds = [-1] * len(self._space)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their centred embeddings."""
        return map(self._block, range(len(self._blocks)))

    def __reversed__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the same from the last to the first."""
        return map(self._block, reversed(range(len(self._blocks))))

    def _block(self, number: int) -> tuple[slice, Tensor]:
        place = max(0, number - len(self._blocks) + len(self._space))
        start = number * _BLOCK
        centred_TE = self._space[place, : min(_BLOCK, self.num_rows - start)]
        if self._holds[place] != number:
            self._centre(self._blocks[number], centred_TE)
            self._holds[place] = number
        return slice(start, start + len(centred_TE)), centred_TE

    def _centre(self, parts: Sequence[Tensor], centred_TE: Tensor) -> None:
        normaliser, stop = self._normaliser, 0
        is_exact = centred_TE.dtype == normaliser.mean.dtype
        for part_TE in parts:
            for strip_TE in torch.split(part_TE, _STRIP):
                own_TE = centred_TE[stop : stop + len(strip_TE)]
                wide_TE = own_TE if is_exact else self._strip_TE[: len(strip_TE)]
                torch.clamp(wide_TE.copy_(strip_TE), normaliser.low, normaliser.high, out=wide_TE).sub_(normaliser.mean)
                if not is_exact:
                    own_TE.copy_(wide_TE)
                stop += len(strip_TE)


def _cut(pieces: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the parts of pieces that make up each block; the last one may be smaller."""
    parts: list[Tensor] = []
    room = _BLOCK
    for piece in pieces:
        at = 0
        while at < len(piece):
            part = piece[at : at + room]
            parts.append(part)
            at, room = at + len(part), room - len(part)
            if room == 0:
                yield parts
                parts, room = [], _BLOCK
    if parts:
        yield parts


def _draws() -> np.random.Generator:
    """Return a generator that torch's own seeds: it draws in half the time."""
    return np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))


def _keep_mask(like_TF: Tensor, draws: np.random.Generator, threshold: int) -> Tensor:
    """Return 0 with a chance of threshold / 256, else 1, as bytes in the shape of ``like_TF``.

    From random bytes, eight a draw: a small part of the time of Bernoulli draws on a CPU. NumPy compares bytes twenty
    times as fast as torch does.
    """
    drawn = draws.integers(0, 2**64 - 1, size=-(-like_TF.numel() // 8), dtype=np.uint64, endpoint=True)
    kept = drawn.view(np.uint8)[: like_TF.numel()] >= threshold
    return torch.from_numpy(kept.view(np.uint8)).view(like_TF.shape)
