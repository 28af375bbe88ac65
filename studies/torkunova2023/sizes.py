"""Part (a): bytes and CPU time of every row, on the paper's network by shape."""

import copy
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import files
import paper
import torch
from torch import Tensor, nn

import prunus.lowrank
import prunus.prune
from prunus.graph import Trace, cut, plan_of, trace
from prunus.meter import measure_latencies
from prunus.method import Budget, Context, make_method
from prunus.plan import Plan
from prunus.quantize import DEPLOYED_FILE, Deployment, deploy, load_deployed
from prunus.recipe import TextSuite, available_engines
from prunus.records import Environment, Latency, Source
from prunus.zoo import load_source

METHODS = (prunus.lowrank.__name__, prunus.prune.__name__)
LENGTH, REPEATS, WARMUP = 128, 30, 3
GPU_REPEATS = 100
NETWORK = Source(
    model="hf:config",
    arguments={"model_type": "bert", "num_classes": 2, **paper.MULTILINGUAL_BERT},
)
STUDENT = Source(model="bilstm", arguments={"vocab_size": 30_522})
PRUNED = 0.67
"""Of the MACs: the share of the encoder that the paper's size leaves where its word embeddings stay whole.

Ours loses hidden width, too, and with it columns of these embeddings: its file is smaller than the paper's.
"""
HALF = 0.5
WIDTHS = 64
"""A multiple of what kernels for bytes take at once, so that none works on a part of its registers."""


@dataclass(frozen=True)
class Subject:
    """A network to deploy, with what it was cut from."""

    name: str
    network: nn.Module
    source: Source
    plans: tuple[Plan, ...] = ()


def run(work: Path, results: Path, only: str = "") -> None:
    """Every row that has no record yet; deployed files are deleted when they are measured.

    Args:
        work: Folder for deployed files; the float32 ones of each engine stay there.
        results: Folder of the records.
        only: Rows whose names this expression is found in.
    """
    results.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    dense = subjects()["dense"]()
    for name, subject, engine, choices in _rows():
        if re.search(only, name) and not _file(results, name).exists():
            made = dense if subject == "dense" else subjects()[subject]()
            _row(name, made, dense, engine, choices, work, results)


def gpu(file: Path, device: str = "cuda") -> None:
    """Time of every network that PyTorch runs on CUDA, by turns; its int8 has no kernels there."""
    if file.exists():
        return
    networks = {name: make() for name, make in subjects().items()}
    half = {f"{name} in float16": copy.deepcopy(s.network).half() for name, s in networks.items()}
    everything = {**{name: s.network for name, s in networks.items()}, **half}
    named = {
        name: (network.to(device), {k: v.to(device) for k, v in inputs_of(network, 1).items()})
        for name, network in everything.items()
    }
    times = measure_latencies(
        named, batch=1, warmup=10, repeats=GPU_REPEATS, threads=1, device=device
    )
    card = torch.cuda.get_device_name() if device == "cuda" else None
    record = {
        "sequence": LENGTH,
        "latencies": {name: found.model_dump(mode="json") for name, found in times.items()},
        "environment": Environment.capture(1, card).model_dump(mode="json"),
    }
    files.write(file, record)


def subjects() -> dict[str, Callable[[], Subject]]:
    """Makers of the networks that are measured, by name; each is made once a process."""
    ranks = TextSuite()
    return {
        "dense": _dense,
        "tucker": lambda: _factorized("tucker", _dense(), "stacked-tucker", rank=ranks.rank),
        "pruning": lambda: _pruned("pruning", _dense(), PRUNED),
        "pruning by half": lambda: _pruned("pruning by half", _dense(), HALF),
        "pruning by half in 64s": lambda: _pruned(
            "pruning by half in 64s", _dense(), HALF, round_to=WIDTHS
        ),
        "layers": lambda: _fewer_layers("layers", _dense(), HALF),
        "distilled": _student,
        "distilled + tucker": lambda: _factorized(
            "distilled + tucker", _student(), "svd", rank=ranks.student_rank, embeddings=True
        ),
    }


@cache
def _dense() -> Subject:
    return Subject("dense", load_source(NETWORK), NETWORK)


@cache
def _student() -> Subject:
    return Subject("distilled", load_source(STUDENT), STUDENT)


def _rows() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Name, network, engine and number formats of every row, in the order in which they run."""
    yield from _plain_rows()
    if "openvino" not in available_engines():
        return
    shape = {"shape": (1, LENGTH)}
    all_int8 = {"weights": "int8", "rest": "float16", "embeddings": "int8", **shape}
    yield "none in one shape (openvino)", "dense", "openvino", shape
    yield "int8 linear + embeddings in one shape (openvino)", "dense", "openvino", all_int8
    for name in ("pruning by half", "pruning by half in 64s", "layers"):
        yield f"{name} + int8 in one shape (openvino)", name, "openvino", all_int8


def _plain_rows() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Those that take requests of any shape."""
    engines = available_engines()
    chains = [engine for engine in engines if engine != "torch"]
    int8, tables = {"weights": "int8", "rest": "float16"}, {"embeddings": "int8"}
    for engine in engines:
        formats: dict[str, dict[str, Any]] = {"none": {}, "int8 linear": int8}
        formats["int8 linear + embeddings"] = {**int8, **tables}
        if engine == "onnxruntime":
            formats["int8 by token + embeddings"] = {**int8, **tables, "activations": "token"}
        for row, choices in formats.items():
            plain = engine == "torch" and not choices
            yield row if plain else f"{row} ({engine})", "dense", engine, choices
    for name in subjects():
        if name == "dense":
            continue
        yield name, name, "torch", {}
        for engine in chains:
            if "pruning" not in name and name != "layers":
                yield f"{name} + int8 embeddings ({engine})", name, engine, tables
            yield f"{name} + int8 ({engine})", name, engine, {**int8, **tables}


