"""Predicted against counted: MACs and parameters of 200 random plans for every zoo network.

    python benchmarks/accounting.py

The prediction is a formula over the trace; the count runs the cut network under a dispatcher.
"""

import numpy as np
import torch
from record import write_results

from prunus.graph import cut, trace
from prunus.meter import count_macs, count_params
from prunus.zoo import build, is_text, zoo_names

PLANS = 200


def main() -> None:
    rows = []
    for name in (name for name in zoo_names() if not is_text(name)):
        network = build(name).eval()
        shape = (2, 1, 8, 8) if name == "digits_cnn" else (2, 3, 32, 32)
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        found = trace(network, example)
        # Shapes decide both numbers: on the meta device there are no weights to copy.
        network, sample = network.to("meta"), torch.empty((1, *shape[1:]), device="meta")
        random = np.random.default_rng(0)
        wrong = 0
        ratios = []
        for _ in range(PLANS):
            choice = {}
            for group in found.cuttable:
                keep = random.random(group.units) < random.uniform(0.1, 1.0)
                keep[random.integers(group.units)] = True
                choice[group.name] = keep
            cost = found.cost(choice)
            small = cut(network, found.plan(choice))
            counted = count_macs(small, sample).macs
            wrong += (counted, count_params(small)) != (cost.macs, cost.params)
            ratios.append(cost.macs / found.cost({}).macs)
        row = {
            "network": name,
            "plans": PLANS,
            "mismatches": wrong,
            "macs_ratio_min": round(min(ratios), 4),
            "macs_ratio_max": round(max(ratios), 4),
        }
        rows.append(row)
        print(row, flush=True)
    write_results("accounting", rows, seed=0)


if __name__ == "__main__":
    main()
