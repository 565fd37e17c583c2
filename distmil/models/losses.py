"""The four losses, each one value per patch or bag; the engine divides by the step's totals.

N patches, B bags, K top patches of all bags, C classes. Logits and scores are taken to fp32 at least.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from distmil.models.tensors import widen

LOSSES = ("patch", "bag", "topk", "attention")
"""L1 to L4."""


def patch_loss(logits_NC: Tensor, target_NC: Tensor) -> Tensor:
    """Compute L1 per patch, N: cross entropy of C1 against class or soft targets (rows sum to 1)."""
    return cross_entropy(widen(logits_NC), target_NC.to(widen(logits_NC).dtype), reduction="none")


def bag_loss(logits_BC: Tensor, label_B: Tensor) -> Tensor:
    """Compute L2 per bag, B: cross entropy of C1 on the pooled bag."""
    return cross_entropy(widen(logits_BC), label_B, reduction="none")


def mixed_bag_loss(logits_C: Tensor, *, is_positive: bool) -> Tensor:
    """Compute L2 of the mixed bag: -log P(not class 0) if any of its patches is positive, else -log P(class 0)."""
    log_C = widen(logits_C).log_softmax(-1)
    return -log_C[1:].logsumexp(-1) if is_positive else -log_C[0]


def topk_loss(logits_KC: Tensor, bag_K: Tensor, label_B: Tensor) -> Tensor:
    """Compute L3 per bag, B: mean cross entropy of C2 over the bag's top-K patches, which take the bag's label.

    Args:
        logits_KC: C2's logits of the top-K patches of all bags.
        bag_K: The bag of each.
        label_B: Class index of each bag.
    """
    loss_K = cross_entropy(widen(logits_KC), label_B[bag_K], reduction="none")
    total_B = loss_K.new_zeros(len(label_B)).index_add(0, bag_K, loss_K)
    return total_B / torch.zeros_like(total_B).index_add(0, bag_K, torch.ones_like(loss_K))


def attention_loss(attention_N: Tensor, logits_NC: Tensor, positive_N: Tensor) -> Tensor:
    """Compute L4 per patch, N: binary cross entropy of q = sigmoid(a) p against the target's presence.

    p = 1 - P(class 0). All in log space: log q = logsigmoid(a) + log p, and 1 - q = (1 - sigmoid(a)) + sigmoid(a) P(0)
    is a sum of positive terms, so that its logarithm never cancels.

    Args:
        attention_N: Raw attention scores.
        logits_NC: C1's logits of the same patches, not detached.
        positive_N: 1 where the patch is target, 0 where not, or the covered share.
    """
    log_NC = widen(logits_NC).log_softmax(-1)
    attention_N = widen(attention_N)
    log_attended_N = logsigmoid(attention_N)
    log_q_N = log_attended_N + log_NC[:, 1:].logsumexp(-1)
    log_rest_N = torch.logaddexp(logsigmoid(-attention_N), log_attended_N + log_NC[:, 0])
    positive_N = positive_N.to(log_q_N.dtype)
    return -(positive_N * log_q_N + (1 - positive_N) * log_rest_N)
