"""Cut the last channel of every group as a probe: what fails is refused by name."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn

from prunus.errors import CertificateError
from prunus.graph.certify import certify
from prunus.graph.culprits import culprits
from prunus.graph.cut import cut
from prunus.graph.follow import follow
from prunus.graph.groups import Trace
from prunus.graph.inputs import Inputs, first_sample
from prunus.plan import BoolArray

FAILED = "probe failed"


def _macs(network: nn.Module, sample: Inputs) -> int:
    """MACs of a network as it is, counted by walking it once."""
    _, findings = follow(network, sample)
    return sum(t.constant * math.prod(ids.size for ids in t.dims) for t in findings.macs)


def _without_last(found: Trace, names: Sequence[str]) -> dict[str, BoolArray]:
    """Groups, each without its last channel, or as many as have to go at once."""
    groups = [found.by_name[name] for name in names]
    return {g.name: np.arange(g.units) < g.width(g.units - g.step) for g in groups}


def _miscount(dense: nn.Module, trial: Trace, sample: Inputs, names: Sequence[str]) -> str:
    """Whether groups, cut together, cost something else than predicted; empty where not."""
    keep = _without_last(trial, names)
    predicted, counted = trial.macs(keep), _macs(cut(dense, trial.plan(keep)), sample)
    if predicted == counted:
        return ""
    return (
        f"{FAILED}: the cut network has {counted:,} MACs where {predicted:,} are predicted; a "
        "size is written as a number in its code, perhaps where no output reads it"
    )


def probe(network: nn.Module, found: Trace) -> Trace:
    """Cut the last channel of groups; what fails its certificate is refused by name.

    Group ``k`` is cut in the probes that the binary digits of ``k + 1`` name: every group in some
    probe, and of any two groups one without the other, so that a coupling missed between them shows.
    That takes log2 of the number of groups; only where a probe fails are its groups cut apart.
    Last all are cut together, in train mode as well, where that runs, and what that costs is counted:
    what no output reads may be wrong and nobody sees it.
    """
    dense = network if not network.training else copy.deepcopy(network).eval()
    whole = found.example_inputs
    open_groups = tuple(replace(g, min_units=1, round_to=1) for g in found.groups)
    trial = replace(found, groups=open_groups)
    sample = first_sample(whole)

    def failure(names: Sequence[str], *, train: bool = False) -> str:
        keep = _without_last(trial, names)
        try:
            certify(dense, trial, trial.plan(keep), whole if train else sample, train=train)
        except CertificateError as error:
            return f"{FAILED}: {error}"
        return ""

    names = [g.name for g in found.cuttable]
    suspects: dict[str, None] = {}
    for digit in range(len(names).bit_length()):
        probed = [name for k, name in enumerate(names) if (k + 1) >> digit & 1]
        if failure(probed):
            suspects |= dict.fromkeys(probed)
    refused = culprits(list(suspects), failure)
    # Then also what runs in train mode alone, such as a second head, and what it costs.
    for wrong in (partial(failure, train=True), partial(_miscount, dense, trial, sample)):
        rest = [name for name in names if name not in refused]
        refused |= culprits(rest, wrong)
    groups = tuple(replace(g, refused=refused.get(g.name, g.refused)) for g in found.groups)
    return replace(found, groups=groups)
