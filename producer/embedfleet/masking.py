"""Secrets made fit for people's eyes."""

import re


def mask_url(url: str) -> str:
    """The URL with its passwords, in the authority or the query, replaced by ``***``.

    >>> mask_url("redis://me:secret@host:6379/0?password=secret")
    'redis://me:***@host:6379/0?password=***'
    """
    query = re.sub(r"([?&]\w*password=)[^&]*", r"\1***", url)  # first: an @ in it would look like the authority's end
    return re.sub(r"(?<=://)([^:/@]*):((?:(?!\w://).)*)@", r"\1:***@", query)


def mask(value: str) -> str:
    """A secret for people: of a URL only the passwords are replaced."""
    return mask_url(value) if "://" in value else "***" if value else ""
