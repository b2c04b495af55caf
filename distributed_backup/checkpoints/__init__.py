"""What a run keeps: checkpoints, run identity, term claims, and the thread that commits."""
