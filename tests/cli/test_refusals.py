"""What is refused before anything is computed, from the command line and from Python, in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.cli.build import make_compute, suite_steps
from prunus.cli.given import Cut, Scoring, Subject, Training
from prunus.cli.rows import recipe_rows
from prunus.cli.training import make_finetune, make_train_first
from prunus.cli.work import PARTLY
from prunus.errors import BudgetError, InputError
from prunus.method import Context, Decision, Method, method_class
from prunus.recipe import Train
from prunus.recipe.recipe import as_recipe
from prunus.records import Source
from prunus.train import TrainConfig
from tests.cli.runner import ends, run
from tests.recipe.subjects import few_digits, trained_cnn

STEPS = [prunus.Prune(method="l1", target="macs=0.5")]
COMPARE = ["compare", "--model", "digits_cnn", "--data", "digits", "--train-epochs", "1"]
FACTORY = """
import torch
from torch import nn

def make(pretrained=False, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )

def tune():
    network = make()
    weight = network[0].weight.data
    weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight))
    return network
"""


def _make() -> nn.Module:
    return trained_cnn()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": nn.Flatten}, r"network is the class Flatten; give an instance: Flatten\(\)"),
        ({"network": _make}, r"network is the function _make; give the network it makes: _make"),
        ({"network": 3}, r"network is a int; give a torch\.nn\.Module, or the name of a network"),
        ({"data": torch.zeros(4, 1, 8, 8)}, r"data is a Tensor; give prunus\.from_datasets\(train"),
        (
            {"data": (torch.zeros(4), torch.zeros(4))},
            r"data is a tuple; give prunus\.from_datasets",
        ),
        ({"data": None}, r"data is missing; name images"),
        ({"recipe": "r1.yaml"}, r"recipe is 'r1\.yaml', a text; read a file with prunus\.load_rec"),
        ({"recipe": Path("r1.yaml")}, r"recipe is 'r1\.yaml', a text; read a file with prunus\."),
        ({"recipe": STEPS[0]}, r"recipe is one step \(Prune\); give a list of steps: \[step\]"),
        (
            {"recipe": {"steps": STEPS}},
            r"recipe is a dict; give a prunus\.Recipe or a list of steps",
        ),
        ({"recipe": 3}, r"recipe is a int; give a prunus\.Recipe or a list of steps"),
        ({"recipe": []}, r"steps"),
    ],
)
def test_python_mistakes_are_named(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"network": trained_cnn(), "recipe": STEPS, "data": "digits", **change}
    with pytest.raises(InputError, match=said) as caught:
        prunus.compress(**given)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("method", "target", "said"),
    [
        (
            "magnitude-weights",
            "macs=0.5",
            "method 'magnitude-weights' does not lower macs; compare it through a recipe without a",
        ),
        (
            "vocabulary",
            "macs=0.5",
            "does not lower macs; give a --target of params= or size=, or compare it through a recipe",
        ),
    ],
)
def test_a_target_that_a_method_does_not_lower(method: str, target: str, said: str) -> None:
    ends([*COMPARE, "--method", "l1", "--method", method, "--target", target], said)
    alone = ["compress", *COMPARE[1:], "--method", method, "--target", target]
    ends(alone, "leave --target out and set --option")


def test_the_suite_refuses_what_its_steps_cannot_use() -> None:
    suite = ["compare", "--suite", "text", "--model", "bert_tiny", "--data", "docstrings"]
    ends([*suite, "--epochs", "0"], "error: --epochs 0: input should be greater than or equal to 1")
    ends([*suite, "--lr", "0"], "error: --lr 0.0: input should be greater than 0")
    ends([*suite, "--batch-size", "0"], "error: --batch-size 0: input should be greater than or")


@pytest.mark.parametrize(
    "given",
    [
        ["--target", "macs=0.25"],
        ["--option", "taylor.batches=2"],
        ["--distill", "0.5"],
        ["--distill", "0"],
        ["--scratch-epochs", "3"],
        ["--optimizer", "sgd"],
    ],
)
def test_the_suite_refuses_what_its_rows_would_pass_by(given: list[str]) -> None:
    suite = ["compare", "--suite", "text", "--model", "bert_tiny", "--data", "docstrings"]
    ends([*suite, *given], f"error: {given[0]} is given beside --suite, whose rows say it")


def test_an_optimizer_beside_a_suite_is_of_the_training_before() -> None:
    training = Training(None, None, None, None, 1, None, None, "sgd")
    rows = suite_steps("text", (), Cut(None, (), ()), training)
    trainings = [step for steps in rows.values() for step in steps if isinstance(step, Train)]
    assert {step.optimizer for step in trainings} == {"adamw"}


@pytest.mark.parametrize(
    "given",
    [
        ["--lr", "0.1"],
        ["--distill", "0.5"],
        ["--distill", "0"],
        ["--scratch-epochs", "3"],
        ["--epochs", "1"],
        ["--batch-size", "7"],
        ["--optimizer", "adamw"],
    ],
)
def test_a_recipe_refuses_what_its_steps_would_pass_by(tmp_path: Path, given: list[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("steps: [{prune: {method: l1, target: macs=0.5}}]\n", encoding="utf-8")
    command = [
        "compress",
        "--model",
        "digits_cnn",
        "--data",
        "digits",
        "--recipe",
        str(file),
        *given,
    ]
    ends(command, f"error: {given[0]} is given beside --recipe, which says it")


@pytest.mark.parametrize(
    "given",
    [
        ["--lr", "0.5"],
        ["--distill", "0.5"],
        ["--scratch-epochs", "3"],
        ["--batch-size", "7"],
        ["--optimizer", "adamw"],
    ],
)
@pytest.mark.parametrize("command", ["compress", "compare"])
def test_options_of_a_training_that_is_not_asked_for(command: str, given: list[str]) -> None:
    asked = [command, "--model", "digits_cnn", "--data", "digits", "--method", "l1"]
    value = given[1]
    ends(
        [*asked, "--target", "macs=0.5", *given],
        f"error: {given[0]} {value} has no effect without --epochs: nothing is trained after the cut",
    )


def test_a_rate_of_a_first_training_that_is_not_asked_for() -> None:
    asked = ["compress", "--model", "digits_cnn", "--data", "digits", "--method", "l1"]
    ends(
        [*asked, "--target", "macs=0.5", "--epochs", "1", "--train-lr", "0.5"],
        "error: --train-lr 0.5 has no effect without --train-epochs; give both, or leave it out",
    )


@pytest.mark.parametrize(
    "given",
    [
        ["--threads", "100000000"],
        ["--engine", "processes", "--workers", "100000000"],
        ["--engine", "ray", "--workers", "100000000"],
    ],
)
def test_more_threads_than_a_machine_answers_with(given: list[str]) -> None:
    asked = [*COMPARE, "--method", "l1", "--target", "macs=0.5"]
    ends([*asked, *given], f"error: {given[-2]} 100000000: give ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model: digits_cnn\nmodel: resnet20\nsteps: []\n",
            "line 2, column 1: no valid YAML: the key",
        ),
        ("steps: " + 5000 * "[", "it is nested too deep for a recipe; mend the file"),
    ],
)
def test_yaml_that_says_a_thing_twice_or_never_ends(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    ends(["compress", "--recipe", str(file)], said)


@pytest.mark.parametrize(
    "code", ["def make():\n    raise SystemExit(0)\n", "import sys\nsys.exit(3)\n"]
)
def test_a_file_that_ends_the_process_is_told(code: str, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(code, encoding="utf-8")
    asked = ["compress", "--model", f"{tmp_path / 'nets.py'}:make", "--data", "digits"]
    ends([*asked, "--method", "l1", "--target", "macs=0.5"], "SystemExit")


def test_bytes_that_are_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "text.pt"
    file.write_text("hello\n", encoding="utf-8")
    asked = ["compress", "--model", "digits_cnn", "--weights", str(file), "--data", "digits"]
    ends([*asked, "--method", "l1", "--target", "macs=0.5"], "cannot be read as plain tensors")


def test_a_share_written_as_a_number_above_one() -> None:
    ends(
        [*COMPARE, "--method", "l1", "--target", "macs=2"],
        "a number above 1 is no share: ask for macs=",
    )


@pytest.mark.parametrize(
    "given", [["--lr", "0.1"], ["--distill", "0.5"], ["--epochs", "1"], ["--target", "macs=0.5"]]
)
def test_a_comparison_of_recipes_alone_refuses_them_too(tmp_path: Path, given: list[str]) -> None:
    file = _recipe_file(tmp_path)
    ends(
        [*COMPARE, "--recipe", file, *given],
        f"error: {given[0]} is given beside --recipe, which says it",
    )


@pytest.mark.parametrize(
    ("says", "more", "said"),
    [
        ("model: resnet20", [], "its model is resnet20, but all rows of a comparison share theirs"),
        ("arguments: {width: 2}", [], "which is the default; give --arguments, or leave the key"),
        ("weights: a.pt", [], "its weights is a.pt, but all rows of a comparison share theirs, "),
        ("data: cifar10", [], "which is digits; give --data, or leave the key out"),
        ("text: {max_length: 64}", [], "its text is max_length=64, but all rows of a comparison"),
        ("seed: 3", ["--seeds", "0,1"], "which is 0, 1; give --seeds, or leave the key out"),
        ("ignore: [conv2]", [], "its ignore is conv2, but all rows of a comparison share theirs"),
        (
            "ignore: []",
            ["--ignore", "conv2"],
            "its ignore is nothing, but all rows of a comparison",
        ),
        ("min_units: 4", [], "which is 1; give --min-units, or leave the key out"),
        (
            "round_to: 8",
            ["--round-to", "4"],
            "its round_to is 8, but all rows of a comparison share",
        ),
    ],
)
def test_a_row_of_a_file_has_nothing_of_its_own_but_steps(
    tmp_path: Path, says: str, more: list[str], said: str
) -> None:
    file = _recipe_file(tmp_path, says)
    ends([*COMPARE, "--recipe", file, *more], said)
    ends([*COMPARE, "--recipe", file, *more], f"error: --recipe '{file}': its ")


def test_what_a_file_says_as_the_comparison_does_is_no_mistake(tmp_path: Path) -> None:
    says = ["model: digits_cnn", "data: digits", "seed: 1", "round_to: 4", "min_units: 1"]
    path = Path(_recipe_file(tmp_path, *says, "ignore: [conv2]", "text: {}", "arguments: {a: 2}"))
    subject = Subject("digits_cnn", ("a=2",), "w.pt", "digits")
    rows = recipe_rows([path], {"l1"}, subject, Cut(None, (), ("conv2",), 1, 4), (0, 1))
    assert list(rows) == ["recipe"]
    assert len(rows["recipe"]) == 1


def test_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    suite = ["compare", "--suite", "text", "--model", "bert_tiny", "--data", "docstrings"]
    file, other = (
        _recipe_file(tmp_path, "name: pruning"),
        _recipe_file(tmp_path / "a", "name: mine"),
    )
    again = _recipe_file(tmp_path / "b", "name: mine")
    ends([*suite, "--recipe", file], f"--recipe '{file}': the name 'pruning' is taken; set its key")
    for command in (suite, COMPARE):
        more = ["--recipe", other, "--recipe", again]
        ends([*command, *more], f"--recipe '{again}': the name 'mine' is taken; set its key name")


def _recipe_file(folder: Path, *lines: str) -> str:
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    steps = "steps: [{prune: {method: l1, target: macs=0.5}}]"
    file.write_text("\n".join([*lines, steps]), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(("asked", "used"), [(None, 32), (8, 8)])
def test_the_rows_of_the_suite_train_with_the_batch_that_is_asked_for(
    asked: int | None, used: int
) -> None:
    cut = Cut(target=None, options=(), ignore=())
    training = Training(1, None, asked, None, None, None, None)
    rows = suite_steps("text", (), cut, training)
    trainings = [step for steps in rows.values() for step in steps if isinstance(step, Train)]
    assert {step.batch_size for step in trainings} == {used}


@pytest.mark.parametrize("first", [None, 1])
def test_the_rows_of_the_suite_train_in_the_format_that_is_asked_for(first: int | None) -> None:
    cut = Cut(target=None, options=(), ignore=())
    training = Training(1, None, None, None, first, None, None, None, "bfloat16", "contiguous")
    rows = suite_steps("text", (), cut, training)
    trainings = [step for steps in rows.values() for step in steps if isinstance(step, Train)]
    formats = {(step.precision, step.layout) for step in trainings}
    assert formats == {("bfloat16", "contiguous")}


def test_an_unknown_optimizer_ends_every_command_in_one_line() -> None:
    said = "error: --optimizer foo: input should be 'sgd' or 'adamw'"
    ends([*COMPARE, "--target", "macs=0.5", "--optimizer", "foo"], said)
    ends(["train", *COMPARE[1:5], "--optimizer", "foo"], said)
    ends(["train", *COMPARE[1:5], "--lr", "0"], "error: --lr 0.0: ")
    ends(["train", *COMPARE[1:5], "--resume"], "--resume is given without --out")


FIRST = TrainConfig(epochs=1, lr=0.1, batch_size=32, precision="float32", layout="contiguous")


@pytest.mark.parametrize(
    ("factory", "arguments", "first", "seen"),
    [
        ("make", {}, FIRST, False),
        ("make", {"pretrained": True}, FIRST, True),
        ("make", {"seed": 3}, FIRST, True),  # the same weights, whatever the seed is here
        ("tune", {}, FIRST, True),  # one layer of it is loaded
        ("make", {}, None, True),
    ],
)
def test_an_own_factory_that_is_trained_here_has_not_seen_the_search_split(
    tmp_path: Path, factory: str, arguments: dict[str, Any], first: TrainConfig | None, seen: bool
) -> None:
    """Weights that are neither named nor trained here come from nobody knows where."""
    file = tmp_path / "net.py"
    file.write_text(FACTORY, encoding="utf-8")
    source = Source(model=f"{file}:{factory}", arguments=arguments)
    done = prunus.compress(source, STEPS, few_digits(), train_first=first, latency=None)
    assert done.record.search_seen_in_pretraining == seen


def test_a_factory_with_weights_may_have_seen_the_search_split(tmp_path: Path) -> None:
    file, weights = tmp_path / "net.py", tmp_path / "w.pt"
    file.write_text("from prunus.zoo import build\n\ndef make():\n    return build('digits_cnn')\n")
    torch.save(trained_cnn().state_dict(), weights)
    source = Source(model=f"{file}:make", weights=str(weights))
    done = prunus.compress(source, STEPS, few_digits(), train_first=FIRST, latency=None)
    assert done.record.search_seen_in_pretraining


TRAININGS = "steps: [{repeat: {times: 2, steps: [{train: {epochs: 1, lr: 0.1}}]}}, {train: {epochs: 1, lr: 0.1%s}}]"


@pytest.mark.parametrize("command", ["compress", "compare"])
def test_formats_hold_for_the_trainings_of_a_recipe_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Else rows of one table are trained in different formats, without a word."""
    file = tmp_path / "recipe.yaml"
    file.write_text(TRAININGS % ", layout: contiguous", encoding="utf-8")
    seen: list[Any] = []

    def stop(_network: Any, asked: Any, *_: Any, **__: Any) -> None:
        seen.append(asked)
        raise InputError("seen enough")

    monkeypatch.setattr(f"prunus.cli.work.{command}", stop)
    given = [command, "--model", "digits_cnn", "--weights", "w.pt", "--data", "digits"]
    given += ["--recipe", str(file), "--precision", "bfloat16"]
    ends([*given, "--layout", "contiguous"], "seen enough")
    recipe = seen[0] if command == "compress" else as_recipe(seen[0]["recipe"])
    formats = [(train.precision, train.layout) for train in recipe.trainings]
    assert formats == [("bfloat16", "contiguous")] * 2
    ends([*given, "--layout", "channels_last"], "--layout channels_last is given, and a step train")
    ends([*given, "--layout", "auto"], "--layout auto is given, and a step train of")