def _file(results: Path, name: str) -> Path:
    return results / f"{name.replace(' ', '-').replace('(', '').replace(')', '')}.json"


def _factorized(name: str, subject: Subject, method: str, **options: Any) -> Subject:
    found = _traced(subject.network)
    context = Context(
        network=subject.network, trace=found, budget=Budget(quantity="params", value=1.0), seed=0
    )
    decision = make_method(method, options).decide(context)
    plan = plan_of(subject.network, decision.edits)
    network = cut(subject.network, plan, decision.tensors).eval()
    return replace(subject, name=name, network=network, plans=(plan,))


def _pruned(name: str, subject: Subject, share: float, round_to: int = 1) -> Subject:
    """Heads, feed-forward channels and hidden width to a share of the MACs; weights are random."""
    found = _traced(subject.network, round_to)
    budget = Budget(quantity="macs", value=share)
    context = Context(network=subject.network, trace=found, budget=budget, seed=0)
    plan = found.plan(make_method("l1").decide(context).choice)
    return replace(subject, name=name, network=cut(subject.network, plan).eval(), plans=(plan,))


def _fewer_layers(name: str, subject: Subject, share: float) -> Subject:
    """A share of the layers, spread evenly: which ones they are makes no difference to the time."""
    budget = Budget(quantity="macs", value=1.0)  # the share of the layers decides
    context = Context(
        network=subject.network, trace=_traced(subject.network), budget=budget, seed=0
    )
    method = make_method("layers", {"share": share, "order": "every-other"})
    plan = plan_of(subject.network, method.decide(context).edits)
    return replace(subject, name=name, network=cut(subject.network, plan).eval(), plans=(plan,))


def _traced(network: nn.Module, round_to: int = 1) -> Trace:
    return trace(network, inputs_of(network, 2), round_to=round_to)


def inputs_of(network: nn.Module, samples: int, length: int = LENGTH) -> dict[str, Tensor]:
    """Texts of random pieces, without padding."""
    rows = min(m.num_embeddings for m in network.modules() if _is_word_table(m))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, rows, (samples, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _is_word_table(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and module.num_embeddings > 1000


def _row(
    name: str,
    subject: Subject,
    dense: Subject,
    engine: str,
    choices: dict[str, Any],
    work: Path,
    results: Path,
) -> None:
    """Deploy, measure in turns with both float32 networks, write the record, delete the files."""
    begin = time.perf_counter()
    own = _written(dense, Deployment(engine=engine), work / f"float32-{engine}")
    folder = own
    deployment = Deployment.model_validate({"engine": engine, **choices})
    shutil.rmtree(work / "row", ignore_errors=True)  # of a run that was killed
    if subject is not dense or deployment != Deployment(engine=deployment.engine):
        folder = _written(subject, deployment, work / "row")
    threads = torch.get_num_threads()
    times = _times(subject, dense, folder, own, engine, threads)
    size = json.loads((folder / DEPLOYED_FILE).read_text(encoding="utf-8"))["size_bytes"]
    record = {
        "row": name,
        "engine": engine,
        "network": "multilingual BERT by shape" if subject.source == NETWORK else "BiLSTM",
        "size_bytes": size,
        "params": sum(p.numel() for p in subject.network.parameters()),
        "sequence": LENGTH,
        "latency": times["row"].model_dump(mode="json"),
        "own_float32_latency": times.get("own", times["dense"]).model_dump(mode="json"),
        "dense_latency": times["dense"].model_dump(mode="json"),
        "seconds": time.perf_counter() - begin,
        "environment": Environment.capture(
            threads, packages=("openvino", "nncf", "onnx")
        ).model_dump(mode="json"),
    }
    files.write(_file(results, name), record)
    shutil.rmtree(work / "row", ignore_errors=True)
    print(
        f"{name}: {size / 1e6:.2f} MB, {times['row'].median_ms:.1f} ms "
        f"(own float32 {times.get('own', times['dense']).median_ms:.1f}, eager "
        f"{times['dense'].median_ms:.1f})",
        flush=True,
    )


def _written(subject: Subject, deployment: Deployment, folder: Path) -> Path:
    if (folder / DEPLOYED_FILE).exists():
        return folder
    deploy(
        subject.network,
        folder,
        deployment,
        inputs=inputs_of(subject.network, 2, 16),
        calibration=[inputs_of(subject.network, 4, 64) for _ in range(4)],
        source=subject.source,
        plans=subject.plans,
        dynamic_length=True,
    )
    return folder


def _times(
    subject: Subject, dense: Subject, folder: Path, own: Path, engine: str, threads: int
) -> dict[str, Latency]:
    named: dict[str, Any] = {"dense": (dense.network, inputs_of(dense.network, 1))}
    named["row"] = (load_deployed(folder, threads), inputs_of(subject.network, 1))
    if own != folder and engine != "torch":
        named["own"] = (load_deployed(own, threads), inputs_of(dense.network, 1))
    elif engine != "torch":
        named["own"] = named["row"]
    return measure_latencies(
        named,
        batch=1,
        warmup=WARMUP,
        repeats=REPEATS,
        threads=threads,
        engine={"dense": "torch", "row": engine, "own": engine},
    )
