"""Import synalinks and what the children of the fork server share.

The objects made here are exempt from garbage collection. Otherwise collections take a quarter of the import, and each
child that collects would visit, and so copy, the 700,000 objects of synalinks.
"""

from __future__ import annotations

import gc

gc.disable()

import distributed_backup.callback  # noqa: E402, F401
import tests.support.programs  # noqa: E402, F401

gc.freeze()
gc.enable()
