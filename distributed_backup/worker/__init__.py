"""One worker's protocol: join, restore, save, serve notices, shut down. It knows nothing of synalinks."""
