"""The command line: what it makes, and that every wrong input ends in one line and exit code 2."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from prunus.artifact import load
from prunus.cli import app, show
from prunus.cli.app import INTERRUPTED, USER_ERROR
from prunus.cli.given import read_pairs, read_seeds, read_shape
from prunus.cli.progress import RichProgress
from prunus.errors import InputError
from prunus.recipe import COMPARISON_FILE, RECORD_FILE, load_recipe
from prunus.records import Comparison
from prunus.zoo import build
from tests.cli.runner import RUNNER, ends, run
from tests.recipe.subjects import trained_cnn

RECIPE = """
model: digits_cnn
data: digits
steps:
  - prune: {method: l1, target: macs=0.5}
  - recalibrate: {images: 64}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dense.pt"
    torch.save(trained_cnn().state_dict(), path)
    return path


@pytest.fixture
def good(weights: Path) -> list[str]:
    """A command that works."""
    return [
        *("compress", "--model", "digits_cnn", "--weights", str(weights), "--data", "digits"),
        *("--method", "l1", "--target", "macs=0.5", "--no-latency"),
    ]


def test_compress_saves_an_artifact_and_a_report(good: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, screen, _ = run(*good, "--epochs", "1", "--batch-size", "64", "--out", out)
    assert code == 0
    assert "digits_cnn on digits" in screen
    assert load(out / "artifact").get_parameter("conv2.weight").shape[0] < 24
    assert (out / "report.html").is_file()
    assert re.search(r"\bl1\b", (out / "report.md").read_text(encoding="utf-8"))
    before = (out / RECORD_FILE).read_bytes()
    again = [*good, "--epochs", "1", "--batch-size", "64", "--out", str(out), "--resume"]
    assert run(*again)[0] == 0
    assert (out / RECORD_FILE).read_bytes() == before


def test_compress_by_a_recipe_file(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    out = tmp_path / "run"
    code, _, _ = run(
        "compress",
        "--recipe",
        file,
        "--weights",
        weights,
        "--seed",
        "4",
        "--out",
        out,
        "--no-latency",
    )
    assert code == 0
    record = show.read_records(out)[0].runs[0]
    assert (record.seed, record.source.weights) == (4, str(weights))
    assert len(record.recipe["steps"]) == len(load_recipe(file).steps) == 2


def test_compare_trains_the_dense_network_first_and_draws_the_report(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command: tuple[str | Path, ...] = (
        *("compare", "--model", "digits_cnn", "--data", "digits", "--target", "macs=0.5"),
        *("--train-epochs", "2", "--epochs", "1", "--batch-size", "64", "--seeds", "0,1"),
        *("--method", "random", "--method", "taylor", "--option", "taylor.images=64"),
        *("--method", "scratch", "--no-latency", "--out", out, "--resume"),
    )
    code, screen, log = run(*command)
    assert code == 0
    assert "Null baselines" in screen
    assert "compare: 6 of 6" in log
    comparison = Comparison.load(out / COMPARISON_FILE)
    assert [(r.method, r.seed) for r in comparison.runs] == [
        (method, seed) for method in ("random", "taylor", "scratch") for seed in (0, 1)
    ]
    assert (out / "report.html").is_file()
    taylor = next(r for r in comparison.runs if r.method == "taylor")
    assert taylor.recipe["steps"][0]["prune"]["options"] == {"images": 64}
    scratch = next(r for r in comparison.runs if r.method == "scratch")
    assert len([p for p in scratch.history if p.phase == "train"]) == 2 + 1
    start = time.perf_counter()
    assert run(*command)[0] == 0  # again, as `make demo` does: nothing is computed anew
    assert Comparison.load(out / COMPARISON_FILE) == comparison
    assert time.perf_counter() - start < 20
    code, screen, _ = run("report", out, "--out", tmp_path / "again")
    assert code == 0
    assert "taylor" in screen
    assert run("report", out / "report.json", "--out", tmp_path / "third")[0] == 0
    first, third = (tmp_path / name / "report.md" for name in ("again", "third"))
    assert first.read_bytes() == third.read_bytes()


def test_train_saves_weights_that_compress_takes(tmp_path: Path) -> None:
    out = tmp_path / "dense"
    code, screen, _ = run(
        *("train", "--model", "digits_cnn", "--arguments", "width=0.5", "--data", "digits"),
        *("--epochs", "1", "--out", out),
    )
    assert code == 0
    assert "on test" in screen
    assert load(out / "artifact").get_parameter("conv2.weight").shape[0] == 12
    code, _, _ = run(
        *("compress", "--model", "digits_cnn", "--arguments", "width=0.5", "--data", "digits"),
        *("--weights", out / "artifact" / "model.safetensors", "--method", "random"),
        *("--target", "params=0.6", "--no-latency"),
    )
    assert code == 0


def test_train_tells_the_notes_of_the_data(tmp_path: Path) -> None:
    texts = [(f"{'good' if i % 2 else 'bad'} day number {i}", i % 2) for i in range(40)]
    lines = [f"{text},{label}" for text, label in [*texts, texts[0], texts[1]]]
    file, out = tmp_path / "a.csv", tmp_path / "run"
    file.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    code, screen, _ = run(
        *("train", "--model", "textcnn", "--arguments", "embedding=8", "--arguments", "hidden=8"),
        *("--data", f"text:{file}", "--epochs", "1", "--out", out),
    )
    assert code == 0
    told = "2 texts that were there twice were left out before splitting"
    assert f"note: {told}" in screen
    assert told in json.loads((out / "training.json").read_text(encoding="utf-8"))["notes"][0]


def test_measure_says_what_can_be_cut() -> None:
    code, screen, _ = run("measure", "--model", "digits_cnn", "--shape", "1,8,8")
    assert code == 0
    assert "12,170" in screen  # parameters: 144+32 + 3456+48 + 3456+32 + 4608+64 + 330
    assert "525,632" in screen  # MACs: 64 (144+3456+3456) + 16 * 4608 + 320
    assert "3 of 4 groups can be cut" in screen
    assert "stays whole" in screen
    code, screen, _ = run(
        *("measure", "--model", "digits_cnn", "--data", "digits", "--ignore", "conv1"),
        "--no-latency",
    )
    assert code == 0
    assert "2 of 4 groups can be cut" in screen


@pytest.mark.parametrize(
    ("given", "why", "count"),
    [
        (("--round-to", "20"), "stays whole: round_to=20", 2),  # of 16, 24 and 32 the first
        (("--round-to", "64"), "stays whole: round_to=64", 0),
        (("--min-units", "24"), "stays whole: min_units=24", 1),
    ],
)
def test_groups_whose_least_width_is_all_cannot_be_cut(
    given: tuple[str, str], why: str, count: int
) -> None:
    command = ("measure", "--model", "digits_cnn", "--shape", "1,8,8", "--no-latency")
    code, screen, _ = run(*command, *given)
    assert code == 0
    assert screen.count(why) == 3 - count
    assert f"{count} of 4 groups can be cut" in screen
    assert ("they touch 0.0 % of" in screen) == (count == 0)


def test_methods_are_listed_with_needs_and_nulls() -> None:
    code, screen, _ = run("methods")
    assert code == 0
    lines = {line.split()[0]: line for line in screen.splitlines() if line.strip()}
    assert "train" in lines["taylor"]
    assert " yes " in lines["random"]
    assert " yes " not in lines["l1"]


def _replace(command: list[str], option: str, value: str | None) -> list[str]:
    at = command.index(option)
    return command[:at] + ([] if value is None else [option, value]) + command[at + 2 :]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--model", "digits_dnn", "model 'digits_dnn' is unknown"),
        ("--model", "nowhere.py:make", "the file 'nowhere.py' does not exist"),
        ("--model", "resnet20", "weights"),
        ("--model", None, "model is missing"),
        ("--data", "digitz", "data 'digitz' is unknown"),
        ("--data", None, "data is missing"),
        ("--method", "l9", "no method 'l9'"),
        ("--method", None, "--method is missing"),
        ("--target", "half", "target 'half' is not understood"),
        ("--target", "macs=0.00001", "cannot be reached"),
        ("--target", None, "--target is missing"),
        ("--weights", "none.pt", "weights 'none.pt' not found"),
        ("--weights", None, "has no weights"),
    ],
)
def test_a_wrong_value_ends_in_one_line(
    good: list[str], option: str, value: str | None, said: str
) -> None:
    ends(_replace(good, option, value), said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--epochs", "0"], "error: --epochs 0: input should be greater than or equal to 1"),
        (["--train-epochs", "0"], "error: --train-epochs 0: "),
        (["--threads", "0"], "error: --threads 0: give 1 or more"),
        (["--out", "/proc/prunus/run"], "out='/proc/prunus/run' cannot be written"),
        (["--round-to", "64"], "change round_to=64 (--round-to)"),
        (["--epochs", "1", "--lr", "-1"], "error: --lr -1"),
        (["--epochs", "1", "--lr", "0"], "error: --lr 0"),
        (["--train-epochs", "1", "--train-lr", "0"], "error: --train-lr 0"),
        (["--epochs", "1", "--optimizer", "foo"], "error: --optimizer foo: input should be 'sgd'"),
        (["--ignore", "nothing*"], "ignore pattern 'nothing*' matches no module"),
        (["--option", "images=3"], "has no option 'images'"),
        (["--option", "images"], "write --option key=value"),
        (["--option", "ignore=*3"], "put texts in quotes, such as ignore='\"*3\"'"),
        (["--option", "ignore=[*3]"], "put texts in quotes, such as ignore='[\"*3\"]'"),
        (["--arguments", "depth=3"], "argument 'depth'"),
        (["--round-to", "0"], "error: --round-to 0: give 1 or more"),
        (["--min-units", "0"], "error: --min-units 0: give 1 or more"),
        (["--seed", "-1"], "error: --seed -1: give 0 or more"),
        (["--seed", str(2**64)], f"error: --seed {2**64}: give a number below 2^64"),
        (["--lr", "0"], "error: --lr 0"),  # also where nothing is trained by it
        (["--train-lr", "0"], "error: --train-lr 0"),
        (["--resume"], "--resume is given without --out"),
        (
            ["--text", "max_length=3"],
            "--text 'max_length=3' is given, but data 'digits' is no set of",
        ),
        (
            ["--image-size", "16"],
            "--image-size 16: image_size is (16, 16), but 'digits' has a size",
        ),
        (["--device", "tpu"], "device='tpu'"),
        (["--recipe", "r.yaml"], "beside --recipe"),
        (["--engine", "threads"], "--engine threads: input should be 'serial', 'processes' or"),
        (["--workers", "2"], "--engine serial: workers=2 needs an engine that has them"),
        (["--engine", "processes", "--workers", "0"], "--workers 0: "),
        (["--engine", "processes", "--address", "auto"], "address='auto' is for engine ray"),
        (["--memory-mb", "-1"], "--memory-mb -1: "),
    ],
)
def test_a_wrong_option_ends_in_one_line(good: list[str], more: list[str], said: str) -> None:
    ends([*good, *more], said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [", "no valid YAML"),
        (RECIPE.replace("method", "methods"), "steps[0].prune.method"),
        (RECIPE.replace("images: 64", "images: all"), "steps[1].recalibrate.images: 'all'"),
        (RECIPE.replace("macs=0.5", "macs=half"), "steps[0].prune.target: target 'macs=half'"),
    ],
)
def test_a_wrong_recipe_ends_in_one_line(
    text: str, said: str, weights: Path, tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    ends(["compress", "--recipe", str(file), "--weights", str(weights)], said)


def test_folders_and_files_that_cannot_be_used(good: list[str], tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("x", encoding="utf-8")
    ends([*good, "--out", str(full)], "holds 'thesis.txt' and is no run")
    out = tmp_path / "run"
    assert run(*good, "--out", out)[0] == 0
    ends([*good, "--out", str(out)], "go on with it (--resume)")
    other = _replace(good, "--target", "macs=0.6")
    ends([*other, "--out", str(out), "--resume"], "recipe.steps[0].prune.target was macs=0.5")
    ends(["report", str(full)], "holds no comparison.json")
    (full / "plan.json").write_text('{"version": 1}', encoding="utf-8")
    ends(["report", str(full / "plan.json")], "is no record of Prunus")
    ends(["report", str(full / "thesis.txt")], "is no JSON")
    ends(["report", str(tmp_path / "none.json")], "No such file")


def test_weights_of_another_network(good: list[str], tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(build("digits_cnn", width=0.5).state_dict(), path)
    ends(_replace(good, "--weights", str(path)), "of shape")


def test_a_missing_extra_names_its_command(
    good: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    command = _replace(_replace(good, "--weights", None), "--model", "timm:resnet10t")
    ends(command, "pip install 'prunus[zoo]'")


def test_comparisons_that_cannot_run(good: list[str]) -> None:
    base = ["compare", *_replace(good, "--method", None)[1:]]
    ends([*base, "--method", "l1", "--method", "l9"], "no method 'l9'")
    ends([*base, "--seeds", "0,x"], "--seeds '0,x'")
    ends([*base, "--seeds", "0,0"], "each once")
    ends([*base, "--seeds", f"0,{2**64}"], f"--seeds {2**64}: give numbers below 2^64")
    ends(
        [*base, "--method", "l1", "--method", "l1"], "--method 'l1' is given twice; give each once"
    )
    ends([*base, "--min-units", "0"], "error: --min-units 0: give 1 or more")
    ends([*base, "--resume"], "--resume is given without --out")
    ends([*base, "--option", "images=3"], "write --option METHOD.key=value")
    ends(_replace(base, "--target", None), "--target is missing")


def test_measurements_that_cannot_be_taken() -> None:
    ends(["measure", "--model", "digits_cnn"], "--data or --shape")
    ends(["measure", "--model", "digits_cnn", "--shape", "1,x"], "--shape '1,x'")
    ends(["measure", "--model", "digits_cnn", "--shape", "3,8,8"], "does not run")
    wide = f"1,8,{2**63}"
    ends(["measure", "--model", "digits_cnn", "--shape", wide], "is more than memory can hold")
    huge = "1,4000000000,4000000000"
    ends(["measure", "--model", "digits_cnn", "--shape", huge], f"--shape {huge}: the memory")


def test_a_network_of_texts_is_measured_on_texts_of_the_length_that_records_state(
    tmp_path: Path,
) -> None:
    file = tmp_path / "short.csv"
    rows = "".join(f"word{k} is {'good' if k % 2 else 'bad'},{k % 2}\n" for k in range(40))
    file.write_text(f"text,label\n{rows}", encoding="utf-8")
    command = ["measure", "--model", "bert_tiny", "--data", f"text:{file}", "--no-latency"]
    found = {}
    for length in (16, 64):
        code, screen, _ = run(*command, "--text", f"max_length={length}")
        assert code == 0 and f"a text of {length} tokens" in screen
        told = " ".join(screen.split())
        assert all(f"{split} texts" in told for split in ("train", "search", "test"))
        assert told.count(f"0.0% are cut at {length}") == 3
        (line,) = (line for line in screen.splitlines() if line.strip().startswith("MACs"))
        found[length] = int(line.split()[-1].replace(",", ""))
    config: Any = build("bert_tiny", num_classes=2, vocab_size=100).config
    d, inner = config.hidden_size, config.intermediate_size
    for length, macs in found.items():
        # As below: maps, feed-forward and attention of each piece; pooler and classifier once.
        layer = length * (4 * d * d + 2 * d * inner + 2 * d * length)
        assert macs == config.num_hidden_layers * layer + d * d + 2 * d


def test_a_network_of_texts_is_measured_on_token_ids(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        vocab_size=30,
        max_position_embeddings=12,
    ).save_pretrained(tmp_path)
    command = ["measure", "--model", f"hf:{tmp_path}", "--arguments", "pretrained=false"]
    code, screen, _ = run(*command, "--shape", "10", "--no-latency")
    assert code == 0
    # 10 tokens: 4 * 16 * 16 of the attention's maps and 2 * 16 * 20 of the feed-forward each,
    # 2 * 16 * 10 of the attention itself; 16 * 16 of the pooler and 16 * 2 of the classifier, once
    macs = 10 * (4 * 256 + 640 + 320) + 256 + 32
    assert f"{macs:,}" in screen
    ends([*command, "--shape", "3,10"], "--shape '3,10': the network takes token ids")


@pytest.fixture
def own_threads() -> Iterator[None]:
    """For a test whose command sets them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("own_threads")
def test_a_search_in_two_processes_is_the_search_in_one(good: list[str], tmp_path: Path) -> None:
    search = [*_replace(good, "--method", "random-search"), "--threads", "2"]
    search += ["--option", "evaluations=4", "--option", "images=64"]
    records = []
    for name, more in (
        ("one", []),
        ("two", ["--engine", "processes", "--workers", "2", "--memory-mb", "8"]),
    ):
        out = tmp_path / name
        code, _, log = run(*search, *more, "--out", out)
        assert code == 0
        assert re.search(r"score candidates: .* candidates/s", log)
        records.append(show.read_records(out)[0].runs[0])
        file = json.loads((out / "run.json").read_text(encoding="utf-8"))
        assert file["candidate_threads"] == 2 // (2 if more else 1)
    assert records[0].plans == records[1].plans
    # the search resumed by more workers keeps the threads of its candidates
    assert run(*search, "--engine", "processes", "--out", tmp_path / "two", "--resume")[0] == 0


def test_the_bar_shows_rate_rest_and_best_in_a_terminal_of_80_columns() -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, color_system=None)
    with RichProgress(terminal) as progress:
        progress.start("compare", 6)
        progress.start("score candidates", 64_000)
        progress.advance(6_400, best=0.012345, **{"candidates/s": 14.44})
        progress.advance(6_400, best=0.0012)  # a later look tells no rate: the last one stays
        progress._bars.refresh()
        progress.finish()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").split("\n")
    last = [line for line in lines if "score candidates" in line][-1]
    assert re.search(r"━.* 20 % left \d:\d\d:\d\d best 0\.0012, 14\.4 candidates/s", last), last


@pytest.mark.parametrize("command", [["press"], ["compress", "--modell", "x"], ["report"]])
def test_usage_errors_end_with_the_same_code(command: list[str]) -> None:
    assert RUNNER.invoke(app, command).exit_code == USER_ERROR


def test_a_bug_keeps_its_traceback(good: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("prunus.cli.work.compress", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(*good)


def test_an_interrupted_run_says_how_to_go_on(
    good: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunus.cli.work.compress", interrupted)
    code, _, log = run(*good)
    assert code == INTERRUPTED
    assert "--resume" in log


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_or_a_time_limit_loses_nothing(weights: Path, tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "prunus", "compress", "--model", "digits_cnn"),
        *("--weights", str(weights), "--data", "digits", "--method", "l1", "--threads", "1"),
        *("--target", "macs=0.5", "--epochs", "500", "--no-latency", "--out", str(out)),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoint = out / "steps" / "03-train.ckpt"
    for _ in range(600):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 128 + number, log
    assert "--resume" in log
    assert checkpoint.exists()
    assert json.loads((out / "steps" / "02-recalibrate.json").read_text(encoding="utf-8"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_to_all_processes_leaves_no_files_of_workers(
    weights: Path, tmp_path: Path
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    command = [
        *(sys.executable, "-m", "prunus", "compress", "--model", "digits_cnn"),
        *("--weights", str(weights), "--data", "digits", "--method", "random-search"),
        *("--target", "macs=0.5", "--option", "evaluations=200", "--no-latency"),
        *("--engine", "processes", "--workers", "2"),
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(place)},
    )

    def left() -> list[Path]:
        return list(place.glob("prunus-*/*"))

    for _ in range(1200):
        if left() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert left(), process.communicate()
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does; a closed terminal sends SIGHUP
    _, log = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, log
    assert not left()


def test_values_of_pairs_are_read_as_yaml() -> None:
    pairs = read_pairs(["a=1", "b=0.5", "c=true", "d=text", "e=[1, 2]", "f=1e-3"], "--x")
    assert pairs == {"a": 1, "b": 0.5, "c": True, "d": "text", "e": [1, 2], "f": 0.001}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"], ["a=["], ["a={b: 1, b: 2}"], ["a=" + 5000 * "["]):
        with pytest.raises(InputError, match="--x"):
            read_pairs(wrong, "--x")
    assert read_seeds("0, 7") == (0, 7)
    assert read_shape("3x32x32") == (3, 32, 32)
    assert (show.COMPARISON_FILE, show.RECORD_FILE) == (COMPARISON_FILE, RECORD_FILE)
