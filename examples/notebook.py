"""A notebook: functions of its cells run in other processes, and the log is shown where it was made.

Each "# %%" begins a cell, as Jupytext, VS Code and Spyder have it; as a program, it runs like any other.
"""

# %%
import logging
import multiprocessing

import mplog

logging.getLogger().setLevel("INFO")


# %%
def cube(n: int) -> int:
    """Run in a worker, which cannot import it: it is sent there."""
    logging.getLogger("cubes").info("cubing %d", n)
    return n**3


# %%
if __name__ == "__main__":  # true in a notebook; a program needs it
    spawn = multiprocessing.get_context("spawn")
    with mplog.Pool(2, context=spawn, log="notebook.log") as pool:
        print(pool.map(cube, range(5)))
    with open("notebook.log", encoding="utf-8") as log:
        print(log.read(), end="")
