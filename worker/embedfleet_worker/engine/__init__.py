"""What computes vectors. ``base.py`` says what an engine is; each engine has its own file and its own driver."""
