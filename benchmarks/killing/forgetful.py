"""The engine with an optimiser that is not restored from a checkpoint. Not part of the product; see `plant`."""

import sys

from worker.engine import checkpoints
from worker.engine.__main__ import main

checkpoints.restore_optimizers = lambda folder, optimizers, named: None

if __name__ == "__main__":
    sys.exit(main())
