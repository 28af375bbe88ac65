"""What is printed: where the output takes nothing, or not every character; and paths as they are."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from prunus.cli.app import USER_ERROR
from prunus.recipe import Prune, compress
from tests.cli.runner import ends, run
from tests.recipe.subjects import few_digits, trained_cnn

FULL = Path("/dev/full")
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NAME = "a[/b] [v1] :smile:"
"""As markup it closes what is not open, is left out, or becomes a picture."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("run") / "run"
    steps = [Prune(method="l1", target="macs=0.5")]
    compress(trained_cnn(), steps, few_digits(), out=out, latency=None)
    return out


@pytest.fixture
def full() -> Iterator[int]:
    """The number of a file that takes nothing."""
    number = os.open(FULL, os.O_WRONLY)
    yield number
    os.close(number)


def _process(
    *command: str | Path,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    variables: Mapping[str, str] = {},
) -> tuple[int, str, str]:
    """As a shell runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "prunus", *command],
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **variables},
        timeout=300,
        check=False,
    )
    return done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode()


@pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")
def test_an_output_that_takes_nothing_ends_in_one_line_after_the_report(
    records: Path, full: int, tmp_path: Path
) -> None:
    for command in (["report", records, "--out", tmp_path], ["methods"]):
        code, _, log = _process(*command, stdout=full)
        assert code == USER_ERROR
        assert log == (
            "prunus: error: the output cannot be printed: No space left on device; send it elsewhere "
            "(with --out nothing is lost)\n"
        )
    assert (tmp_path / "report.html").is_file()


def test_characters_that_the_output_cannot_show_are_replaced(records: Path, tmp_path: Path) -> None:
    code, screen, log = _process("report", records, "--out", tmp_path, variables=ASCII)
    assert (code, log) == (0, "")
    assert screen.isascii()
    assert "?" in screen  # for the division signs above the columns
    assert (tmp_path / "report.html").is_file()


def test_a_path_is_printed_as_it_is(records: Path, tmp_path: Path) -> None:
    out = tmp_path / NAME
    code, screen, _ = run("report", records, "--out", out)
    assert code == 0
    assert f"report: {out / 'report.html'}\n" in screen
    asked = ["train", "--model", "digits_cnn", "--data", "digits", "--epochs", "1"]
    code, screen, _ = run(*asked, "--out", tmp_path / "train" / NAME)
    assert code == 0
    assert f"artifact: {tmp_path / 'train' / NAME / 'artifact'}\n" in screen


def test_a_name_longer_than_the_system_has_is_refused_in_one_line() -> None:
    name = 300 * "a"
    ends(["report", name], "cannot be read: File name too long; name a run folder or a JSON file")
    asked = ["compress", "--model", "digits_cnn", "--data", "digits", "--method", "l1"]
    ends(
        [*asked, "--target", "macs=0.5", "--train-epochs", "1", "--out", name], "File name too long"
    )


def test_records_that_nest_without_end_or_hold_half_a_character(
    records: Path, tmp_path: Path
) -> None:
    deep, half = tmp_path / "deep.json", tmp_path / "half.json"
    deep.write_text(100_000 * "[", encoding="utf-8")
    ends(["report", str(deep)], "is no JSON; name a run folder or its records")
    content = json.loads((records / "record.json").read_text(encoding="utf-8"))
    half.write_text(json.dumps({**content, "data": "\ud800"}), encoding="utf-8")
    ends(["report", str(half)], "half a character")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")
@pytest.mark.parametrize("command", [["--help"], ["--version"], ["compress", "--help"]])
def test_help_that_cannot_be_printed_ends_in_one_line(command: list[str], full: int) -> None:
    code, _, log = _process(*command, stdout=full)
    said = (
        "prunus: error: the output cannot be printed: No space left on device; send it elsewhere\n"
    )
    assert (code, log) == (USER_ERROR, said)


@pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")
def test_a_log_that_takes_no_more_costs_nothing(full: int, tmp_path: Path) -> None:
    code, _, _ = _process("compress", "--model", "nix", stderr=full)
    assert code == USER_ERROR
    command = "compress --model digits_cnn --data digits --train-epochs 1 --method l1 --epochs 1"
    out = tmp_path / "run"
    code, screen, _ = _process(
        *command.split(), "--target", "macs=0.5", "--no-latency", "--out", out, stderr=full
    )
    assert code == 0
    assert str(out / "report.html") in screen and (out / "report.html").is_file()


def test_notes_of_every_row_are_printed_and_an_untrained_null_is_a_warning() -> None:
    command = "compare --model digits_cnn --data digits --train-epochs 1 --target macs=0.5"
    rows = "--method scratch --method genetic --option genetic.population=4 --no-latency"
    few = "--option genetic.parents=2 --option genetic.generations=0 --option genetic.images=64"
    code, screen, _ = run(*command.split(), *rows.split(), *few.split())
    assert code == 0
    assert "! scratch at macs=0.5: the network from scratch was not trained" in screen
    assert "Null baselines" not in screen
    notes = [line for line in screen.splitlines() if line.startswith("note: ")]
    assert notes[0] == "note: latency: switched off"
    assert all(note.startswith("note: genetic: ") for note in notes[1:]) and len(notes) > 1
    assert any("steps[0].prune: 4 evaluations of candidates" in note for note in notes)
