"""How messages are taken from a broker without a moment in which nobody has them."""
