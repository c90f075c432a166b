"""Which interpreter the logging process gets, also in a program that is no Python itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from scripts import environment, lines, run_script, write_script

pytestmark = pytest.mark.processes

PROGRAM = """
import logging, multiprocessing, sys, mplog
{}
try:
    with mplog.LogServer("app.log", level="INFO", format="%(message)s"):
        logging.info("hello")
except mplog.StartError as error:
    print(error)
"""

#: How a program becomes frozen: PyInstaller and others set this, and sys.executable is the program.
FROZEN = "sys.frozen, sys.executable = True, sys.argv[0]; multiprocessing.set_executable(sys.executable)"

#: uWSGI, Blender and the like: sys.executable is the program, which has read its command line itself.
EMBEDDING = "sys.orig_argv = sys.argv; sys.executable = sys.argv[0]; multiprocessing.set_executable(sys.executable)"


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A program that is no Python, and says so if it is started."""
    path = tmp_path / "uwsgi"
    path.write_text(f"#!/bin/sh\\necho started >> {tmp_path}/started\\n")
    path.chmod(0o700)
    return path


def test_a_frozen_program_may_name_an_interpreter(tmp_path: Path) -> None:
    """What the program names with multiprocessing.set_executable() is used, and finds mplog by itself."""
    # A first server loads what is imported late.
    loaded = "mplog.LogServer('first.log').start().stop()"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho $1 > {tmp_path}/first\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    named = f"multiprocessing.set_executable({str(python)!r}); sys.path = ['nowhere']"
    done = run_script(tmp_path, PROGRAM.format(f"{loaded}; {FROZEN}; {named}"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # Not the flags of the frozen program, which may have no site-packages (-S).
    assert lines(tmp_path / "first") == ["-c"]
    assert lines(tmp_path / "app.log") == ["hello"]


def test_a_frozen_program_without_an_interpreter_is_told(tmp_path: Path, witness: Path) -> None:
    """The program itself is not started once more in place of an interpreter; the error says what to do."""
    done = run_script(tmp_path, PROGRAM.format(f"sys.argv[0] = {str(witness)!r}; {FROZEN}"))
    assert f"sys.executable is {str(witness)!r}, and the program is frozen. Name one" in done.stdout
    assert "multiprocessing.set_executable()" in done.stdout
    assert not (tmp_path / "started").exists()


def test_a_program_that_embeds_python_gets_the_one_installed(tmp_path: Path, witness: Path) -> None:
    """The interpreter of the same version and installation is used, and not the program."""
    done = run_script(tmp_path, PROGRAM.format(f"sys.argv[0] = {str(witness)!r}; {EMBEDDING}"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert lines(tmp_path / "app.log") == ["hello"]
    assert not (tmp_path / "started").exists()


def test_a_program_that_embeds_python_without_any_is_told(tmp_path: Path, witness: Path) -> None:
    """Where none is installed, the program is not started in its place; the error says what to do."""
    nowhere = f"sys.exec_prefix = {str(tmp_path)!r}"
    done = run_script(tmp_path, PROGRAM.format(f"sys.argv[0] = {str(witness)!r}; {EMBEDDING}; {nowhere}"))
    assert f"sys.executable is {str(witness)!r}, which is no Python. Name one" in done.stdout
    assert not (tmp_path / "started").exists()


EMBED = r"""
#include <Python.h>
int main(int count, char **arguments) {
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    PyConfig_SetBytesString(&config, &config.executable, arguments[0]);
    PyConfig_SetBytesArgv(&config, count, arguments);
    PyStatus status = Py_InitializeFromConfig(&config);
    if (PyStatus_Exception(status)) Py_ExitStatusException(status);
    int failed = PyRun_SimpleFile(fopen(arguments[1], "r"), arguments[1]);
    return failed | Py_FinalizeEx();
}
"""


def test_a_program_in_c_that_embeds_python(tmp_path: Path) -> None:
    """A whole program that embeds Python has a log."""
    (tmp_path / "program.c").write_text(EMBED)
    variables = sysconfig.get_config_vars()
    library, place = variables.get("LDVERSION"), variables.get("LIBDIR")
    flags = [f"-I{sysconfig.get_path('include')}", f"-L{place}", f"-Wl,-rpath,{place}", f"-lpython{library}", "-lm"]
    built = shutil.which("cc") and subprocess.run(
        ["cc", "program.c", "-o", "program", *flags], cwd=tmp_path, capture_output=True, check=False
    )
    if not built or built.returncode:
        pytest.skip("needs a C compiler, and Python's headers and shared library")
    script = write_script(tmp_path, PROGRAM.format(f"sys.path[:] = {sys.path!r}"))
    done = subprocess.run(
        [str(tmp_path / "program"), str(script)],
        cwd=tmp_path,
        env=environment(PYTHONPATH=":".join(filter(None, sys.path))),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert lines(tmp_path / "app.log") == ["hello"]
