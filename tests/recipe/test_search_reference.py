"""What a search holds its candidates against: the network before its first cut, as it was by then."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.candidates import engine
from prunus.candidates.options import Scoring
from prunus.candidates.scorer import Images
from prunus.candidates.workplace import gather_images
from prunus.data import DataSplits, TextOptions, load_data
from prunus.method import Context
from prunus.recipe import Prune, Recalibrate, Step, Student, Train, compress
from prunus.recipe.texts import OldPieces, kept_pieces
from prunus.train import evaluate
from prunus.train.forward import forward_logits
from prunus.zoo import build
from tests.recipe import texts

TRAIN = Train(
    epochs=2, lr=0.05, batch_size=64, precision="float32", layout="contiguous", augment=False
)
SEARCH = Prune(method="random-search", target="macs=0.6", options={"evaluations": 3, "images": 96})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Images]:
    """Images that searches were given, with the logits that they compare with."""
    found: list[Images] = []

    def gather(context: Context, scoring: Scoring) -> Images:
        found.append(gather_images(context, scoring))
        return found[-1]

    monkeypatch.setattr(engine, "gather_images", gather)
    return found


def logits(network: nn.Module, images: Images) -> Tensor:
    with torch.inference_mode():
        return forward_logits(network.eval(), images.search)


@pytest.fixture(scope="module")
def digits() -> DataSplits:
    return load_data("digits")


@pytest.mark.parametrize("first", [[], [Student(model="digits_cnn")]], ids=["dense", "student"])
def test_it_is_the_network_as_trained_before_the_cut(
    first: list[Step], digits: DataSplits, seen: list[Images]
) -> None:
    network = build("digits_cnn", seed=1)
    trained = compress(network, [*first, TRAIN, Recalibrate(images=64)], digits, latency=None)
    compress(
        network,
        [
            *first,
            TRAIN,
            Recalibrate(images=64),
            SEARCH,
            TRAIN,
            SEARCH.model_copy(update={"target": "macs=0.4"}),
        ],
        digits,
        latency=None,
    )
    for images in seen:
        assert torch.allclose(images.reference, logits(trained.network, images), atol=1e-5)
    assert len(seen) == 2


def test_a_resumed_search_has_the_same(
    digits: DataSplits, seen: list[Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Step] = [Student(model="digits_cnn"), TRAIN, SEARCH, TRAIN]
    network = build("digits_cnn", seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("prunus.prune.random_search.RandomSearch.decide", _stop)
        with pytest.raises(KeyboardInterrupt):
            compress(network, steps, digits, latency=None, out=tmp_path / "a")
    compress(network, steps, digits, latency=None, out=tmp_path / "a", resume=True)
    compress(network, steps, digits, latency=None)
    assert torch.equal(seen[0].reference, seen[1].reference)


def text_network(data: DataSplits) -> nn.Module:
    assert data.tokenizer is not None
    given = {"vocab_size": data.tokenizer.vocab_size, "pad_id": data.tokenizer.pad_id}
    return build("textcnn", seed=0, **texts.NETWORK.arguments, **given)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_after_a_smaller_vocabulary_it_is_asked_by_its_own_pieces(
    seen: list[Images], tmp_path: Path
) -> None:
    data = texts.load(tmp_path)
    network = compress(text_network(data), [texts.training(4)], data, latency=None).network
    smaller = Prune(method="vocabulary")
    search = SEARCH.model_copy(update={"target": "params=0.3"})
    found = compress(network, [smaller, search], data, latency=None)
    old = kept_pieces(found.plans)
    assert old is not None and not torch.equal(torch.from_numpy(old), torch.arange(len(old)))
    asked = OldPieces(network, torch.from_numpy(old).long())
    assert torch.allclose(seen[0].reference, logits(asked, seen[0]), atol=1e-5)
    right = (seen[0].reference.argmax(1) == seen[0].labels).double().mean()
    assert right > evaluate(network, data.search).top1 - 0.1


def test_search_texts_of_all_lengths_are_scored(tmp_path: Path) -> None:
    """Few are long, each by another length: parts that were padded on their own would not fit together."""
    file = texts.write(tmp_path, samples=2600)
    head, *lines = file.read_text(encoding="utf-8").splitlines()
    for row in range(0, len(lines), 97):
        lines[row] = f"{'very long ' * (5 + row // 97)}{lines[row]}"
    file.write_text("\n".join([head, *lines]), encoding="utf-8")
    data = load_data(f"text:{file}", text=TextOptions(vocab_size=160, max_length=64))
    parts = [batch for batch, _ in data.search.subset(len(data.search), 0).batches(256)]
    assert len({part["input_ids"].shape[1] for part in parts if isinstance(part, dict)}) > 1
    search = SEARCH.model_copy(
        update={"target": "params=0.9", "options": {"evaluations": 2, "images": 2000}}
    )
    found = compress(text_network(data), [search], data, latency=None)
    assert found.record.cost.params < 0.9 * found.record.dense_cost.params + 1
