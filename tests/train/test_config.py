import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from prunus.train import TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("lr", 0.0),
        ("lr", float("inf")),
        ("batch_size", 0),
        ("optimizer", "adam"),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("schedule", "step"),
        ("warmup_fraction", 1.1),
        ("final_lr_fraction", -0.1),
        ("label_smoothing", 1.0),
        ("distill_alpha", 1.5),
        ("distill_temperature", 0.0),
        ("distill_loss", "l1"),
        ("distill_hidden", -1.0),
        ("distill_attention", float("inf")),
        ("distill_layers", "first"),
        ("metric", "recall"),
        ("grad_clip", -1.0),
        ("precision", "float16"),
        ("layout", "nchw"),
        ("select", "first"),
        ("learning_rate", 0.1),
    ],
)
def test_values_out_of_range_and_unknown_names_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate({"epochs": 1, "lr": 0.1, field: value})
    assert caught.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize(
    ("changes", "teaches", "layers"),
    [
        ({}, False, False),
        ({"distill_alpha": 0.5}, True, False),
        ({"distill_hidden": 1.0}, True, True),
        ({"distill_attention": 1.0, "distill_alpha": 1.0}, True, True),
    ],
)
def test_any_weight_of_a_teacher_asks_for_one(
    changes: dict[str, float], teaches: bool, layers: bool
) -> None:
    config = TrainConfig.model_validate({"epochs": 1, "lr": 0.1, **changes})
    assert (config.teaches, config.teaches_layers) == (teaches, layers)


def test_is_frozen_and_goes_through_json(tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, lr=0.05, optimizer="adamw", select="best")
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config
    with pytest.raises(ValidationError, match="frozen"):
        config.lr = 1.0  # type: ignore[misc]  # the point of the test


def test_the_card_of_distillation_states_all_options_and_their_defaults() -> None:
    card = Path(__file__).parents[2] / "docs" / "methods" / "distillation.md"
    rows = re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", card.read_text("utf-8"), re.MULTILINE)
    fields = TrainConfig.model_fields
    names = [name for name in fields if name.startswith("distill_") or name == "cache_teacher"]
    assert dict(rows) == {name: str(fields[name].default).replace("True", "true") for name in names}
