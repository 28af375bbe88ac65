"""Vocabulary: what stays is what the texts hold, and it means what it meant."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.data import SearchSplit, TrainSplit
from prunus.errors import BudgetError, GraphError, InputError
from prunus.graph import certify_rebuild, cut, plan_of, trace
from prunus.meter import count_params, file_size_bytes
from prunus.method import Budget, Context, Decision
from prunus.plan import KeepVocabulary
from prunus.prune import Vocabulary
from prunus.zoo import build
from tests.prune import text_subjects as texts

KEPT = [0, 1, 2, 3, 4, 10, 11, 12, 30]
"""Of 40 pieces, with no option set: special ones, characters, and what the texts hold."""

every_network = pytest.mark.parametrize("name", list(texts.NETWORKS))


@cache
def traced(name: str) -> Context:
    make, padding, _ = texts.NETWORKS[name]
    return texts.context(make().eval(), texts.inputs(texts.TRAIN, padding), padding=padding)


def given(name: str, target: str = "params=1.0", **fields: Any) -> Context:
    return replace(traced(name), budget=Budget.parse(target), **fields)


def kept(decision: Decision) -> list[int]:
    (edit,) = decision.edits
    assert isinstance(edit, KeepVocabulary)
    found: list[int] = np.flatnonzero(edit.keep.unpack()).tolist()
    return found


def trimmed(context: Context, **options: Any) -> nn.Module:
    decision = Vocabulary(**options).decide(context)
    return cut(context.network, plan_of(context.network, decision.edits)).eval()


@every_network
def test_pieces_of_the_texts_and_those_that_spell_any_text_stay(name: str) -> None:
    decision = Vocabulary().decide(given(name))
    assert kept(decision) == KEPT
    assert decision.choice == {}
    (note,) = decision.notes
    assert "9 of 40 tokens stay; they are 100.00% of the tokens that the texts hold" in note


def test_a_table_may_be_called_by_the_name_of_its_argument() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(texts.PIECES, 4), nn.Linear(4, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            states = self.table(input=input_ids) * attention_mask.unsqueeze(2)
            out: Tensor = self.out(states.mean(1))
            return out

    decision = Vocabulary().decide(texts.context(Named().eval(), texts.inputs(texts.TRAIN)))
    assert kept(decision) == KEPT


@every_network
def test_logits_of_kept_pieces_are_the_same_by_their_new_numbers(name: str) -> None:
    _, padding, width = texts.NETWORKS[name]
    context = given(name)
    smaller = trimmed(context)
    assert count_params(smaller) == count_params(context.network) - (40 - 9) * width
    old = texts.inputs([(2, 30, 10, 4, 3), (2, 12, 3)], padding)
    new = texts.inputs([(2, 8, 5, 4, 3), (2, 7, 3)], padding)  # 10 is now the sixth, and so on
    assert torch.equal(texts.logits(smaller, new), texts.logits(context.network, old))
    # The length of the padding makes no difference before and after: it is known as padding.
    one = texts.inputs([(2, 7, 3)], padding)
    assert torch.allclose(texts.logits(smaller, one)[0], texts.logits(smaller, new)[1], atol=1e-6)


@every_network
def test_the_certificate_holds(name: str) -> None:
    context = given(name)
    plan = plan_of(context.network, Vocabulary().decide(context).edits)
    example = context.trace.example_inputs
    assert certify_rebuild(context.network, plan, {}, example).passed


def test_padding_is_known_by_its_new_number() -> None:
    # Without a tokenizer nothing but the network says that piece 5 pads: 0 to 4 go, it is the first.
    network = build("textcnn", vocab_size=40, embedding=6, hidden=4, pad_id=5).eval()
    example = texts.inputs(texts.TRAIN, 5)
    context = texts.context(network, example, padding=5, fallback_pieces=frozenset())
    assert kept(Vocabulary().decide(context)) == [2, 3, 5, 10, 11, 12, 30]
    table = trimmed(context).get_submodule("embedding")
    assert isinstance(table, nn.Embedding)
    assert table.padding_idx == 2
    assert table.num_embeddings == 7
    assert torch.equal(table.weight[2], torch.zeros(6))


def test_special_pieces_that_a_config_names_stay_where_the_table_has_them() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        pad_token_id=0,
        bos_token_id=20,
        eos_token_id=50_256,  # what a small network often inherits from a large one's config
    )
    network = texts.seeded(transformers.BertForSequenceClassification, config)
    context = texts.context(network, texts.inputs(texts.TRAIN), fallback_pieces=frozenset({99}))
    assert kept(Vocabulary().decide(context)) == [0, 2, 3, 10, 11, 12, 20, 30]


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ({"min_count": 2}, [0, 1, 2, 3, 4, 10, 11]),
        ({"min_count": 3}, [0, 1, 2, 3, 4, 10]),
        ({"min_count": 4}, [0, 1, 2, 3, 4]),
        ({"keep_top": 8}, [0, 1, 2, 3, 4, 10, 11, 12]),  # 12 and 30 are once there: the first one
        ({"keep_top": 6}, [0, 1, 2, 3, 4, 10]),
        ({"keep_top": 2}, [0, 1, 2, 3, 4]),
        ({"keep_top": 9, "min_count": 2}, [0, 1, 2, 3, 4, 10, 11]),
    ],
)
def test_frequent_pieces_stay_first(options: dict[str, int], pieces: list[int]) -> None:
    assert kept(Vocabulary(**options).decide(given("textcnn"))) == pieces


def test_what_pads_is_no_text() -> None:
    noisy = texts.samples([*texts.TRAIN, *texts.SEARCH])
    ids = noisy.store.inputs["input_ids"]  # type: ignore[attr-defined]  # the fake's
    assert isinstance(ids, Tensor)
    ids[1, 4] = 39  # behind the end of the second text
    context = given("textcnn", train=TrainSplit(noisy), search=SearchSplit(noisy))
    decision = Vocabulary(min_count=4).decide(context)
    # Each text is seen twice: 6 of 10, 4 of 11, 6 each of 2 and 3; 2 each of 12 and 30 go of 26.
    assert kept(decision) == [0, 1, 2, 3, 4, 10, 11]
    assert f"{22 / 26:.2%} of the tokens" in decision.notes[0]
    assert kept(Vocabulary().decide(context)) == KEPT


@every_network
@pytest.mark.parametrize(
    ("rows", "pieces"), [(7, [10, 11]), (6, [10]), (5, []), (40, [10, 11, 12, 30])]
)
@pytest.mark.parametrize("quantity", ["params", "size"])
def test_a_budget_is_filled_with_the_most_frequent_pieces(
    name: str, rows: int, pieces: list[int], quantity: str
) -> None:
    width = texts.NETWORKS[name][2] * (4 if quantity == "size" else 1)
    context = given(name)
    dense = Budget.parse(f"{quantity}=1").measure(context.trace, {})
    limit = dense - (40 - rows) * width + width - 1  # one less than another row
    context = given(name, f"{quantity}={min(limit, dense)}")
    decision = Vocabulary().decide(context)
    assert kept(decision) == [0, 1, 2, 3, 4, *pieces]
    smaller = trimmed(context)
    cost = count_params(smaller) if quantity == "params" else file_size_bytes(smaller)
    assert cost <= limit


def test_a_budget_below_what_always_stays_says_what_is_left() -> None:
    dense = count_params(given("textcnn").network)
    least = dense - 35 * 6
    with pytest.raises(
        BudgetError, match=rf"params=\d+ allows {least - 1}; .*{least} of {dense}"
    ) as caught:
        Vocabulary().decide(given("textcnn", f"params={least - 1}"))
    assert "\n" not in str(caught.value)
    assert kept(Vocabulary().decide(given("textcnn", f"params={least}"))) == [0, 1, 2, 3, 4]


def test_a_target_on_macs_is_refused_as_rows_cost_none() -> None:
    with pytest.raises(BudgetError, match=r"macs=0\.5: rows .* no MACs.*params or size") as caught:
        Vocabulary().decide(given("bert_tiny", "macs=0.5"))
    assert "\n" not in str(caught.value)
    assert kept(Vocabulary().decide(given("bert_tiny", "macs=1"))) == KEPT


def test_where_all_pieces_are_needed_nothing_is_edited() -> None:
    context = given("textcnn", fallback_pieces=frozenset(range(40)))
    decision = Vocabulary().decide(context)
    assert decision.edits == ()
    assert "40 of 40" in decision.notes[0]


def test_a_network_that_reads_no_pieces_is_refused() -> None:
    network = build("digits_cnn").eval()
    context = texts.context(network, torch.zeros(2, 1, 8, 8))
    with pytest.raises(GraphError, match="DigitsCNN .*input_ids") as caught:
        Vocabulary().decide(context)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_the_output_layer_as_well_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    network = texts.seeded(transformers.BertForMaskedLM, config)
    context = texts.context(network, texts.inputs(texts.TRAIN))
    with pytest.raises(GraphError, match="BertForMaskedLM: its output layer"):
        Vocabulary().decide(context)


def test_a_table_that_is_ignored_is_not_cut_and_one_beside_what_is_ignored_is() -> None:
    context = given("textcnn")
    inputs = context.trace.example_inputs
    with pytest.raises(InputError, match="ignore names 'embedding', whose rows") as caught:
        Vocabulary().decide(
            replace(context, trace=trace(context.network, inputs, ignore=["embedding"]))
        )
    assert "\n" not in str(caught.value)
    context = given("bert_tiny")
    inputs = context.trace.example_inputs
    ignored = trace(context.network, inputs, ignore=["bert.encoder.layer.0.*"])
    decision = Vocabulary().decide(replace(context, trace=ignored))
    assert kept(decision) == KEPT


def test_texts_of_another_tokenizer_are_refused() -> None:
    foreign = TrainSplit(texts.samples([(2, 10, 55, 3)]))
    with pytest.raises(InputError, match=r"token 55, .* 40 rows; .*own tokenizer"):
        Vocabulary().decide(given("textcnn", train=foreign))


@pytest.mark.parametrize("options", [{"min_count": 0}, {"keep_top": 0}, {"keep_top": "many"}])
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(options))}=.*'vocabulary'"):
        Vocabulary(**options)
