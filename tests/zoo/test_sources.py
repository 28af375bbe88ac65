"""Every kind of source builds, and each mistake is named."""

import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunus.errors import InputError, MissingExtraError
from prunus.records import Source
from prunus.zoo import build, load_source

FACTORY = """
import warnings
from dataclasses import dataclass
import torch
from torch import nn
from neighbor import WIDTH

@dataclass
class Size:
    width: int = WIDTH

def make(outputs=2):
    return nn.Sequential(nn.Linear(Size().width, outputs), nn.Dropout(0.5))

def broken():
    raise RuntimeError("no such layer")

def number():
    return 3

def lazy():
    return nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))

def ran():
    network = lazy()
    network(torch.zeros(1, 4))
    return network

def compressed():
    network = nn.Linear(4, 3)
    network.register_buffer("near", torch.eye(3).to_sparse_csr())
    return network

def normed():
    warnings.simplefilter("ignore")
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbor.py").write_text("WIDTH = 5\n")
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)
    return path


def test_zoo_name_with_arguments_and_weights(tmp_path: Path) -> None:
    trained = build("digits_cnn", seed=5, num_classes=4)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    source = Source(
        model="digits_cnn",
        arguments={"num_classes": 4},
        weights=str(tmp_path / "w.safetensors"),
    )
    network = load_source(source)
    assert not network.training
    expected = trained.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_file_factory_is_called_with_the_arguments(file: Path) -> None:
    before, path_before = torch.random.get_rng_state(), list(sys.path)
    source = Source(model=f"{file}:make", arguments={"outputs": 3})
    first, second = load_source(source), load_source(source)
    assert first.get_parameter("0.weight").shape == (3, 5)
    assert torch.equal(first.get_parameter("0.weight"), second.get_parameter("0.weight"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sys.path == path_before
    assert not first.training


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch tells that they are new
@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (
            "nothing",
            {},
            r"has no function 'nothing': it defines Size, broken, compressed, lazy, make, normed, number, ran",
        ),
        ("broken", {}, r"broken\(\) raised RuntimeError: no such layer; mend the file"),
        ("make", {"inputs": 2}, r"make\(inputs\) raised TypeError"),
        ("lazy", {}, r"has lazy layers without shapes \('1'\): give their sizes, or run"),
        ("compressed", {}, r"'near' is of torch\.sparse_csr, .* take to_sparse_coo\(\) of it"),
        ("normed", {}, r"cannot be copied .* take those of torch\.nn\.utils\.parametrizations"),
        ("number", {}, r"gave int: the factory must return a torch\.nn\.Module"),
        ("", {}, r"names no factory: write FILE\.py:FACTORY"),
    ],
)
def test_wrong_factories_are_named(
    file: Path, factory: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_source(Source(model=f"{file}:{factory}", arguments=arguments))


def test_lazy_layers_that_ran_are_taken(file: Path) -> None:
    assert load_source(Source(model=f"{file}:ran")).get_parameter("1.weight").shape == (3, 4)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"file 'gone\.py' does not exist"):
        load_source(Source(model="gone.py:make"))
    with pytest.raises(InputError, match=r"model 'gone\.py' names no factory"):
        load_source(Source(model="gone.py"))
    (tmp_path / "bad.py").write_text("import torch\n1 / 0\n")
    modules = set(sys.modules)
    with pytest.raises(InputError, match=r"bad\.py' cannot be imported: ZeroDivisionError"):
        load_source(Source(model=f"{tmp_path / 'bad.py'}:make"))
    assert not [name for name in set(sys.modules) - modules if "bad" in name]


def test_an_artifact_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "artifact.json").write_text("{}")
    with pytest.raises(InputError, match=r"is an artifact, .* read it with prunus\.load"):
        load_source(Source(model=str(tmp_path)))


def test_a_size_that_no_memory_holds_is_named() -> None:
    with pytest.raises(
        InputError, match=r"'digits_cnn' cannot be built with \{'width': 1000000000\.0\}:"
    ):
        load_source(Source(model="digits_cnn", arguments={"width": 1e9}))


def test_unknown_and_empty_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"model 'lenet' is unknown: .*resnet20.*hf:NAME"):
        load_source(Source(model="lenet"))
    with pytest.raises(InputError, match=r"model 'hf:' names no network: write hf:NAME"):
        load_source(Source(model="hf:"))


@pytest.mark.parametrize(
    ("model", "package", "extra"),
    [
        ("hf:x", "transformers", "text"),
        ("timm:x", "timm", "zoo"),
        ("torchvision:x", "torchvision.models", "zoo"),
    ],
)
def test_missing_packages_name_their_extra(
    monkeypatch: pytest.MonkeyPatch, model: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = rf"^{package.partition('.')[0]} is not installed: pip install 'prunus\[{extra}\]', or '\.\[{extra}\]' in its folder$"
    with pytest.raises(MissingExtraError, match=said):
        load_source(Source(model=model))


def test_timm_fetches_its_weights_unless_own_ones_are_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **arguments: Any) -> nn.Module:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        calls.append((name, arguments))
        return nn.Linear(2, 2)

    fake = ModuleType("timm")
    fake.create_model = create_model  # type: ignore[attr-defined]  # a stand-in for the package
    monkeypatch.setitem(sys.modules, "timm", fake)
    save_file({"weight": torch.eye(2), "bias": torch.ones(2)}, tmp_path / "w.safetensors")
    load_source(Source(model="timm:tiny", arguments={"num_classes": 2}))
    network = load_source(Source(model="timm:tiny", weights=str(tmp_path / "w.safetensors")))
    assert calls == [
        ("tiny", {"num_classes": 2, "pretrained": True}),
        ("tiny", {"pretrained": False}),
    ]
    assert torch.equal(network.get_parameter("weight"), torch.eye(2))
    with pytest.raises(InputError, match=r"'timm:huge' cannot be built: Unknown model \(huge\)"):
        load_source(Source(model="timm:huge"))


def test_torchvision_downloads_are_not_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def get_model(name: str, weights: None, **arguments: Any) -> nn.Module:
        if name != "tiny":
            raise ValueError(f"Unknown model {name}")
        return nn.Linear(2, arguments.get("num_classes", 2))

    class Weights:
        class DEFAULT:
            url = "https://example.org/tiny.pth"

    def download(url: str, **options: Any) -> dict[str, torch.Tensor]:
        asked.update(options, url=url)
        return {"weight": torch.eye(2), "bias": torch.ones(2)}

    fake = ModuleType("torchvision.models")
    fake.get_model = get_model  # type: ignore[attr-defined]  # a stand-in for the package
    fake.get_model_weights = {"tiny": Weights}.__getitem__  # type: ignore[attr-defined]  # too
    monkeypatch.setitem(sys.modules, "torchvision.models", fake)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    network = load_source(Source(model="torchvision:tiny"))
    assert torch.equal(network.get_parameter("weight"), torch.eye(2))
    assert asked["weights_only"] is True
    assert asked["url"] == "https://example.org/tiny.pth"
    wide = {"pretrained": False, "num_classes": 5}
    assert load_source(Source(model="torchvision:tiny", arguments=wide)).get_parameter(
        "weight"
    ).shape == (5, 2)
    with pytest.raises(InputError, match=r"'torchvision:huge' cannot be built: Unknown model"):
        load_source(Source(model="torchvision:huge"))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=3,
    )
    folder = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        transformers.BertForSequenceClassification(config).half().save_pretrained(folder)
    return folder


def test_hf_folder_loads_in_float32(bert_folder: Path) -> None:
    from safetensors.torch import load_file

    network = load_source(Source(model=f"hf:{bert_folder}"))
    stored = load_file(bert_folder / "model.safetensors")
    loaded = network.state_dict()
    assert stored.keys() <= loaded.keys()
    assert all(torch.equal(loaded[name], stored[name].float()) for name in stored)
    assert loaded["classifier.weight"].dtype == torch.float32
    logits = network(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3)


def test_hf_config_alone_builds_seeded_weights(bert_folder: Path) -> None:
    source = Source(model=f"hf:{bert_folder}", arguments={"pretrained": False, "num_labels": 5})
    first, second = load_source(source), load_source(source)
    weight = first.get_parameter("classifier.weight")
    assert weight.shape == (5, 8)
    assert torch.equal(weight, second.get_parameter("classifier.weight"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "sound"}, r"argument 'task' is 'sound': use one of image, text"),
        ({"task": "image"}, r"\(bert\) has no classifier for image"),
        ({"trust_remote_code": True}, r"'trust_remote_code' is not allowed"),
    ],
)
def test_hf_mistakes_are_named(bert_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_source(Source(model=f"hf:{bert_folder}", arguments=arguments))


def test_hf_weights_that_do_not_fit_are_named(bert_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a classifier of other classes") as caught:
        load_source(Source(model=f"hf:{bert_folder}", arguments={"num_labels": 5}))
    assert "\n" not in str(caught.value)
    fresh = {"num_labels": 5, "ignore_mismatched_sizes": True}  # the remedy that it names
    network = load_source(Source(model=f"hf:{bert_folder}", arguments=fresh))
    assert network.get_parameter("classifier.weight").shape == (5, 8)
    damaged = tmp_path / "damaged"
    shutil.copytree(bert_folder, damaged)
    (damaged / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"damaged' cannot be loaded: .*; give a hub name"):
        load_source(Source(model=f"hf:{damaged}"))


def test_hf_arguments_of_the_loading_alone_do_not_matter_where_nothing_is_loaded(
    bert_folder: Path,
) -> None:
    """As workers and artifacts build a network whose weights they have."""
    loading = {"ignore_mismatched_sizes": True, "revision": "main", "variant": None}
    arguments = {"num_labels": 5, "pretrained": False, **loading}
    network = load_source(Source(model=f"hf:{bert_folder}", arguments=arguments))
    assert network.get_parameter("classifier.weight").shape == (5, 8)
    wrong = {**arguments, "hiden_size": 8}
    with pytest.raises(InputError, match="hiden_size"):
        load_source(Source(model=f"hf:{bert_folder}", arguments=wrong))


def test_hf_weights_come_from_the_subfolder_of_the_config(
    bert_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(bert_folder, tmp_path / "inner")
    source = Source(model=f"hf:{tmp_path}", arguments={"subfolder": "inner"})
    found, wanted = (load_source(s) for s in (source, Source(model=f"hf:{bert_folder}")))
    assert torch.equal(
        found.get_parameter("classifier.weight"), wanted.get_parameter("classifier.weight")
    )


def test_hf_image_classifier_is_found_by_its_config(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=4,
    )
    config.save_pretrained(tmp_path)
    source = Source(model=f"hf:{tmp_path}", arguments={"pretrained": False})
    assert load_source(source)(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 4)
    with pytest.raises(InputError, match=r"cannot be loaded: .*give a hub name or a folder"):
        load_source(Source(model=f"hf:{tmp_path}"))  # no weights there


def test_a_file_is_read_anew_however_soon_it_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python tells bytecode from its source by size and whole seconds: an edit may keep both."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as it is where nobody asked
    path = tmp_path / "soon.py"
    text = "from torch import nn\ndef make():\n    return nn.Linear({width}, 2)\n"
    for width in (3, 5):
        path.write_text(text.format(width=width), encoding="utf-8")
        os.utime(path, (1_000_000_000, 1_000_000_000))
        network = load_source(Source(model=f"{path}:make"))
        assert isinstance(network, nn.Linear)
        assert network.in_features == width
    assert not (tmp_path / "__pycache__").exists()  # nothing is left in the user's folder
