"""Networks whose cuts were certified and wrong, or refused and right, before their case was thought of."""

import copy
import sys
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2ForSequenceClassification

from prunus.errors import CertificateError, GraphError, InputError
from prunus.graph import certify, cut, hold_connections_, trace
from prunus.graph.certify import masked_outputs
from prunus.graph.difference import relative_difference
from prunus.plan import Bits, BoolArray, ZeroConnections
from tests.helpers import Wired, all_but, enliven_, images

FLAT = images(4, 6)
RGB = images(4, 3, 6, 6)


def zero(tensor: str, *shape: int, column: int) -> ZeroConnections:
    """All connections that read one input."""
    keep = np.ones(shape, dtype=bool)
    keep[:, column] = False
    return ZeroConnections(tensor=tensor, level="weight", shape=shape, keep=Bits.pack(keep))


# -- outputs ----------------------------------------------------------------------------------


@dataclass
class Inside:
    """An answer within an answer."""

    tensor: Tensor


class Slotted:
    """An answer without a dictionary of its own."""

    __slots__ = "tensor"  # noqa: PLC0205  # which Python allows

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


ANSWERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "object in a tuple": lambda v, y: (v, Inside(y)),
    "object in an object": lambda v, y: SimpleNamespace(v=v, inner=[Inside(y)]),
    "object in a mapping": lambda v, y: {"v": v, "inner": Inside(y)},
    "slots": lambda v, y: (v, Slotted(y)),
    "deque": lambda v, y: (v, deque([y])),
    "values": lambda v, y: (v, {"y": y}.values()),
    "distribution": lambda v, y: (
        v,
        torch.distributions.Normal(y, torch.ones_like(y), validate_args=False),
    ),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_outputs_stay_whole_however_deep_they_lie(answer: str) -> None:
    make = ANSWERS[answer]
    network = Wired(
        lambda n, x: make(n.v(n.a(x).tanh()), n.b(n.a(x).tanh())),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 3),
        v=nn.Linear(8, 1),
    ).eval()
    found = trace(network, FLAT)
    assert [group.name for group in found.cuttable] == ["a"]
    assert "b" in found.output_layers


def test_an_answer_that_holds_itself_is_walked_once() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        answer = SimpleNamespace(y=n.b(n.a(x)), network=n)
        answer.me = answer
        return answer

    network = Wired(wiring, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()
    assert [group.name for group in trace(network, FLAT).cuttable] == ["a"]


@pytest.mark.parametrize("as_tuple", [False, True])
def test_keys_and_values_for_the_next_call_are_no_answer(*, as_tuple: bool) -> None:
    sizes: dict[str, Any] = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1}
    config = GPT2Config(n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    decoder = enliven_(GPT2ForSequenceClassification(config)).eval()

    def wiring(n: Any, pieces: Tensor) -> Any:
        answer = n.decoder(pieces)
        assert "past_key_values" in answer
        return tuple(answer.values()) if as_tuple else answer

    found = trace(Wired(wiring, decoder=decoder).eval(), torch.randint(3, 50, (2, 8)))
    heads = found.by_name["decoder.transformer.h.0.attn.c_attn"]
    assert (heads.units, heads.refused) == (4, "")


def test_classes_that_a_network_answers_are_compared_too() -> None:
    """The width less one is a number that nothing follows: the classes alone tell that it changed."""

    def wiring(n: Any, x: Tensor) -> Any:
        h = n.h(x).relu()
        return {"logits": n.b(n.a(x)), "tags": h.sum(-1) / (h.shape[-1] - 1) > 0.1}

    torch.manual_seed(0)
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), "h": nn.Linear(6, 8)}
    network = Wired(wiring, **layers).eval()
    inputs = torch.randn(64, 6)
    found = trace(network, inputs, verify=False)
    half = found.plan({"h": np.arange(8) < 4})
    whole = masked_outputs(network, found, half, inputs)
    assert not torch.equal(cut(network, half)(inputs)["tags"], whole["tags"])
    with pytest.raises(CertificateError, match="inf"):
        certify(network, found, half)
    assert certify(network, found, found.plan({"a": np.arange(8) < 4})).passed


