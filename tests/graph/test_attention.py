"""Heads of ``nn.MultiheadAttention`` can go, and the width around it: what is left is torch's sum."""

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.candidates.prefix import Prefix
from prunus.candidates.skeleton import Skeleton
from prunus.graph import certify, cut, relative_difference, trace
from prunus.graph.attention import NarrowAttention, free_heads_
from prunus.meter import count_macs
from tests.helpers import all_but, enliven_

WIDTH, HEADS, TOKENS, BATCH = 12, 3, 5, 2
EACH = WIDTH // HEADS


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(**given: Any) -> nn.MultiheadAttention:
    made = enliven_(nn.MultiheadAttention(WIDTH, HEADS, **given))
    assert isinstance(made, nn.MultiheadAttention)
    return made.eval()


def freed(layer: nn.MultiheadAttention) -> nn.MultiheadAttention:
    found = copy.deepcopy(layer)
    free_heads_(found)
    assert type(found) is NarrowAttention
    return found


def compare(layer: nn.MultiheadAttention, *inputs: Tensor, **given: Any) -> None:
    """Outputs, weights and gradients are those of torch."""
    other = freed(layer)
    with torch.no_grad():
        fast, free = layer(*inputs, **given), other(*inputs, **given)
    for one, two in zip(fast, free, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6, equal_nan=True)
    found = []
    for network in (layer, other):
        network.zero_grad()
        out, _ = network(*inputs, **given)
        (out * drawn(*out.shape, seed=9)).nansum().backward()
        found.append({n: p.grad for n, p in network.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6, equal_nan=True)


# The same function


@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
        {"dtype": torch.float64},
    ],
    ids=lambda form: "-".join(form) or "plain",
)
def test_it_attends_as_torch_does(form: dict[str, Any], weights: dict[str, bool]) -> None:
    x = drawn(BATCH, TOKENS, WIDTH).to(form.get("dtype", torch.float32))
    y = drawn(BATCH, TOKENS, WIDTH, seed=1).to(x.dtype)
    layer = attention(**form)
    compare(layer, x, x, x, **weights)
    compare(layer, x, y, y, **weights)
    compare(layer, x[0], y[0], x[0], **weights)  # without a batch


def test_keys_and_values_of_other_widths() -> None:
    layer = attention(kdim=7, vdim=9, batch_first=True)
    x, k, v = drawn(BATCH, 4, WIDTH), drawn(BATCH, TOKENS, 7), drawn(BATCH, TOKENS, 9)
    for need in (True, False):
        compare(layer, x, k, v, need_weights=need)


CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
HIDDEN = torch.arange(TOKENS) >= torch.tensor([[TOKENS], [3]])


