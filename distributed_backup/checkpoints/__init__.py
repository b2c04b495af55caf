"""The checkpoints of a run, its id, the claims of its terms, and the thread that commits."""
