"""Boundaries by hand; a run begun at one is the whole run; what agrees is what computes the same."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.candidates.prefix import Passed, Prefix, _multiply_adds
from prunus.candidates.skeleton import Skeleton
from prunus.graph import Trace, trace
from prunus.graph.inputs import output_tensors
from prunus.plan import Plan
from tests.candidates.prefix_networks import NETWORKS, RGB
from tests.candidates.subjects import (
    bits_of,
    flags,
    same_bits,
    some_plans,
    unchanged,
    zero,
)
from tests.helpers import Wired, chain, enliven_, images


@dataclass(frozen=True)
class Subject:
    network: nn.Module
    trace: Trace
    skeleton: Skeleton
    prefix: Prefix
    inputs: Any

    def plans(self, count: int) -> list[Plan]:
        """Some channels, some connections of some weights."""
        weights = [(n, p) for n, p in self.network.named_parameters() if p.dim() > 1]
        plans = some_plans(self.trace, count, groups=2) if self.trace.cuttable else []
        for seed in range(count):
            name, weight = weights[seed * len(weights) // count]
            keep = flags(*weight.shape[:2], seed=seed)
            plans.append(self.trace.plan({}, [zero(name, keep, level_of(weight))]))
        return plans

    def run(self, inputs: Any, *args: Any) -> tuple[list[Tensor], dict[int, Passed]]:
        with torch.inference_mode():
            out, passed = self.prefix.run(inputs, *args)
        return output_tensors(out), passed


def level_of(weight: Tensor) -> Any:
    return "kernel" if weight.dim() > 2 else "weight"


@cache
def subject(name: str) -> Subject:
    return made(*NETWORKS[name])


def made(make: Callable[[], nn.Module], inputs: Any) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = enliven_(make())
    with torch.inference_mode():
        skeleton = Skeleton(network)
        prefix = Prefix(skeleton, first_two(inputs), least_work=0.0)
    return Subject(network, trace(network, inputs), skeleton, prefix, inputs)


def first_two(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[:2]
    return {name: tensor[:2] for name, tensor in inputs.items()}


def other_values(inputs: Any) -> Any:
    """Another batch, of another size."""
    if isinstance(inputs, Tensor):
        return images(5, *inputs.shape[1:], seed=8)
    return {name: images(5, *t.shape[1:], seed=8) for name, t in inputs.items()}


def names(found: Subject) -> list[str]:
    return [boundary.module for boundary in found.prefix.boundaries]


# Where they are


def test_boundaries_with_skips_by_hand() -> None:
    """Inside a block the skip goes round each layer; the sums are no modules."""
    assert names(subject("skips")) == ["stem", "join", "head"]


def test_boundaries_of_a_chain_are_the_last_modules_before_each_next_layer() -> None:
    found = made(chain, images(2, 3, 8, 8))
    assert names(found) == ["0", "2", "5", "6"]
    owners = [sorted(b.owners) for b in found.prefix.boundaries]
    assert owners == [
        ["", "0"],
        ["", "0", "1", "2"],
        ["", "0", "1", "2", "3", "4", "5"],
        ["", "0", "1", "2", "3", "4", "5", "6"],
    ]


def test_boundaries_of_residual_networks_by_hand() -> None:
    assert names(subject("in place")) == ["0", "2", "4", "7", "8"]
    # conv1; relu1 is read by conv2 and the sum, so from there on relu3, then relu4.
    found = subject("digits_cnn")
    assert names(found) == ["conv1", "relu1", "relu3", "conv4", "avgpool", "fc"]
    blocks = names(subject("resnet20"))
    inside = [f"layer{i}.{k}" for i in (1, 2, 3) for k in range(3)]
    for block in inside[:2] + inside[3:5] + inside[6:8]:
        # The last module with the same tensors before it: the block's ReLU or the block itself.
        assert block in blocks or f"{block}.relu2" in blocks
    assert not any(".conv" in name or ".bn" in name for name in blocks)


def test_value_that_decides_a_path_is_no_boundary() -> None:
    """After ``b`` the network still looks at what ``a`` returned."""
    assert names(subject("looks")) == ["a"]


def test_input_is_known_and_needs_no_boundary() -> None:
    """``b`` reads the images, not what ``a`` made of them; nothing but ``a`` is ended before."""
    network = Wired(
        lambda m, x: m.a(x).mean((2, 3)) + m.b(x).mean((2, 3)),
        a=nn.Conv2d(3, 2, 1),
        b=nn.Conv2d(3, 2, 1),
    )
    assert names(made(lambda: network, RGB)) == ["a"]


def test_network_without_boundaries() -> None:
    """Its only layer is called twice."""
    network = Wired(lambda m, x: m.a(m.a(x)).mean((2, 3)), a=nn.Conv2d(3, 3, 1))
    found = made(lambda: network, RGB)
    assert names(found) == []
    assert found.prefix.signatures(found.trace.plan({})) == ()
    out, left = found.run(RGB)
    assert same_bits(out, [network(RGB)]) and left == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_later_boundaries_include_earlier_ones(name: str) -> None:
    found = subject(name)
    for before, after in itertools.pairwise(found.prefix.boundaries):
        assert before.owners < after.owners


# What runs from there


@pytest.mark.parametrize("name", NETWORKS)
def test_run_from_a_boundary_is_the_whole_run_bit_by_bit(name: str) -> None:
    found = subject(name)
    before = bits_of(found.network)
    every = range(len(found.prefix.boundaries))
    for plan in found.plans(2):
        for inputs in (found.inputs, other_values(found.inputs)):
            found.skeleton.load(plan)
            whole, _ = found.run(inputs)
            again, passed = found.run(inputs, None, every)
            assert same_bits(whole, again)
            assert sorted(passed) == list(every)
            for index in every:
                for _ in range(2):  # what is kept is not written to
                    later = range(index + 1, len(every))
                    out, more = found.run(inputs, (index, passed[index]), later)
                    assert same_bits(out, whole)
                    assert sorted(more) == list(later)
                    for number, value in more.items():
                        mine, theirs = (
                            output_tensors(value.value),
                            output_tensors(passed[number].value),
                        )
                        assert same_bits(mine, theirs)
    assert unchanged(found.network, before)
    assert found.skeleton.watcher is None


@pytest.mark.parametrize("name", NETWORKS)
def test_where_signatures_agree_one_candidate_runs_on_what_another_left(name: str) -> None:
    """The claim that all sharing rests on."""
    found = subject(name)
    plans = found.plans(5)
    every = range(len(found.prefix.boundaries))
    signatures = [found.prefix.signatures(plan) for plan in plans]
    left, whole = [], []
    for plan in plans:
        found.skeleton.load(plan)
        out, passed = found.run(found.inputs, None, every)
        left.append(passed)
        whole.append(out)
    wrong = []
    for mine, theirs in itertools.permutations(range(len(plans)), 2):
        found.skeleton.load(plans[mine])
        for index in every:
            if signatures[mine][index] == signatures[theirs][index]:
                # Another candidate has run in between: nothing may be left of it on the modules.
                out, _ = found.run(found.inputs, (index, left[theirs][index]))
                if not same_bits(out, whole[mine]):
                    wrong.append((found.prefix.boundaries[index].module, mine, theirs))
    assert not wrong


@pytest.mark.parametrize("name", ["Bert", "Swin"])
def test_small_transformers(name: str, architectures: Any) -> None:
    network, inputs = architectures(name)
    network.eval()
    with torch.inference_mode():
        skeleton = Skeleton(network)
        prefix = Prefix(skeleton, dict(inputs), least_work=0.0)
    assert len(prefix.boundaries) >= 4
    plan = some_plans(trace(network, inputs, verify=False), 1)[0]
    with torch.inference_mode():
        skeleton.load(plan)
        whole, passed = prefix.run(dict(inputs), None, range(len(prefix.boundaries)))
        for index, value in passed.items():
            out, _ = prefix.run(dict(inputs), (index, value))
            assert same_bits(output_tensors(out), output_tensors(whole))


# Signatures


@pytest.mark.parametrize("name", ["skips", "in place", "digits_cnn", "resnet20"])
def test_signature_changes_with_what_comes_before_and_with_nothing_else(name: str) -> None:
    found = subject(name)
    dense = found.prefix.signatures(found.trace.plan({}))
    assert len(set(dense)) == 1  # nothing is decided anywhere
    order = [b.module for b in found.prefix.boundaries]
    for tensor, weight in found.network.named_parameters():
        if weight.dim() < 2:
            continue
        keep = flags(*weight.shape[:2])
        keep.flat[-1] = False
        plan = found.trace.plan({}, [zero(tensor, keep, level_of(weight))])
        owner = tensor.rpartition(".")[0]
        differs = [a != b for a, b in zip(found.prefix.signatures(plan), dense, strict=True)]
        expected = [owner in boundary.owners for boundary in found.prefix.boundaries]
        assert differs == expected, (tensor, order)
        assert differs[-1] or owner == ""


def test_order_of_edits_does_not_matter() -> None:
    found = subject("resnet20")
    plan = found.plans(1)[0]
    turned = plan.model_copy(update={"edits": plan.edits[::-1]})
    assert found.prefix.signatures(turned) == found.prefix.signatures(plan)


def test_boundaries_with_little_work_before_them_are_left_out() -> None:
    """Of 4 + 32 + 8 multiply-adds a pixel, the first layer has less than a tenth."""
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 1, 1)).eval()
    inputs = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    work = {b.module: b.work for b in Prefix(Skeleton(network), inputs).boundaries}
    assert work == pytest.approx({"1": 36 / 44, "2": 1.0})
    everything = Prefix(Skeleton(network), inputs, least_work=0.0).boundaries
    assert [b.module for b in everything] == ["0", "1", "2"]
    assert everything[0].work == pytest.approx(4 / 44)


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Embedding(30, 8), 0),  # looked up
        # 3 texts of 5 steps; four gates of 6 units read 8 inputs and 6 units, and so on
        (nn.LSTM(8, 6, batch_first=True), 3 * 5 * 4 * 6 * (8 + 6)),
        (nn.GRU(8, 6, batch_first=True, bidirectional=True), 2 * 3 * 5 * 3 * 6 * (8 + 6)),
        (nn.LSTM(8, 6, 2, batch_first=True), 3 * 5 * 4 * 6 * (8 + 6 + 6 + 6)),
        (nn.Linear(8, 7), 3 * 5 * 8 * 7),
    ],
    ids=str,
)
def test_multiply_adds_of_a_layer_by_hand(layer: nn.Module, macs: int) -> None:
    ids = torch.zeros(3, 5, dtype=torch.int64)
    out = layer(ids if isinstance(layer, nn.Embedding) else torch.zeros(3, 5, 8))
    assert _multiply_adds(layer, out) == macs
