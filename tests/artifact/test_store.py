"""An artifact gives back the network that was saved, or refuses by name."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from prunus.artifact import load, load_artifact, read_manifest, save
from prunus.errors import InputError, PlanMismatchError, SettingError
from prunus.graph import cut, hold_connections_
from prunus.meter import file_size_bytes
from prunus.plan import Bits, Plan, ZeroConnections
from prunus.records import Source
from prunus.zoo import load_source
from tests.artifact.networks import (
    KEEP,
    cut_tiny,
    images,
    scramble_,
    tiny_plan,
    tiny_record,
    tiny_shape,
    write_file,
)


def test_outputs_are_the_same_to_the_bit(tmp_path: Path, source: Source) -> None:
    plan = tiny_plan(KEEP)
    network = cut_tiny(source, plan)
    save(tmp_path / "a", network, source=source, plans=[plan], recipe={"x": [1, 2]})
    artifact = load_artifact(tmp_path / "a")
    assert torch.equal(artifact.network(images(5)), network(images(5)))
    assert not artifact.network.training
    assert (artifact.source, artifact.plans, artifact.recipe) == (source, (plan,), {"x": [1, 2]})
    assert artifact.record is None


@settings(max_examples=10)
@given(keep=st.lists(st.booleans(), min_size=1, max_size=9).filter(any), seed=st.integers(0, 99))
def test_any_cut_comes_back(
    tmp_path_factory: pytest.TempPathFactory, keep: list[bool], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = Source(model=f"{write_file(folder)}:factory", arguments={"width": len(keep)})
    plan = tiny_plan(keep)
    network = cut(load_source(source), plan).eval()
    scramble_(network, seed)
    save(folder / "a", network, source=source, plans=[plan])
    assert torch.equal(load(folder / "a")(images(3)), network(images(3)))


def test_a_buffer_whose_values_lie_in_one_place_comes_back(tmp_path: Path) -> None:
    """``expand`` makes such; nothing can be copied into it."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    network = nn.Linear(8, 3)\n"
        "    network.register_buffer('scale', torch.tensor(2.0).expand(8))\n    return network\n"
    )
    source = Source(model=f"{tmp_path / 'net.py'}:make")
    network = load_source(source)
    save(tmp_path / "a", network, source=source)
    assert torch.equal(load(tmp_path / "a").get_buffer("scale"), torch.full((8,), 2.0))
    assert network.get_buffer("scale").stride() == (0,)


def test_weights_may_be_read_by_whom_the_other_files_may(saved: Path) -> None:
    modes = {path.stat().st_mode for path in saved.iterdir()}
    assert len(modes) == 1


def test_the_file_has_the_bytes_that_the_meter_counts(saved: Path) -> None:
    file = saved / "model.safetensors"
    assert file.stat().st_size == file_size_bytes(load(saved))


def test_another_process_gives_the_same_outputs(tmp_path: Path, source: Source) -> None:
    plan = tiny_plan(KEEP)
    network = cut_tiny(source, plan)
    save(tmp_path / "a", network, source=source, plans=[plan])
    script = (
        "import torch\n"
        "from safetensors.torch import save_file\n"
        "from prunus.artifact import load\n"
        "x = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))\n"
        "save_file({'y': load('a')(x).detach()}, 'y.safetensors')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)
    assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], network(images(5)))


def test_a_chain_of_plans_comes_back(tmp_path: Path, source: Source) -> None:
    plans = [tiny_plan(KEEP), tiny_plan([False, True, True])]
    network = cut_tiny(source, *plans)
    save(tmp_path / "a", network, source=source, plans=plans)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "artifact.json",
        "model.safetensors",
        "plan-0.json",
        "plan-1.json",
    ]
    artifact = load_artifact(tmp_path / "a")
    assert artifact.plans == tuple(plans)
    assert torch.equal(artifact.network(images(5)), network(images(5)))


