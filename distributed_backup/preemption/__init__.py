"""Receive preemption notices: signals and polled sources. `worker` serves them."""
