"""Import what the processes of the demonstration share, in their fork server.

The objects made here are exempt from garbage collection. Otherwise collections take a quarter of the import, and each
process that collects would visit, and so copy, the 700,000 objects of synalinks.
"""

from __future__ import annotations

import gc

gc.disable()

# typer, because a child imports our console script, which imports typer.
import typer  # noqa: E402, F401

import distributed_backup.demo.job  # noqa: E402, F401

gc.freeze()
gc.enable()
