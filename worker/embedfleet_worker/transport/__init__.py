"""How messages are taken from a broker without a moment in which nobody has them, one file a broker."""

GIVEN_BACK_S = 2.0
"""Until what was given back may be taken again, if nothing else was said: a dependency that is down makes none spin."""

running: dict[int, tuple[str, int]] = {}
"""By thread: the queue of the message it works on, and the channel that took it."""

TAKEN = "embedfleet-taken"
"""Property of a message on its way through Celery: what :data:`running` is to say of it."""

give_back_in_s: dict[str, float] = {}
"""By delivery tag, seconds until a message that is about to be given back may be taken again: Celery hands on none."""
