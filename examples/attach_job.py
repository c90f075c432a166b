"""A program of its own that logs to the server under which it is started; see attach.sh.

python examples/attach_job.py NAME STEPS
"""

from __future__ import annotations

import logging
import multiprocessing
import sys

import mplog

if __name__ == "__main__":
    name, steps = sys.argv[1], int(sys.argv[2])
    multiprocessing.current_process().name = name  # what the log calls it, in place of MainProcess
    mplog.attach()
    for step in range(1, steps + 1):
        logging.getLogger("job").info("step %d of %d", step, steps)
