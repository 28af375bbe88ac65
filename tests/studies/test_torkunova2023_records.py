"""Where records of study M go, by the kind of processor, and that they are there as a whole."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.studies.torkunova import FOLDER, cell_of

AVX512 = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")


@pytest.mark.parametrize(
    ("instructions", "machine", "folder"),
    [
        (("avx2",), "avx2", "sizes"),
        (("avx2", "avx512f"), "avx2", "sizes"),
        (AVX512, "avx512", "sizes-avx512"),
        ((*AVX512, "avx_vnni"), "avx512-avxvnni", "sizes-avx512-avxvnni"),
        ((*AVX512, "avx_vnni", "amx_tile", "amx_int8"), "amx", "sizes-amx"),
        (("avx2", "avx_vnni"), "other", "sizes-other"),
        ((), "other", "sizes-other"),
    ],
)
def test_a_processors_kind_is_told_by_what_it_multiplies_int8_with(
    text_study: ModuleType, instructions: tuple[str, ...], machine: str, folder: str
) -> None:
    assert text_study.summary.machine_of(instructions) == machine
    assert text_study.summary.folder_of(machine) == folder


def test_every_record_lies_where_those_of_its_processor_do(text_study: ModuleType) -> None:
    results = FOLDER / "results"
    for folder, machine in text_study.summary.MACHINES.items():
        assert text_study.summary.machines_in(results / folder) == {machine}
    bounds = sorted(results.glob("bound*.json"))
    assert len(bounds) == 2
    for path in bounds:
        where = json.loads(path.read_text(encoding="utf-8"))["environment"]
        assert path.stem == f"bound-{text_study.summary.machine_of(where['instructions'])}"


def test_records_go_where_those_of_this_processor_do(
    text_study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Path] = []
    monkeypatch.setattr(text_study, "RECORDS", tmp_path)
    _on(text_study, monkeypatch, AVX512)
    monkeypatch.setattr(text_study.sizes, "run", lambda *given: done.append(given[1]))
    monkeypatch.setattr(text_study.bound, "measure", done.append)
    for command in ("sizes", "bound"):
        monkeypatch.setattr(sys, "argv", ["study.py", command])
        text_study.main()
    assert done == [tmp_path / "sizes-avx512", tmp_path / "bound-avx512.json"]


def test_sizes_of_two_kinds_of_processors_do_not_get_into_one_folder(
    text_study: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = {"environment": {"instructions": ["avx2", "amx_int8"]}}
    (tmp_path / "none.json").write_text(json.dumps(record), encoding="utf-8")
    _on(text_study, monkeypatch, ("avx2",))
    monkeypatch.setattr(text_study.sizes, "run", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["study.py", "sizes", "--records", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        text_study.main()
    assert stopped.value.code == 2
    assert "another kind of processor (amx) than this one (avx2)" in capsys.readouterr().err


def test_a_bound_that_is_there_is_not_measured_again(
    text_study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bound-avx2.json"
    file.write_text("{}", encoding="utf-8")
    monkeypatch.setattr(text_study.bound, "subjects", lambda: pytest.fail("measured"))
    text_study.bound.measure(file)
    assert file.read_text(encoding="utf-8") == "{}"


def test_a_record_whose_writing_is_killed_is_not_there(
    text_study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = tmp_path / "cells" / "one.json", Path.write_text

    def half(path: Path, text: str, **more: Any) -> int:
        write(path, text[: len(text) // 2], **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Path, "write_text", half)
        with pytest.raises(KeyboardInterrupt):
            text_study.files.write(file, {"row": "none"})
    assert not list(file.parent.glob("*.json"))
    text_study.files.write(file, {"row": "none"})
    assert json.loads(file.read_text(encoding="utf-8")) == {"row": "none"}
    assert [path.name for path in file.parent.iterdir()] == ["one.json"]


def test_halves_of_records_are_not_collected(
    text_study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_study, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(text_study, "HERE", tmp_path)
    text_study.files.write(tmp_path / "records" / "cells" / "0.json", cell_of(0, 0.9))
    (tmp_path / "records" / "cells" / "1.json.part").write_text("{", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["study.py", "table"])
    text_study.main()
    assert [p.name for p in (tmp_path / "results" / "cells").iterdir()] == ["0.json"]


def _on(
    text_study: ModuleType, monkeypatch: pytest.MonkeyPatch, instructions: tuple[str, ...]
) -> None:
    """Let the study believe that it runs on another processor."""
    found = SimpleNamespace(instructions=instructions)
    monkeypatch.setattr(text_study.Environment, "capture", lambda *_: found)
