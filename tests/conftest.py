"""What all tests share. Nothing here imports synalinks: most tests don't need it, and it takes seconds."""

from __future__ import annotations

import os

# synalinks' litellm would otherwise try to fetch a price list when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
