"""joblib: the workers of Parallel, which loky keeps and reuses from one call to the next.

python examples/joblib_parallel.py [LOG]
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from joblib import Parallel, delayed, parallel_config

import mplog


def square(n: int) -> int:
    """Runs in a worker."""
    logging.getLogger("numbers").info("squaring %d", n)
    return n * n


def main() -> None:
    """Run some tasks, and show the log."""
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "joblib_parallel.log")
    log.unlink(missing_ok=True)
    with mplog.LogServer(log, level="INFO") as server:
        # For all calls below, also in libraries such as scikit-learn.
        with parallel_config(backend="loky", initializer=server.initializer):
            print(Parallel(n_jobs=2)(delayed(square)(n) for n in range(5)))
            print(Parallel(n_jobs=2)(delayed(square)(n) for n in range(5, 10)))

        # The other backend with processes, for one call.
        parallel = Parallel(n_jobs=2, backend="multiprocessing", initializer=server.initializer)
        print(parallel(delayed(square)(n) for n in range(10, 15)))
    print(log.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
