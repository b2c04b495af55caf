"""The demonstration behind `distributed-backup demo`."""
