"""Tables of benchmarks, drawn from their records; called by ``render_tables``."""

from collections.abc import Callable
from typing import Any

from phrases import MISSING, threads

# What the queue of benchmarks/resnet56.py is for: its METHODS, on all training images.
FULL_EPOCHS, FULL_IMAGES, FULL_SEEDS, FULL_METHODS = 20, 45_000, 3, 12
ALL_NETWORKS = ("resnet56", "vgg16_bn", "resnet18")  # of benchmarks/candidates.py
_ENGINES, _PEERS = ("serial", "processes"), ("tp-bfloat16", "masks")  # likewise

Rows = list[dict[str, Any]]


_ABSENT = "has no attribute"  # of the library: its release lacks the architecture


def coverage(rows: Rows) -> str:
    """One line a source, then what was not certified."""
    lines = [
        "| networks | traced | certified | groups | refused | ONNX parity within 1e-4 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for source, mine in _by_source(rows):
        parity = sum(_exports(row) for row in mine)
        lines.append(
            f"| {source}: {len(mine)} | {sum(r['traced'] for r in mine)} "
            f"| {sum(r['certified'] for r in mine)} | {sum(r['groups_total'] for r in mine)} "
            f"| {sum(r['groups_refused'] for r in mine)} | {parity} |"
        )
    return "\n".join([*lines, *_not_certified(rows)])


def coverage_libraries(rows: Rows) -> str:
    """One line a library; without ONNX, and with the groups that were cut beside those refused."""
    lines = [
        "| networks | traced | certified | backward pass | predicted = counted | groups | refused |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for source, mine in _by_source(rows):
        told = ("traced", "certified", "backward", "predicted_equals_counted")
        counts = [sum(bool(row[name]) for row in mine) for name in told]
        counts += [sum(row[name] for row in mine) for name in ("groups_total", "groups_refused")]
        lines.append(f"| {source}: {len(mine)}{_partial(mine)} | {' | '.join(map(str, counts))} |")
    return "\n".join([*lines, *_not_certified(rows)])


def coverage_libraries_run(run: dict[str, Any]) -> str:
    """The commit and versions of a run of the libraries' networks."""
    versions = run["settings"]["versions"] | {"torch": run["environment"]["versions"]["torch"]}
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"Measured at commit `{str(run['environment']['commit'])[:7]}` with {told}."


def coverage_brief(rows: Rows) -> str:
    """How many of every source's networks are certified, in a line."""
    told = []
    for source, mine in _by_source(rows):
        line = f"{sum(r['certified'] for r in mine)} of {len(mine)} of {source}{_partial(mine)}"
        if parity := sum(_exports(row) for row in mine):
            line += f", {parity} with ONNX parity within 1e-4"
        told.append(line)
    return f"Certified: {'; '.join(told)}."


def _by_source(rows: Rows) -> list[tuple[str, Rows]]:
    """Networks that the installed libraries have, by where they come from."""
    present = [row for row in rows if not _absent(row)]
    sources = sorted({row["source"] for row in present})
    return [(source, [r for r in present if r["source"] == source]) for source in sources]


def _absent(row: dict[str, Any]) -> bool:
    return not row["traced"] and f"module {row['source']} {_ABSENT}" in row["reason"]


def _exports(row: dict[str, Any]) -> bool:
    found: float | None = row["onnx_max_difference"]
    return found is not None and found <= 1e-4


def _partial(mine: Rows) -> str:
    aim = mine[0].get("of", len(mine))
    return "" if len(mine) == aim else f" (partial: the aim is {aim})"


def _not_certified(rows: Rows) -> list[str]:
    """Why, by name: an error, or too many parameters that no group reaches; then what is not installed."""
    failed = [row for row in rows if not row["certified"] and not _absent(row)]
    told = [
        f"{row['name']} ({row['reason'] or _share(row['params_in_cuttable_groups'])})"
        for row in failed
    ]
    lines = ["", f"Not certified: {'; '.join(told)}."] if failed else []
    absent = [f"{row['name']} ({row['source']})" for row in rows if _absent(row)]
    if absent:
        lines += ["", f"Not measured, as the installed library lacks it: {', '.join(absent)}."]
    return lines


def _share(share: float) -> str:
    return f"{share:.0%} of its parameters in groups that can be cut"


def accounting(rows: Rows) -> str:
    """Plans checked and mismatches, over all networks."""
    plans, wrong = sum(r["plans"] for r in rows), sum(r["mismatches"] for r in rows)
    low, high = min(r["macs_ratio_min"] for r in rows), max(r["macs_ratio_max"] for r in rows)
    return (
        f"{plans:,} random plans over {len(rows)} networks, MACs kept from {low:.0%} to {high:.0%}: "
        f"{wrong} differ between prediction and count."
    )


def recalibration(rows: Rows) -> str:
    """A line a cut: top-1 by where its batch-norm statistics come from."""
    kinds = [(n, a) for n in sorted({r["images"] for r in rows}) for a in (False, True)]
    names = [f"{n:,} images {'augmented' if a else 'as they are'}" for n, a in kinds]
    lines = [
        f"| network | MACs | as cut | {' | '.join(names)} | picked |",
        f"|---|{'--:|' * (len(kinds) + 2)}---|",
    ]
    for network, share in dict.fromkeys((r["network"], r["macs_share"]) for r in rows):
        mine = [r for r in rows if (r["network"], r["macs_share"]) == (network, share)]
        of = {(r["images"], r["augment"]): r for r in mine}
        told = [f"{of[kind]['top1_mean']:.2%} ± {of[kind]['top1_std']:.2%}" for kind in kinds]
        own = mine[0]["own_augmented"]
        picked = f"augmented by {sum(own)} of {len(own)} draws"
        lines.append(
            f"| {network} | {share:.0%} | {mine[0]['top1_as_cut']:.2%} | {' | '.join(told)} | {picked} |"
        )
    return "\n".join(lines)


def turns(rows: Rows) -> str:
    """A line a network: its median, by what ran before, over that behind itself; how it was measured.

    Records of before hold neither ratios of a turn nor the machine: theirs are of two medians.
    """
    kinds = list(dict.fromkeys(row["before"] for row in rows))
    lines = [
        f"| network | {' | '.join(f'behind {kind}' for kind in kinds)} |",
        f"|---|{'--:|' * len(kinds)}",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        of = {row["before"]: row for row in rows if row["network"] == network}
        alone = of[kinds[0]]["median_ms"]
        cells = [f"{alone:.1f} ms", *(_times(of[kind], alone) for kind in kinds[1:])]
        lines.append(f"| {network} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_turns_measured(rows[0])])


def _times(row: dict[str, Any], alone: float) -> str:
    if "median_ratio" not in row:
        return f"× {row['median_ms'] / alone:.2f}"
    return f"× {row['median_ratio']:.2f} ({row['q25_ratio']:.2f} to {row['q75_ratio']:.2f})"


def _turns_measured(row: dict[str, Any]) -> list[str]:
    if "cpu" not in row:
        return []
    told = ", ".join(row["instructions"]) or "instructions not known"
    machine = f"{threads(row['threads'])}, {row['cores']} cores of {row['cpu']} ({told})"
    how = f"{row['of']}; {row['batch']} text of {row['tokens']} tokens, {machine}. Medians of "
    how += f"{row['repeats']} turns; behind a ratio, which is taken within a turn, stand its quartiles. "
    how += f"The others end {row['settle_s']:g} s before a run behind them: part of that is the pause alone."
    return ["", how]


def resnet56(rows: Rows) -> str:
    """The fullest scale that has cells."""
    mine = _scales(rows)[0]
    epochs, images = mine[0]["finetune_epochs"], mine[0]["train_images"]
    partial = (
        epochs < FULL_EPOCHS
        or images < FULL_IMAGES
        or len(mine) < FULL_METHODS
        or any(r["seeds"] < FULL_SEEDS or r["epochs_trained"] < r["epochs_due"] for r in mine)
    )
    told = (
        f" Partial: the aim is {FULL_EPOCHS} epochs of all images (of `scratch` also the dense "
        f"training's), {FULL_SEEDS} seeds and {FULL_METHODS} methods; here are {len(mine)}."
        if partial
        else ""
    )
    return _resnet56(mine, told)


def resnet56_smaller(rows: Rows) -> str:
    """The other scales."""
    smaller = _scales(rows)[1:]
    return "\n\n".join(_resnet56(mine, "") for mine in smaller) or "Not measured yet."


def _scales(rows: Rows) -> list[Rows]:
    """Rows by scale, the fullest first."""
    found: dict[tuple[int, int], Rows] = {}
    for row in rows:
        found.setdefault((row["finetune_epochs"], row["train_images"]), []).append(row)
    return [found[scale] for scale in sorted(found, key=lambda s: -s[0] * s[1])]


def _resnet56(mine: Rows, told: str) -> str:
    lines = [
        f"Fine-tuned {mine[0]['finetune_epochs']} epoch(s) of {mine[0]['train_images']:,} images.{told}",
        "",
        f"| method | MACs | parameters | top-1 on test | difference to {mine[0]['reference']}, paired | seeds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(mine, key=lambda r: -r["top1_mean"]):
        spread = "" if row["top1_std"] is None else f" ± {row['top1_std']:.2%}"
        trained, due = row["epochs_trained"], row["epochs_due"]
        said = ""
        if due > row["finetune_epochs"]:
            said = (
                f", {trained} of its {due} epochs" if trained < due else f", all its {due} epochs"
            )
        if (looks := row.get("test_looks", 1)) > 1:  # records of before do not count them
            said += f", {looks} looks at test"
        lines.append(
            f"| {row['method']}{said} | ÷ {row['macs_ratio']:.2f} | {row['params']:,} "
            f"| {row['top1_mean']:.2%}{spread} | {_paired(row)} | {row['seeds']} |"
        )
    return "\n".join(lines)


def _paired(row: dict[str, Any]) -> str:
    """Points less the reference, with the spread over seeds; nothing for the reference itself."""
    mean, spread = row["less_reference_mean"], row["less_reference_std"]
    if mean is None or row["method"] == row["reference"]:
        return "–"
    beside = "" if spread is None else f" ± {100 * spread:.2f}"
    return f"{100 * mean:+.2f}{beside} pt"


def candidates(rows: Rows) -> str:
    """A line for each peer, engine and mode; where they were measured, and what is missing, is said."""
    head = (
        "| network | mode | engine | peer | plans | candidates/s | peer's | ratio | turns "
        "| with opening | τ | recall | regret |"
    )
    lines = [head, "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        bounds = [row.get("tau_floor"), row.get("tau_ceiling")]
        beside = "" if bounds[0] is None else f" ({', '.join(_number(b) for b in bounds)})"
        recall, regret = row["top8_recall"], row["regret_pt"]
        precision = (row.get("execution") or "").partition(" ")[0]
        engine = f"{row['engine']}, {precision}" if precision else row["engine"]
        lines.append(
            f"| {row['network']} | {row['mode']} | {engine} | {row['peer']} | {row['plans']} "
            f"| {row['candidates_per_s']:.3f} | {row['peer_candidates_per_s']:.3f} "
            f"| {_range(row, 'ratio', 2)} | {row['turns']} | {_range(row, 'ratio_opened', 2)} "
            f"| {_number(row['kendall_tau'])}{beside} | {_number(recall)} "
            f"| {'–' if regret is None else f'{regret:.2f} pt'} |"
        )
    lines += ["", *_origins(rows)]
    if missing := _unmeasured(rows):
        lines += ["", f"Partial: not measured yet: {'; '.join(missing)}."]
    return "\n".join(lines)


def _range(row: dict[str, Any], name: str, digits: int) -> str:
    """A ratio with its least and its most; a lone one is all three."""
    if name not in row:
        return MISSING
    least, most = (f"{row[f'{name}_{end}']:.{digits}f}" for end in ("min", "max"))
    return f"{row[name]:.{digits}f}" + (f" ({least} to {most})" if row["turns"] > 1 else "")


def _origins(rows: Rows) -> list[str]:
    """A sentence a machine: its threads, and the commits of its rows by mode and peer."""
    found: dict[str, dict[str, dict[str, dict[str, None]]]] = {}
    for row in rows:
        where = f"{row['cpu']}, {threads(row['threads'])}"
        commit = row["commit"][:8] + (" (dirty)" if row["dirty"] else "")
        what = row["mode"] if row["peer"] == "tp-float32" else row["peer"]
        mine = found.setdefault(where, {}).setdefault(commit, {})
        mine.setdefault(what, {})[row["network"]] = None
    told = []
    for where, commits in found.items():
        parts = [
            f"`{commit}` ("
            + "; ".join(f"{what} of {', '.join(names)}" for what, names in tasks.items())
            + ")"
            for commit, tasks in commits.items()
        ]
        told.append(f"Measured on {where}, at {', '.join(parts)}.")
    return told


def _unmeasured(rows: Rows) -> list[str]:
    """Networks without a row, or the modes, peers and engines that a network lacks."""
    have = {(r["network"], r["mode"], r["peer"], r["engine"]) for r in rows}
    kinds = [("full", "tp-float32"), ("search", "tp-float32"), *(("full", p) for p in _PEERS)]
    found = []
    for network in ALL_NETWORKS:
        if network not in {row["network"] for row in rows}:
            found.append(network)
            continue
        for mode, peer in kinds:
            lacks = [e for e in _ENGINES if (network, mode, peer, e) not in have]
            by = f" by {lacks[0]}" if len(lacks) == 1 else ""
            found += [f"{network}: {mode} beside {peer}{by}"] if lacks else []
    return found


def candidates_brief(rows: Rows) -> str:
    """A line a network: a whole search in processes, beside Torch-Pruning in float32."""
    lines = [
        "| network | plans/s on two cores | × Torch-Pruning in float32 | with opening | runs | top-1 below its choice (regret) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    shown = ("search", "processes", "tp-float32")
    lines += [
        f"| {row['network']} | {row['candidates_per_s']:.2f} | {_range(row, 'ratio', 1)} "
        f"| {_range(row, 'ratio_opened', 1)} | {row['turns']} | {row['regret_pt']:.2f} pt |"
        for row in rows
        if (row["mode"], row["engine"], row["peer"]) == shown
    ]
    return "\n".join(lines)


def candidate_kills(rows: Rows) -> str:
    """What became of searches that were killed, in a sentence."""
    kills = sum(len(row["killed_after_results"]) for row in rows)
    same, lost = (
        sum(row["same_as_alone"] for row in rows),
        sum(sum(r["lost_in_flight"]) for r in rows),
    )
    twice, forgotten = (sum(row[name] for row in rows) for name in ("computed_twice", "forgotten"))
    return (
        f"{len(rows)} searches, {kills} kills by SIGKILL: {same} end with the plan of the one left alone; of stored "
        f"results {twice} were computed again and {forgotten} forgotten, {lost} were lost in flight."
    )


def candidates_parts(rows: Rows) -> str:
    """Tricks, growth and memory, a line each."""
    lines = ["| network | | | |", "|---|---|---|--:|"]
    lines += [
        f"| {r['network']} | {r['part']} | {r['what']} | {r['value']:.2f} {r['unit']} |"
        for r in rows
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


# Table to the record that it is drawn from and how.
TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "accounting": ("accounting", accounting),
    "candidate_kills": ("candidates/kills", candidate_kills),
    "candidates": ("candidates", candidates),
    "candidates_amx": ("candidates_amx", candidates),
    "candidates_avx2": ("candidates_avx2", candidates),
    "candidates_avxvnni": ("candidates_avxvnni", candidates),
    "candidates_brief": ("candidates_avxvnni", candidates_brief),
    "candidates_parts": ("candidates_parts", candidates_parts),
    "coverage": ("coverage", coverage),
    "coverage_brief": ("coverage", coverage_brief),
    "coverage_libraries": ("coverage_libraries", coverage_libraries),
    "coverage_libraries_brief": ("coverage_libraries", coverage_brief),
    "coverage_libraries_run": ("coverage_libraries.run", coverage_libraries_run),
    "recalibration": ("recalibration", recalibration),
    "resnet56": ("resnet56", resnet56),
    "resnet56_smaller": ("resnet56", resnet56_smaller),
    "turns": ("turns", turns),
    "turns_amx": ("turns_amx", turns),
}
