"""Real processes, real SIGKILL: nothing is lost and nothing counts twice. `make chaos KILLS=…` is the long run."""
