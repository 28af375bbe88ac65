"""What a dense network cannot teach is told before anything is trained."""

import pytest
import torch

from prunus.data import DataSplits
from prunus.errors import PrunusError
from prunus.recipe import Prune, Recalibrate, Step, Student, Train, compare, compress
from prunus.records import Source
from prunus.zoo import load_source
from tests.recipe import texts
from tests.recipe.subjects import few_digits

BERT = Source(model="bert_tiny", arguments={"hidden": 8, "layers": 2})
FIRST = texts.training(1).config(fresh=False)


def bert(**changes: int) -> Student:
    return Student(model="bert_tiny", arguments={**BERT.arguments, **changes})


def taught(**weights: float) -> Train:
    return texts.training(1).model_copy(update=weights)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSplits:
    return texts.load(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be trained."""
    for module in ("dense", "execute"):
        monkeypatch.setattr(f"prunus.recipe.{module}.fit", None)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("network", "steps", "said"),
    [
        (
            BERT,
            [Student(model="bilstm"), taught(distill_attention=1.0)],
            "BiLstm has none",
        ),
        (BERT, [Student(model="textcnn"), taught(distill_hidden=1.0)], "TextCnn has none"),
        (texts.NETWORK, [bert(), taught(distill_hidden=1.0)], "TextCnn has none"),
        (
            texts.NETWORK,
            [Prune(method="l1", target="macs=0.9"), taught(distill_hidden=1.0)],
            "TextCnn has none",
        ),
        (
            BERT,
            [bert(hidden=128), taught(distill_attention=1.0)],
            "distill_attention: the student has 2 heads, the teacher 1",
        ),
        (
            BERT.model_copy(update={"arguments": {**BERT.arguments, "num_classes": 3}}),
            [Student(model="bilstm"), taught(distill_alpha=0.5)],
            "teacher returned logits [2, 3], the network [2, 2]",
        ),
        (
            BERT.model_copy(update={"arguments": {**BERT.arguments, "num_classes": 3}}),
            [
                bert(),
                Prune(method="l1", target="macs=0.1"),
                taught(distill_alpha=0.5, distill_hidden=1.0),
            ],
            "teacher returned logits [2, 3], the network [2, 2]",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_training(
    data: DataSplits, network: Source, steps: list[Step], said: str
) -> None:
    before, drawn = data.test.evaluations, torch.get_rng_state()
    with pytest.raises(PrunusError) as caught:
        compress(network, steps, data, train_first=FIRST, latency=None)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert data.test.evaluations == before
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.usefixtures("untrained")
def test_images_are_not_put_together_to_texts() -> None:
    steps: list[Step] = [
        Prune(method="l1", target="macs=0.6"),
        taught(distill_alpha=0.5, distill_texts=10),
    ]
    with pytest.raises(PrunusError, match=r"distill_texts=10 .* not of texts"):
        compress("digits_cnn", steps, few_digits(), train_first=FIRST, latency=None)


@pytest.mark.parametrize(
    "steps",
    [
        # Heads and layers of a cut network are not those of the dense one.
        [Prune(method="layers", options={"keep": 1}), taught(distill_hidden=1.0)],
        [bert(layers=1, hidden=4), taught(distill_hidden=1.0, distill_attention=1.0)],
        [bert(hidden=128, layers=1), taught(distill_alpha=0.5)],
    ],
)
def test_what_can_be_compared_is_taught(data: DataSplits, steps: list[Step]) -> None:
    done = compress(BERT, steps, data, train_first=FIRST, latency=None)
    assert done.record.scores[-1].stage == "after_training"


@pytest.mark.usefixtures("untrained")
def test_rows_none_of_which_can_be_taught_are_refused_before_any_training(data: DataSplits) -> None:
    rows: dict[str, list[Step]] = {
        "one": [Student(model="bilstm"), taught(distill_hidden=1.0)],
        "other": [Student(model="textcnn"), taught(distill_attention=1.0)],
    }
    with pytest.raises(PrunusError, match="BiLstm has none"):
        compare(BERT, rows, data, train_first=FIRST, latency=None)


def test_a_row_that_cannot_be_taught_leaves_the_others(data: DataSplits) -> None:
    rows: dict[str, list[Step]] = {
        "wrong": [Student(model="bilstm"), taught(distill_hidden=1.0)],
        "right": [Recalibrate()],
    }
    found = compare(BERT, rows, data, train_first=FIRST, latency=None)
    assert [run.method for run in found.runs] == ["right"]
    assert any("wrong (seed 0) failed: distill_hidden" in note for note in found.runs[0].notes)


def test_a_comparison_tries_a_lesson_once(
    data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def prepare(*_: object, **__: object) -> None:
        tried.append(1)

    monkeypatch.setattr("prunus.recipe.teachers.Teaching.prepare", prepare)
    monkeypatch.setattr("prunus.recipe.comparison.measure_dense", None)
    steps: list[Step] = [bert(), taught(distill_alpha=0.5)]
    assert data.tokenizer is not None
    sizes = {**BERT.arguments, "vocab_size": data.tokenizer.vocab_size}
    network = load_source(BERT.model_copy(update={"arguments": sizes}))
    with pytest.raises(TypeError):  # where the dense network is measured
        compare(network, {"a": steps, "b": steps}, data, seeds=(0, 1), latency=None)
    assert len(tried) == 1
