from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunus.data import SearchSplit, TrainSplit
from prunus.errors import InputError
from prunus.graph import hold_connections_
from prunus.graph.connections import register_held
from prunus.train import TrainConfig, fit
from prunus.train.checkpoint import form_digest
from tests.train.fakes import (
    FloatStore,
    digits,
    samples,
    search_digits,
    small_cnn,
    train_digits,
)

CONFIG = TrainConfig(epochs=2, lr=0.05, batch_size=32, precision="float32", layout="contiguous")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The checkpoint of a finished training."""
    path = tmp_path / "run" / "training.pt"
    fit(small_cnn(), train_digits(0, 64), search_digits(64, 96), CONFIG, seed=0, checkpoint=path)
    return path


def test_paths_may_be_texts(tmp_path: Path) -> None:
    path, logits = tmp_path / "run" / "training.pt", tmp_path / "logits"
    config = CONFIG.model_copy(update={"distill_alpha": 0.5, "augment": False})
    for _ in range(2):
        fit(
            small_cnn(), train_digits(0, 64), search_digits(64, 96), config, seed=0,
            teacher=small_cnn(1), checkpoint=str(path), teacher_store=str(logits),
        )  # fmt: skip
    assert path.is_file()
    assert [file.suffix for file in logits.iterdir()] == [".safetensors"]


def resume(path: Path, **changes: object) -> None:
    network = small_cnn(seed=9 if "weights" in changes else 0)
    config = CONFIG.model_copy(update={k: v for k, v in changes.items() if k == "lr"})
    train = train_digits(1, 65) if "data" in changes else train_digits(0, 64)
    seed = 7 if "seed" in changes else 0
    fit(network, train, search_digits(64, 96), config, seed=seed, checkpoint=path)


def test_only_the_file_itself_is_left(path: Path) -> None:
    assert [file.name for file in path.parent.iterdir()] == ["training.pt"]


@pytest.mark.parametrize("change", ["stride", "rate", "number"])
def test_what_a_network_computes_beside_its_tensors_belongs_to_it(
    change: str, tmp_path: Path
) -> None:
    def made(*, changed: bool) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2 if changed and change == "stride" else 1),
            nn.Dropout(0.5 if changed and change == "rate" else 0.0),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 10),
        )
        network.scale = 2.0 if changed and change == "number" else 1.0  # type: ignore[assignment]
        return network

    where = tmp_path / "training.pt"
    splits = train_digits(0, 64), search_digits(64, 96)
    fit(made(changed=False), *splits, CONFIG, seed=0, checkpoint=where)
    fit(made(changed=False), *splits, CONFIG, seed=0, checkpoint=where)
    with pytest.raises(InputError, match="network form"):
        fit(made(changed=True), *splits, CONFIG, seed=0, checkpoint=where)
    assert form_digest(made(changed=False)) == form_digest(made(changed=False).train())


def test_a_function_belongs_to_the_network_that_holds_it() -> None:
    def made(activation: object) -> nn.Module:
        network = nn.Sequential(nn.Linear(2, 2))
        network.activation = activation  # type: ignore[assignment]
        return network

    functions = (nn.functional.relu, torch.sigmoid, torch.tanh)
    digests = [form_digest(made(function)) for function in functions]
    assert len(set(digests)) == len(functions)
    assert digests == [form_digest(made(function)) for function in functions]


def test_heads_of_a_config_belong_to_a_teacher() -> None:
    class Configured(nn.Module):
        def __init__(self, heads: int, place: str) -> None:
            super().__init__()
            told = {"num_attention_heads": heads, "_name_or_path": place}
            self.config = SimpleNamespace(to_dict=lambda: told)

    digests = [form_digest(Configured(*given)) for given in ((2, "a"), (2, "b"), (4, "a"))]
    assert digests[0] == digests[1] != digests[2]


def test_it_is_loaded_without_unpickling(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    assert len(content["history"]) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.1}, r"config\.lr was 0\.05 and is 0\.1"),
        ({"seed": 7}, "seed was 0 and is 7"),
        ({"weights": True}, "starting weights"),
        ({"data": True}, "train data"),
    ],
    ids=["config", "seed", "weights", "data"],
)
def test_checkpoint_of_another_training_is_refused(
    path: Path, changes: dict[str, object], named: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match=named) as caught:
        resume(path, **changes)
    assert str(path) in str(caught.value)
    assert "delete" in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "bits"])
def test_damaged_file_is_named(path: Path, damage: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "empty": b"",
            "text": b"not a checkpoint\n",
            "bits": content[:middle] + bytes(64) + content[middle + 64 :],
        }[damage]
    )
    with pytest.raises(InputError, match="damaged") as caught:
        resume(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("point", [{"phase": "train"}, {"phase": "train", "step": -1, "more": 1}])
def test_a_history_of_another_form_is_damage(path: Path, point: dict[str, object]) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({**content, "history": [point]}, path)
    with pytest.raises(InputError, match="damaged") as caught:
        resume(path)
    assert str(path) in str(caught.value)


def test_weights_of_a_network_are_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(small_cnn().state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="not a checkpoint of a training"):
        resume(path)
    assert path.read_bytes() == before


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read checkpoint"):
        resume(tmp_path)


@pytest.mark.parametrize("split", ["train", "search"])
@pytest.mark.parametrize("what", ["label", "inputs"])
def test_data_that_differ_after_the_first_samples_are_refused(
    tmp_path: Path, split: str, what: str
) -> None:
    """Any label, and inputs of samples all over the split."""
    path = tmp_path / "training.pt"
    data = {"train": digits(0, 400), "search": digits(400, 700)}
    fit(small_cnn(), TrainSplit(data["train"]), SearchSplit(data["search"]), CONFIG, seed=0,
        checkpoint=path)  # fmt: skip
    store = data[split].store
    assert isinstance(store, FloatStore)
    inputs, labels = store.inputs, store.labels.clone()
    assert isinstance(inputs, torch.Tensor)
    inputs = inputs.clone()
    if what == "label":
        labels[211] = (labels[211] + 1) % 10
    else:
        inputs[200:] = 0
    data[split] = samples(inputs, labels)
    with pytest.raises(InputError, match=f"{split} data was"):
        fit(small_cnn(), TrainSplit(data["train"]), SearchSplit(data["search"]), CONFIG, seed=0,
            checkpoint=path)  # fmt: skip


@pytest.mark.parametrize(
    ("frozen", "named"),
    [(1, "0.weight"), (9, r"0\.bias, 0\.weight, \S+ and \d more \(sha256 \w{12}\)")],
)
def test_other_frozen_parameters_are_another_training(path: Path, frozen: int, named: str) -> None:
    network = small_cnn()
    for parameter in list(network.parameters())[:frozen]:
        parameter.requires_grad_(False)
    with pytest.raises(InputError, match=f"frozen parameters was none and is {named}; ") as caught:
        fit(network, train_digits(0, 64), search_digits(64, 96), CONFIG, seed=0, checkpoint=path)
    assert "\n" not in str(caught.value)


def held(rows: slice) -> nn.Module:
    """Some kernels of its first convolution are zero, and held there."""
    network = small_cnn()
    weight = network.get_parameter("0.weight")
    kept = torch.ones(weight.shape, dtype=torch.bool)
    kept[rows] = False
    register_held(network.get_submodule("0"), "weight", kept)
    hold_connections_(network)
    return network


def test_a_network_whose_state_dict_left_out_what_is_held_is_refused(tmp_path: Path) -> None:
    """It has the same weights, but would lose its zeros."""
    path = tmp_path / "training.pt"
    splits = train_digits(0, 64), search_digits(64, 96)
    rebuilt = small_cnn()
    rebuilt.load_state_dict(held(slice(1, 3)).state_dict())
    fit(held(slice(1, 3)), *splits, CONFIG, seed=0, checkpoint=path)
    told = (
        r"held connections was 0\.weight \(sha256 \w{12}\) and is none; .*prunus\.load.*prunus\.cut"
    )
    with pytest.raises(InputError, match=told) as caught:
        fit(rebuilt, *splits, CONFIG, seed=0, checkpoint=path)
    assert "\n" not in str(caught.value)


def test_other_held_connections_are_another_training(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    splits = train_digits(0, 64), search_digits(64, 96)
    other = held(slice(1, 4))
    mask = other.get_buffer("0.weight_prunus_held")
    mask[3] = True  # zero, but free to grow
    fit(other, *splits, CONFIG, seed=0, checkpoint=path)
    with pytest.raises(InputError, match=r"held connections was 0\.weight \(sha256"):
        fit(held(slice(1, 4)), *splits, CONFIG, seed=0, checkpoint=path)


def test_a_file_that_does_not_tell_what_is_held_is_resumed(path: Path) -> None:
    """As earlier versions wrote it."""
    content = torch.load(path, weights_only=True)
    del content["identity"]["held connections"]
    torch.save(content, path)
    resume(path)
