"""``shape``: requests of one shape say what requests of any shape say."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.quantize import Deployment, deploy, load_deployed, require_shape, run_fresh
from prunus.quantize.fixed_shape import requests, require_filled
from prunus.records import Source
from prunus.zoo import load_source
from tests.quantize.networks import BERT, DIGITS, LSTM, batches, texts, written

SIZES = st.integers(1, 7)


@given(samples=SIZES, length=SIZES, batch=SIZES, more=st.integers(0, 3))
def test_requests_have_one_shape_and_hold_all_samples_in_order(
    samples: int, length: int, batch: int, more: int
) -> None:
    feed = texts(samples, length)
    assert isinstance(feed, dict)
    found = list(requests(feed, (batch, length + more)))
    assert len(found) == -(-samples // batch)
    assert sum(count for _, count in found) == samples
    for name, whole in feed.items():
        assert all(request[name].shape == (batch, length + more) for request, _ in found)
        again = torch.cat([request[name][:count] for request, count in found])
        assert torch.equal(again[:, :length], whole)
        assert not again[:, length:].any()


def test_a_request_of_that_shape_is_not_copied() -> None:
    feed = texts(2, 9)
    assert isinstance(feed, dict)
    ((request, count),) = requests(feed, (2, 9))
    assert count == 2
    assert all(request[name] is tensor for name, tensor in feed.items())


def test_what_a_request_lacks_in_samples_is_the_last_one_again() -> None:
    whole = torch.arange(5.0)[:, None]
    *_, (last, count) = requests({"input": whole}, (4,))
    assert count == 1
    assert torch.equal(last["input"], whole[[4, 4, 4, 4]])


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
@pytest.mark.parametrize("kind", ["bert", "digits"])
def test_logits_are_those_of_any_shape(kind: str, weights: str, tmp_path: Path) -> None:
    source = {"bert": BERT, "digits": DIGITS}[kind]
    shape = (4, 17) if kind == "bert" else (4,)
    written(source, tmp_path / "any", engine="openvino", weights=weights)
    written(source, tmp_path / "fixed", engine="openvino", weights=weights, shape=shape)
    free, fixed = load_deployed(tmp_path / "any"), load_deployed(tmp_path / "fixed")
    limit = {"float32": 1e-4, "float16": 0.02, "int8": 0.05}[weights]
    for batch in batches(source):
        wanted, found = free(batch), fixed(batch)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= limit * wanted.abs().max()


def test_the_engine_plans_for_that_shape_alone(tmp_path: Path) -> None:
    written(BERT, tmp_path / "fixed", engine="openvino", shape=(2, 24))
    session = load_deployed(tmp_path / "fixed")
    given_shapes: list[list[int]] = []
    infer = session._infer  # type: ignore[attr-defined]

    def watched(feed: dict[str, Tensor]) -> Tensor:
        given_shapes.extend(list(tensor.shape) for tensor in feed.values())
        found: Tensor = infer(feed)
        return found

    session._infer = watched  # type: ignore[attr-defined]
    assert session(texts(3, 9)).shape == (3, 2)
    assert given_shapes == [[2, 24]] * 4
    planned = session._request.model_inputs  # type: ignore[attr-defined]
    assert [list(node.shape) for node in planned] == [[2, 24], [2, 24]]


def test_a_text_is_answered_alike_beside_any_other(tmp_path: Path) -> None:
    written(BERT, tmp_path / "fixed", engine="openvino", weights="int8", shape=(1, 20))
    logits = run_fresh(tmp_path / "fixed", batches(BERT)).logits
    session = load_deployed(tmp_path / "fixed")
    alone = [
        session({name: tensor[[row]] for name, tensor in batch.items()})
        for batch in batches(BERT)
        if isinstance(batch, dict)
        for row in range(len(batch["input_ids"]))
    ]
    assert torch.equal(torch.cat(alone), logits)


def test_a_longer_text_is_refused(tmp_path: Path) -> None:
    written(LSTM, tmp_path / "fixed", engine="openvino", shape=(1, 8))
    session = load_deployed(tmp_path / "fixed")
    with pytest.raises(InputError, match="^inputs have 9 tokens, .* deployed for 8; cut them"):
        session(texts(2, 9))


class Bag(nn.Module):
    """Reads no mask: padding is text to it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(900, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.words(input_ids).mean(1))
        return logits


def test_a_network_that_takes_padding_for_text_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = {"input_ids": torch.randint(900, (2, 9))}
    asked = Deployment(engine="openvino", shape=(1, 16))
    with pytest.raises(InputError, match="reads no attention_mask .* only input_ids; leave shape"):
        deploy(Bag().eval(), tmp_path / "no", asked, inputs=ids, dynamic_length=True)
    assert not list(tmp_path.iterdir())


