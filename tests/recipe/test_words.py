"""A student that starts from its teacher's word embeddings."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from prunus.data import DataSplits, composed_texts
from prunus.errors import InputError
from prunus.recipe import Student, compress, train_network
from prunus.recipe.words import inherit_words_
from prunus.train import TrainConfig, fit
from prunus.zoo import build
from tests.recipe import texts


class Bag(nn.Module):
    """Mean of word embeddings."""

    def __init__(self, table: Tensor, padding_idx: int | None = 0) -> None:
        super().__init__()
        rows, width = table.shape
        self.words = nn.Embedding(rows, width, padding_idx)
        with torch.no_grad():
            self.words.weight.copy_(table)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(2)
        found: Tensor = (self.words(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)
        return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSplits:
    return texts.load(tmp_path_factory.mktemp("texts"))


def batch(data: DataSplits) -> dict[str, Tensor]:
    found = next(iter(data.train.batches(4)))[0]
    assert isinstance(found, dict)
    return found


def counts(data: DataSplits, size: int) -> Tensor:
    """How often each piece occurs, counted text by text."""
    found = torch.zeros(size, dtype=torch.float64)
    for inputs, _ in data.train.batches(1):
        assert isinstance(inputs, dict)
        for piece, real in zip(
            inputs["input_ids"][0].tolist(), inputs["attention_mask"][0].tolist(), strict=True
        ):
            found[piece] += real
    found[0] = 0
    return found


def drawn(data: DataSplits, width: int, seed: int) -> Tensor:
    assert data.tokenizer is not None
    table = torch.randn(
        data.tokenizer.vocab_size, width, generator=torch.Generator().manual_seed(seed)
    )
    table[0] = 0
    return table


def test_one_direction_is_the_one_the_texts_vary_most_in(data: DataSplits) -> None:
    """A teacher whose rows lie on a line, but for pieces that no text holds: the line is found."""
    teacher = drawn(data, 3, 0)
    seen = counts(data, len(teacher)) > 0
    line = torch.tensor([0.6, 0.0, 0.8])
    along = teacher[:, 0].clone()
    teacher[seen] = along[seen].unsqueeze(1) * line + 5.0
    student = Bag(0.1 * drawn(data, 1, 1))
    held = inherit_words_(student, Bag(teacher), data.train, batch(data))
    found = student.words.weight.detach()[:, 0].double()
    assert held == pytest.approx(1.0, abs=1e-6)
    share = counts(data, len(teacher))[seen] / counts(data, len(teacher)).sum()
    wanted = along[seen].double() - (share * along[seen].double()).sum()
    ratio = found[seen] / wanted  # one factor, of either sign, for all
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-4)


def test_at_full_width_distances_between_words_stay_but_for_one_factor(data: DataSplits) -> None:
    teacher, student = Bag(drawn(data, 5, 2)), Bag(0.1 * drawn(data, 5, 3))
    held = inherit_words_(student, teacher, data.train, batch(data))
    assert held == pytest.approx(1.0)
    before, after = teacher.words.weight[1:].detach(), student.words.weight[1:].detach()
    ratio = torch.pdist(after.double()) / torch.pdist(before.double())
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4)


def test_the_spread_is_that_of_the_students_own_table_and_padding_stays_zero(
    data: DataSplits,
) -> None:
    student = Bag(0.1 * drawn(data, 4, 5))
    own = float(student.words.weight[1:].detach().std())
    inherit_words_(student, Bag(3 * drawn(data, 6, 4)), data.train, batch(data))
    weight = counts(data, len(student.words.weight))
    rows = student.words.weight.detach().double()
    spread = ((weight / weight.sum()).unsqueeze(1) * rows.square()).sum().div(4).sqrt()
    assert float(spread) == pytest.approx(own, rel=1e-4)
    assert rows[0].eq(0).all()


def test_a_wider_student_keeps_the_other_columns(data: DataSplits) -> None:
    fresh = 0.1 * drawn(data, 6, 7)
    student = Bag(fresh)
    inherit_words_(student, Bag(drawn(data, 4, 6)), data.train, batch(data))
    assert torch.equal(student.words.weight.detach()[:, 4:], fresh[:, 4:])
    assert not torch.equal(student.words.weight.detach()[:, :4], fresh[:, :4])


def test_networks_without_a_table_and_larger_vocabularies_are_refused(data: DataSplits) -> None:
    small = Bag(drawn(data, 4, 8))
    larger = Bag(torch.cat([drawn(data, 4, 8), torch.ones(1, 4)]))
    with pytest.raises(InputError, match="give both one vocabulary"):
        inherit_words_(larger, small, data.train, batch(data))
    images = build("digits_cnn")
    with pytest.raises(InputError, match="the student, .* has 0 tables"):
        inherit_words_(images, images, data.train, torch.zeros(1, 1, 8, 8))
    flat = Bag(torch.ones(len(small.words.weight), 4))
    with pytest.raises(InputError, match="are all the same"):
        inherit_words_(small, flat, data.train, batch(data))


def test_weights_and_inherited_words_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="would overwrite a part of weights='w.safetensors'"):
        Student(model="textcnn", weights="w.safetensors", embeddings="teacher")


def test_a_recipe_says_how_much_of_the_teachers_words_is_held(
    data: DataSplits, tmp_path: Path
) -> None:
    student = Student(
        model="textcnn", arguments={"embedding": 6, "hidden": 4}, embeddings="teacher"
    )
    done = compress(
        texts.NETWORK,
        [student, texts.training(taught=True)],
        data,
        out=tmp_path / "run",
        train_first=texts.training(1).config(fresh=False),
        latency=None,
    )
    note = next(n for n in done.record.notes if "word embeddings" in n)
    assert "steps[0].student: word embeddings start from the teacher's, reduced to" in note
    assert not done.record.search_seen_in_pretraining


@pytest.mark.parametrize("embeddings", ["teacher", "fresh"])
def test_who_inherits_words_has_seen_what_the_teacher_has(
    data: DataSplits, embeddings: Literal["teacher", "fresh"]
) -> None:
    """A network that is given as it is may have seen all splits but the test split."""
    training = texts.training(1)
    teacher = train_network(texts.NETWORK, training.config(fresh=False), data).network
    sizes = {"embedding": 6, "hidden": 4}
    student = Student(model="textcnn", arguments=sizes, embeddings=embeddings)
    done = compress(teacher, [student, training], data, latency=None)
    assert done.record.search_seen_in_pretraining == (embeddings == "teacher")


def test_a_teacher_speaks_about_texts_put_together_as_about_other_unlabelled_ones(
    data: DataSplits,
) -> None:
    assert data.tokenizer is not None
    arguments = {"vocab_size": data.tokenizer.vocab_size, "embedding": 4, "hidden": 3}
    choices = {"epochs": 1, "lr": 0.01, "batch_size": 16, "distill_alpha": 0.5, "augment": False}
    weights = []
    for more in ({"distill_texts": 25}, {}):
        student, teacher = build("textcnn", **arguments), build("textcnn", seed=1, **arguments)
        config = TrainConfig.model_validate(
            {**choices, **more, "precision": "float32", "layout": "contiguous"}
        )
        unlabeled = None if more else composed_texts(data.train, 25, seed=0)
        fit(
            student,
            data.train,
            data.search,
            config,
            seed=0,
            teacher=teacher,
            unlabeled=unlabeled,
        )
        weights.append(student.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_texts_put_together_need_a_teacher() -> None:
    with pytest.raises(ValueError, match="distill_texts=5 have no labels, and distill_alpha=0"):
        TrainConfig(epochs=1, lr=0.1, distill_texts=5)