def test_formats_of_trainings_and_scoring_can_be_pinned() -> None:
    training = Training(2, None, None, None, 3, None, None, None, "float32", "contiguous")
    step = make_finetune(training, text=False)
    assert (step.precision, step.layout) == ("float32", "contiguous")
    first = make_train_first(training, Source(model="digits_cnn"), "digits")
    assert first is not None
    assert (first.precision, first.layout) == ("float32", "contiguous")
    compute = make_compute(Scoring("serial", 1, None, 256), training)
    assert (compute.precision, compute.layout) == ("float32", "contiguous")
    ends(
        [*COMPARE, "--method", "l1", "--target", "macs=0.5", "--precision", "float16"],
        "error: --precision float16: input should be 'auto', 'float32' or 'bfloat16'",
    )


def test_a_comparison_with_a_row_that_failed_says_so_in_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Method, context: Context) -> Decision:
        raise BudgetError("nothing fits")

    monkeypatch.setattr(method_class("l1"), "decide", fail)
    asked = [*COMPARE, "--method", "l1", "--method", "l2", "--target", "macs=0.5", "--no-latency"]
    code, screen, _ = run(*asked)
    assert code == PARTLY
    assert "l1 (seed 0) failed: nothing fits" in screen


def test_a_network_for_texts_and_images_do_not_go_together() -> None:
    asked = ["train", "--model", "textcnn", "--data", "digits", "--epochs", "1"]
    ends(asked, "model 'textcnn' reads texts, and data 'digits' are none; give texts")


def test_a_shape_that_does_not_fit_is_named_by_its_option_with_a_remedy() -> None:
    asked = ["measure", "--model", "digits_cnn", "--shape", "3,8,8"]
    ends(asked, "does not run on --shape 3,8,8: ")
    ends(asked, "; give the sizes of an input that it takes")
