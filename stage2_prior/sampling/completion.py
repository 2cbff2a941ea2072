"""Completing codes of which some are known: how to choose the class, and how to choose among candidates.

Codes are drawn in raster order, so a known code does not influence those drawn before it. Sampling importance
resampling (Rubin 1987) makes up for that: of several candidates one is chosen, in proportion to the probability of its
known codes, each given all codes before it, times p(class) / q(class), where q is what its class was drawn from.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.priors.base import Prior, code_nats

LOGITS_AT_A_TIME = 2**24  # of all classes together
PRIOR_FRACTION = 0.1  # of the candidates have a class that is drawn without regard to the known codes


class ClassProposal(NamedTuple):
    """A distribution q over classes to draw those of candidates from: ln q, and ln(q / p(class)), the part of a
    candidate's log-weight that the choice of its class has used already. Both float64, on the CPU."""

    logits: Float[Tensor, "classes"]
    log_weights: Float[Tensor, "classes"]


@torch.no_grad()
def known_nats_per_class(
    priors: Sequence[Prior],
    known: Sequence[Int[Tensor, "1 _ _"]],
    context: Sequence[Int[Tensor, "1 _ _"]],
) -> Float[Tensor, "classes"]:
    """-ln p(known codes | class) in float64 on the CPU, each given all codes before it; empty without classes.

    All levels, coarsest first: `known` has -1 in place of unknown codes; `context` has all codes, guessed where they
    are unknown.
    """
    nats = torch.zeros(priors[0].config.num_classes, dtype=torch.float64)
    if not len(nats):
        return nats
    device = next(priors[0].parameters()).device
    codes = [level.to(device) for level in context]
    for number, prior in enumerate(priors):
        is_known = known[number].to(device) >= 0
        classes = torch.arange(len(nats), device=device)
        at_a_time = max(1, LOGITS_AT_A_TIME // (prior.config.positions * prior.config.num_codes))
        for labels in torch.split(classes, at_a_time) if is_known.any() else ():
            maps = [level.expand(len(labels), -1, -1) for level in codes[: number + 1]]
            each = code_nats(prior, maps[-1], labels, maps[:-1])
            nats[labels.cpu()] += (each.double() * is_known).sum((1, 2)).cpu()
    return nats


def propose_classes(
    class_weights: Float[Tensor, "classes"], nats: Float[Tensor, "classes"], mixed: bool
) -> ClassProposal:
    """q(class) = p(class | known codes), by Bayes' rule from `class_weights`, which are in proportion to p(class), and
    `nats` = -ln p(known codes | class).

    Where `nats` rest on a guessed context, q may be wrong: `mixed` makes it 0.9 p(class | known codes) + 0.1 p(class),
    which bounds the weights of candidates.
    """
    weights = class_weights.double()
    log_prior = (weights / weights.sum()).log()  # -inf for a class that no training image has
    log_posterior = (log_prior - nats).log_softmax(0)
    if not mixed:
        return ClassProposal(log_posterior, log_posterior - log_prior)
    logits = torch.logaddexp(log_posterior + log(1 - PRIOR_FRACTION), log_prior + log(PRIOR_FRACTION))
    return ClassProposal(logits, logits - log_prior)


def draws_before_known(known: Sequence[Int[Tensor, "1 _ _"]]) -> bool:
    """Whether some code is drawn before a known one, in the order of all levels; `known` has -1 where codes are
    drawn."""
    is_known = torch.cat([level.flatten() for level in known]) >= 0
    return bool((is_known[1:] & ~is_known[:-1]).any())


def draw_classes(proposal: ClassProposal, gumbel_noise: Float[Tensor, "n classes"]) -> Int[Tensor, "n"]:
    """The class of each candidate, from standard Gumbel noise."""
    return (proposal.logits + gumbel_noise).argmax(1)


def choose_candidate(log_weights: Float[Tensor, "candidates"], gumbel_noise: Float[Tensor, "candidates"]) -> int:
    """The index of one candidate, drawn in proportion to the weights, from standard Gumbel noise."""
    return int((log_weights + gumbel_noise).argmax())
