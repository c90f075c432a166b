"""The start of a logging process of a `LogQueue`: the first one, or one after a kill. POSIX only.

The rule of this file: **each step can be done again by another process, until the commit**: see README.rst.
"""

from __future__ import annotations

import os
from itertools import starmap

import msgspec

from mplog.files.portion import Position
from mplog.logging_process.accounts import Accounts
from mplog.logging_process.announcements import Announced, Announcements
from mplog.logging_process.commit import Commit, Note, read_note
from mplog.logging_process.dispatch import Dispatcher
from mplog.logging_process.fifo_source import BATCH_SIZE, FifoSource
from mplog.logging_process.loop import Loop
from mplog.logging_process.program import Places, Program
from mplog.logging_process.signals import Signals
from mplog.logging_process.suspects import Suspect, Suspects
from mplog.logging_process.workers import Workers
from mplog.monitoring.deaths import Watch
from mplog.monitoring.restart_lines import not_noted
from mplog.monitoring.tallies import Tallies
from mplog.queue.buffers import BufferPair
from mplog.queue.directory import current_fifo_path, emergency_path
from mplog.queue.emergency_reader import READ_SIZE, EmergencyReader
from mplog.queue.overflow import Overflow
from mplog.record.packing import pack


def recover(dispatcher: Dispatcher, places: Places, overflow: Overflow) -> Loop:
    """Go on where the logging process before this one was, if there was one."""
    directory = places.launch.directory
    assert directory is not None
    signals = Signals()
    pair = BufferPair(places.memory)  # finds out whether the announced read was made
    note = read_note(pair)
    suspects = _suspects(places, note, pair)
    announcements = Announcements(directory, note.announced)
    emergency = EmergencyReader(overflow.emergency or emergency_path(directory), note.emergency)
    if not places.stories:
        emergency.take_earlier()

    def warn(error: OSError) -> None:
        what = "to read which records are to be taken back failed, so the log may have some twice"
        dispatcher.troubles.warn("attempt", what, error)

    # After a reboot, only the emergency file says what was announced.
    _take_back([*starmap(Announced, emergency.announced), *announcements.before(warn)], dispatcher)
    emergency.settle()
    tallies = Tallies(places.memory, directory, note.serial)
    tallies.publish()  # at once: `LogServer.stats` reads the file without asking
    dispatcher.failed.update({name: count for (_, name), count in tallies.of("failed").items()})
    source = FifoSource(places, overflow, pair, emergency, tallies, dispatcher, signals.wake, suspects)
    stories = not_noted(places.stories, note.restarts)
    if stories:
        stories[-1] += f", restarted as {os.getpid()}"
    accounts = Accounts(directory, tallies, dispatcher, note.restarts, stories, source.due())
    path = current_fifo_path(directory)
    workers = Workers(Watch(path, places.launch.program, places.fd), tallies, dispatcher.say)
    workers.resume()
    commit = Commit(pair, announcements, accounts, emergency, dispatcher.outputs, suspects)
    if stories:
        commit.commit()
    loop = Loop(dispatcher, source, commit, accounts, workers, Program(places.control, places.supervisor), signals)
    # The functions called from here on may fork, and only the loop closes what their children must not hold.
    dispatcher.go_on(directory, signals.wake)
    return loop


def _suspects(places: Places, note: Note, pair: BufferPair) -> Suspects:
    """Note, first of all, that one more logging process begins at this place."""
    queue, emergency, replay = note.places
    suspects = Suspects(
        Suspect(queue, pair.position, BATCH_SIZE, has_crashed=places.has_crashed),
        Suspect(emergency, note.emergency, READ_SIZE, has_crashed=places.has_crashed),
        Suspect(replay, pair.position, BATCH_SIZE, has_crashed=places.has_crashed),
    )

    def commit_note() -> None:
        pair.commit(0, pack(msgspec.structs.replace(note, places=suspects.places)))

    if places.stories:
        suspects.replay.note = commit_note
        commit_note()
    return suspects


def _take_back(announcements: list[Announced], dispatcher: Dispatcher) -> None:
    """Take back what the previous logging process has written and not committed."""
    # The last announcement first: a file may have several, with those of other files in between.
    for announced in reversed(announcements):
        if announced.file >= len(dispatcher.outputs):
            continue  # it is of another server, which had other sinks
        output = dispatcher.outputs[announced.file]
        start = Position(announced.device, announced.inode, announced.start)
        try:
            output.resume(start, announced.end)
        except Exception as error:
            dispatcher.troubles.warn("attempt", f"to take back what {output.handler!r} had written last failed", error)