class Last(nn.Module):
    """Reads the last token that is no padding by its id, as GPT-2's classifier does, whatever the mask says."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(900, 8), nn.Linear(8, 2)
        if padding is not None:
            self.config = SimpleNamespace(pad_token_id=padding)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.words(input_ids) * attention_mask.unsqueeze(-1)
        places = torch.arange(input_ids.shape[1])
        last = ((input_ids != 1).long() * places).argmax(-1)
        logits: Tensor = self.head((hidden * (places == last[:, None]).unsqueeze(-1)).sum(1))
        return logits


def ended_by_one() -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def last(padding: int | None) -> Last:
    torch.manual_seed(0)
    return Last(padding).eval()


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("shape", [(2, 8), (1, 4)])  # all have room, or the second text alone
def test_a_network_whose_answers_change_with_padding_is_refused(
    padding: int | None, shape: tuple[int, ...], tmp_path: Path
) -> None:
    asked = Deployment(engine="openvino", shape=shape)
    said = r"fills up shorter texts, which changes logits .*; leave shape out, or .*pad_token_id"
    with pytest.raises(InputError, match=said):
        deploy(last(padding), tmp_path / "no", asked, inputs=ended_by_one(), dynamic_length=True)
    assert not list(tmp_path.iterdir())


def test_texts_are_filled_up_with_the_token_that_the_config_names(tmp_path: Path) -> None:
    network, given = last(1), ended_by_one()
    with torch.no_grad():
        wanted = network(**given)
    for shape in ((2, 8), (1, 5)):
        asked = Deployment(engine="openvino", shape=shape)
        deploy(network, tmp_path / "d", asked, inputs=given, dynamic_length=True)
        torch.testing.assert_close(load_deployed(tmp_path / "d")(given), wanted)
    filled, _ = next(requests(given, (2, 6), 1))
    assert filled["input_ids"][:, 4:].eq(1).all()
    assert filled["attention_mask"][:, 4:].eq(0).all()


def test_a_shape_that_the_network_has_no_positions_for_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"shape=\[1, 40\]: .* not run on texts of 40 tokens: .*give"
    ):
        require_filled(load_source(BERT), texts(2, 9), (1, 40))


@pytest.mark.parametrize("source", [BERT, LSTM])
@pytest.mark.parametrize("shape", [(1, 20), (1, 9), (1, 4), (3,), None])
def test_networks_that_read_their_mask_are_taken(
    source: Source, shape: tuple[int, ...] | None
) -> None:
    require_filled(load_source(source), texts(4, 9), shape)


@pytest.mark.parametrize(
    ("shape", "has_length", "longest", "message"),
    [
        ((1,), True, None, r"shape=\[1\] names samples alone, .* shape=\[1, 128\]"),
        ((3,), True, 40, r"shape=\[3\] names samples alone, .* shape=\[3, 40\]"),
        ((2, 64), False, None, r"shape=\[2, 64\] names tokens, .* give shape=\[2\]"),
        (
            (1, 32),
            True,
            64,
            r"at most 32 tokens, .* have 64; give shape=\[1, 64\], or .* max_length=32",
        ),
    ],
)
def test_shapes_that_are_none_of_the_network_s_requests_are_refused(
    shape: tuple[int, ...], has_length: bool, longest: int | None, message: str
) -> None:
    asked = Deployment(engine="openvino", shape=shape)
    with pytest.raises(InputError, match=message):
        require_shape(asked, has_length=has_length, longest=longest)


def test_shapes_of_the_network_s_requests_are_taken() -> None:
    require_shape(Deployment(engine="openvino"), has_length=True, longest=64)
    require_shape(Deployment(engine="openvino", shape=(8,)), has_length=False)
    require_shape(Deployment(engine="openvino", shape=(1, 64)), has_length=True, longest=64)


def test_a_text_network_without_a_length_is_refused_before_it_is_exported(tmp_path: Path) -> None:
    asked = Deployment(engine="openvino", shape=(1,))
    with pytest.raises(InputError, match="names samples alone"):
        deploy(load_source(BERT), tmp_path / "no", asked, inputs=texts(2, 9), dynamic_length=True)


@pytest.mark.parametrize("shape", [[], [0], [1, 2, 3], [1, -1]])
def test_a_shape_has_one_or_two_sizes_from_one_up(shape: list[int]) -> None:
    with pytest.raises(ValueError, match="shape"):
        Deployment.model_validate({"engine": "openvino", "shape": shape})


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_other_engines_gain_nothing_by_a_shape(engine: str) -> None:
    with pytest.raises(ValueError, match=f"leave it out with engine={engine}"):
        Deployment.model_validate({"engine": engine, "shape": [1]})
