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


def test_is_frozen_and_goes_through_json(tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, lr=0.05, optimizer="adamw", select="best")
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config
    with pytest.raises(ValidationError, match="frozen"):
        config.lr = 1.0  # type: ignore[misc]  # the point of the test
