"""PyTorch: the workers of a DataLoader, which end with each epoch and are started again in the next.

python examples/data_loader.py [LOG]
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

import mplog


class Squares(Dataset[torch.Tensor]):
    """Numbers and their squares; each is made in a worker."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        """Runs in a worker."""
        logging.getLogger("data").info("loading %d", index)
        return torch.tensor([index, index * index])


def main() -> None:
    """Run two epochs, and show the log."""
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "data_loader.log")
    log.unlink(missing_ok=True)
    with mplog.LogServer(log, level="INFO") as server:
        loader = DataLoader(Squares(), batch_size=2, num_workers=2, worker_init_fn=server.initializer)
        for epoch in (1, 2):
            logging.info("epoch %d", epoch)
            print(sum(int(batch.sum()) for batch in loader))
    print(log.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
