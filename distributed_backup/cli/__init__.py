"""The command line: `distributed-backup`."""