# -- connections ------------------------------------------------------------------------------


def computed(kernel: Callable[[Any], Tensor]) -> nn.Module:
    """Units that a second reader reads by kernels that are computed."""

    def wiring(n: Any, x: Tensor) -> Any:
        h = n.a(x).relu()
        return n.b(h).mean((2, 3)) + functional.conv2d(h, kernel(n)).mean((2, 3))[:, :3]

    parts = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 3, 1), "m": nn.Conv2d(8, 3, 1)}
    network = Wired(wiring, **parts)
    network.g = nn.Parameter(torch.rand(3, 1, 1, 1) + 1)
    return enliven_(network).eval()


@pytest.mark.parametrize(
    "kernel",
    [
        lambda n: n.m.weight * n.g,
        lambda n: torch.cat([n.m.weight, n.m.weight]),
        lambda n: functional.softplus(n.m.weight),
    ],
    ids=["product", "joined", "softplus"],
)
def test_a_unit_that_a_computed_kernel_reads_stays(kernel: Callable[[Any], Tensor]) -> None:
    network = computed(kernel)
    found = trace(network, RGB)
    shape = (3, 8, 1, 1)
    held = [zero("b.weight", *shape, column=2), zero("m.weight", *shape, column=2)]
    # As nothing tells what a computed kernel is where its weight is zero, nothing is cut.
    plan = found.plan({}, held)
    assert plan.channels == {}
    zeroed = copy.deepcopy(network)
    with torch.no_grad():
        for name in ("b.weight", "m.weight"):
            zeroed.get_parameter(name)[:, 2] = 0
    with torch.no_grad():
        assert relative_difference(zeroed(RGB), cut(network, plan)(RGB)) < 1e-6


@pytest.mark.parametrize(
    ("change", "cut_away"),
    [
        (torch.exp, False),
        (lambda w: w + 1, False),
        (torch.sigmoid, False),
        (lambda w: 2 * w, True),
        (torch.tanh, True),
        (torch.abs, True),
    ],
    ids=["exp", "plus 1", "sigmoid", "times 2", "tanh", "abs"],
)
def test_zero_is_no_connection_where_zero_stays_zero(
    change: Callable[[Tensor], Tensor], *, cut_away: bool
) -> None:
    network = Wired(lambda n, x: functional.linear(n.a(x), change(n.w)), a=nn.Linear(6, 8))
    network.w = nn.Parameter(torch.randn(3, 8))
    network = enliven_(network).eval()  # type: ignore[assignment]
    found = trace(network, FLAT)
    plan = found.plan({}, [zero("w", 3, 8, column=2)])
    assert bool(plan.channels) is cut_away
    zeroed = copy.deepcopy(network)
    with torch.no_grad():
        zeroed.get_parameter("w")[:, 2] = 0
    with torch.no_grad():
        assert relative_difference(zeroed(FLAT), cut(network, plan)(FLAT)) < 1e-6


def test_connections_of_a_weight_that_was_frozen_stay_at_zero() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    network.requires_grad_(requires_grad=False)
    keep = np.array([[True, False, True, True], [True, True, True, True]])
    edit = ZeroConnections(tensor="2.weight", level="weight", shape=(2, 4), keep=Bits.pack(keep))
    small = cut(network, trace(network, FLAT).plan({}, [edit]))
    assert not any(p.requires_grad for p in small.parameters())
    small.requires_grad_(requires_grad=True)
    hold_connections_(small)
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        small(FLAT).pow(2).mean().backward()
        optimizer.step()
    weight = small.get_parameter("2.weight")
    assert weight[0, 1] == 0
    assert weight[1, 1] != 0
    assert len(weight._backward_hooks or {}) == 1  # one for good, not one a call


