"""Exempt all objects that exist at the import of this module from garbage collection.

The fork server imports it last. Otherwise each child that collects would visit, and so copy, the 700,000 objects of
synalinks.
"""

from __future__ import annotations

import gc

gc.freeze()
