"""Folders and files that a source names, or seems to: moved, edited, or of the same name by chance."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from prunus.artifact import load, load_artifact, read_manifest, save
from prunus.artifact.rebuild import note_factory
from prunus.records import Source
from prunus.train.checkpoint import form_digest
from prunus.zoo import load_source
from tests.artifact.networks import write_file

ACTING = """
import torch
from torch import nn


class Acting(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return torch.relu(self.fc(x))


def make():
    return Acting()
"""


def test_a_folder_named_config_is_not_the_config_of_a_network_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps({"project": "mine"}))
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    arguments = {"model_type": "bert", **sizes, "vocab_size": 20, "intermediate_size": 16}
    source = Source(model="hf:config", arguments=arguments)
    network = load_source(source)
    pieces = {"input_ids": torch.tensor([[1, 2, 3]])}
    save("a", network, source=source, example_inputs=pieces)
    assert read_manifest(Path("a")).factory is None
    artifact = load_artifact("a")
    assert artifact.source.model == "hf:config"
    torch.testing.assert_close(artifact.network(**pieces).logits, network(**pieces).logits)
    assert note_factory(Source(model="hf:./config")) is not None  # so a folder can be meant


def test_an_artifact_whose_code_was_edited_is_loaded_with_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(ACTING, encoding="utf-8")
    source = Source(model=f"{file}:make")
    network, inputs = load_source(source), torch.randn(4, 6)
    save(tmp_path / "a", network, source=source, example_inputs=inputs)
    assert torch.equal(load(tmp_path / "a")(inputs), network(inputs))  # warnings are errors here
    file.write_text(ACTING.replace("torch.relu", "torch.tanh"), encoding="utf-8")
    said = r"net\.py' has changed since the artifact was saved, or a file .* outputs may"
    with pytest.warns(UserWarning, match=said) as told:
        other = load(tmp_path / "a")
    assert len(told) == 1
    assert not torch.equal(other(inputs), network(inputs))
    save(tmp_path / "a", other, source=source)  # as the warning says
    assert torch.equal(load(tmp_path / "a")(inputs), other(inputs))


def test_the_form_of_a_network_does_not_tell_where_its_file_lies(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    file = write_file(tmp_path / "one")
    before = form_digest(load_source(Source(model=f"{file}:factory")))
    shutil.move(tmp_path / "one", tmp_path / "two")
    moved = tmp_path / "two" / "net.py"
    assert form_digest(load_source(Source(model=f"{moved}:factory"))) == before
    other = moved.rename(tmp_path / "two" / "other_net.py")
    assert form_digest(load_source(Source(model=f"{other}:factory"))) != before