def test_what_an_unread_unit_alone_reads_is_unread_as_well() -> None:
    layers = (nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    network = enliven_(nn.Sequential(*layers)).eval()
    found = trace(network, FLAT)
    keep = np.ones((5, 4), dtype=bool)
    keep[:4, 2] = False  # unit 4 of '2' alone reads unit 2 of '0'
    first = ZeroConnections(tensor="2.weight", level="weight", shape=(5, 4), keep=Bits.pack(keep))
    chosen = found.plan({"2": all_but(5, 4)}, [first])
    unread = found.plan({}, [first, zero("4.weight", 2, 5, column=4)])
    for plan in (chosen, unread):
        kept: dict[str, BoolArray] = {n: np.asarray(k) for n, k in plan.channels.items()}
        assert {n: k.tolist() for n, k in kept.items()} == {
            "0": all_but(4, 2).tolist(),
            "2": all_but(5, 4).tolist(),
        }
        assert certify(network, found, plan).passed


# -- modes, shapes, attributes ----------------------------------------------------------------


def test_a_train_mode_with_noise_has_to_run_when_it_is_cut() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        h = n.a(x).tanh()
        return (n.d(h + torch.randn_like(h)), h) if n.training else n.d(h)

    network = Wired(wiring, a=nn.Linear(6, 8), d=nn.Linear(8, 3)).eval()
    assert "other shapes in train mode" in trace(network, FLAT).by_name["a"].refused

    def broken(n: Any, x: Tensor) -> Any:
        h = n.a(x)
        return n.d(h + torch.randn(8) if n.training else h)

    network = Wired(broken, a=nn.Linear(6, 8), d=nn.Linear(8, 3)).eval()
    assert "does not run: in train mode" in trace(network, FLAT).by_name["a"].refused


def test_sizes_that_are_compared_stay_equal_or_whole() -> None:
    def added(n: Any, x: Tensor) -> Tensor:
        h = n.a(x)
        y = n.b(h.relu())
        out: Tensor = n.c(y + h if y.shape == h.shape else y)
        return out

    apart = Wired(added, a=nn.Linear(6, 6), b=nn.Linear(6, 12), c=nn.Linear(12, 3)).eval()
    assert trace(apart, FLAT).cuttable == ()

    def doubled(n: Any, x: Tensor) -> Tensor:
        h = n.a(x)
        y = n.b(h.relu())
        out: Tensor = n.c(2 * y if y.shape == h.shape else y)  # nothing else couples the two
        return out

    alike = Wired(doubled, a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3)).eval()
    (group,) = trace(alike, FLAT).cuttable
    assert {axis.tensor for axis in group.axes} >= {"a.weight", "b.weight"}

    def ordered(n: Any, x: Tensor) -> Tensor:
        h = n.a(x)
        out: Tensor = n.c(h.relu() if h.shape[1] > 4 else h)
        return out

    network = Wired(ordered, a=nn.Linear(6, 8), c=nn.Linear(8, 3)).eval()
    assert "number in a formula" in trace(network, FLAT).by_name["a"].refused


