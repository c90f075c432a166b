"""The comparison runs, and counts what it delivers. These tests do not look at its times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import docutils.core
import pytest

# Last, since what the tests import, and all the processes that they start, is the mplog that is installed.
sys.path.append(str(Path(__file__).parents[2]))

from benchmarks import compare, isolated, report
from benchmarks.contenders import CONTENDERS, MPLOG

pytestmark = pytest.mark.processes

OURS = [contender.__name__ for contender in MPLOG]
TINY = compare.Effort(
    rounds=1,
    records=200,
    seconds=0.1,
    lone=2,
    idle_seconds=0.1,
    memory_records=200,
    delivery_scale=0.02,
    patience=20.0,
)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """All parts that need nothing but mplog and the stdlib, with tiny numbers."""
    parts = [part for part in compare.PARTS if part not in ("rate", "workers", "sizes", "memory")]
    rate = compare.run(["rate"], OURS, TINY, lambda what: None)
    return rate | compare.run(parts, OURS[:2], TINY, lambda what: None)


def test_rates_have_every_contender_with_all_records_delivered(results: dict[str, Any]) -> None:
    """Each row of the comparison has its ratios, and as many records in the files as were logged."""
    rows = results["rate"]["rows"]
    assert set(rows) == {*OURS, "PrivateFiles"}
    for row in rows.values():
        assert "error" not in row, row
        assert row["delivered"] == row["expected"] > 0
        assert row["rate_ratio"] > 0 and row["cpu_ratio"] > 0


def test_nothing_is_lost_in_any_scenario(results: dict[str, Any]) -> None:
    """What mplog has taken is delivered: out of a Pool, from killed workers, past a stopped writer, from spawn."""
    for row in results["delivery"]["rows"].values():
        for scenario, outcome in row["scenarios"].items():
            assert "error" not in outcome and "trouble" not in outcome, (scenario, outcome)
            # Of a killed worker, one more may be there, whose call had not returned.
            more = outcome["delivered"] - outcome["logged"]
            assert 0 <= more <= (2 if scenario == "killed" else 0), (scenario, outcome)


def test_other_parts_have_their_figures(results: dict[str, Any]) -> None:
    """Latencies, the lone record, the logging process alone and the idle one are measured."""
    for rows in results["latency"]["tables"].values():
        assert all(row["calls"] == 2 * int(TINY.seconds * 5000) for row in rows.values()), rows
    assert all(row["max_ms"] > 0 for row in results["lone"]["rows"].values())
    assert all(row["lines"] == 1 for row in results["alone"]["rows"].values())
    assert all(row["switches"] >= 0 for row in results["idle"]["rows"].values())


def test_page_is_valid_and_holds_all_rows(results: dict[str, Any]) -> None:
    """The page made of the results is correct reStructuredText and names each contender; they travel as JSON."""
    kept = json.loads(json.dumps(results))
    page = report.page(kept)
    settings = {"halt_level": 2, "report_level": 2}
    docutils.core.publish_string(page, settings_overrides=settings)
    docutils.core.publish_string(report.readme_table(kept), settings_overrides=settings)
    assert all(contender.title in page for contender in MPLOG)


def test_contender_that_cannot_run_says_why() -> None:
    """A package that is missing, or does not work here, gives a row with the reason."""
    outcome = isolated.run("delivery:full", timeout=30, contender="PrivateFiles", scale=0.1, patience=1)
    assert "no queue" in outcome["error"]


def test_hanging_measurement_is_given_up() -> None:
    """A measurement that does not end is ended, and the result says so."""
    outcome = isolated.run("latency:paced", timeout=0.5, contender="PrivateFiles", seconds=60, stall=0)
    assert "had not ended" in outcome["error"]


def test_every_contender_says_what_it_is() -> None:
    """Each contender has a title of its own and a note."""
    titles = [contender.title for contender in CONTENDERS.values()]
    assert len(set(titles)) == len(titles)
    assert all(contender.note for contender in CONTENDERS.values())
