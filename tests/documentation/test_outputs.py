"""The programs in docs/outputs.rst, against the real thing: a real rsyslog, OpenTelemetry's own exporter."""

from __future__ import annotations

import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from oracle import wait_until
from scripts import lines, run_script

pytestmark = pytest.mark.processes

PAGE = (Path(__file__).parents[2] / "docs" / "outputs.rst").read_text()


def programs() -> dict[str, str]:
    """Return the programs of the page, by the headline above them."""
    found = {}
    _, *rest = re.split(r"^([^\n]+)\n-{3,}\n", PAGE, flags=re.MULTILINE)
    for headline, text in zip(rest[::2], rest[1::2]):
        (block,) = re.findall(r"\.\. code-block:: python\n\n((?:    [^\n]*\n|\n)+)", text)
        found[headline] = textwrap.dedent(block)
    return found


def run(tmp_path: Path, headline: str, *, old: str = "", new: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program of the page, with something in it replaced, which must be there once."""
    program = programs()[headline]
    if old:
        assert program.count(old) == 1
        program = program.replace(old, new)
    done = run_script(tmp_path, program)
    assert done.stderr == ""
    return done


def test_every_program_of_the_page_is_run() -> None:
    """Each program of the page has a test."""
    tests = Path(__file__).read_text()
    assert len(programs()) == 6
    assert [headline for headline in programs() if f'run(tmp_path, "{headline}"' not in tests] == []


def test_parts_of_the_log(tmp_path: Path) -> None:
    """Each sink has its part of the log."""
    run(tmp_path, "Parts of the log")
    assert lines(tmp_path / "app.log") == ["app started", "app.db.pool connected", "app failed"]
    assert lines(tmp_path / "db.log") == ["app.db.pool connected"]
    assert lines(tmp_path / "audit.log") == ["app.audit login"]
    assert lines(tmp_path / "errors.log") == ["app failed"]


def test_a_file_per_task(tmp_path: Path) -> None:
    """Each job has a file."""
    run(tmp_path, "A file per worker, or per task")
    found = {path.name: len(lines(path)) for path in (tmp_path / "jobs").glob("[0-9]*.log")}
    assert found == {"0.log": 1, "1.log": 1, "2.log": 1}


def test_a_function(tmp_path: Path) -> None:
    """Records are in the database."""
    run(tmp_path, "A function")
    database = sqlite3.connect(tmp_path / "log.sqlite")
    assert database.execute("SELECT level, message FROM log").fetchall() == [("INFO", "one"), ("INFO", "two")]
    database.close()


def test_bytes(tmp_path: Path) -> None:
    """All bytes are there, in whole pieces."""
    run(tmp_path, "Bytes")
    trades = sorted(struct.iter_unpack("<Id", (tmp_path / "trades.bin").read_bytes()))
    assert trades == [(number, number / 7) for number in range(100)]
    ticks = zlib.decompress((tmp_path / "ticks.z").read_bytes()).splitlines()
    assert sorted(ticks) == sorted(b"tick %d" % number for number in range(100))


# --- syslog ---

_CONFIGURATION = """
module(load="imuxsock" SysSock.Use="off")
global(workDirectory="{directory}")
template(name="line" type="string" string="%syslogfacility-text%.%syslogseverity-text% %programname%:%msg%\\n")
input(type="imuxsock" Socket="{directory}/log" RateLimit.Interval="0")
action(type="omfile" file="{directory}/out" template="line")
"""

RSYSLOGD = shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin:/sbin:/usr/local/sbin")


@pytest.fixture
def rsyslog() -> Iterator[Path]:
    """A rsyslog of our own: the directory of its socket, log, and of what it writes, out."""
    if RSYSLOGD is None:
        pytest.skip("there is no rsyslogd, which pip cannot install: apt-get install rsyslog")
    directory = Path(tempfile.mkdtemp(prefix="r"))  # the paths of sockets have a limit of about 100 characters
    (directory / "conf").write_text(_CONFIGURATION.format(directory=directory))
    process = subprocess.Popen(
        [RSYSLOGD, "-n", "-f", str(directory / "conf"), "-i", str(directory / "pid")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until(lambda: (directory / "log").exists() or process.poll() is not None, "rsyslog listens")
        assert process.poll() is None, process.communicate()[0]
        yield directory
    finally:
        process.terminate()
        process.communicate(timeout=30)
        shutil.rmtree(directory)


def test_syslog(tmp_path: Path, rsyslog: Path) -> None:
    """A real rsyslog gets facility, severity, the program's name and the text of each record."""
    run(tmp_path, "syslog", old="/dev/log", new=f"{rsyslog}/log")
    wait_until(lambda: (rsyslog / "out").exists() and len(lines(rsyslog / "out")) >= 3, "rsyslog has written")
    found = [re.sub(r"(?:Fork|ForkServer)PoolWorker-\d+", "WORKER", line) for line in lines(rsyslog / "out")]
    assert sorted(found) == [f"local0.warning shop: WORKER shop order {number} is late" for number in range(3)]
    assert len(lines(tmp_path / "shop.log")) == 3


# --- OpenTelemetry ---


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """What receives OTLP over HTTP: its address, and the requests, decoded."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    requests: list[Any] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/x-protobuf"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(ExportLogsServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="at the end OpenTelemetry's handler starts a thread, which 3.12 refuses"
)
def test_opentelemetry(tmp_path: Path, receiver: tuple[str, list[Any]]) -> None:
    """The exporter's requests have each record with its text, level, attributes, service, and the worker's span."""
    address, requests = receiver
    done = run(tmp_path, "OpenTelemetry", old="http://localhost:4318", new=address)
    expected = [line.split() for line in done.stdout.splitlines()]
    assert len(expected) == 3
    found = []
    for request in requests:
        for resource in request.resource_logs:
            service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
            for scope in resource.scope_logs:
                for each in scope.log_records:
                    attributes = {attribute.key: attribute.value for attribute in each.attributes}
                    assert (service, scope.scope.name, each.severity_text) == ("shop", "shop", "INFO")
                    number = attributes["order"].int_value
                    assert each.body.string_value == f"order {number}"
                    assert each.time_unix_nano > 0
                    found.append([str(number), each.trace_id.hex(), each.span_id.hex()])
    assert sorted(found) == expected
    assert len({trace for _, trace, _ in found}) == 3