def test_a_size_in_code_is_found_where_no_output_reads_it() -> None:
    """Its cut network equals the masked one, and costs more than was predicted."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        unread = n.b(x).view(x.shape[0], -1, 2, 8)
        unread @ unread.transpose(2, 3)
        out: Tensor = n.o(n.a(x).relu())
        return out

    network = Wired(wiring, a=nn.Linear(6, 8), b=nn.Linear(6, 16), o=nn.Linear(8, 3)).eval()
    found = trace(network, images(2, 6, 6))
    assert "MACs where" in found.by_name["b"].refused
    assert [group.name for group in found.cuttable] == ["a"]


@pytest.mark.parametrize("cast", [True, False])
def test_constants_in_float32_do_not_keep_float64_from_deciding(cast: bool) -> None:
    """A sine of large numbers makes rounding large: float64 has to tell that it is no more."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        angles = x[:, :1].float() * torch.arange(4, dtype=torch.float32)
        seen = torch.cat([angles.cos(), angles.sin()], 1)
        hidden = n.b((n.a(x) + n.t(seen.to(n.t.weight.dtype) if cast else seen)).relu())
        out: Tensor = n.o((3e4 * hidden).sin())
        return out

    sizes = {"a": (6, 300), "t": (8, 300), "b": (300, 300), "o": (300, 3)}
    network = Wired(wiring, **{name: nn.Linear(*size) for name, size in sizes.items()}).eval()
    found = trace(network, images(16, 6))
    half = {group.name: np.arange(group.units) % 2 == 0 for group in found.cuttable}
    assert set(half) == {"a", "b"}
    certificate = certify(network, found, found.plan(half))
    assert certificate.eval_difference > 1e-5
    assert certificate.eval_difference_float64 is not None


def test_what_float64_cannot_decide_says_so() -> None:
    class Single(torch.autograd.Function):
        """An operation of float32 alone, as compiled kernels are."""

        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("this kernel takes float32")
            return x * 1

    def wiring(n: Any, x: Tensor) -> Tensor:
        kept: Tensor = Single.apply(x)
        out: Tensor = n.o((3e4 * n.b(n.a(kept).relu())).sin())
        return out

    sizes = {"a": (6, 300), "b": (300, 300), "o": (300, 3)}
    network = Wired(wiring, **{name: nn.Linear(*size) for name, size in sizes.items()}).eval()
    found = trace(network, images(16, 6), verify=False)
    plan = found.plan({"a": np.arange(300) % 2 == 0})
    with pytest.raises(CertificateError, match="float64 cannot tell .* takes float32"):
        certify(network, found, plan)


@pytest.mark.parametrize("used", [True, False])
def test_positions_of_largest_values_are_told_by_number(used: bool) -> None:
    """Of what is left the third is the second: experts would be given the texts of others."""

    def wiring(n: Any, x: Tensor) -> Tensor:
        value, position = n.r(x).max(1, keepdim=True)
        out: Tensor = n.o(n.a(x) * value)
        return out * (position + 1) if used else out

    network = Wired(wiring, r=nn.Linear(6, 5), a=nn.Linear(6, 8), o=nn.Linear(8, 3)).eval()
    found = trace(network, FLAT)
    assert ("r" in [group.name for group in found.cuttable]) != used
    if used:
        assert "told by number" in found.by_name["r"].refused
    assert "a" in [group.name for group in found.cuttable]


def test_a_squeeze_that_drops_one_sample_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1))
    head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    whole = Wired(lambda n, x: n.h(n.f(x).squeeze()), f=network, h=head).eval()
    with pytest.raises(GraphError, match=r"a squeeze\(\) drops a batch of one \(flatten\(1\)"):
        trace(whole, RGB)


