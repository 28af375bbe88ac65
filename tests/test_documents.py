"""What the documents promise: the example runs, the tables are the records', the paths exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunus.train import TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "studies").rglob("*.md")])
_PATH = re.compile(r"`((?:src|tests|docs|benchmarks|tools|studies)/[\w./-]+)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def test_the_readmes_example_runs_and_meets_its_budget() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)  # noqa: S102 - our own page
    record = scope["result"].record  # type: ignore[attr-defined]
    assert 0.49 * record.dense_cost.macs <= record.cost.macs <= 0.5 * record.dense_cost.macs
    assert all(certificate.passed for certificate in record.certificates)
    values = {score.stage: score.value for score in record.scores}
    assert values["dense"] > 0.9  # a network that was trained: one of ten classes by chance is 0.1
    assert values["after_training"] > values["after_recalibration"] > values["after_cut"]
    assert len(example.strip().splitlines()) <= 12


def test_tables_are_drawn_from_the_records() -> None:
    tool = ROOT / "tools" / "render_tables.py"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = [ROOT / path for path in _PATH.findall(text)]
    named += [page.parent / path for path in _LINK.findall(text)]
    missing = [str(path) for path in named if not path.exists()]
    assert not missing


@pytest.mark.parametrize(
    ("change", "partial"),
    [
        ({}, False),
        ({"finetune_epochs": 19}, True),
        ({"train_images": 10_000}, True),
        ({"seeds": 2}, True),
        ({"epochs_trained": 40, "epochs_due": 220}, True),
        (None, True),  # a method is missing
    ],
)
def test_the_table_of_resnet56_says_what_it_lacks(
    change: dict[str, int] | None, partial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import benchmark_tables

    known: dict[str, float | str] = {
        "finetune_epochs": 20,
        "train_images": 45_000,
        "epochs_trained": 20,
        "epochs_due": 20,
        "seeds": 3,
        "params": 1,
    }
    known |= {"macs_ratio": 2.1, "top1_mean": 0.9, "top1_std": 0.1}
    known |= {"reference": "m1", "less_reference_mean": 0.0012, "less_reference_std": 0.002}
    rows = [
        {"method": f"m{i}", **known, **(change or {})} for i in range(11 + (change is not None))
    ]
    table = benchmark_tables.resnet56(rows)
    assert ("Partial" in table) == partial
    assert table.count("+0.12 ± 0.20 pt") == len(rows) - 1  # the peer has none to itself
    assert ("| m0, 40 of its 220 epochs |" in table) == ("epochs_due" in (change or {}))
    assert "look" not in table
    assert "| m0, 2 looks at test |" in benchmark_tables.resnet56(
        [{**rows[0], **known, "test_looks": 2}]
    )
    assert benchmark_tables.resnet56_smaller(rows) == "Not measured yet."
    due = {"epochs_trained": 201, "epochs_due": 201}
    small = [{**rows[0], "finetune_epochs": 1, "train_images": 10_000, **due}]
    assert benchmark_tables.resnet56([*rows, *small]) == table
    told = benchmark_tables.resnet56_smaller([*small, *rows])
    assert told.startswith("Fine-tuned 1 epoch(s) of 10,000 images.\n")
    assert "| m0, all its 201 epochs |" in told


def test_networks_of_two_scales_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    known = {"network": "resnet18", "machine": "two-cores", "round": 2, "params": 1, "macs": 1}
    known |= {"top1_mean": 0.9, "top1_std": None, "seeds": 3, "paper_top1": 0.8}
    one = {"method": "genetic", "scale": "small", **known}
    table = study_tables.kuzmin_quality([one])
    assert "| genetic |" in table and "5 epochs of fine-tuning a round" in table
    assert "Cells of resnet18 are of `two-cores`" in table
    elsewhere = study_tables.kuzmin_quality([{**one, "machine": "gpu"}])
    assert "Scale `small`: no cells." in elsewhere  # those of another machine are not its own
    table = study_tables.kuzmin_quality([one, {"method": "l2", "scale": "full", **known}])
    assert "| genetic (small) |" in table and "| l2 (full) |" in table
    assert "Not measured: vgg16_bn: genetic; l2; random-search;" in table
    assert "resnet18: genetic at round 3, 4, 5; l2 at round 3, 4, 5; random-search; random" in table


def test_what_kills_did_is_told_from_their_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import benchmark_tables

    known = {"computed_twice": 0, "forgotten": 0, "same_as_alone": True}
    once = {"killed_after_results": [7], "lost_in_flight": [1], **known}
    twice = {"killed_after_results": [3, 9], "lost_in_flight": [0, 1], **known}
    told = benchmark_tables.candidate_kills(
        [once, {**twice, "same_as_alone": False, "forgotten": 4}]
    )
    assert told.startswith("2 searches, 3 kills by SIGKILL: 1 end with the plan")
    assert "0 were computed again and 4 forgotten, 2 were lost in flight" in told


def test_turns_are_drawn_with_quartiles_and_how_they_were_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records of before hold medians alone."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import benchmark_tables

    rows: list[dict[str, Any]] = [
        {"network": "n", "before": "itself", "median_ms": 20.0},
        {"network": "n", "before": "others", "median_ms": 30.0},
    ]
    before = benchmark_tables.turns(rows)
    assert before.splitlines()[-1] == "| n | 20.0 ms | × 1.50 |"
    known = {"of": "BERT", "batch": 1, "tokens": 128, "threads": 2, "repeats": 24, "settle_s": 0.1}
    known |= {"cpu": "Some CPU", "cores": 4, "instructions": ["avx2", "avx_vnni"]}
    ratios = {"median_ratio": 1.4, "q25_ratio": 1.3, "q75_ratio": 1.7}
    now = benchmark_tables.turns([{**row, **known, **ratios} for row in rows]).splitlines()
    assert now[2] == "| n | 20.0 ms | × 1.40 (1.30 to 1.70) |"
    assert now[-1].startswith("BERT; 1 text of 128 tokens, 2 threads, 4 cores of Some CPU (avx2,")
    assert "24 turns" in now[-1]


def test_an_architecture_that_is_not_installed_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import benchmark_tables

    known: dict[str, Any] = {"source": "lib", "groups_total": 5, "groups_refused": 1}
    good = {**known, "name": "A", "traced": True, "certified": True, "onnx_max_difference": 1e-7}
    worse = {**good, "name": "B", "onnx_max_difference": 1e-3}
    bad = {**good, "name": "C", "certified": False, "onnx_max_difference": None}
    bad |= {"reason": "", "params_in_cuttable_groups": 0.4}
    absent = {**known, "name": "D", "traced": False, "certified": False}
    absent |= {"onnx_max_difference": None, "groups_total": 0, "groups_refused": 0}
    absent |= {"reason": "AttributeError: module lib has no attribute DConfig"}
    table = benchmark_tables.coverage([good, worse, bad, absent])
    assert "| lib: 3 | 3 | 2 | 15 | 3 | 1 |" in table
    assert "Not certified: C (40% of its parameters in groups that can be cut)." in table
    assert "the installed library lacks it: D (lib)." in table
    brief = benchmark_tables.coverage_brief([good, worse, bad, absent])
    assert brief == "Certified: 2 of 3 of lib, 1 with ONNX parity within 1e-4."
    brief = benchmark_tables.coverage_brief([{**good, "of": 4, "onnx_max_difference": None}])
    assert brief == "Certified: 1 of 1 of lib (partial: the aim is 4)."


def test_the_page_says_at_which_commit_libraries_were_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import benchmark_tables

    ran = {"commit": "0123456789", "versions": {"torch": "2.14.1", "numpy": "2"}}
    told = benchmark_tables.coverage_libraries_run(
        {"settings": {"versions": {"timm": "1.0.31"}}, "environment": ran}
    )
    assert told == "Measured at commit `0123456` with timm 1.0.31, torch 2.14.1."


def test_the_short_table_of_genetic_pruning_says_which_drops_to_compare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    dense: dict[str, Any] = {"network": "resnet18", "method": "dense", "scale": None, "round": 1}
    dense |= {"top1_mean": 0.9, "paper_top1": 0.7}
    told = study_tables.kuzmin_brief([dense]).splitlines()[-1]
    assert "resnet18 90.00% (the paper's 70.00%): compare drops, not levels." in told


def test_every_method_has_a_card() -> None:
    import prunus.prune  # noqa: F401 - registers the methods
    from prunus.method import method_names

    cards = {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")}
    assert set(method_names()) <= cards


def test_the_recipe_in_getting_started_is_one() -> None:
    import yaml

    from prunus.recipe import make_recipe

    text = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    recipe = make_recipe(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]))
    assert [step.step for step in recipe.steps] == ["prune", "recalibrate", "train"]


def test_the_reference_of_recipes_knows_every_key_with_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By hand for a few, and no key without a meaning."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import recipe_tables

    rows = {
        name: {line.split("|")[1].strip(" `"): line for line in draw().splitlines()[2:]}
        for name, draw in recipe_tables.TABLES.items()
    }
    assert rows["recipe_train"]["label_smoothing"].startswith(
        "| `label_smoothing` | number | `0.0` | Share of the label spread"
    )
    assert rows["recipe_prune"]["method"].startswith("| `method` | text | must be given | Name of")
    assert "| `auto`, `true`, `false` | `auto` |" in rows["recipe_recalibrate"]["augment"]
    assert "| `linear`, `geometric` or list | `geometric` |" in rows["recipe_repeat"]["schedule"]
    assert all(
        len(line.split("|")[4].strip()) > 3 for one in rows.values() for line in one.values()
    )


def _blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language; every second part of a page is one."""
    parts = page.read_text(encoding="utf-8").split("```")[1::2]
    return [body for first, _, body in (p.partition("\n") for p in parts) if first == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_recipe_and_every_command_of_a_page_can_be_read(page: Path) -> None:
    import yaml
    from typer.main import get_command

    from prunus.cli.app import app
    from prunus.recipe import make_recipe

    for block in _blocks(page, "yaml"):
        content = yaml.safe_load(block)
        make_recipe({"steps": content} if isinstance(content, list) else content)
    text = page.read_text(encoding="utf-8")
    lines = "\n".join(_blocks(page, "")).replace("\\\n", " ").splitlines()
    lines += [" ".join(found.split()) for found in re.findall(r"`(prunus [a-z]+ --[^`]*)`", text)]
    commands = getattr(get_command(app), "commands")  # noqa: B009  # a group's, which typer hides
    for line in lines:
        if line.startswith("prunus ") and "|" not in line:
            name, *rest = shlex.split(line.replace(" ...", ""), comments=True)[1:]
            given = commands[name].make_context(name, rest).params
            if name == "measure":  # which needs one of them
                assert (given["data"] is None) != (given["shape"] is None), line


def test_differences_to_the_named_peer_are_taken_seed_by_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By hand: ours is 0.1, 0.3 and 0.2 above the reference, whichever peer is best on test."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import resnet56_tables

    top1 = {"tp-taylor": (0.9, 0.9, 0.9), "tp-magnitude": (0.7, 0.9, 0.8), "ours": (0.8, 1.2, 1.0)}
    for method, values in top1.items():
        for seed, value in enumerate(values):
            cell = {"method": method, "seed": seed, "top1": value, "macs_ratio": 2.1, "params": 5}
            cell |= {"finetune_epochs": 20, "train_images": 45_000, "config": {"epochs": 20}}
            cell |= {"test_evaluations": {"after_training": 1 + seed}}
            cell |= {"epochs_due": 220} if method == "ours" else {}
            (tmp_path / "epochs20").mkdir(exist_ok=True)
            place = 2 - seed if method == "ours" else seed  # files in another order
            file = tmp_path / "epochs20" / f"{method}-seed{place}.json"
            file.write_text(json.dumps(cell), encoding="utf-8")
    written: list[dict[str, object]] = []
    monkeypatch.setattr(
        resnet56_tables, "write_results", lambda _, rows, **__: written.extend(rows)
    )
    resnet56_tables.table(tmp_path, 2.1)
    found = {row["method"]: row for row in written}
    assert found["ours"]["reference"] == "tp-magnitude"
    assert found["ours"]["less_reference_mean"] == pytest.approx(0.2)
    assert found["ours"]["less_reference_std"] == pytest.approx(0.1)
    assert found["tp-magnitude"]["less_reference_mean"] == 0
    assert found["ours"]["test_looks"] == 3
    assert [
        (row["epochs_trained"], row["epochs_due"]) for row in (found["ours"], found["tp-taylor"])
    ] == [
        (20, 220),
        (20, 20),
    ]


def test_a_cell_of_resnet56_is_trained_again_for_more_epochs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 30 epochs is there; ``scratch`` is due 200 and the fine-tuning's 20."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    resnet56 = pytest.importorskip("resnet56", reason="needs torch-pruning")
    monkeypatch.setattr(resnet56, "FOLDER", tmp_path)
    begun: list[str] = []

    def begin(self: object, method: str, seed: int) -> None:
        begun.append(method)
        raise RuntimeError("begun")

    monkeypatch.setattr(resnet56.Bench, "cut", begin)
    config = TrainConfig(epochs=20, lr=0.02)
    monkeypatch.setattr(resnet56.Bench, "recipe", lambda *_: config)
    bench = object.__new__(resnet56.Bench)
    bench.images = 45_000
    cell = tmp_path / "epochs20-images45000" / "scratch-seed0.json"
    cell.parent.mkdir()
    cell.write_text(json.dumps({"config": {"epochs": 30}}), encoding="utf-8")
    for fewer in (10, 30):
        bench.cell("scratch", 0, 20, fewer)
    assert not begun
    for more in (31, 0):
        with pytest.raises(RuntimeError, match="begun"):
            bench.cell("scratch", 0, 20, more)
    assert begun == ["scratch", "scratch"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_installs_from_an_index_that_lacks_prunus_or_calls_tokens_pieces(
    page: Path,
) -> None:
    text = page.read_text(encoding="utf-8")
    assert "pip install prunus" not in text and "prunus[" not in text
    assert not re.search(r"\bpieces?\b", text, re.IGNORECASE)


def test_the_list_of_methods_holds_all_of_them() -> None:
    import prunus.prune  # noqa: F401 - registers the methods
    from prunus.method import method_names

    text = (ROOT / "docs" / "choosing-a-method.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\(methods/([\w-]+)\.md\)", text.partition("## Methods")[2]))
    assert set(method_names()) <= listed


@pytest.mark.parametrize("reason", ["cannot change", "merges two dimensions", "head width"])
def test_the_most_frequent_reasons_have_a_remedy(reason: str) -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    rules = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src/prunus/graph").glob("rules_*.py")
    )
    assert reason in rules  # as the code says it
    assert any(reason in line for line in page.splitlines() if line.startswith("| "))


@pytest.mark.parametrize("model", ["bert_tiny", "bilstm"])
def test_the_classes_of_new_texts_are_read_as_the_page_says(model: str) -> None:
    from types import SimpleNamespace

    import torch

    from prunus.zoo import build

    (block,) = _blocks(ROOT / "docs" / "text.md", "python")
    lines = [line for line in block.splitlines() if line.startswith(("said =", "same ="))]
    network = build(model, vocab_size=9, num_classes=3).eval()
    ids = torch.ones(2, 4, dtype=torch.int64)
    scope: dict[str, Any] = {"cell": "", "prunus": SimpleNamespace(load=lambda _: network)}
    scope["tokens"] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    exec("\n".join(lines), scope)  # noqa: S102 - our own page
    assert scope["same"].shape == (2,)
