"""Run a command with a log server: every program below it that calls mplog.attach() writes into one log.

python examples/attach_server.py LOG COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import logging
import subprocess
import sys

import mplog


def main() -> int:
    """Run the command, and return its exit status."""
    log, *command = sys.argv[1:]
    with mplog.LogServer(log, level="INFO"):
        logging.info("starting %s", command[0])
        status = subprocess.run(command, check=False).returncode
        logging.info("%s ended with exit status %d", command[0], status)
    return status


if __name__ == "__main__":
    sys.exit(main())
