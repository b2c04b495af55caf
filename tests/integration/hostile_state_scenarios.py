"""Restore hostile states and answers in a child, for `test_hostile_state`. Imports synalinks."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.answers import PARSERS
from tests.fuzz.engine import check, fuzz

Report = Callable[..., None]

STATE = next(parser for parser in PARSERS if parser.name == "state of a fit").seeds[-1]
# Inputs that once broke a rule, by the name of the parser.
CORPUS = (
    ("state of a fit", b"-1"),
    ("state of a fit", b'{"loop":7}'),
    ("state of a fit", b'{"loop":{"data":{"first_epoch":-1000000000000}}}'),
    ("state of a fit", b'{"loop":{"description":{"versions":["0.3"],"parts":[[[],7]]}}}'),
    ("state of a fit", b'{"loop":{},"objects":{},"variables":7,"schema":{}}'),
    # A list of words that are no numbers, as version 0.3 has written them.
    ("state of a fit", STATE[:-1] + b',"python_random":[3,["x"],null],"numpy_random":["MT19937",[1],1,0,0.0]}'),
    ("recorded stream", b"7"),
    ("recorded stream", b"{"),
    # The bytes of each chunk take some kB at first.
    ("recorded stream", b'"%s"' % (b"x" * 2000)),
    ("recorded stream", b"[%s1]" % (b"1," * 2000)),
)


def changed(report: Report, inputs: int) -> list[tuple[str, str, str]]:
    """Return the failures that changed inputs show, by parser."""
    found = [(parser.name, fuzz(parser, inputs=inputs, seed=0)) for parser in PARSERS]
    return [(name, failure.problem, repr(failure.data[:300])) for name, each in found for failure in each.failures]


def corpus(report: Report) -> list[tuple[str, str]]:
    """Return what the inputs of the corpus break."""
    parsers = {parser.name: parser for parser in PARSERS}
    found = [(name, check(parsers[name], data)) for name, data in CORPUS]
    return [(name, problem) for name, problem in found if problem is not None]


def accepted(report: Report) -> list[str]:
    """Return the parsers that refuse their own seeds."""
    refused = []
    for parser in PARSERS:
        try:
            parser.call(parser.seeds[0])
        except parser.ours as error:
            refused.append(f"{parser.name}: {error}")
    return refused
