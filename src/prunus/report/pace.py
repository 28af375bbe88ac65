"""What a row's latency says beside the dense network's, which ran in turns with it. No torch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prunus.records import Latency, RunRecord
from prunus.report.columns import conditions
from prunus.report.formats import Style, format_value
from prunus.report.spread import Stat, Value

_TOLD = 0.95
"""Share of the dense latency below which a reader takes a row for faster."""

Kind = Literal["idle", "slower", "noise"]
_HEADS: dict[Kind, str] = {
    "idle": "MACs fell{}, but the measured latency fell by no more than its spread",
    "slower": "MACs fell{}, but the measured latency rose",
    "noise": "the measured latency is less than the dense network's{}, by no more than its spread",
}


@dataclass(frozen=True)
class Pace:
    """A latency that is not what a reader of its row would take it for.

    Attributes:
        kind: ``idle``: fewer MACs bought no time that can be told; ``slower``: they cost some;
            ``noise``: less time without fewer MACs, or in another engine, that cannot be told either.
        share: How many times MACs fell, or the share of the dense latency.
        times: In milliseconds, with the spread.
    """

    kind: Kind
    share: str
    times: str

    def sentence(self, label: str) -> str:
        """Of one row."""
        return f"{label}: {_HEADS[self.kind].format(f' {self.share}')} ({self.times})."


def gathered(found: Sequence[tuple[str, Pace]]) -> list[str]:
    """A sentence for each kind that several rows have: who, and their figures."""
    sentences = []
    for kind, head in _HEADS.items():
        mine = [(label, pace) for label, pace in found if pace.kind == kind]
        if len(mine) == 1:
            sentences.append(mine[0][1].sentence(mine[0][0]))
        elif mine:
            parts = [f"{label} {pace.share}, {pace.times}" for label, pace in mine]
            told = head.format("")
            sentences.append(f"{told[0].upper()}{told[1:]}: {'; '.join(parts)}.")
    return sentences


def pace_of(runs: Sequence[RunRecord], macs_fold: Value) -> Pace | None:
    """What to know of a row's latency: a gap counts if it exceeds the larger quartile range.

    Args:
        runs: Of the row.
        macs_fold: How many times fewer MACs it has; missing: not to be said.
    """
    pairs = _pairs(runs)
    if not pairs:
        return None
    mine_ms = statistics.fmean(mine.median_ms for mine, _ in pairs)
    dense_ms = statistics.fmean(dense.median_ms for _, dense in pairs)
    spread_ms = max(max(mine.iqr_ms, dense.iqr_ms) for mine, dense in pairs)
    mine_text, dense_text, spread_text = (
        format_value(Stat(t, None, 1), Style.MILLISECONDS) for t in (mine_ms, dense_ms, spread_ms)
    )
    times = f"{mine_text}, dense {dense_text}, spread {spread_text}"
    gap_ms = dense_ms - mine_ms
    if not isinstance(macs_fold, Stat) or macs_fold.mean <= 1:
        is_noise = mine_ms < _TOLD * dense_ms and gap_ms <= spread_ms
        return Pace("noise", f"({mine_ms / dense_ms:.2f} of it)", times) if is_noise else None
    if gap_ms > spread_ms:
        return None
    return Pace("slower" if gap_ms < -spread_ms else "idle", f"{macs_fold.mean:.2f}×", times)


def noise(runs: Sequence[RunRecord]) -> tuple[float, float]:
    """The largest quartile range of a row's latencies, as a share of the dense network's, and in ms."""
    found = []
    for mine, dense in _pairs(runs):
        spread_ms = max(mine.iqr_ms, dense.iqr_ms)
        found.append((spread_ms / dense.median_ms, spread_ms))
    return max(found, default=(0.0, 0.0))


def _pairs(runs: Sequence[RunRecord]) -> list[tuple[Latency, Latency]]:
    """Latencies with the dense network's, measured alike but for a deployed network's engine."""
    return [
        (mine, dense)
        for run in runs
        if (mine := run.latency) is not None
        and (dense := run.dense_latency) is not None
        and (run.deployed is not None or conditions(mine) == conditions(dense))
    ]
