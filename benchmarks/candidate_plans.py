"""The plans that every side of ``candidates.py`` scores, with the networks and images they are for.

A search proposes plans of one cost that differ in their widths and in which units stay. So do these:
plan 0 is uniform L2 (method ``l2``); every other one draws a log-normal factor per group, whose spread
is drawn too, and the order in which units go: by norm in most, by a noisy norm in some, at random in a
few. Bad plans are then easy to tell from good ones, and the good ones hard to tell from each other.
Plan ``k`` of a seed is the same whatever the number of plans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from prunus.data import DataSplits, SearchSplit, load_data
from prunus.graph import Choice, Trace, trace
from prunus.method import Budget
from prunus.prune.budget import ratio_choice
from prunus.prune.magnitude import magnitude_scores
from prunus.prune.scores import FloatArray, Normalize, normalized
from prunus.zoo import build, load_weights, normalization

PLANS = 64
TARGET = "macs=0.5"
BAND = 0.01  # widest difference of the plans' MACs, to each other and to the target
IMAGES = 2000
DATA = "cifar10"
NETWORKS = {
    "resnet56": "resnet56-4bfd9763.th",
    "vgg16_bn": "vgg16_bn-cifar10.safetensors",
    "resnet18": "resnet18-cifar10.safetensors",
}
# ResNet-56 keeps its residual stream, as in resnet56.py and in the papers that prune it: the option A
# shortcut between stages has no weights that could follow. ResNet-18's stream is cut as well.
IGNORED: dict[str, tuple[str, ...]] = {"resnet56": ("conv1", "layer*.conv2")}
CORRELATED = 16

JITTER = (0.1, 0.6)  # standard deviation of a group's log factor, drawn per plan
NOISE = (0.1, 0.5)  # standard deviation of a unit's log norm, where norms are noisy
SHARES = {"norm": 0.65, "noisy": 0.25, "random": 0.10}  # of plans, by the order of their units
Order = Literal["norm", "noisy", "random"]


class Subject(NamedTuple):
    """A dense network in evaluation mode, its data and its trace."""

    network: nn.Module
    data: DataSplits
    trace: Trace


@dataclass(frozen=True)
class Draw:
    """What a plan was drawn with.

    ``jitter`` and ``noise`` are standard deviations of logarithms, of group factors and of unit norms.
    """

    order: Order
    jitter: float
    noise: float


def subject(network_name: str) -> Subject:
    """One of ``NETWORKS``, with its checkpoint, its normalization and the groups that are cut."""
    if network_name not in NETWORKS:
        raise SystemExit(f"no network '{network_name}'; use one of {', '.join(NETWORKS)}")
    mean, std = normalization(network_name)
    data = load_data(DATA, mean=mean, std=std, seed=0)
    network = build(network_name)
    load_weights(network, NETWORKS[network_name])
    network.eval()
    inputs, _ = next(iter(data.train.batches(8)))
    return Subject(network, data, trace(network, inputs, ignore=IGNORED.get(network_name, ())))


def search_images(data: DataSplits) -> SearchSplit:
    """The images that every fitness is measured on."""
    return data.search.subset(IMAGES, seed=0)


def other_images(data: DataSplits) -> SearchSplit:
    """As many other images of the search split: for the ceiling, and for what fine-tuning gives."""
    samples, used = data.search.samples, search_images(data).samples
    rest = samples.indices[~torch.isin(samples.indices, used.indices)]
    other = SearchSplit(replace(samples, indices=rest)).subset(IMAGES, seed=0)
    if torch.isin(other.samples.indices, used.indices).any():
        raise RuntimeError("the two sets of images overlap")
    return other


def plans(
    network_name: str, network: nn.Module, trace: Trace, n: int = PLANS, seed: int = 0
) -> list[Choice]:
    """``n`` different plans of equal MACs, about half of the dense network's; the first uniform L2.

    Raises:
        RuntimeError: Two plans are the same, or MACs differ by more than ``BAND``.
    """
    norms = magnitude_scores(network, trace, norm="l2", axes="out")
    budget = Budget.parse(TARGET)
    found = [_plan(trace, budget, norms, k, seed) for k in range(n)]
    if len({trace.plan(choice).digest for choice in found}) < n:
        raise RuntimeError(f"{network_name}: some of the {n} plans of seed {seed} are the same")
    macs = [trace.macs(choice) for choice in found]
    limit = budget.limit(trace.macs({}))
    low, high = min(*macs, limit), max(*macs, limit)
    if high - low > BAND * low:
        raise RuntimeError(f"{network_name}: MACs from {low} to {high} are not within {BAND:.0%}")
    return found


def draw(k: int, seed: int = 0) -> Draw:
    """What plan ``k`` is drawn with."""
    return _drawn(_generator(k, seed), k)


def correlated_plans(n: int = PLANS, count: int = CORRELATED) -> list[int]:
    """Numbers of the plans of the fine-tuning study: evenly spaced, the first and the last included."""
    return [round(float(k)) for k in np.linspace(0, n - 1, count)]


def magnitude_ranking(
    network: nn.Module, trace: Trace, choices: Sequence[Choice], *, normalize: Normalize = "none"
) -> FloatArray:
    """What plain magnitude makes of the plans: the share of the network's L2 norms that is kept.

    ``S(plan) = sum_g sum_{u kept} |w_gu| / sum_g sum_u |w_gu|``, where ``|w_gu|`` is the L2 norm of
    the filters that produce unit ``u`` of group ``g`` (method ``l2``). With ``normalize="mean"`` norms
    are first divided by their group's mean, as method ``l2-global`` does.

    Returns:
        ``S`` of every plan, float64 ``[plans]``: higher is taken to be better.
    """
    norms = normalized(magnitude_scores(network, trace, norm="l2", axes="out"), normalize)
    whole = sum(mine.sum() for mine in norms.values())
    kept = [sum(norms[g][c[g]].sum() if g in c else norms[g].sum() for g in norms) for c in choices]
    shares: FloatArray = np.array(kept, dtype=np.float64) / whole
    return shares


def describe(k: int, trace: Trace, choice: Choice, seed: int = 0) -> dict[str, Any]:
    """Number, digest, MACs and draw of a plan, for records."""
    mine = draw(k, seed)
    return {
        "plan": k,
        "digest": trace.plan(choice).digest,
        "macs": trace.macs(choice),
        "order": mine.order,
        "jitter": round(mine.jitter, 4),
        "noise": round(mine.noise, 4),
    }


def _plan(trace: Trace, budget: Budget, norms: dict[str, FloatArray], k: int, seed: int) -> Choice:
    generator = _generator(k, seed)
    mine = _drawn(generator, k)
    factors = np.exp(mine.jitter * generator.standard_normal(len(norms)))
    scores = {g: _scores(norm, mine, generator) for g, norm in norms.items()}
    return ratio_choice(trace, budget, scores, dict(zip(norms, factors.tolist(), strict=True)))


def _generator(k: int, seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, k))


def _drawn(generator: np.random.Generator, k: int) -> Draw:
    if k == 0:
        return Draw("norm", jitter=0.0, noise=0.0)
    orders: list[Order] = ["norm", "noisy", "random"]
    order = orders[generator.choice(len(orders), p=[SHARES[o] for o in orders])]
    jitter, noise = generator.uniform(*JITTER), generator.uniform(*NOISE)
    return Draw(order, jitter, noise if order == "noisy" else 0.0)


def _scores(norms: FloatArray, mine: Draw, generator: np.random.Generator) -> FloatArray:
    if mine.order == "random":
        return generator.random(len(norms))
    return norms * np.exp(mine.noise * generator.standard_normal(len(norms)))
