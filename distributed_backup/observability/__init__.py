"""What a worker reports for people: events, event logs, metrics. No worker reads any of it."""
