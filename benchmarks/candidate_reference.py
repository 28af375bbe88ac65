"""The slow references of ``candidates.py``: scores on other images, and accuracy after fine-tuning.

    python benchmarks/candidate_reference.py second                      # all networks, small first
    python benchmarks/candidate_reference.py second --network resnet18
    python benchmarks/candidate_reference.py finetune                    # ResNet-56, 16 plans

``second`` scores every plan by peer (a) on 2,000 images that no fitness saw: the ceiling of Kendall's
tau is the agreement of peer (a) with itself. ``finetune`` fine-tunes 16 of the plans and judges them on
those other images, never on test: how well the fitness before tells the accuracy after.

One JSON a network, replaced after each plan; killed and started again, a run goes on behind the last
plan that is there. Nothing in it is a timing: both may share the machine with other work.
"""

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from candidate_peers import (
    BATCH,
    RECALIBRATION,
    Judge,
    check_peers,
    prune_copy,
    score_pruned,
)
from candidate_plans import (
    IMAGES,
    NETWORKS,
    PLANS,
    TARGET,
    Subject,
    correlated_plans,
    describe,
    other_images,
    plans,
    search_images,
    subject,
)
from record import RESULTS, environment, write_json

from prunus.graph import Choice
from prunus.train import TrainConfig, evaluate, fit, recalibrate_batch_norm_

FOLDER = RESULTS / "candidates"
SOURCES = ("candidate_plans.py", "candidate_peers.py", "candidate_reference.py")
TRAIN_IMAGES = 10_000
SEED = 0  # of the plans, of the draws of images and of the fine-tuning
FINETUNE = TrainConfig(
    epochs=1,
    lr=0.01,
    batch_size=128,
    weight_decay=5e-4,
    distill_alpha=0.5,
    precision="float32",
    layout="channels_last",
)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["second", "finetune"])
    parser.add_argument("--network", choices=list(NETWORKS), help="one instead of all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the records")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "finetune":
        if options.network not in (None, "resnet56"):
            parser.error("finetune is for resnet56 alone")
        finetune(options.out)
        return
    for name in [options.network] if options.network else NETWORKS:
        second(name, options.out)


def second(network_name: str, out: Path) -> None:
    """Peer (a) on the other images, all plans."""
    record = _Record(
        out / f"second-{network_name}.json",
        network=network_name,
        peer="tp-float32",
        plans=PLANS,
        images=IMAGES,
        batch_size=BATCH,
    )
    found = subject(network_name)
    choices = _choices(network_name, found)
    judge = Judge(found.network, other_images(found.data))

    def scored(k: int) -> Row:
        return score_pruned(found, judge, [choices[k]])[0].means

    record.complete(range(PLANS), found, choices, scored)


def finetune(out: Path) -> None:
    """Fitness before fine-tuning and accuracy after it."""
    record = _Record(
        out / "finetune-resnet56.json",
        network="resnet56",
        plans=len(correlated_plans()),
        of_plans=PLANS,
        images=IMAGES,
        train_images=TRAIN_IMAGES,
        config=FINETUNE.model_dump(),
    )
    found = subject("resnet56")
    choices = _choices("resnet56", found)
    other = other_images(found.data)
    train = found.data.train.subset(TRAIN_IMAGES, seed=SEED)
    judge = Judge(found.network, search_images(found.data))

    def trained(k: int) -> Row:
        before = score_pruned(found, judge, [choices[k]])[0].means
        network = prune_copy(found, choices[k])
        recalibrate_batch_norm_(network, found.data.train, **RECALIBRATION)
        untrained = evaluate(network, other)
        teacher = copy.deepcopy(found.network)
        result = fit(network, train, other, FINETUNE, seed=SEED, teacher=teacher)
        return {
            "before": before,
            "other_before": {"loss": untrained.loss, "top1": untrained.top1},
            "other_after": {
                "loss": result.history[-1].values["search_loss"],
                "top1": result.search_top1,
            },
            "train_loss": result.history[-1].values["train_loss"],
        }

    record.complete(correlated_plans(), found, choices, trained)


class _Record:
    """A file of rows that is taken up again where it ended.

    Args:
        path: Of the file.
        settings: What was asked; another run's rows are refused.

    Raises:
        SystemExit: The file is of another run.
    """

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        here = Path(__file__).parent
        self.settings: dict[str, Any] = {
            **settings,
            "target": TARGET,
            "seed": SEED,
            "recalibration": RECALIBRATION,
            "search_seen_in_pretraining": True,
        }
        sources = {n: hashlib.sha256((here / n).read_bytes()).hexdigest() for n in SOURCES}
        self.runs: list[dict[str, Any]] = []
        self.rows: list[Row] = []
        if path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["settings"] != self.settings:
                raise SystemExit(f"{path} is of other settings: move it away to start anew")
            self.runs, self.rows = saved["runs"], saved["rows"]
        # The files may not be committed yet: their digests say which text it was that ran.
        run = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "first_row": len(self.rows),
            "threads": torch.get_num_threads(),
            "sources_sha256": sources,
            "environment": environment(),
        }
        self.runs.append(run)

    def complete(
        self,
        numbers: Sequence[int],
        found: Subject,
        choices: Sequence[Choice],
        measure: Callable[[int], Row],
    ) -> None:
        """Measure the plans that are not there yet, each kept as soon as it is known.

        Raises:
            SystemExit: A row that is there is of another plan than the one of its number.
        """
        digests = {k: found.trace.plan(choices[k]).digest for k in numbers}
        for row in self.rows:
            if digests.get(row["plan"]) != row["digest"]:
                raise SystemExit(f"{self.path}: plan {row['plan']} is another one by now")
        done = {row["plan"] for row in self.rows}
        for k in numbers:
            if k in done:
                continue
            started = time.perf_counter()
            row = describe(k, found.trace, choices[k], SEED) | measure(k)
            self.rows.append(row)
            self._save()
            seconds = time.perf_counter() - started
            print(
                f"{self.path.stem} {len(self.rows)}/{len(numbers)} ({seconds:.0f} s): {row}",
                flush=True,
            )

    def _save(self) -> None:
        content = {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": self.settings,
            "runs": self.runs,
            "rows": self.rows,
        }
        write_json(self.path, content)


def _choices(network_name: str, found: Subject) -> list[Choice]:
    """The plans, once peers and ``cut`` are known to make the same network of one of them."""
    choices = plans(network_name, found.network, found.trace, PLANS, SEED)
    check_peers(found, choices[0])
    return choices


if __name__ == "__main__":
    main()
