"""The other process of ``run_fresh``: ``python -m prunus.quantize.fresh_worker FOLDER WORK [THREADS]``."""

import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from prunus.errors import PrunusError
from prunus.quantize.deploy import load_deployed
from prunus.quantize.fresh import (
    BATCHES_FILE,
    FACTS_FILE,
    LOGITS_FILE,
    Facts,
    gathered,
    unflat,
)


def main(arguments: list[str]) -> int:
    """Load, run, write logits and facts; 2 where the deployment cannot be used."""
    folder, work = Path(arguments[0]), Path(arguments[1])
    threads = int(arguments[2]) if len(arguments) > 2 else None
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        begin = time.perf_counter()
        session = load_deployed(folder, threads)
        seconds = time.perf_counter() - begin
        logits = [session(batch) for batch in unflat(load_file(work / BATCHES_FILE))]
    except PrunusError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 2
    save_file({"logits": gathered(logits)}, work / LOGITS_FILE)
    Facts(seconds_load=seconds).save(work / FACTS_FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
