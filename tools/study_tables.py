"""Tables of study K, drawn from its records; called by ``render_tables``."""

import importlib
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from phrases import threads

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / "studies"
SEEDS = 3  # that a difference is claimed with

Rows = list[dict[str, Any]]


def _neighbour(name: str) -> Any:
    """A module beside the scripts of study K, which are no package."""
    folder = str(STUDIES / "kuzmin2024")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def _percent(mean: float, spread: float | None = None) -> str:
    return f"{mean:.2%}" + ("" if spread is None else f" ± {spread:.2%}")


def kuzmin_quality(rows: Rows) -> str:
    """Table 2 of the paper, beside ours and the nulls."""
    lines = [
        "| network | round | method | parameters | executed MACs (M) | top-1 | seeds | the paper's |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    scales = list(dict.fromkeys(r["scale"] for r in rows if r["scale"]))
    for r in rows:
        # Networks of two scales were not trained alike: where both stand here, each line says which.
        alone = len(scales) == 1 or not r["scale"]
        method = r["method"] if alone else f"{r['method']} ({r['scale']})"
        lines.append(
            f"| {r['network']} | {r['round']} | {method} | {r['params']:,} | {r['macs'] / 1e6:.1f} "
            f"| {_percent(r['top1_mean'], r['top1_std'])} | {r['seeds']} | {r['paper_top1']:.2%} |"
        )
    lines.append("")
    lines += [f"Scale `{scale}`: {_scale(rows, scale)}." for scale in scales]
    machines = dict.fromkeys((r["network"], r["machine"]) for r in rows if r["machine"])
    lines += [
        f"Cells of {name} are of `{machine}`{_processors(rows, name)}. {_formats(rows, name)}"
        for name, machine in machines
    ]
    compressed = [r for r in rows if r["scale"]]
    few = sum(r["seeds"] < SEEDS for r in compressed)
    if few:
        lines += ["", f"Partial: {few} of {len(compressed)} lines have fewer than {SEEDS} seeds."]
    lines += [f"Not measured: {text}." for text in _unmeasured(rows)]
    return "\n".join(lines)


def kuzmin_against(rows: Rows) -> str:
    """How far the genetic modes are from each null at equal parameters, and what more they execute."""
    nulls = ("l2", "random", "random-search", "scratch")
    found = {
        (r["network"], r["scale"], r["round"], r["method"]): r for r in rows if r["seeds"] >= SEEDS
    }
    lines = [
        f"| network | round | method | {' | '.join(f'to `{name}`' for name in nulls)} |",
        f"|---|--:|---|{'--:|' * len(nulls)}",
    ]
    for (network, scale, number, method), mine in found.items():
        if method not in {"genetic", "genetic-paper"}:
            continue
        others = [found.get((network, scale, number, name)) for name in nulls]
        cells = " | ".join("–" if other is None else _gap(mine, other) for other in others)
        lines.append(f"| {network} | {number} | {method} | {cells} |")
    return "\n".join(lines)


def _gap(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """Points of top-1, bold where they are more than both spreads together, and the ratio of MACs."""
    points = 100 * (mine["top1_mean"] - other["top1_mean"])
    both = 100 * (mine["top1_std"] + other["top1_std"])
    told = f"{points:+.2f} pt"
    told = f"**{told}**" if abs(points) > both else told
    return f"{told} (spreads {both:.2f}), {mine['macs'] / other['macs']:.1f} × MACs"


def kuzmin_drops(rows: Rows) -> str:
    """Points of top-1 that each round is below round 1, ours beside the paper's."""
    cuts = sorted({r["round"] for r in rows if r["method"] != "dense"})
    lines = [
        f"| network | method | {' | '.join(f'round {k}' for k in cuts)} |",
        f"|---|---|{'--:|' * len(cuts)}",
    ]
    for dense in (r for r in rows if r["method"] == "dense"):
        mine = [r for r in rows if r["network"] == dense["network"] and r["seeds"] >= SEEDS]
        for method, scale in dict.fromkeys((r["method"], r["scale"]) for r in mine):
            at = {r["round"]: r for r in mine if (r["method"], r["scale"]) == (method, scale)}
            cells = [_drop(dense["top1_mean"], at[k]) if k in at else "–" for k in cuts]
            named = f"{method} ({scale})" if len({r["scale"] for r in mine}) > 1 else method
            lines.append(f"| {dense['network']} | {named} | {' | '.join(cells)} |")
        theirs = {r["round"]: r["paper_top1"] for r in rows if r["network"] == dense["network"]}
        cells = [f"{100 * (theirs[k] - dense['paper_top1']):+.2f}" for k in cuts if k in theirs]
        lines.append(f"| {dense['network']} | *the paper's* | {' | '.join(cells)} |")
    return "\n".join(lines)


def _drop(dense: float, row: dict[str, Any]) -> str:
    return f"{100 * (row['top1_mean'] - dense):+.2f} ± {100 * row['top1_std']:.2f}"


def kuzmin_brief(rows: Rows) -> str:
    """Table 2 in short: top-1 on test, a line a round, a column a method."""
    order = _neighbour("methods").METHODS
    methods = [name for name in order if any(r["method"] == name for r in rows)]
    scales = {r["scale"] for r in rows if r["scale"]}
    lines = [
        f"| network | parameters | {' | '.join(methods)} | the paper's |",
        f"|---|{'--:|' * (len(methods) + 2)}",
    ]
    for dense in (r for r in rows if r["method"] == "dense"):
        mine = [r for r in rows if r["network"] == dense["network"] and r["scale"]]
        for number in sorted({r["round"] for r in mine}):
            here = {r["method"]: r for r in mine if r["round"] == number}
            first = next(iter(here.values()))
            cells = [_brief(here[name], scales) if name in here else "–" for name in methods]
            lines.append(
                f"| {first['network']} | {first['paper_params'] / 1e6:.1f} M "
                f"| {' | '.join(cells)} | {first['paper_top1']:.2%} |"
            )
    whole = [
        f"{r['network']} {r['top1_mean']:.2%} (the paper's {r['paper_top1']:.2%})"
        for r in rows
        if r["method"] == "dense"
    ]
    told = f"Dense: {', '.join(whole)}: compare drops, not levels."
    few = "Without ±: one seed, with which no difference is claimed."
    return "\n".join([*lines, "", f"{told} {few}"])


def _brief(row: dict[str, Any], scales: set[str]) -> str:
    """Top-1 of a method at a round; fewer than three seeds are told, and its scale, if others are shown."""
    few = f" ({row['seeds']} seeds)" if 1 < row["seeds"] < SEEDS else ""
    scale = f" ({row['scale']})" if len(scales) > 1 else ""
    return _percent(row["top1_mean"], row["top1_std"]) + few + scale


def _processors(rows: Rows, network: str) -> str:
    """The processors of a network's cells, the most frequent first, with what ran on each where they differ."""
    seeds: dict[str, dict[str, set[int]]] = {}
    cells = [cell for cell in _shown(rows, "*.json") if cell["network"] == network]
    for cell in cells:
        seeds.setdefault(_processor(cell), {}).setdefault(cell["method"], set()).add(cell["seed"])
    if len(seeds) < 2:
        return "".join(f": {name}" for name in seeds)
    told = []
    for name, methods in sorted(seeds.items(), key=lambda item: -sum(map(len, item[1].values()))):
        ran = ", ".join(f"{m} {'/'.join(map(str, sorted(s)))}" for m, s in methods.items())
        told.append(f"{name} ({ran})")
    return f", methods with their seeds: {'; '.join(told)}"


def _formats(rows: Rows, network: str) -> str:
    """The number formats that a network's cells were trained in: they are pooled in a ±."""
    rounds: dict[tuple[str, str, int], list[int]] = {}
    for cell in _shown(rows, "*.json"):
        if cell["network"] == network:
            form = cell.get("precision") or "a format not recorded"
            rounds.setdefault((form, cell["method"], cell["seed"]), []).append(cell["round"])
    told: dict[str, dict[str, list[str]]] = {}
    for (form, method, seed), numbers in sorted(rounds.items()):
        # Rounds, where others of the seed were trained in another format.
        whole = sum((m, s) == (method, seed) for _, m, s in rounds) == 1
        at = "" if whole else f" at round {' and '.join(map(str, sorted(numbers)))}"
        told.setdefault(form, {}).setdefault(method, []).append(f"{seed}{at}")
    parts = [
        f"{form} ({', '.join(m + ' ' + '/'.join(seeds) for m, seeds in methods.items())})"
        for form, methods in told.items()
    ]
    return f"Trained in {'; '.join(parts)}." if parts else ""


def _processor(cell: dict[str, Any]) -> str:
    """Of a record, and whether it multiplies bytes."""
    given = cell["environment"]
    return f"{given['cpu']} {'with' if _multiplies_bytes(cell) else 'without'} VNNI"


def _multiplies_bytes(cell: dict[str, Any]) -> bool:
    return "avx512_vnni" in cell["environment"].get("instructions", [])


def _unmeasured(rows: Rows) -> list[str]:
    """Methods of the study without any cell, or without any of some rounds, network by network."""
    paper = _neighbour("paper")
    missing = []
    for network in paper.PARAMS:
        lacks = []
        for method in _neighbour("methods").METHODS:
            known = {r["round"] for r in rows if (r["network"], r["method"]) == (network, method)}
            rounds = [str(k) for k in paper.ROUNDS[1:] if k not in known]
            if rounds:
                lacks.append(method if not known else f"{method} at round {', '.join(rounds)}")
        if lacks:
            missing.append(f"{network}: {'; '.join(lacks)}")
    return missing


def _scale(rows: Rows, name: str) -> str:
    """What the runs of a scale were given, from their cells."""
    told = []
    for cell in _shown(rows, f"{name}-*.json"):
        given = cell["settings"]
        told.append(
            f"{given['epochs']} epochs of fine-tuning a round, searches of {given['generations']} "
            f"generations on {given['images']:,} images"
        )
    return "; ".join(dict.fromkeys(told)) or "no cells"


def kuzmin_seconds(_: Rows) -> str:
    """Table 3: seconds of one round's search, each cell's own, on how many cores, and in the paper."""
    paper = _neighbour("paper").SECONDS
    lines = [
        "| network | round | method | seed | search (s) | the paper's search (s) | threads | scored in |",
        "|---|--:|---|--:|--:|--:|--:|---|",
    ]
    scored_in = _neighbour("notes").scored_in
    searches = [
        cell
        for name in ("genetic", "genetic-paper", "random-search")
        for cell in _cells(f"*-{name}-seed*.json")
        if cell["machine"].startswith("two-cores")
    ]
    for cell in sorted(searches, key=lambda c: (c["network"], c["round"], c["machine"])):
        network, number = cell["network"], cell["round"]
        threads = cell["environment"]["threads"]
        lines.append(
            f"| {network} | {number} | {cell['method']} | {cell['seed']} "
            f"| {cell['seconds']['search']:.0f} | {paper[network][number - 1]:.0f} "
            f"| {threads} | {scored_in(cell['notes'])} |"
        )
    return "\n".join(lines)


def kuzmin_searches(rows: Rows) -> str:
    """Searches from the dense network, timed on machines that did nothing else."""
    head = (
        "| network | round | method | search (s) | longest (s) | the paper's (s) | networks scored"
    )
    lines = [f"{head} | machine | seeds |", f"|---|--:|---{'|--:' * 4}|---|--:|"]
    for r in rows:
        spread = "" if r["seconds_std"] is None else f" ± {r['seconds_std']:.0f}"
        lines.append(
            f"| {r['network']} | {r['round']} | {r['method']} | {r['seconds_mean']:.0f}{spread} "
            f"| {r['seconds_most']:.0f} | {r['paper_seconds']:.0f} | {r['evaluations']} "
            f"| `{r['machine']}` ({', '.join(r['cpus'])}), {r['scored_in']} | {r['seeds']} |"
        )
    return "\n".join(lines)


def kuzmin_ablation(rows: Rows, name: str = "ablation") -> str:
    """Quality of winners on unseen search images, before any fine-tuning.

    Without seconds: a variant's seeds need not have run on one kind of processor, nor on as many cores.
    """
    if not rows:
        return "Not measured yet."
    lines = [
        "| network | variant | executed MACs (M) | parameters | KL to dense (nats) | difference, paired | top-1 | networks scored | seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    of = {(r["network"], r["variant"]): r for r in rows}
    for r in rows:
        spread = "" if r["kl_std"] is None else f" ± {r['kl_std']:.3f}"
        other = of.get((r["network"], r["against"]))
        gaps = [] if other is None else _gaps(r, other)
        few = f" ({len(gaps)} of {r['seeds']} pairs)" if len(gaps) < r["seeds"] else ""
        less = f"{_spread(gaps, '+.3f')} to `{r['against']}`{few}" if gaps else "–"
        lines.append(
            f"| {r['network']} | {r['variant']} | {r['macs'] / 1e6:.1f} | {r['params']:,.0f} | {r['kl']:.3f}{spread} | {less} "
            f"| {_percent(r['top1'], r['top1_std'])} | {r['evaluations']:.0f} | {r['seeds']} |"
        )
    folder = STUDIES / "kuzmin2024" / "results" / name
    cells = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    on = sorted({_processor(cell) for cell in cells})
    forms = sorted({form for r in rows for form in r["scored_in_by_seed"].values() if form})
    told = f"Searched on: {', '.join(on)}; candidates scored in {', '.join(forms)}."
    return "\n".join([*lines, "", told])


def _gaps(row: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Differences in KL, seed by seed: of pairs whose searches scored in one format, if both searched."""
    mine, theirs = row["scored_in_by_seed"], other["scored_in_by_seed"]
    return [
        kl - other["kl_by_seed"][seed]
        for seed, kl in sorted(row["kl_by_seed"].items())
        if seed in theirs and len({mine[seed], theirs[seed]} - {None}) < 2
    ]


def _cells(pattern: str) -> Rows:
    """Cells of all kinds of machines, each with the name of its folder."""
    folder = STUDIES / "kuzmin2024" / "results" / "cells"
    return [
        {**json.loads(path.read_text(encoding="utf-8")), "machine": path.parent.name}
        for path in sorted(folder.glob(f"*/{pattern}"))
    ]


def _shown(rows: Rows, pattern: str) -> Rows:
    """Cells that the summary is of: of each network those of one kind of machine."""
    of = {(r["network"], r["machine"], r["scale"]) for r in rows}
    return [c for c in _cells(pattern) if (c["network"], c["machine"], c["scale"]) in of]


def kuzmin_from_scratch(rows: Rows) -> str:
    """Table 4: search, cut and fine-tune against a narrow network trained to the same quality."""
    head = "| network | round | pruned: top-1 on test | all its rounds (s) | narrow: best top-1 on search"
    more = "as good | until as good (s) | all its epochs (s) | epochs timed in (pruned, narrow)"
    lines = [f"{head} | {more} |", f"|---{'|--:' * 7}|---|"]
    told = []
    for clock in _clocks(rows):
        chains = _chains(rows, clock)
        for number in sorted({r["round"] for r in clock["rows"] if r["method"] == "scratch"}):
            pairs = [p for seed in chains if (p := _against(chains[seed], number, clock, rows))]
            if not pairs:
                continue
            until = [p["until"] for p in pairs if p["until"] is not None]
            lines.append(
                f"| {clock['network']} | {number} | {_spread([p['top1'] for p in pairs], '.2%')} "
                f"| {_spread([p['seconds'] for p in pairs], '.0f')} "
                f"| {_spread([p['best'] for p in pairs], '.2%')} | {len(until)} of {len(pairs)} "
                f"| {_spread(until, '.0f') if until else '–'} | {pairs[0]['whole']:.0f} "
                f"| {_timed_in(clock, number)} |"
            )
        given = clock["settings"]
        searched = dict.fromkeys(
            f"{_processor(cell)} with {threads(cell['environment']['threads'])}"
            for chain in chains.values()
            for cell in chain
        )
        told.append(
            f"{clock['network']}: {given['threads']} threads, batch {given['batch_size']}, median of "
            f"{given['repeats']} turns of {given['images']:,} images; epochs timed on "
            f"{_processor(clock)}, searches on {', '.join(searched)}."
        )
    return "\n".join([*lines, "", *told]) if told else "Not measured yet."


def _timed_in(clock: dict[str, Any], number: int) -> str:
    """Number formats of the epochs up to a round, of the pruned networks and of the narrow one."""
    pruned = {
        r["precision"] for r in clock["rows"] if r["method"] == "genetic" and r["round"] <= number
    }
    narrow = {
        r["precision"] for r in clock["rows"] if (r["method"], r["round"]) == ("scratch", number)
    }
    return ", ".join(" and ".join(sorted(formats)) for formats in (pruned, narrow))


def kuzmin_equal_macs(rows: Rows) -> str:
    """One cut to equal executed MACs, differences to ``genetic`` seed by seed."""
    if not rows:
        return "Not measured yet."
    head = "| network | method | executed MACs (M) | effective (M) | parameters | top-1"
    lines = [f"{head} | difference to genetic, paired | seeds |", f"|---|---{'|--:' * 6}|"]
    ours = {_where(r): r["top1_by_seed"] for r in rows if r["method"] == "genetic"}
    for r in rows:
        genetic = ours.get(_where(r), {})
        common = r["top1_by_seed"].keys() & genetic.keys()
        gaps = [100 * (r["top1_by_seed"][seed] - genetic[seed]) for seed in sorted(common)]
        apart = "–" if r["method"] == "genetic" or not gaps else f"{_spread(gaps, '+.2f')} pt"
        if 0 < len(gaps) < r["seeds"]:
            apart += f" ({len(gaps)} of {r['seeds']} seeds)"
        lines.append(
            f"| {r['network']} | {r['method']} | {r['macs'] / 1e6:.1f} "
            f"| {r['effective_macs'] / 1e6:.1f} | {r['params']:,} "
            f"| {_percent(r['top1_mean'], r['top1_std'])} | {apart} | {r['seeds']} |"
        )
    return "\n".join(lines)


def _where(row: dict[str, Any]) -> tuple[str, ...]:
    """What rows must share to be compared."""
    return row["network"], row["scale"], row["machine"]


def _clocks(rows: Rows) -> Rows:
    """Records of ``clock.py`` for the networks of the summary."""
    folder = STUDIES / "kuzmin2024" / "results" / "clock"
    of = dict.fromkeys((r["network"], r["machine"], r["scale"]) for r in rows if r["machine"])
    paths = [
        (scale, machine, folder / f"{scale}-{network}-{machine}.json")
        for network, machine, scale in of
    ]
    return [
        {**json.loads(path.read_text(encoding="utf-8")), "scale": scale, "machine": machine}
        for scale, machine, path in paths
        if path.exists()
    ]


def _chains(rows: Rows, clock: dict[str, Any]) -> dict[int, Rows]:
    """Cells of ``genetic`` by seed, rounds in order, each with its images a second."""
    speeds = {(r["seed"], r["round"]): r for r in clock["rows"] if r["method"] == "genetic"}
    chains: dict[int, Rows] = {}
    cells = _shown(rows, f"{clock['scale']}-{clock['network']}-genetic-seed*.json")
    for cell in sorted(cells, key=lambda c: c["round"]):
        if (timed := speeds.get((cell["seed"], cell["round"]))) is not None:
            speed = timed["images_per_second"]
            chains.setdefault(cell["seed"], []).append({**cell, "images_per_second": speed})
    return chains


def _against(chain: Rows, number: int, clock: dict[str, Any], rows: Rows) -> dict[str, Any] | None:
    """A seed's pruning, all rounds up to one, and its narrow network's training; None without both."""
    upto = [cell for cell in chain if cell["round"] <= number]
    pattern = (
        f"{clock['scale']}-{clock['network']}-scratch-seed{chain[0]['seed']}-round{number}.json"
    )
    scratch = _shown(rows, pattern)
    if not scratch or [cell["round"] for cell in upto] != list(range(2, number + 1)):
        return None
    images = clock["train_images"]
    seconds = 0.0
    for cell in upto:
        seconds += sum(value for name, value in cell["seconds"].items() if name != "train")
        seconds += len(cell["training"]) * images / cell["images_per_second"]
    (speed,) = (
        r["images_per_second"]
        for r in clock["rows"]
        if (r["method"], r["round"]) == ("scratch", number)
    )
    seen = [point["search_top1"] for point in scratch[0]["training"]]
    epoch = next((k for k, top1 in enumerate(seen, 1) if top1 >= upto[-1]["top1"]), None)
    return {
        "top1": upto[-1]["top1"],
        "seconds": seconds,
        "best": max(seen),
        "until": None if epoch is None else epoch * images / speed,
        "whole": len(seen) * images / speed,
    }


def _spread(values: list[float], form: str) -> str:
    """Mean ± sample standard deviation, where there is more than one."""
    text = f"{statistics.mean(values):{form}}"
    return text + (f" ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else "")


def kuzmin_widths(rows: Rows) -> str:
    """Table 5: channels of every convolution after every round, ours of the first seed."""
    widths, lines = _neighbour("paper").WIDTHS, []
    for cell in _shown(rows, "*-genetic-seed0-round*.json"):
        network, number = cell["network"], cell["round"]
        lines.append(f"| {network} | {number} | ours | {' '.join(map(str, cell['widths']))} |")
        printed = " ".join(map(str, widths[network][number - 1]))
        lines.append(f"| {network} | {number} | the paper's | {printed} |")
    if not lines:
        return "Not measured yet."
    return "\n".join(
        [
            "| network | round | | channels of each convolution, in order |",
            "|---|--:|---|---|",
            *lines,
        ]
    )


# Table to the record that it is drawn from (in the results of its study) and how.
TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "kuzmin_quality": ("summary", kuzmin_quality),
    "kuzmin_against": ("summary", kuzmin_against),
    "kuzmin_drops": ("summary", kuzmin_drops),
    "kuzmin_brief": ("../../studies/kuzmin2024/results/summary", kuzmin_brief),
    "kuzmin_seconds": ("summary", kuzmin_seconds),
    "kuzmin_from_scratch": ("summary", kuzmin_from_scratch),
    "kuzmin_equal_macs": ("equal_macs", kuzmin_equal_macs),
    "kuzmin_widths": ("summary", kuzmin_widths),
    "kuzmin_searches": ("searches", kuzmin_searches),
    "kuzmin_ablation": ("ablation", kuzmin_ablation),
    "kuzmin_ablation_macs": ("ablation_macs", partial(kuzmin_ablation, name="ablation_macs")),
}
