"""Recipes on texts: order of steps, students, smaller vocabularies, engines, steps that rows share."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus import load
from prunus.artifact import read_manifest
from prunus.data import DataSplits, TextTokenizer, load_data
from prunus.errors import InputError
from prunus.graph import cut, held_connections, plan_of, trace
from prunus.plan import Bits, KeepVocabulary
from prunus.quantize import load_deployed
from prunus.recipe import (
    Compressed,
    Deploy,
    LatencyOptions,
    Prune,
    Step,
    Student,
    TextSuite,
    compare,
    compress,
    make_recipe,
)
from prunus.recipe.actions import lay_out
from prunus.recipe.texts import OldPieces, attention_shown, kept_pieces
from prunus.records import Source
from prunus.train import fit
from prunus.zoo import build
from tests.recipe import texts

VOCABULARY = Prune(method="vocabulary")
TORCH_INT8 = Deploy(engine="torch", weights="int8", embeddings="int8")
STUDENT = Student(model="textcnn", arguments={"embedding": 6, "hidden": 4, "seed": 1})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSplits:
    return texts.load(tmp_path_factory.mktemp("texts"))


def run(data: DataSplits, steps: list[Any], out: Path | None = None, **options: Any) -> Compressed:
    return compress(
        texts.NETWORK,
        steps,
        data,
        out=out,
        train_first=texts.training(4).config(fresh=False),
        latency=options.pop("latency", None),
        **options,
    )


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([TORCH_INT8, texts.training()], "structure comes before quantization"),
        ([VOCABULARY, STUDENT, texts.training()], "put student first"),
        ([texts.training(), STUDENT, texts.training()], "put student first .its teacher is the"),
        ([STUDENT, VOCABULARY], "no train comes after it"),
        (
            [STUDENT, {"repeat": {"times": 1, "steps": [VOCABULARY]}}],
            "no train comes after it",
        ),
        (
            [{"repeat": {"times": 2, "steps": [{"deploy": {"engine": "torch"}}]}}],
            "put it after the repeat",
        ),
        ([{"prune": {"method": "l1"}}], "needs one such as macs=0.5"),
        ([{"deploy": {"engine": "torch", "calibration": "static", "weights": "int8"}}], "static"),
        (
            [{"prune": {"method": "vocabulary", "target": "macs=0.5"}}],
            "'vocabulary' does not lower macs; give one on params or size, or leave it out",
        ),
        (
            [
                {
                    "prune": {
                        "method": "magnitude-weights",
                        "target": "size=0.5",
                        "options": {"sparsity": 0.5},
                    }
                }
            ],
            "does not lower size; leave it out",
        ),
    ],
)
def test_steps_that_cannot_be_in_this_order_are_refused_before_anything_runs(
    steps: list[Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        lay_out(make_recipe({"steps": steps}))
    assert "\n" not in str(caught.value)
    assert "steps[" in str(caught.value)


def test_a_trimmed_and_deployed_network_is_measured_in_its_engine(
    data: DataSplits, tmp_path: Path
) -> None:
    before = data.test.evaluations
    options = LatencyOptions(repeats=30, warmup=1)
    done = run(data, [VOCABULARY, TORCH_INT8], tmp_path / "run", latency=options)
    record, row = done.record, done.record.deployed
    assert row is not None
    assert data.tokenizer is not None
    # dense, after the cut, deployed: one look each
    assert record.test_evaluations == {"dense": 1, "after_cut": 1, "deployed": 1}
    assert data.test.evaluations - before == 3
    cut, deployed = record.score("after_cut"), record.score("deployed")
    assert cut is not None
    assert deployed is not None
    assert cut.metric == "f1"
    assert cut.correct is not None
    assert cut.correct.unpack().mean() == pytest.approx(cut.top1)
    assert row.prediction_agreement is not None
    assert row.prediction_agreement > 0.9
    assert record.latency is not None
    assert record.latency.engine == "torch"
    folder = tmp_path / "run" / "steps" / "02-deploy.torch"
    session = load_deployed(folder)
    assert row.size_bytes == sum((folder / n).stat().st_size for n in session.record.model_files)
    assert record.cost.size_bytes == row.size_bytes
    # The artifact knows the smaller vocabulary, and how texts are split into it.
    artifact = tmp_path / "run" / "artifact"
    smaller = TextTokenizer.read(artifact / "tokenizer.json")
    network = load(artifact)
    table = network.get_parameter("embedding.weight")
    assert smaller.vocab_size == len(table) < data.tokenizer.vocab_size
    pieces = torch.tensor(smaller.encode(["a gentle story"], 16))
    again = data.tokenizer.encode(["a gentle story"], 16)
    kept = kept_pieces(done.plans)
    assert kept is not None
    assert kept[pieces.numpy()].tolist() == again
    with torch.no_grad():
        wanted = done.network(input_ids=pieces, attention_mask=torch.ones_like(pieces))
    found = session({"input_ids": pieces, "attention_mask": torch.ones_like(pieces)})
    assert torch.allclose(found, wanted, atol=0.1 * float(wanted.abs().max()))


def test_the_recipe_of_a_record_reads_the_texts_as_the_run_did(tmp_path: Path) -> None:
    """Options that no recipe said, but the caller or the command line."""
    file = texts.write(tmp_path)
    done = compress(
        texts.NETWORK,
        [VOCABULARY],
        f"text:{file}",
        text=texts.OPTIONS,
        out=tmp_path / "run",
        train_first=texts.training().config(fresh=False),
        latency=None,
    )
    kept = read_manifest(tmp_path / "run" / "artifact").recipe
    for recipe in (make_recipe(done.record.recipe), make_recipe(kept or {})):
        assert recipe.text == texts.OPTIONS
        again = load_data(recipe.data or "", text=recipe.text)
        assert again.tokenizer is not None
        assert recipe.arguments["vocab_size"] == again.tokenizer.vocab_size
        assert again.max_length == 16


def test_settings_of_texts_beside_loaded_texts_are_refused(data: DataSplits) -> None:
    said = (
        "text is given beside data 'text:.*', which is loaded already: give it to prunus.load_data"
    )
    with pytest.raises(InputError, match=said) as caught:
        run(data, [VOCABULARY], text=texts.OPTIONS)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=said):
        compare(texts.NETWORK, {"one": [VOCABULARY]}, data, text=texts.OPTIONS)


def test_loaded_texts_take_the_place_of_a_recipes(data: DataSplits) -> None:
    """Of its data, and of how that is read."""
    says = {"data": "text:none.csv", "text": {"max_length": 64}, "steps": [VOCABULARY]}
    first = texts.training(1).config(fresh=False)
    done = compress(texts.NETWORK, make_recipe(says), data, train_first=first, latency=None)
    assert make_recipe(done.record.recipe).text == texts.OPTIONS


def test_a_network_of_its_config_alone_gets_pieces_of_the_training_texts(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 16}
    source = Source(model="hf:config", arguments={"model_type": "bert", **sizes})
    done = compress(
        source,
        [VOCABULARY],
        f"text:{texts.write(tmp_path)}",
        text=texts.OPTIONS,
        out=tmp_path / "run",
        train_first=texts.training(1).config(fresh=False),
        latency=None,
    )
    pieces = load_data(f"text:{tmp_path / 'texts.csv'}", text=texts.OPTIONS).tokenizer
    assert pieces is not None
    assert done.record.source.arguments["vocab_size"] == pieces.vocab_size
    assert done.record.dense_cost.params < 16 * 30522  # not the rows of BERT's own vocabulary
    assert not done.record.search_seen_in_pretraining
    left = TextTokenizer.read(tmp_path / "run" / "artifact" / "tokenizer.json").vocab_size
    table = load(tmp_path / "run" / "artifact").get_parameter(
        "bert.embeddings.word_embeddings.weight"
    )
    assert len(table) == left <= pieces.vocab_size


def test_a_student_takes_the_place_of_its_teacher(data: DataSplits, tmp_path: Path) -> None:
    done = run(data, [STUDENT, texts.training(taught=True)], tmp_path / "run")
    manifest = read_manifest(tmp_path / "run" / "artifact")
    assert manifest.source.arguments["embedding"] == 6
    assert done.record.source.arguments["embedding"] == 12  # the dense network stays the subject
    assert done.record.cost.params < done.record.dense_cost.params
    assert done.plans == ()
    scores = {score.stage for score in done.record.scores}
    assert scores == {"dense", "after_training"}


def test_a_killed_run_goes_on_with_its_student_and_its_vocabulary(
    data: DataSplits, tmp_path: Path
) -> None:
    heir = STUDENT.model_copy(update={"embeddings": "teacher"})
    steps = [heir, VOCABULARY, texts.training(taught=True), TORCH_INT8]
    whole = run(data, steps, tmp_path / "whole")
    for done in range(1, 4):
        folder = tmp_path / f"killed-{done}"
        shutil.copytree(tmp_path / "whole", folder)
        for file in ("record.json",):
            (folder / file).unlink()
        shutil.rmtree(folder / "artifact")
        for entry in (folder / "steps").iterdir():
            if int(entry.name[:2]) > done:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        resumed = run(data, steps, folder, resume=True)
        assert [p.digest for p in resumed.plans] == [p.digest for p in whole.plans]
        for name, value in whole.network.state_dict().items():
            assert torch.equal(value, resumed.network.state_dict()[name]), name
        first, second = whole.record.score("deployed"), resumed.record.score("deployed")
        assert first is not None
        assert second is not None
        assert first.correct == second.correct


def test_rows_that_begin_alike_share_their_steps(
    data: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        trained.append(1)
        return fit(*arguments, **options)

    monkeypatch.setattr("prunus.recipe.execute.fit", spy)
    recover = texts.training(1, taught=True)
    low = Prune(method="svd", options={"rank": 0.5, "embeddings": True})
    rows: dict[str, list[Step]] = {
        "low": [low, recover],
        "low int8": [low, recover, TORCH_INT8],
        "low twice": [low, recover, Prune(method="magnitude-weights", options={"sparsity": 0.3})],
    }
    done = compare(
        texts.NETWORK,
        rows,
        data,
        seeds=(0, 1),
        out=tmp_path / "compared",
        train_first=texts.training(2).config(fresh=False),
        latency=None,
    )
    assert len(done.runs) == 6
    assert len(trained) == 2  # one recovery a seed, for three rows each
    one, two, three = done.runs[0], done.runs[2], done.runs[4]
    assert any("computed once, with row 'low'" in note for note in two.notes)
    # The same network at the same stage is one look, told in both rows.
    assert one.score("after_training") == two.score("after_training")
    assert three.score("after_training") is None  # it lies between two cuts: no look
    assert three.score("after_cut") is not None
    assert all(n == 1 for run in done.runs for n in run.test_evaluations.values())


def test_attention_can_be_read_inside_and_is_fused_again_outside() -> None:
    network = build("bert_tiny", vocab_size=20, hidden=16, layers=1).eval()
    pieces = torch.tensor([[2, 7, 3]])
    fused = network.config._attn_implementation  # type: ignore[union-attr]
    with attention_shown(network), torch.no_grad():
        seen = network(input_ids=pieces, output_attentions=True).attentions
    assert [tuple(one.shape) for one in seen] == [(1, 1, 3, 3)]
    assert torch.allclose(seen[0].sum(dim=-1), torch.ones(1, 1, 3))
    assert network.config._attn_implementation == fused != "eager"  # type: ignore[union-attr]
    with attention_shown(nn.Linear(2, 2)), attention_shown(None):
        pass


def test_attention_of_a_network_that_was_cut_can_be_read_too() -> None:
    """Its layers have settings of their own, which the library's setter does not reach."""
    network = build("bert_tiny", vocab_size=20, hidden=16, layers=2).eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 3], [2, 8, 3]]), "attention_mask": torch.ones(2, 3)}
    inputs["attention_mask"] = inputs["attention_mask"].long()
    found = trace(network, inputs)
    narrow = {g.name: np.arange(g.units) % 2 == 0 for g in found.cuttable if "dense" in g.name}
    small = cut(network, found.plan(narrow))
    settings = [m.config for m in small.modules() if hasattr(m, "config")]
    assert len({id(one) for one in settings}) > 1
    fused = [one._attn_implementation for one in settings]  # type: ignore[union-attr]
    with attention_shown(small), torch.no_grad():
        seen = small(**inputs, output_attentions=True).attentions
    assert [one is not None for one in seen] == [True, True]
    assert torch.allclose(seen[1].sum(dim=-1), torch.ones(()))
    assert [one._attn_implementation for one in settings] == fused  # type: ignore[union-attr]


