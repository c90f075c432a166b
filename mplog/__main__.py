"""``python -m mplog``: the command ``mplog``."""

from __future__ import annotations

import sys

from mplog.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
