"""``candidates.json`` from the cells of ``candidates.py``: rates, ratios, ranks, and what each trick is worth."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from candidate_plans import IMAGES, NETWORKS, PLANS, magnitude_ranking, plans, subject
from record import RESULTS, write_results
from scipy.stats import kendalltau

FOLDER = RESULTS / "candidates"
REFERENCES = FOLDER  # of candidate_reference.py: what does not depend on the machine
ENGINES = ("serial", "processes")
TURN = 8  # plans of one side before the other side's turn
TOP = 8  # of recall
WANTED = 4  # of halving: who is certainly not among the best four is dropped
Row = dict[str, Any]


def read(folder: Path, cell: str, network: str) -> Row | None:
    """A cell, where it has been measured."""
    path = folder / f"{cell}-{network}.json"
    if not path.exists():
        return None
    content: Row = json.loads(path.read_text(encoding="utf-8"))
    return content


def table(folder: Path = FOLDER) -> None:
    """Write the folder's JSON, such as ``candidates.json``, from the cells that are there."""
    rows: list[Row] = []
    for network in NETWORKS:
        done = read(folder, "full", network)
        if done is not None:
            rows += [_full_row(network, done, name) for name in ENGINES]
            rows += _peer_rows(folder, network)
            rows += _search_rows(folder, network, done)
    settings: Row = {"images": IMAGES, "plans": PLANS, "turn": TURN, "seed": 0, "wanted": WANTED}
    write_results(folder.name, rows, **settings)
    parts = [row for network in NETWORKS for row in _parts(folder, network)]
    write_results(f"{folder.name}_parts", parts, **settings)


def _parts(folder: Path, network: str) -> list[Row]:
    """What each trick is worth, how the rate grows, what memory it takes: from the small cells."""
    rows: list[Row] = []

    def note(part: str, what: str, value: float, unit: str) -> None:
        rows.append({"network": network, "part": part, "what": what, "value": value, "unit": unit})

    if (cell := read(folder, "ablation", network)) is not None:
        seconds = {name: statistics.median(found) for name, found in cell["side_seconds"].items()}
        for name, without, base in (
            ("channels_last", "layout", "all"),
            ("folding of batch norms", "folding", "all"),
            ("batches of 64 images, not 128", "batch 128", "all"),
            ("bfloat16, not float32", "all", "bfloat16"),
            ("int8, not float32", "all", "int8"),
            ("int8 with weights of 7 bits, not float32", "all", "int7"),
        ):
            if base in seconds:
                note("trick", name, seconds[without] / seconds[base], "times faster, full mode")
        shared = seconds["no sharing"] / seconds["sharing"]
        note("trick", "shared beginnings of mutants", shared, "times faster, full mode")
        for name, found in cell["halving"].items():
            saved = PLANS * IMAGES / found["images"]
            note("trick", f"halving by {name}", saved, "times fewer search images")
    if (cell := read(folder, "growth", network)) is not None:
        precision = (cell.get("pinned") or {}).get("precision", "float32")
        for row in cell["rates"]:
            what = f"{row['engine']}, {row['workers']} x {row['threads']} threads, {precision}"
            rate = row["plans"] / row["seconds"]
            note("growth", f"{what}, {row['images']} images", rate, "candidates/s")
    if (cell := read(folder, "memory", network)) is not None:
        peak = cell["peak"]["engine"]["peak_mb"] / cell["peak"]["dense"]["peak_mb"]
        note("memory", "engine against evaluation of the dense network", peak, "times its peak")
    for name, found in _foretold(folder, network).items():
        note("fitness", f"{name} before, top-1 after fine-tuning", found, "Kendall's tau")
    return rows


def _foretold(folder: Path, network: str) -> dict[str, float]:
    """How well each fitness of a plan tells its accuracy after fine-tuning; empty: not all are there."""
    cell = read(folder, "finetune", network)
    if cell is None or len(cell["rows"]) < cell["settings"]["plans"]:
        return {}
    after = [row["other_after"]["top1"] for row in cell["rows"]]
    signs = {"kl": -1, "loss": -1, "top1": 1}
    return {
        name: tau([sign * row["before"][name] for row in cell["rows"]], after)
        for name, sign in signs.items()
    }


def _full_row(network: str, cell: Row, engine: str) -> Row:
    turns = [turn for turn in cell["turns"] if engine in turn]
    ratios = [turn["tp-float32"] / turn[engine] for turn in turns]
    mine = [p["kl"] for p in cell["scores"][engine]]
    peer = [p["kl"] for p in cell["scores"]["tp-float32"]][: len(mine)]
    return {
        "network": network,
        "peer": "tp-float32",
        "mode": "full",
        "engine": engine,
        "plans": len(peer),
        "images": IMAGES,
        "candidates_per_s": len(peer) / sum(turn[engine] for turn in turns),
        "peer_candidates_per_s": len(peer) / sum(turn["tp-float32"] for turn in turns),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "turns": len(ratios),
        "kendall_tau": tau(mine, peer),
        "top8_recall": recall(np.argsort(mine).tolist(), peer),
        "regret_pt": regret(int(np.argmin(mine)), cell, len(mine)),
        "execution": cell["executions"][engine],
        **_origin(cell),
    } | (_bounds(network, peer) if len(mine) == PLANS else {})