def test_what_a_masked_run_computes_otherwise_is_not_uncounted() -> None:
    """PyTorch runs the whole layer as one operation where nothing watches its sizes."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3)).eval()
    assert trace(network, images(2, 4, 6)).cost({}).uncounted == ()


def test_unequal_parts_by_attributes_are_cut_each_by_itself() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        p, q = torch.split(n.a(x), [n.p, n.q], 1)
        out: Tensor = n.c(p) + n.d(q)
        return out

    parts = {"a": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(3, 2, 1), "d": nn.Conv2d(5, 2, 1)}
    network = enliven_(Wired(wiring, p=3, q=5, **parts)).eval()
    found = trace(network, RGB)
    assert sorted(group.units for group in found.cuttable) == [3, 5]


def test_shapes_that_change_in_place() -> None:
    network = Wired(
        lambda n, x: n.c(n.a(x).unsqueeze_(1).squeeze_(1)), a=nn.Linear(6, 8), c=nn.Linear(8, 3)
    ).eval()
    assert [group.name for group in trace(network, FLAT).cuttable] == ["a"]


def test_a_double_network_is_compared_in_double() -> None:
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    network = Wired(lambda n, x: n.c(n.a(x).relu()) @ torch.diag(scale), a=nn.Linear(6, 8))
    network.c = nn.Linear(8, 3)
    network = network.double().eval()
    found = trace(network, FLAT.double())
    certificate = certify(network, found, found.plan({"a": all_but(8, 0)}))
    assert certificate.eval_difference_float64 == certificate.eval_difference <= 1e-10


# -- caches, and what cannot be traced --------------------------------------------------------


@lru_cache
def _kept(heads: int, width: int) -> tuple[int, int]:
    return heads, width


def heads(wide: int = 6) -> nn.Module:
    def wiring(n: Any, x: Tensor) -> Tensor:
        y = n.a(n.w(x)).view(x.shape[0], *_kept(n.h, 3))
        out: Tensor = n.o((y * y.mean(-1, keepdim=True)).flatten(1))
        return out

    parts = {"w": nn.Linear(6, wide), "a": nn.Linear(wide, 12), "o": nn.Linear(12, 3)}
    return Wired(wiring, h=4, **parts).eval()


def test_a_number_that_a_cache_keeps_is_of_one_trace() -> None:
    _kept.cache_clear()
    first = trace(heads(), FLAT)
    other = trace(heads(7), FLAT)  # reads the first one's numbers
    assert {g.name for g in first.cuttable} == {"w", "a"}
    assert "w" in {g.name for g in other.cuttable}
    assert other.by_name["a"].refused  # not seen to follow: refused, not cut wrongly


def test_shapes_that_einops_keeps_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network is traced alike whether or not it has run before."""
    module = ModuleType("einops.einops")
    module._reconstruct_from_shape = _kept  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "einops.einops", module)
    network = heads()
    network(FLAT)
    found = trace(network, FLAT)
    assert {g.name for g in found.cuttable} == {"w", "a"}
    assert {type(number) for number in _kept(4, 3)} == {int}  # no traced number stays behind


def test_what_cannot_be_traced_is_told_why() -> None:
    graph = Wired(lambda n, x, edges: n.b(edges @ n.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    with pytest.raises(GraphError, match="not on their first sample alone"):
        trace(graph.eval(), (images(5, 6), images(5, 5)))

    def strict(n: Any, x: Tensor) -> Tensor:
        h: Tensor = n.a(x)
        if type(h.shape[1]) is not int:  # a trace gives numbers that remember their dim
            raise TypeError("no plain number")
        return h

    wary = Wired(strict, a=nn.Linear(6, 8)).eval()
    with pytest.raises(
        GraphError, match="runs, but what it does cannot be followed: TypeError: no"
    ):
        trace(wary, FLAT)
    with pytest.raises(GraphError, match="does not run on example_inputs: RuntimeError"):
        trace(wary, images(4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = nn.Sequential(nn.Linear(6, 4), torch.jit.script(nn.Linear(4, 2)))
    with pytest.raises(InputError, match="'1' is scripted"):
        trace(scripted, FLAT)
    with pytest.raises(InputError, match=r"lazy layers without shapes \('0'\)"):
        trace(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), FLAT)
    with pytest.raises(InputError, match="'0.weight' of the network is on the meta device"):
        trace(nn.Sequential(nn.Linear(6, 4)).to("meta"), FLAT.to("meta"))


def test_a_time_beside_a_batch_is_no_batch() -> None:
    network = Wired(
        lambda n, t, x: n.b((n.a(x) * t).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 3)
    ).eval()
    one = trace(network, (torch.ones(1), images(2, 6)))
    assert one.macs({}) == 6 * 8 + 8 * 3
