"""The only room, beside `storage.redis` and `coordination.redis`, that knows the Redis driver."""
