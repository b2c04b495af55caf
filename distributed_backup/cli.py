"""The command `distributed-backup`; the only module that prints."""
