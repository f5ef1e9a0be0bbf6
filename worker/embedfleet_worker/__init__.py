"""The worker: takes batches off the queue, embeds them, commits parts. Start it as ``python -m embedfleet_worker``."""