def test_connections_held_at_zero_stay_held(tmp_path: Path, source: Source) -> None:
    """Rows 0 and 2 of ``fc.weight`` [3, 4] lose one weight each: positions 1 and 2 * 4 + 3 = 11."""
    keep = Bits.pack([i not in (1, 11) for i in range(12)])
    edit = ZeroConnections(tensor="fc.weight", level="weight", shape=(3, 4), keep=keep)
    plan = Plan(source=tiny_shape(4), result=tiny_shape(4), edits=(edit,))
    network = cut_tiny(source, plan)
    hold_connections_(network)
    save(tmp_path / "a", network, source=source, plans=[plan])
    loaded = load(tmp_path / "a")
    assert torch.equal(loaded(images(5)), network(images(5)))
    loaded(images(5)).sum().backward()
    weight = loaded.get_parameter("fc.weight")
    assert weight.grad is not None
    for tensor in (weight, weight.grad):
        assert (tensor == 0).nonzero().tolist() == [[0, 1], [2, 3]]


def test_a_trained_network_needs_no_plan(tmp_path: Path, source: Source) -> None:
    network = cut_tiny(source)
    save(tmp_path / "a", network, source=source)
    assert torch.equal(load(tmp_path / "a")(images(2)), network(images(2)))


def test_the_record_comes_back(saved: Path, source: Source) -> None:
    artifact = load_artifact(saved)
    assert artifact.record == tiny_record(source)
    assert artifact.recipe == {"steps": [{"method": "hand"}]}


def test_nothing_is_unpickled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a pickle was read")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(AssertionError, match="a pickle was read"):
        pickle.loads(b"")
    assert load(saved)(images(1)).shape == (1, 3)


def test_save_and_load_leave_network_and_random_state_alone(tmp_path: Path, source: Source) -> None:
    plan = tiny_plan(KEEP)
    network = cut_tiny(source, plan).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    save(tmp_path / "a", network, source=source, plans=[plan])
    load(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_data_type_comes_back(tmp_path: Path, source: Source, dtype: torch.dtype) -> None:
    network = cut_tiny(source).to(dtype)
    save(tmp_path / "a", network, source=source)
    loaded = load(tmp_path / "a").state_dict()
    for name, tensor in network.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_a_network_with_nan_can_be_saved(tmp_path: Path, source: Source) -> None:
    network = cut_tiny(source)
    network.state_dict()["fc.bias"][1] = float("nan")
    save(tmp_path / "a", network, source=source)
    assert load(tmp_path / "a").state_dict()["fc.bias"].isnan().tolist() == [False, True, False]


def test_what_is_no_source_or_network_is_named(tmp_path: Path, source: Source) -> None:
    network = cut_tiny(source)
    with pytest.raises(InputError, match=r"source is a str; give prunus\.Source\(model="):
        save(tmp_path / "a", network, source=source.model)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="network is the class Linear"):
        save(tmp_path / "a", torch.nn.Linear, source=source)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="cannot be written as JSON.*factory"):
        Source(model="x.py:N", arguments={"dtype": torch.float32})


# --- shared tensors -----------------------------------------------------------------------------


@pytest.mark.parametrize("constructor_ties", [True, False])
def test_a_shared_tensor_is_stored_once_and_shared_again(
    tmp_path: Path, *, constructor_ties: bool
) -> None:
    source = Source(model=f"{write_file(tmp_path)}:pair", arguments={"tied": constructor_ties})
    network = load_source(source)
    network.get_submodule("second").weight = network.get_parameter("first.weight")
    save(tmp_path / "a", network, source=source)
    assert list(load_file(tmp_path / "a" / "model.safetensors")) == ["first.weight"]
    assert read_manifest(tmp_path / "a").ties == {"second.weight": "first.weight"}
    loaded = load(tmp_path / "a")
    assert dict(loaded.named_modules())["second"].weight is loaded.get_parameter("first.weight")
    x = torch.randn(4, 3)
    assert torch.equal(loaded(x), network(x))


def test_a_tie_that_was_undone_is_refused_before_it_loses_weights(tmp_path: Path) -> None:
    source = Source(model=f"{write_file(tmp_path)}:pair")
    network = load_source(source.model_copy(update={"arguments": {"tied": False}}))
    with pytest.raises(PlanMismatchError, match=r"'first\.weight' shares its tensor"):
        save(tmp_path / "a", network, source=source)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("beside", [True, False])