def _bounds(network: str, peer: list[float]) -> Row:
    """Floor and ceiling of tau: plain magnitude, and peer (a) on another 2,000 images."""
    one = subject(network)
    choices = plans(network, one.network, one.trace)
    mass = magnitude_ranking(one.network, one.trace, choices)
    found: Row = {"tau_floor": tau((-mass).tolist(), peer), "tau_ceiling": None}
    second = REFERENCES / f"second-{network}.json"
    if second.exists():
        rows = json.loads(second.read_text(encoding="utf-8"))["rows"]
        if len(rows) == len(peer):
            found["tau_ceiling"] = tau([row["kl"] for row in rows], peer)
    return found


def _peer_rows(folder: Path, network: str) -> list[Row]:
    cell = read(folder, "peers", network)
    if cell is None:
        return []
    turns = [_by_engine(turn) for turn in cell["turns"]]
    rows = []
    for peer, engine in dict.fromkeys((t["peer"], e) for t in turns for e in t["engine_s"]):
        mine = [t for t in turns if t["peer"] == peer and engine in t["engine_s"]]
        ratios = [t["peer_s"] / t["engine_s"][engine] for t in mine]
        count = sum(len(t["plans"]) for t in mine)
        rows.append(
            {
                "network": network,
                "peer": peer,
                "mode": "full",
                "engine": engine,
                "plans": count,
                "images": IMAGES,
                "candidates_per_s": count / sum(t["engine_s"][engine] for t in mine),
                "peer_candidates_per_s": count / sum(t["peer_s"] for t in mine),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "turns": len(ratios),
                "kendall_tau": None,
                "top8_recall": None,
                "regret_pt": None,
                "execution": cell.get("executions", {}).get(engine),
                **_origin(cell),
            }
        )
    return rows


def _by_engine(turn: Row) -> Row:
    """A turn of one plan and one engine, as the first cells have it, in the form of later ones."""
    if isinstance(turn["engine_s"], dict):
        return turn
    score = turn["peer_score"]
    return {**turn, "plans": [score["plan"]], "engine_s": {"serial": turn["engine_s"]}}


def _search_rows(folder: Path, network: str, done: Row) -> list[Row]:
    cell = read(folder, "search", network)
    if cell is None:
        return []
    peer = [p["kl"] for p in done["scores"]["tp-float32"]]
    rows = []
    kinds = dict.fromkeys((run["engine"], run.get("execution")) for run in cell["runs"])
    for name, execution in sorted(kinds, key=lambda kind: ENGINES.index(kind[0])):
        # Ranks depend on what candidates are scored in, and time does: formats are not pooled.
        runs = [r for r in cell["runs"] if (r["engine"], r.get("execution")) == (name, execution)]
        ratios = [run["peer_s_per_plan"] * PLANS / run["engine_s"] for run in runs]
        orders = [run["order"] for run in runs]
        rows.append(
            {
                "network": network,
                "peer": "tp-float32",
                "mode": "search",
                "engine": name,
                "plans": PLANS,
                "images": statistics.mean(i for run in runs for i in run["images"]),
                "candidates_per_s": statistics.median(PLANS / run["engine_s"] for run in runs),
                "peer_candidates_per_s": statistics.median(1 / r["peer_s_per_plan"] for r in runs),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "turns": len(ratios),
                **_opened(runs),
                "kendall_tau": min(tau(_places(order), peer) for order in orders),
                "top8_recall": min(recall(order, peer) for order in orders),
                "regret_pt": max(regret(order[0], done) for order in orders),
                "execution": execution,
                **_origin(cell),
            }
        )
    return rows


def _places(order: Sequence[int]) -> list[int]:
    """The place of every plan in an order."""
    return [order.index(k) for k in range(PLANS)]


def _opened(runs: Sequence[Row]) -> Row:
    """Seconds before either side's first plan, and the ratio with them; empty: not timed."""
    if any("open_s" not in run for run in runs):
        return {}
    whole = [
        (run["peer_open_s"] + run["peer_s_per_plan"] * PLANS) / (run["open_s"] + run["engine_s"])
        for run in runs
    ]
    return {
        "open_s": statistics.median(run["open_s"] for run in runs),
        "peer_open_s": statistics.median(run["peer_open_s"] for run in runs),
        "ratio_opened": statistics.median(whole),
        "ratio_opened_min": min(whole),
        "ratio_opened_max": max(whole),
    }


def _origin(cell: Row) -> Row:
    """Where a cell was measured: what sums it up may be another machine, or commit."""
    known = cell["environment"]
    return {
        "commit": known["commit"],
        "dirty": known["dirty"],
        "cpu": known["cpu"],
        "threads": cell["threads"],
    }


def tau(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Kendall's tau-b of two rows of scores."""
    found: float = kendalltau(ours, theirs).statistic
    return float(found)


def recall(order: Sequence[int], peer: Sequence[float]) -> float:
    """Share of the peer's best eight that are among our best eight."""
    theirs = set(np.argsort(np.asarray(peer), kind="stable")[:TOP].tolist())
    return len(theirs & set(order[:TOP])) / TOP


def regret(chosen: int, done: Row, among: int = PLANS) -> float:
    """Points of top-1, as peer (a) measures it, that our choice is below the peer's own choice."""
    peer = done["scores"]["tp-float32"][:among]
    best = min(peer, key=lambda p: p["kl"])
    below: float = 100 * (best["top1"] - peer[chosen]["top1"])
    return below
