"""What is refused at the door, before a training is lost: pieces, padding, lengths, sources, weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prunus.artifact import load_artifact
from prunus.data import TextTokenizer, load_data
from prunus.errors import InputError
from prunus.recipe import Prune, Student, compare, compress
from prunus.recipe.dense import train_network
from prunus.recipe.subject import Subject, resolve_subject, student_of
from prunus.records import Source
from prunus.train import predictions
from prunus.zoo import build, load_source
from tests.recipe import texts

WORDS = ("a very fine film of the actor", "the bleak story with this scene")
SMALL = texts.SMALL_BERT
NETS = """
from torch import nn

class Mean(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.words, self.head = nn.Embedding(rows, 8), nn.Linear(8, 2)
    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        return self.head((self.words(input_ids) * mask).sum(1) / mask.sum(1))

def make(rows=300):
    return Mean(rows)

def mlp(width=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts.write(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS, encoding="utf-8")
    return path


class Steps:
    """Counts what a training reports."""

    count = 0

    def advance(self, *_: Any, **__: Any) -> None:
        self.count += 1

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


def resolved(network: Source | str, file: Path) -> Subject:
    return resolve_subject(network, f"text:{file}", text=texts.OPTIONS, untrained=True)


def test_a_network_of_ones_own_file_is_given_the_pieces_beside_its_weights(
    file: Path, nets: Path, tmp_path: Path
) -> None:
    config = texts.training(1).config(fresh=False)
    (tmp_path / "first").mkdir()
    first = texts.write(tmp_path / "first", samples=40)
    out, model = tmp_path / "run", f"{nets}:make"
    train_network(model, config, f"text:{first}", text=texts.OPTIONS, out=out)
    own = load_artifact(out / "artifact").tokenizer
    assert own is not None
    weights = out / "artifact" / "model.safetensors"
    trained = Source(model=model, weights=str(weights))
    found = resolved(trained, file)
    assert found.data.tokenizer is not None
    assert found.data.tokenizer.digest == own.digest
    fresh = resolved(Source(model=model), file)  # has none yet
    assert fresh.data.tokenizer is not None
    assert fresh.data.tokenizer.digest != own.digest
    # As a student of a teacher with other pieces, too.
    assert student_of(Student(model=model, weights=str(weights)).source, found).is_student
    with pytest.raises(InputError, match="was trained on other tokens than 'text:"):
        student_of(Student(model=model, weights=str(weights)).source, fresh)
    (weights.parent / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"of '.*nets\.py:make' have no tokenizer\.json beside"):
        resolved(trained, file)


def test_a_network_of_ones_own_file_on_texts_is_not_recalibrated(file: Path, nets: Path) -> None:
    """Its data tells that it reads texts, as the name of a network of the zoo does."""
    own, data = Source(model=f"{nets}:make"), f"text:{file}"
    done = compare(own, ["vocabulary"], data, target="params=0.9", text=texts.OPTIONS, latency=None)
    assert [list(step) for step in done.runs[0].recipe["steps"]] == [["prune"]]


def test_a_network_of_ones_own_file_for_images_needs_no_pieces(nets: Path, tmp_path: Path) -> None:
    source = Source(model=f"{nets}:mlp")
    save_file(load_source(source).state_dict(), tmp_path / "w.safetensors")
    given = source.model_copy(update={"weights": str(tmp_path / "w.safetensors")})
    assert resolve_subject(given, "digits").data.tokenizer is None


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    """A folder whose padding has a name that no other network gives it."""
    transformers = pytest.importorskip("transformers")
    words = ["<unk>", *texts.GOOD, *texts.BAD, *texts.PLAIN, *map(str, range(240)), "<|pad|>"]
    numbers = {word: number for number, word in enumerate(words)}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<unk>"))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    config = transformers.GPT2Config(
        vocab_size=len(words),
        n_positions=16,
        n_embd=8,
        n_layer=1,
        n_head=2,
        num_labels=2,
        pad_token_id=len(words) - 1,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = tmp_path / "gpt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.GPT2ForSequenceClassification(config).save_pretrained(folder)
    pieces.save(str(folder / "tokenizer.json"))
    return folder


def test_texts_are_padded_as_the_config_of_a_network_says(
    file: Path, gpt: Path, tmp_path: Path
) -> None:
    found = resolved(f"hf:{gpt}", file)
    pieces, network = found.data.tokenizer, found.network
    assert pieces is not None
    assert pieces.pad_id == pieces.vocab_size - 1
    # It looks for the last piece that is no padding: the texts beside change no answer.
    alone = predictions(network, found.data.search, batch_size=1)
    together = predictions(network, found.data.search, batch_size=256)
    assert torch.allclose(alone, together, atol=1e-5)
    pieces.save(tmp_path / "kept.json")
    again = TextTokenizer.read(tmp_path / "kept.json")
    assert (again.pad_id, again.digest) == (pieces.pad_id, pieces.digest)
    assert again.encode(["a fine film"], 16) == pieces.encode(["a fine film"], 16)
    assert TextTokenizer.read(gpt / "tokenizer.json").digest != pieces.digest


def test_padding_is_kept_where_its_name_alone_does_not_tell_it(tmp_path: Path) -> None:
    pieces = TextTokenizer.train_wordpiece(WORDS, 64)
    assert pieces.padding_with(0) is pieces
    assert pieces.padding_with(-1) is pieces
    assert pieces.padding_with(10**6) is pieces
    changed = pieces.padding_with(7)
    assert (pieces.pad_id, changed.pad_id) == (0, 7)
    assert changed.digest != pieces.digest
    assert changed.padding_with(0).digest == pieces.digest
    assert 7 in changed.fallback_pieces()
    keep = torch.ones(pieces.vocab_size, dtype=torch.bool).numpy()
    keep[5:7] = False
    assert changed.trimmed(keep).pad_id == 5
    keep[7] = False
    with pytest.raises(InputError, match="is special and must stay"):
        changed.trimmed(keep)
    # A library's default for a piece that has another number is not believed.
    changed.save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    content["padding"] |= {"pad_token": "[PAD]", "pad_id": 3}
    assert TextTokenizer(json.dumps(content)).digest == pieces.digest


def test_a_network_that_pads_with_another_piece_is_refused(file: Path) -> None:
    pytest.importorskip("transformers")
    arguments = {**SMALL, "max_position_embeddings": 16, "pad_token_id": 3}
    with pytest.raises(InputError, match="has pad_token_id=3 .* padded with token 0; build it"):
        resolved(Source(model="hf:config", arguments=arguments), file)


def test_texts_longer_than_a_network_takes_are_refused_before_the_training(
    file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    source = Source(model="hf:config", arguments={**SMALL, "max_position_embeddings": 13})
    steps, config = Steps(), texts.training(1).config(fresh=False)
    data = load_data(f"text:{file}", text=texts.OPTIONS)
    first = next(iter(data.train.batches(2)))[0]
    assert isinstance(first, dict)
    assert first["input_ids"].shape[1] <= 13  # those run
    said = r"takes at most 13 tokens, .* max_length=16; give --text max_length=13 \(or fewer\)"
    with pytest.raises(InputError, match=said) as caught:
        train_network(source, config, data, out=tmp_path / "run", progress=steps)
    assert "\n" not in str(caught.value)
    assert steps.count == 0
    assert not (tmp_path / "run").exists()
    shorter = texts.OPTIONS.model_copy(update={"max_length": 13})
    found = resolve_subject(source, f"text:{file}", text=shorter, untrained=True)
    assert found.data.max_length == 13


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("mlp", {}, r"'1\.weight' is \[16, 64\] in it and \[24, 64\] in yours; give the arguments"),
        ("make", {}, r"'1\.weight' is absent in it and \[24, 64\] in yours"),
        ("gone", {}, r"has no function 'gone'"),
    ],
)
def test_a_source_of_another_network_is_refused_before_the_training(
    nets: Path, tmp_path: Path, name: str, arguments: dict[str, Any], said: str
) -> None:
    network = load_source(Source(model=f"{nets}:mlp", arguments={"width": 24}))
    source, out = Source(model=f"{nets}:{name}", arguments=arguments), tmp_path / "run"
    steps, config = Steps(), texts.training(1).config(fresh=False)
    with pytest.raises(InputError, match=said):
        train_network(network, config, "digits", out=out, source=source, progress=steps)
    with pytest.raises(InputError, match=said):
        compress(network, [Prune(method="l1", target="macs=0.5")], "digits", out=out, source=source)
    assert steps.count == 0
    assert not out.exists()


def test_the_source_of_a_network_is_taken_though_its_weights_are_gone(nets: Path) -> None:
    network = load_source(Source(model=f"{nets}:mlp", arguments={"width": 24}))
    source = Source(model=f"{nets}:mlp", arguments={"width": 24}, weights="gone.safetensors")
    assert resolve_subject(network, "digits", source=source).source == source


def bert(folder: Path, *, bare: bool = False) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {**SMALL, "max_position_embeddings": 16, "vocab_size": 20, "num_labels": 2}
    config = transformers.AutoConfig.for_model(**sizes)
    kind = transformers.BertModel if bare else transformers.BertForSequenceClassification
    network: nn.Module = kind(config)
    network.save_pretrained(folder)  # type: ignore[operator]  # of the library
    return network


def test_weights_under_other_names_are_refused_and_a_fresh_classifier_is_not(
    tmp_path: Path,
) -> None:
    good, bare, named, part = (tmp_path / n for n in ("good", "bare", "named", "part"))
    bert(good)
    tensors = load_file(good / "model.safetensors")
    for folder, saved in (
        (named, {f"module.{name}": value for name, value in tensors.items()}),
        (part, {n: v for n, v in tensors.items() if "attention" not in n}),
    ):
        shutil.copytree(good, folder)
        save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    said = (
        r"named': its weights lack \d+ tensors outside .* such as 'bert\..*unknown ones, such as "
    )
    with pytest.raises(InputError, match=said) as caught:
        load_source(Source(model=f"hf:{named}"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"lack 10 tensors .*'bert\..*'; save them again"):
        load_source(Source(model=f"hf:{part}"))
    drawn = Source(model=f"hf:{named}", arguments={"pretrained": False})  # the remedy
    assert load_source(drawn).get_parameter("classifier.weight").shape == (2, 8)
    body = bert(bare, bare=True)
    found = load_source(Source(model=f"hf:{bare}"))
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(found.get_parameter(f"bert.{name}"), body.get_parameter(name))


@pytest.mark.parametrize("kind", ["masked", "distil", "electra", "gpt", "vit"])
def test_a_checkpoint_of_another_task_gets_a_fresh_classifier(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {k: v for k, v in SMALL.items() if k != "model_type"} | {"vocab_size": 20}
    image = {k: v for k, v in sizes.items() if k != "vocab_size"} | {
        "image_size": 8,
        "patch_size": 4,
    }
    short = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": 20}
    gpt = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    networks = {
        "masked": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**sizes)),
        "distil": lambda: transformers.DistilBertForMaskedLM(
            transformers.DistilBertConfig(**short)
        ),
        "electra": lambda: transformers.ElectraForPreTraining(transformers.ElectraConfig(**sizes)),
        "gpt": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt)),
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**image)),
    }
    networks[kind]().save_pretrained(tmp_path)
    assert isinstance(load_source(Source(model=f"hf:{tmp_path}")), nn.Module)


def test_a_network_of_the_zoo_takes_texts_of_any_length(file: Path) -> None:
    data = texts.load(file.parent)
    assert data.tokenizer is not None
    given = {"vocab_size": data.tokenizer.vocab_size, "num_classes": 2}
    for name in ("textcnn", "bilstm"):
        assert resolve_subject(build(name, **given), data).data is data
