"""How Sphinx builds these pages; ``.ci/run`` does so, with every warning as an error.

The prose is plain reStructuredText that links to other pages as files (``delivery.rst``), so that it can be read where
it lies; `link_pages` makes links of the built pages of them.
"""

from __future__ import annotations

import configparser
import contextlib
import inspect
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

HERE = Path(__file__).parent

setup_cfg = configparser.ConfigParser()
setup_cfg.read(HERE.parent / "setup.cfg")

project = "mplog"
author = "mplog's authors"
version = release = setup_cfg["metadata"]["version"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest"]
html_theme = "furo"
html_title = f"mplog {release}"
html_static_path = ["_static"]
html_css_files = ["width.css"]
html_show_copyright = False
html_show_sourcelink = False
# A table that the README takes in.
exclude_patterns = ["benchmark-table.rst"]

default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    # The standard library: there is no inventory of it without a network.
    (
        r"py:(class|exc|obj)",
        r"(collections\.abc|concurrent\.futures|datetime|itertools|logging|multiprocessing|os|queue|re)\..+",
    ),
    ("py:class", r"(mplog\.[\w.]+\.)?T"),
    # Taken for an alias, since its __name__ is that of `Process`.
    ("py:class", r"mplog\.server\.pools\.MultiprocessProcess"),
    # What an `Initializer` is made of, which the server makes; and where a `LogQueue` counts its losses.
    ("py:class", r"mplog\.worker\.\w+\.(Layout|LoggingState)|Losses"),
]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
# One argument a line where they do not fit into one.
maximum_signature_line_length = 90
napoleon_use_rtype = False

doctest_global_setup = "import mplog\nfrom mplog import *"


def mark_arguments(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Show as code what docstrings put in single backticks and is an argument, since there is nothing to link to."""
    module, *path = name.split(".")
    owner = __import__(module)
    arguments: set[str] = set()
    for part in path:
        owner = getattr(owner, part)
        for each in owner.__mro__ if inspect.isclass(owner) else [owner]:
            if callable(each):
                with contextlib.suppress(ValueError):  # a builtin that does not say what it takes
                    arguments |= inspect.signature(each).parameters.keys()
    pattern = re.compile(r"(?<!`)`(\w+)`(?!`)")
    lines[:] = [pattern.sub(lambda it: f"``{it[1]}``" if it[1] in arguments else it[0], line) for line in lines]


def link_pages(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Have a link to the file of a page lead to the built page; any other file's would lead nowhere."""
    for reference in doctree.findall(nodes.reference):
        target, _, anchor = reference.get("refuri", "").partition("#")
        if "://" in target or not target.endswith(".rst"):
            continue
        page = target.removesuffix(".rst")
        if page in app.env.all_docs:
            reference["refuri"] = app.builder.get_relative_uri(docname, page) + (f"#{anchor}" if anchor else "")
        else:
            logging.getLogger(__name__).warning("there is no page %s", target, location=reference)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    # Before napoleon, which makes literals of some of them itself.
    app.connect("autodoc-process-docstring", mark_arguments, priority=100)
    app.connect("doctree-resolved", link_pages)