def test_a_buffer_in_the_memory_of_a_parameter_is_stored_beside_it(
    tmp_path: Path, *, beside: bool
) -> None:
    source = Source(model=f"{write_file(tmp_path)}:viewed", arguments={"beside": beside})
    network = load_source(source)
    save(tmp_path / "a", network, source=source)
    assert read_manifest(tmp_path / "a").ties == {}
    loaded, x = load(tmp_path / "a"), torch.randn(4, 3)
    assert isinstance(loaded.get_parameter("first.weight"), torch.nn.Parameter)
    assert torch.equal(loaded(x), network(x))
    file = tmp_path / "a" / "model.safetensors"
    assert file.stat().st_size == file_size_bytes(network)


def test_equal_values_are_no_tie(tmp_path: Path) -> None:
    source = Source(model=f"{write_file(tmp_path)}:pair", arguments={"tied": False})
    network = load_source(source)
    network.get_parameter("second.weight").data.copy_(network.get_parameter("first.weight"))
    save(tmp_path / "a", network, source=source)
    assert read_manifest(tmp_path / "a").ties == {}


# --- another network than the artifact's --------------------------------------------------------


def test_a_changed_constructor_is_refused_by_name_and_shape(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(path.read_text().replace("nn.Conv2d(1, width, 3)", "nn.Conv2d(1, width, 5)"))
    with pytest.raises(
        PlanMismatchError,
        match=r"'conv\.weight' should be \[4, 1, 3, 3\] but is \[4, 1, 5, 5\]",
    ):
        load(saved)


def test_a_changed_constructor_is_refused_without_a_plan(tmp_path: Path, source: Source) -> None:
    save(tmp_path / "a", cut_tiny(source), source=source)
    path = tmp_path / "net.py"
    path.write_text(path.read_text().replace("classes=3", "classes=5"))
    with pytest.raises(PlanMismatchError, match=r"'fc\.bias' should be \[3\] but is \[5\]"):
        load(tmp_path / "a")


def test_a_network_that_the_plan_did_not_make_is_not_saved(tmp_path: Path, source: Source) -> None:
    with pytest.raises(PlanMismatchError, match=r"'bn\.bias' should be \[3\] but is \[4\]"):
        save(tmp_path / "a", load_source(source), source=source, plans=[tiny_plan(KEEP)])
    assert not (tmp_path / "a").exists()


def test_plans_out_of_order_are_not_saved(tmp_path: Path, source: Source) -> None:
    plans = [tiny_plan(KEEP), tiny_plan([False, True, True])]
    network = cut_tiny(source, *plans)
    with pytest.raises(PlanMismatchError, match=r"plans\[1\] is for another network"):
        save(tmp_path / "a", network, source=source, plans=plans[::-1])


def test_a_source_that_builds_another_network_is_not_saved(tmp_path: Path, source: Source) -> None:
    plan = tiny_plan(KEEP)
    wrong = source.model_copy(update={"arguments": {"width": 5}})
    with pytest.raises(PlanMismatchError, match=r"plan-0\.json is for another network"):
        save(tmp_path / "a", cut_tiny(source, plan), source=wrong, plans=[plan])
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["net.py"]


def test_values_that_only_the_constructor_sets_are_checked(tmp_path: Path) -> None:
    source = Source(model=f"{write_file(tmp_path)}:scaled", arguments={"scale": 2.0})
    network = load_source(source)
    save(tmp_path / "a", network, source=source)
    assert load(tmp_path / "a").get_buffer("scale").item() == 2.0
    network.get_buffer("scale").fill_(3.0)
    with pytest.raises(PlanMismatchError, match="'scale' of the network does not come back"):
        save(tmp_path / "b", network, source=source)


def test_what_the_constructor_sets_follows_the_data_type_of_the_network(tmp_path: Path) -> None:
    source = Source(model=f"{write_file(tmp_path)}:scaled", arguments={"scale": 1.1})
    network = load_source(source).half()
    save(tmp_path / "a", network, source=source)
    loaded, x = load(tmp_path / "a"), torch.randn(4, 2).half()
    assert loaded.get_buffer("scale").dtype == torch.float16
    assert torch.equal(loaded(x), network(x))


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    source = Source(model=f"{write_file(tmp_path)}:noting")
    with pytest.raises(InputError, match=r"'_extra_state' of type dict"):
        save(tmp_path / "a", load_source(source), source=source)


def test_the_hand_written_shape_is_the_network_s(source: Source) -> None:
    """The plans of this file are for the network that they claim to be for."""
    shapes = {name: tuple(t.shape) for name, t in load_source(source).state_dict().items()}
    assert shapes == tiny_shape(4).tensors


SHIFT = """
from torch import nn


class Shift(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, x):
        return super().forward(x.add_(1.0))
"""
TWINS = """
from torch import nn


def relu():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def tanh():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
"""


def test_a_source_of_another_architecture_with_the_same_tensors_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "twins.py").write_text(TWINS, encoding="utf-8")
    relu, tanh = (Source(model=f"{tmp_path}/twins.py:{name}") for name in ("relu", "tanh"))
    network, inputs = load_source(relu).train(), torch.randn(4, 3)
    save(tmp_path / "a", network, source=relu, example_inputs=inputs)
    with pytest.raises(PlanMismatchError, match=r"twins\.py:tanh' builds another network"):
        save(tmp_path / "b", network, source=tanh, example_inputs=inputs)
    assert not (tmp_path / "b").exists()
    with pytest.raises(InputError, match="example_inputs: the network does not run"):
        save(tmp_path / "b", network, source=relu, example_inputs=torch.randn(4, 5))


