"""A notebook: functions of its cells run in other processes, and the log is shown in the notebook.

Each "# %%" begins a cell, as in Jupytext, VS Code and Spyder; as a program, it runs like any other.
"""

# %%
import logging
import multiprocessing

import mplog

logging.getLogger().setLevel("INFO")


# %%
def cube(n: int) -> int:
    """Runs in a worker, which cannot import it: the function itself is sent."""
    logging.getLogger("cubes").info("cubing %d", n)
    return n**3


# %%
if __name__ == "__main__":  # true in a notebook; a program needs it
    spawn = multiprocessing.get_context("spawn")
    with mplog.Pool(2, context=spawn, log="notebook.log") as pool:
        print(pool.map(cube, range(5)))
    with open("notebook.log", encoding="utf-8") as log:
        print(log.read(), end="")
