"""A process that has no memory left for what it logs (faults 19 and 37)."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import run_script

pytestmark = pytest.mark.processes

PROGRAM = """
import logging, os, resource, sys

import mplog

what, logger = sys.argv[1:]
kind = mplog.Logger if logger == "Logger" else logging.Logger
with mplog.LogServer("app.log", level="INFO", format="%(message).100s", logger_class=kind) as server:
    pid = os.fork()
    if pid == 0:
        server.initializer()
        log = logging.getLogger("job")
        log.info("before")
        logging.raiseExceptions = False
        text = "x" * 40_000_000
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * 4096
        spare = 20_000_000 if what == "long record" else 0
        resource.setrlimit(resource.RLIMIT_AS, (size + spare, resource.RLIM_INFINITY))
        if what == "long record":
            log.info(text)
        else:
            logged, taken = 0, []
            for length in (65_536, 4_096, 512, 64):
                while True:
                    try:
                        taken.append(bytearray(length))
                    except MemoryError:
                        break
            while logged < 2_000:
                try:
                    log.info("%d %s", logged, text[: logged % 1000])
                    logged += 1
                except (MemoryError, SystemError):  # as the stdlib's own code raises it; Python 3.10 may forget it
                    logged += 1
            taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log.info("after")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    stats = server.stop()
print(sum(process.lost for process in stats.lost), dict(stats.unexplained))
"""


@pytest.mark.parametrize("logger", ["logging", "Logger"])
def test_a_record_for_which_there_is_no_memory_is_counted(tmp_path: Path, logger: str) -> None:
    """A record that cannot be encoded costs neither the process nor the next record, and the log says so."""
    done = run_script(tmp_path, PROGRAM, "long record", logger)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 {}\n", "")
    written = (tmp_path / "app.log").read_text().splitlines()
    assert [line for line in written if not line.startswith("mplog: ")] == ["before", "after"]
    assert [line for line in written if line.startswith("mplog: 1 record dropped by MainProcess")]


@pytest.mark.parametrize("logger", ["logging", "Logger"])
def test_a_process_without_any_memory_left_lives_on(tmp_path: Path, logger: str) -> None:
    """Logging raises no signal where there is no memory for anything."""
    done = run_script(tmp_path, PROGRAM, "nothing left", logger)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "app.log").read_text().splitlines()
    assert (written[0], "after" in written) == ("before", True)


JSON = """
import io, json, logging, resource, sys

import mplog
from mplog.record.decoding import decode_entry
from mplog.record.encoding import encode
from mplog.record.packing import pack_json

text = "x" * 40_000_000
long, short = (logging.LogRecord("job", 20, "", 0, message, None, None) for message in (text, "after"))
extra = logging.LogRecord("job", 20, "", 0, "with extra", None, None)
extra.more = text
stream = io.StringIO()
handler = logging.StreamHandler(stream)
handler.setFormatter(mplog.JSONFormatter())
renderer = handler.formatter.renderer("\\n")
batch = [decode_entry(encode(record)) for record in (long, extra, short)]
failed = []

def format_each():
    logging.raiseExceptions = False
    for record in (long, extra, short):
        handler.handle(record)
    return stream.getvalue().splitlines()

def format_batch():
    return [line for line in renderer.render(batch, lambda entry, error: failed.append(error)) if line]

def format_plainly():
    try:
        return [pack_json(text)]
    except MemoryError:
        return [pack_json({"message": "after"})]

with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + 20_000_000, resource.RLIM_INFINITY))
lines = globals()[sys.argv[1]]()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert [json.loads(line)["message"] for line in lines] == ["after"], lines
assert {type(error) for error in failed} <= {MemoryError}
"""


@pytest.mark.parametrize("how", ["format_each", "format_batch", "format_plainly"])
def test_what_is_too_long_for_json_costs_no_process(tmp_path: Path, how: str) -> None:
    """A text for which there is no memory as JSON fails alone, in a program's handler and in the logging process."""
    done = run_script(tmp_path, JSON, how)
    assert (done.returncode, done.stderr) == (0, "")
