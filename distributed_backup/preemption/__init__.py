"""How a worker learns that its machine is about to be taken away. What it does then is in `worker.preemption`."""