def test_a_teacher_is_called_by_the_old_numbers_of_pieces() -> None:
    class Seen(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return input_ids * attention_mask

    class Table(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.table = nn.Embedding(rows, 2)

    def plan(rows: int, keep: list[int]) -> Any:
        flags = np.isin(np.arange(rows), keep)
        edit = KeepVocabulary(tables=("table.weight",), keep=Bits.pack(flags))
        return plan_of(Table(rows), [edit])

    # Of 6 pieces 0, 2, 3, 5 stay, numbered 0 to 3; of these 0, 1, 3: the old 0, 2, 5.
    kept = kept_pieces([plan(6, [0, 2, 3, 5]), plan(4, [0, 1, 3])])
    assert kept is not None
    assert kept.tolist() == [0, 2, 5]
    teacher = OldPieces(Seen(), torch.from_numpy(kept))
    found = teacher(input_ids=torch.tensor([[2, 1, 0]]), attention_mask=torch.tensor([[1, 1, 0]]))
    assert found.tolist() == [[5, 2, 0]]
    assert kept_pieces([]) is None


@pytest.mark.parametrize("embeddings", [False, True])
def test_held_words_are_trimmed_with_their_table(data: DataSplits, embeddings: bool) -> None:
    sparse = Prune(method="magnitude-weights", options={"sparsity": 0.5, "embeddings": embeddings})
    found = run(data, [sparse, Prune(method="vocabulary", options={"min_count": 5})])
    held = held_connections(found.network)
    assert ("embedding.weight" in held) == embeddings
    for name, mask in held.items():
        weight = found.network.get_parameter(name)
        assert mask.shape == weight.shape
        assert not weight[~mask].any()


def test_a_shape_that_texts_may_exceed_is_refused_before_anything_runs(
    data: DataSplits, tmp_path: Path
) -> None:
    longest = data.max_length
    assert longest is not None
    short = Deploy(engine="openvino", shape=(1, longest - 1))
    with pytest.raises(InputError, match=f"they may have {longest}; give shape="):
        run(data, [VOCABULARY, short], tmp_path / "run")
    assert not list((tmp_path / "run").glob("*/*"))


class _Bag(nn.Module):
    """Padding is text to it."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(words, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.words(input_ids).mean(1))
        return logits


def test_a_shape_for_a_network_without_a_mask_is_refused_before_a_training(
    data: DataSplits, tmp_path: Path
) -> None:
    steps: list[Step] = [
        texts.training(),
        Deploy(engine="openvino", shape=(1, data.max_length or 0)),
    ]
    with pytest.raises(InputError, match="reads no attention_mask"):
        compress(_Bag(2000), steps, data, out=tmp_path / "run", latency=None)
    assert not list((tmp_path / "run").glob("steps/*"))


def test_rows_in_one_shape_stand_beside_openvino_s_int8_alone() -> None:
    shape = (1, 64)
    plain, more = TextSuite().rows(), TextSuite(shape=shape).rows()
    added = [name for name in more if name not in plain]
    assert {name: more[name] for name in plain} == plain
    assert added == [
        "int8 linear + embeddings in one shape (openvino)",
        "tucker + int8 in one shape (openvino)",
        "pruning + int8 in one shape (openvino)",
        "vocabulary + pruning + int8 in one shape (openvino)",
        "distilled + int8 in one shape (openvino)",
    ]
    for name in added:
        *before, last = plain[name.replace(" in one shape", "")]
        assert isinstance(last, Deploy)
        assert more[name] == (*before, last.model_copy(update={"shape": shape}))
