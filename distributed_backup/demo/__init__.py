"""The demonstration behind `distributed-backup demo`: real workers, real signals, an offline language model."""