@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("more", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
@pytest.mark.parametrize(
    "masks",
    [
        {"attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "is_causal": True},
        {"attn_mask": drawn(TOKENS, TOKENS)},
        {"attn_mask": drawn(BATCH * HEADS, TOKENS, TOKENS)},
        {"attn_mask": drawn(BATCH * HEADS, TOKENS, TOKENS) > 1},
        {"key_padding_mask": HIDDEN},
        {"key_padding_mask": drawn(BATCH, TOKENS)},
        {"key_padding_mask": HIDDEN, "attn_mask": CAUSAL},
        {"key_padding_mask": HIDDEN, "attn_mask": CAUSAL, "is_causal": True},
        {"key_padding_mask": HIDDEN, "attn_mask": drawn(BATCH * HEADS, TOKENS, TOKENS) > 1},
    ],
    ids=itertools.count(),
)
def test_masks_hide_what_they_do_in_torch(
    masks: dict[str, Any], more: dict[str, bool], need: bool
) -> None:
    x = drawn(BATCH, TOKENS, WIDTH)
    compare(attention(batch_first=True, **more), x, x, x, need_weights=need, **masks)
    y = x.transpose(0, 1)
    compare(attention(**more), y, y, y, need_weights=need, **masks)


def test_masks_without_a_batch() -> None:
    x, layer = drawn(TOKENS, WIDTH), attention()
    masks = drawn(HEADS, TOKENS, TOKENS) > 1
    compare(layer, x, x, x, attn_mask=masks, key_padding_mask=HIDDEN[1])
    compare(layer, x, x, x, attn_mask=masks, need_weights=False)


def test_dropout_is_drawn_in_training_alone() -> None:
    layer = freed(attention(dropout=0.5))
    x = drawn(BATCH, TOKENS, WIDTH)
    for need in (True, False):
        torch.testing.assert_close(
            layer.eval()(x, x, x, need_weights=need)[0], layer(x, x, x, need_weights=need)[0]
        )
        one, two = (layer.train()(x, x, x, need_weights=need)[0] for _ in range(2))
        assert not torch.equal(one, two)


def test_a_causal_hint_wants_its_mask() -> None:
    x = drawn(BATCH, TOKENS, WIDTH)
    for layer in (attention(), freed(attention())):
        with pytest.raises(RuntimeError, match="mask"):
            layer(x, x, x, is_causal=True)


# What is left after a cut


def without_heads(layer: nn.Module, gone: list[int]) -> nn.MultiheadAttention:
    """Torch's own layer, where the columns that read these heads are zero: nothing reads them."""
    silent = copy.deepcopy(layer)
    assert isinstance(silent, nn.MultiheadAttention)
    with torch.no_grad():
        for head in gone:
            silent.out_proj.weight[:, head * EACH : (head + 1) * EACH] = 0
    return silent


class Around(nn.Module):
    """A layer of attention between two others, so that the width around it can be cut, too."""

    def __init__(self, how: str = "self", heads: int = HEADS, **given: Any) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Linear(4, WIDTH)
        self.second = nn.Linear(4, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True, **given)
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        if self.how == "self":
            found = a + self.attention(a, a, a, need_weights=False)[0]
        elif self.how == "weights":
            found = a + self.attention(a, a, a)[0]
        elif self.how == "crossed":
            found = a + self.attention(a, b, b, need_weights=False)[0]
        else:
            found = a + self.attention(a, b, a.flip(1))[0]
        logits: Tensor = self.last(found.mean(dim=1))
        return logits


HOW = ["self", "weights", "crossed", "three"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("form", [{}, {"bias": False}, {"add_bias_kv": True}], ids=str)
def test_heads_and_the_width_around_them_can_be_cut(how: str, form: dict[str, Any]) -> None:
    network = enliven_(Around(how, **form)).eval()
    x = drawn(BATCH, TOKENS, 4)
    found = trace(network, x)
    refused = {g.name: g.refused for g in found.groups if g.refused}
    assert set(refused) == {"last"}
    heads = found.by_name["attention.in_proj_weight"]
    assert heads.units == HEADS
    rows = {(a.tensor, a.dim): a.units.tolist() for a in heads.axes}
    per_head = np.repeat(np.arange(HEADS), EACH).tolist()
    assert rows["attention.in_proj_weight", 0] == per_head * 3
    assert rows["attention.out_proj.weight", 1] == per_head
    plan = found.plan({heads.name: all_but(HEADS, 1)})
    small = cut(network, plan)
    layer = small.get_submodule("attention")
    assert isinstance(layer, NarrowAttention)
    assert (layer.num_heads, layer.head_dim, layer.embed_dim) == (HEADS - 1, EACH, WIDTH)
    silent = copy.deepcopy(network)
    silent.attention = without_heads(network.get_submodule("attention"), [1])
    torch.testing.assert_close(small(x), silent(x), rtol=1e-5, atol=1e-6)
    assert certify(network, found, plan).passed
    choice = {g.name: all_but(g.units, 0) for g in found.cuttable}
    both = found.plan(choice)
    assert certify(network, found, both).passed
    assert count_macs(cut(network, both), x[:1]).macs == found.macs(choice)


def test_where_torch_has_a_kernel_of_its_own() -> None:
    """An even number of heads and no mask: one operation, in which no mask could be put."""
    network, x = enliven_(Around(heads=2)).eval(), drawn(BATCH, TOKENS, 4)
    found = trace(network, x)
    plan = found.plan({"attention.in_proj_weight": all_but(2, 0)})
    assert certify(network, found, plan).eval_difference < 1e-5  # float64 has no such kernel
    assert count_macs(cut(network, plan), x[:1]).macs == found.macs(plan.channels)
    dense = count_macs(network, x[:1])
    assert dense.macs == found.macs({})
    assert not dense.uncounted
    assert torch.backends.mha.get_fastpath_enabled()


def test_macs_by_hand() -> None:
    """Two of three heads: projections, scores and sums of values shrink by a third, nothing else."""
    network = enliven_(Around()).eval()
    found = trace(network, drawn(BATCH, TOKENS, 4))
    keep = {"attention.in_proj_weight": all_but(HEADS, 1)}
    outside = TOKENS * 4 * WIDTH + WIDTH * 3  # what `second` makes is read by nobody: it is counted
    outside += TOKENS * 4 * WIDTH
    inside = TOKENS * 4 * WIDTH * WIDTH + 2 * TOKENS * TOKENS * WIDTH
    assert found.macs({}) == outside + inside
    assert found.macs(keep) == outside + inside * 2 // 3


def test_torchs_own_layer_stays_where_it_can_be() -> None:
    """All heads, and inputs as narrow as those: nothing but torch is needed to run it."""
    network = enliven_(Around()).eval()
    x = drawn(BATCH, TOKENS, 4)
    found = trace(network, x)
    keep = {"first": np.arange(WIDTH) < 2 * EACH, "attention.in_proj_weight": all_but(HEADS, 2)}
    small = cut(network, found.plan(keep))
    layer = small.get_submodule("attention")
    assert type(layer) is nn.MultiheadAttention
    own = nn.MultiheadAttention(2 * EACH, HEADS - 1, batch_first=True)
    own.load_state_dict(layer.state_dict())
    settings = ("embed_dim", "kdim", "vdim", "num_heads", "head_dim")
    assert [getattr(layer, n) for n in settings] == [getattr(own, n) for n in settings]
    a = small.get_submodule("first")(x)
    assert torch.equal(own.eval()(a, a, a)[0], layer(a, a, a)[0])
    ffn = found.plan({"second": np.arange(WIDTH) < 4})
    assert type(cut(network, ffn).get_submodule("attention")) is nn.MultiheadAttention


def test_keys_and_values_that_are_narrower_than_the_queries() -> None:
    class Two(Around):
        def __init__(self) -> None:
            super().__init__(kdim=6, vdim=7)
            self.keys, self.values = nn.Linear(4, 6), nn.Linear(4, 7)

        def forward(self, x: Tensor) -> Tensor:
            found = self.attention(self.first(x), self.keys(x), self.values(x))[0]
            logits: Tensor = self.last(found.mean(dim=1))
            return logits

    network = enliven_(Two()).eval()
    found = trace(network, drawn(BATCH, TOKENS, 4))
    units = {g.name: g.units for g in found.cuttable}
    assert units["keys"] == 6
    assert units["values"] == 7
    assert units["attention.q_proj_weight"] == HEADS
    small = cut(network, found.plan({name: all_but(n, 0) for name, n in units.items()}))
    layer = small.get_submodule("attention")
    assert isinstance(layer, NarrowAttention)
    assert (layer.kdim, layer.vdim, layer.num_heads) == (5, 6, HEADS - 1)


class Encoder(nn.Module):
    def __init__(self, norm_first: bool = False, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(
            16, heads, 24, batch_first=True, norm_first=norm_first, dropout=0.1
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=not norm_first)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        weight = attention_mask.unsqueeze(-1)
        logits: Tensor = self.head((hidden * weight).sum(1) / weight.sum(1))
        return logits


def texts() -> dict[str, Tensor]:
    mask = (torch.arange(6) < torch.tensor([[6], [4], [2]])).long()
    ids = torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_of_torch_is_cut_in_heads_width_and_feed_forward(norm_first: bool) -> None:
    network, given = enliven_(Encoder(norm_first)).eval(), texts()
    found = trace(network, given)
    assert not [g.name for g in found.groups if g.refused and g.name != "head"]
    sizes = {g.name: g.units for g in found.cuttable}
    assert sorted(sizes.values()) == [2, 2, 16, 24, 24]
    choice = {name: all_but(n, 0) for name, n in sizes.items()}
    plan = found.plan(choice)
    assert certify(network, found, plan, given).passed
    small = cut(network, plan)
    for network_now in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert network_now.training is False
        with torch.no_grad():  # where torch would pack padded texts
            quiet = network_now(**given)
        torch.testing.assert_close(network_now(**given), quiet)
    layer = small.get_submodule("encoder.layers.0.self_attn")
    assert isinstance(layer, nn.MultiheadAttention)
    assert layer.num_heads == 1
    assert count_macs(small, {n: t[:1] for n, t in given.items()}).macs == found.macs(choice)
    loss = small.train()(**given).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())


def test_a_cut_network_is_cut_again() -> None:
    network, given = enliven_(Encoder(heads=4, layers=1)).eval(), texts()
    for left in (3, 2):
        found = trace(network, given)
        (heads,) = (g for g in found.cuttable if g.name.endswith("in_proj_weight"))
        assert heads.units == left + 1
        plan = found.plan({heads.name: all_but(heads.units, 0)})
        assert certify(network, found, plan, given).passed
        network = cut(network, plan)
    layer = network.get_submodule("encoder.layers.0.self_attn")
    assert isinstance(layer, NarrowAttention)
    assert (layer.num_heads, layer.head_dim) == (2, 4)


def test_a_decoder_attends_to_itself_and_to_the_encoder() -> None:
    network = enliven_(nn.Transformer(16, 2, 1, 1, 24, dropout=0.0, batch_first=True)).eval()
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    given = {"src": drawn(2, 6, 16), "tgt": drawn(2, 5, 16, seed=1), "tgt_mask": causal}
    found = trace(network, given)
    heads = [g for g in found.cuttable if g.name.endswith("in_proj_weight")]
    assert [g.units for g in heads] == [2, 2, 2]
    plan = found.plan({g.name: all_but(g.units, 0) for g in found.cuttable})
    assert certify(network, found, plan).passed


def test_candidates_without_heads_are_those_that_are_cut() -> None:
    network = enliven_(Around("weights")).eval()
    x = drawn(BATCH, TOKENS, 4)
    found = trace(network, x)
    skeleton = Skeleton(network)
    dense = skeleton.module(x)
    torch.testing.assert_close(dense, network(x), rtol=1e-5, atol=1e-6)
    for gone in (0, 2):
        choice = {g.name: all_but(g.units, gone) for g in found.cuttable}
        plan = found.plan(choice)
        skeleton.load(plan)
        torch.testing.assert_close(skeleton.module(x), cut(network, plan)(x), rtol=1e-5, atol=1e-6)
    skeleton.reset()
    assert torch.equal(skeleton.module(x), dense)
    assert type(network.attention) is nn.MultiheadAttention


@pytest.mark.parametrize(
    "form", [{}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 7, "vdim": 9}], ids=str
)
def test_tensors_are_drawn_anew_as_torch_draws_them(form: dict[str, Any]) -> None:
    layer = attention(**form)
    other = freed(layer)
    for one in (layer, other):
        torch.manual_seed(3)
        one._reset_parameters()
    assert [n for n, _ in layer.named_parameters()] == [n for n, _ in other.named_parameters()]
    for mine, theirs in zip(other.parameters(), layer.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Averaged(Encoder):
    """Reads what an encoder makes of padded positions."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        logits: Tensor = self.head(hidden.mean(dim=1))
        return logits


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_candidates_and_cut_networks_treat_padding_alike_and_the_certificate_tells() -> None:
    network, given = enliven_(Averaged()).eval(), texts()
    found = trace(network, given)
    skeleton = Skeleton(network)
    plan = found.plan({"encoder.layers.0.linear1": all_but(24, 0)})
    skeleton.load(plan)
    with torch.no_grad():  # where torch packs
        torch.testing.assert_close(skeleton.module(**given), cut(network, plan)(**given))
        packed = network(**given)
        assert relative_difference(network.train()(**given), packed) > 0.1
    network.eval()
    assert "zeroes padded positions" in certify(network, found, plan, given).reason
    deaf = enliven_(Encoder()).eval()
    plain = trace(deaf, given)
    assert not certify(deaf, plain, plain.plan({}), given).reason


def test_layers_of_an_encoder_can_be_shared_by_candidates() -> None:
    network, given = enliven_(Encoder(layers=3)).eval(), texts()
    found = Prefix(Skeleton(network), given, least_work=0)
    shared = {boundary.module for boundary in found.boundaries}
    assert {"embedding", "encoder.layers.0", "encoder.layers.1", "encoder"} <= shared


def test_a_transformer_of_torch_asks_for_the_width_that_is_left() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Linear(4, 16)
            self.transformer = nn.Transformer(16, 4, 1, 1, 24, dropout=0.0, batch_first=True)
            self.last = nn.Linear(16, 3)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            found = self.transformer(self.embedding(source), self.embedding(target))
            logits: Tensor = self.last(found)
            return logits

    network = enliven_(Translator()).eval()
    given = (drawn(2, 6, 4), drawn(2, 5, 4, seed=1))
    found = trace(network, given)
    plan = found.plan({"embedding": all_but(16, 1, 2)})
    assert cut(network, plan).get_submodule("transformer").d_model == 14
    assert certify(network, found, plan).passed


def test_code_that_asks_for_the_class_keeps_its_heads() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(
                [nn.Linear(4, WIDTH), nn.MultiheadAttention(WIDTH, HEADS), nn.Linear(WIDTH, 3)]
            )

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                attends = type(step) is nn.MultiheadAttention
                x = step(x, x, x)[0] if attends else step(x)
            return x

    network = enliven_(Asks()).eval()
    found = trace(network, drawn(BATCH, TOKENS, 4))
    assert all(g.refused for g in found.groups)


def test_a_projection_without_bias_is_no_matter() -> None:
    network = Around()
    network.attention.out_proj = nn.Linear(WIDTH, WIDTH, bias=False)  # type: ignore[assignment]
    found = trace(enliven_(network).eval(), drawn(BATCH, TOKENS, 4))
    plan = found.plan({"attention.in_proj_weight": all_but(HEADS, 0)})
    assert certify(network, found, plan).passed


def test_a_mask_for_every_head_keeps_them_all() -> None:
    class Masked(Around):
        def forward(self, x: Tensor) -> Tensor:
            a = self.first(x)
            mask = torch.zeros(x.shape[0] * HEADS, TOKENS, TOKENS)
            logits: Tensor = self.last((a + self.attention(a, a, a, attn_mask=mask)[0]).mean(1))
            return logits

    found = trace(enliven_(Masked()).eval(), drawn(BATCH, TOKENS, 4))
    assert found.by_name["attention.in_proj_weight"].refused
    assert not found.by_name["first"].refused


def test_a_subclass_with_a_forward_of_its_own_is_left_to_it() -> None:
    class Own(nn.MultiheadAttention):
        pass

    network = nn.Sequential(Own(WIDTH, HEADS))
    free_heads_(network)
    assert type(network[0]) is Own


def test_what_is_not_needed_is_not_freed() -> None:
    network = nn.Sequential(nn.MultiheadAttention(WIDTH, HEADS))
    free_heads_(network, where_needed=True)
    assert type(network[0]) is nn.MultiheadAttention
