"""What embedfleet costs, measured: ``python -m loadtest.bench`` prints a table and writes ``bench.json``."""
