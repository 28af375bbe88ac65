"""A trained network that reads texts is given the pieces that it was trained on, or refused."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunus.data import TextOptions, TextTokenizer
from prunus.errors import InputError
from prunus.recipe import Student
from prunus.recipe.subject import resolve_subject, student_of
from prunus.records import Source
from prunus.zoo import build
from tests.recipe import texts

OTHER = ("one two three four five six", "seven eight nine ten eleven twelve")
SMALL = {**texts.SMALL_BERT, "max_position_embeddings": 32}


def trained(folder: Path, tokenizer: TextTokenizer) -> Path:
    """A folder as transformers saves a network, with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        **SMALL, vocab_size=tokenizer.vocab_size, num_labels=2
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts.write(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def other() -> TextTokenizer:
    """Fewer pieces than the texts have: every number of one is a number of the other."""
    return TextTokenizer.train_wordpiece(OTHER, 64)


def pieces_of(source: Source, file: Path) -> str:
    data = resolve_subject(source, f"text:{file}", text=texts.OPTIONS, untrained=True).data
    assert data.tokenizer is not None
    return data.tokenizer.digest


def test_weights_elsewhere_leave_a_network_its_own_pieces(
    file: Path, other: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(tmp_path / "bert", other)
    assert pieces_of(Source(model=f"hf:{folder}"), file) == other.digest
    (tmp_path / "data" / "checkpoints").mkdir(parents=True)
    moved = tmp_path / "data" / "checkpoints" / "finetuned.safetensors"
    shutil.copy(folder / "model.safetensors", moved)
    assert pieces_of(Source(model=f"hf:{folder}", weights=str(moved)), file) == other.digest
    # Pieces beside the weights count most, wherever a bare name is found.
    newer = TextTokenizer.train_wordpiece((*OTHER, "zebra"), other.vocab_size)
    newer.save(moved.with_name("tokenizer.json"))
    assert newer.digest != other.digest
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    named = Source(model=f"hf:{folder}", weights="finetuned.safetensors")
    assert pieces_of(named, file) == newer.digest


def test_a_folder_of_transformers_that_was_moved_is_the_same_network(
    file: Path, other: TextTokenizer, tmp_path: Path
) -> None:
    found: list[dict[str, Any]] = []
    folder = trained(tmp_path / "one" / "bert", other)
    for place in (folder, tmp_path / "two" / "bert", tmp_path / "two" / "bert"):
        if place != folder and not place.exists():
            shutil.move(folder.parent, place.parent)
        if len(found) == 2:
            config = place / "config.json"
            text = config.read_text(encoding="utf-8")
            assert text.count('"gelu"') == 1
            config.write_text(text.replace('"gelu"', '"relu"'), encoding="utf-8")
        source = Source(model=f"hf:{place}")
        found.append(resolve_subject(source, f"text:{file}", text=texts.OPTIONS).identity)
    assert found[0] == found[1]
    (changed,) = [name for name in found[0] if found[0][name] != found[2][name]]
    assert changed.startswith("network form")


def test_a_size_of_the_vocabulary_beside_own_pieces_is_told_and_not_recorded(
    file: Path, other: TextTokenizer, tmp_path: Path
) -> None:
    """The number that holds is the tokenizer's, however small."""
    pieces = other.trimmed(np.isin(np.arange(other.vocab_size), sorted(other.fallback_pieces())))
    size = pieces.vocab_size
    assert size < 64
    source = Source(model=f"hf:{trained(tmp_path / 'bert', pieces)}")
    said = f"vocab_size=160 is not used: the network brings its own tokenizer of {size} tokens"
    data = resolve_subject(source, f"text:{file}", text=texts.OPTIONS).data
    assert said in data.note
    assert data.text == texts.OPTIONS.model_copy(update={"vocab_size": size})
    # Neither the default nor what a record says of such a run is a mistake.
    recorded = TextOptions.model_validate(data.text.model_dump())
    for options in (TextOptions(max_length=16), recorded):
        found = resolve_subject(source, f"text:{file}", text=options).data
        assert "is not used" not in found.note
        assert found.text == recorded


def test_weights_without_their_pieces_are_refused(file: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    arguments = {**texts.NETWORK.arguments, "num_classes": 2, "vocab_size": 160}
    save_file(build("textcnn", **arguments).state_dict(), weights)
    source = texts.NETWORK.model_copy(update={"weights": str(weights)})
    with pytest.raises(InputError, match=r"of 'textcnn' have no tokenizer\.json beside them: put"):
        pieces_of(source, file)


def test_a_trained_student_of_other_pieces_is_refused(
    file: Path, other: TextTokenizer, tmp_path: Path
) -> None:
    teacher = resolve_subject(texts.NETWORK, f"text:{file}", text=texts.OPTIONS, untrained=True)
    folder = trained(tmp_path / "other", other)
    with pytest.raises(InputError, match="was trained on other tokens than 'text:"):
        student_of(Student(model=f"hf:{folder}").source, teacher)
    assert teacher.data.tokenizer is not None
    same = trained(tmp_path / "same", teacher.data.tokenizer)
    assert student_of(Student(model=f"hf:{same}").source, teacher).is_student
    fresh = Student(model="hf:config", arguments=SMALL).source
    assert student_of(fresh, teacher).is_student


class Few(nn.Module):
    """Knows the pieces of the first texts alone."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(rows, 4), nn.Linear(4, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.words(input_ids).mean(dim=1))
        return found


def test_a_table_without_a_row_for_every_piece_is_refused(file: Path) -> None:
    data = texts.load(file.parent)
    assert data.tokenizer is not None
    size = data.tokenizer.vocab_size
    assert resolve_subject(Few(size), data).data is data
    with pytest.raises(
        InputError, match="does not run on data .*'input_ids': '.* index out of range"
    ):
        resolve_subject(Few(size - 1), data)

    class Told(Few):
        config = SimpleNamespace(vocab_size=size - 1)  # as those of transformers have it

    said = f"Told' knows {size - 1} tokens, the tokenizer of '.*' has {size}; give .* vocab_size={size}"
    with pytest.raises(InputError, match=said):
        resolve_subject(Told(size - 1), data)
