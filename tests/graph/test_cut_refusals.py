"""Plans for other classes and damaged plans end in one line that names what does not fit."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import GraphError, InputError, PlanMismatchError
from prunus.graph import cut, trace
from prunus.plan import Axis, Bits, Edit, KeepChannels, Plan, ReindexBuffer, SetAttribute
from prunus.zoo import PadShortcut
from tests.helpers import all_but, chain, images, pooled


class Heads(nn.Module):
    """Attention whose number of heads has a name of one's choice, and may be anything."""

    def __init__(self, name: str = "heads", value: object = 2) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, value)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        split = self.qkv(x).view(b, t, 3, getattr(self, self.name), -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(split[0], split[1], split[2])
        answer: Tensor = self.out(mixed.transpose(1, 2).reshape(b, t, -1).mean(1))
        return answer


def of_one_head() -> Plan:
    return trace(Heads(), images(3, 5, 16)).plan({"qkv": np.array([True, False])})


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (Heads("num_heads"), "'heads' of 'Heads' should be 2 but is no whole number"),
        (Heads(value=[2]), "'heads' of 'Heads' should be 2 but is no whole number"),
        (Heads(value="2"), "'heads' of 'Heads' should be 2 but is no whole number"),
        (Heads(value=4), "'heads' of 'Heads' should be 2 but is 4"),
    ],
    ids=["another name", "a list", "a text", "another number"],
)
def test_a_network_of_the_same_tensors_with_other_numbers_is_refused(
    network: nn.Module, told: str
) -> None:
    plan = of_one_head()
    with pytest.raises(PlanMismatchError, match=told) as caught:
        cut(network, plan)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attribute", ["sizes[3]", "sizes[x]", "config.heads", "sizes[0]"])
def test_a_number_behind_what_is_not_there_is_refused_by_name(attribute: str) -> None:
    network, plan = Heads(), of_one_head()
    network.sizes = [0.5]  # type: ignore[assignment]
    edits = [
        e.model_copy(update={"attribute": attribute}) if isinstance(e, SetAttribute) else e
        for e in plan.edits
    ]
    with pytest.raises(PlanMismatchError, match="should be 2 but is no whole number"):
        cut(network, plan.model_copy(update={"edits": tuple(edits)}))


def test_a_module_that_is_not_there_is_refused_by_name() -> None:
    network, plan = chain(), trace(chain(), images(2, 3, 8, 8)).plan({"0": all_but(4, 1)})
    extra = SetAttribute(module="body.0", attribute="heads", before=2, after=1)
    with pytest.raises(GraphError, match=r"no module 'body\.0'; use the network of the plan"):
        cut(network, plan.model_copy(update={"edits": (*plan.edits, extra)}))


def axis(tensor: str = "0.weight", dim: int = 0, flags: int = 4) -> Axis:
    return Axis(tensor=tensor, dim=dim, keep=Bits.pack(all_but(flags, 1)))


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        (axis(tensor="9.weight"), r"4 positions of '9\.weight', dim 0, .* no such tensor"),
        (axis(flags=3), r"3 positions of '0\.weight', dim 0, .*'0'\), but it has 4 there"),
        (axis(flags=20), r"20 positions of '0\.weight', dim 0, .* but it has 4 there"),
        (axis(dim=7), r"'0\.weight', dim 7, .* but its shape is \[4, 3, 3, 3\]"),
    ],
    ids=["no such tensor", "too few flags", "too many flags", "no such dim"],
)
@pytest.mark.parametrize("first", [True, False])
def test_axes_that_do_not_fit_are_refused_by_tensor_dim_and_sizes(
    damaged: Axis, told: str, *, first: bool
) -> None:
    network = chain()
    plan = trace(network, images(2, 3, 8, 8)).plan({"0": all_but(4, 1)})

    def changed(edit: Edit) -> Edit:
        if not isinstance(edit, KeepChannels):
            return edit
        axes = (damaged, *edit.axes) if first else (*edit.axes, damaged)
        return edit.model_copy(update={"axes": axes})

    wrong = plan.model_copy(update={"edits": tuple(changed(edit) for edit in plan.edits)})
    with pytest.raises(PlanMismatchError, match=told) as caught:
        cut(network, wrong)
    assert "\n" not in str(caught.value)


def test_a_buffer_of_other_positions_than_those_that_are_renumbered_is_refused() -> None:
    def made() -> nn.Module:
        return pooled(nn.Sequential(nn.Conv2d(3, 4, 1), PadShortcut(4, 6), nn.Conv2d(6, 2, 1)))

    plan = trace(made(), images(2, 3, 8, 8)).plan({"0.0": all_but(4, 1)})
    assert any(isinstance(edit, ReindexBuffer) for edit in plan.edits)
    other = made()
    other.get_buffer("0.1.source")[-1] = 9
    with pytest.raises(
        PlanMismatchError, match=r"5 positions in '0\.1\.source', which holds 0 to 9"
    ):
        cut(other, plan)


@pytest.mark.parametrize(
    ("network", "plan", "told"),
    [
        (chain, None, "network is the function chain"),
        (chain(), {"edits": []}, r"plan is a dict; give one that Trace\.plan made"),
    ],
    ids=["a function", "a dict"],
)
def test_what_is_no_network_and_no_plan_is_told(network: Any, plan: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        cut(network, plan)


def test_a_network_on_the_meta_device_is_cut_by_a_plan_that_renumbers() -> None:
    """There are no values to compare."""
    network = pooled(nn.Sequential(nn.Conv2d(3, 4, 1), PadShortcut(4, 6), nn.Conv2d(6, 2, 1)))
    plan = trace(network, images(2, 3, 8, 8)).plan({"0.0": all_but(4, 1)})
    small = cut(network.to("meta"), plan)
    assert small.get_buffer("0.1.source").shape == torch.Size([5])