def test_a_network_that_changes_its_inputs_is_compared_on_the_same_ones(tmp_path: Path) -> None:
    (tmp_path / "shift.py").write_text(SHIFT, encoding="utf-8")
    source, inputs = Source(model=f"{tmp_path}/shift.py:Shift"), torch.randn(4, 3)
    before = inputs.clone()
    save(tmp_path / "a", load_source(source), source=source, example_inputs=inputs)
    assert torch.equal(inputs, before)


def test_a_changed_factory_file_is_warned_of_and_named_where_it_does_not_fit(
    tmp_path: Path, saved: Path
) -> None:
    file = tmp_path / "net.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text + "\n# a remark\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"net\.py' has changed since the artifact was saved"):
        assert load(saved)(images(1)).shape == (1, 3)
    file.write_text(text.replace("nn.Conv2d(1, width, 3)", "nn.Conv2d(1, width, 1)"), "utf-8")
    with pytest.raises(PlanMismatchError, match=r"net\.py' has changed since .* SHA-256 differs"):
        load(saved)


def test_a_folder_of_transformers_is_found_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, vocab_size=20, intermediate_size=16, num_labels=2)
    home, other = tmp_path / "home", tmp_path / "other"
    transformers.BertForSequenceClassification(config).save_pretrained(home / "my-bert")
    other.mkdir()
    monkeypatch.chdir(home)
    source = Source(model="hf:my-bert")
    network = load_source(source).eval()
    save(home / "run" / "a", network, source=source)
    assert read_manifest("run/a").source.model == "hf:my-bert"  # no path of this machine
    monkeypatch.chdir(other)
    pieces = {"input_ids": torch.tensor([[1, 2, 3]])}
    folder = home / "my-bert"
    for place in (folder, other / "my-bert", home / "run" / "my-bert"):
        folder = folder.rename(place)
        loaded = load_artifact(home / "run" / "a")
        found, wanted = loaded.network(**pieces).logits, network(**pieces).logits
        torch.testing.assert_close(found, wanted)
        assert loaded.source.model == f"hf:{place}"


def test_a_factory_file_is_found_where_it_was_in_the_working_folder_and_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home, other):
        folder.mkdir()
    file = write_file(home)
    monkeypatch.chdir(home)
    source = Source(model="net.py:factory", arguments={"width": 4}, weights="gone.pt")
    network = load_source(source.model_copy(update={"weights": None}))
    save(home / "run" / "a", network, source=source)
    assert read_manifest("run/a").source.weights is None
    monkeypatch.chdir(other)
    for place in (file, other / "net.py", home / "run" / "net.py"):
        file = file.rename(place)
        loaded = load_artifact(home / "run" / "a")
        assert torch.equal(loaded.network(images(2)), network(images(2)))
        assert loaded.source.model == f"{place}:factory"
    file.unlink()
    with pytest.raises(InputError) as caught:
        load(home / "run" / "a")
    for place in (home / "net.py", other / "net.py", home / "run" / "net.py"):
        assert f"'{place}'" in str(caught.value)
