"""Destinations of finished parts, one file each; the part itself is in the store by then."""
