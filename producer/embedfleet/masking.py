"""Secrets made fit for people's eyes."""

import re


def mask_url(url: str) -> str:
    """The URL with its passwords, in the authority or the query, replaced by ``***``.

    >>> mask_url("redis://me:secret@host:6379/0?password=secret")
    'redis://me:***@host:6379/0?password=***'
    """
    authority = re.sub(r"(?<=://)([^:/@]*):((?:(?!\w://).)*)@", r"\1:***@", url)
    return re.sub(r"([?&]password=)[^&]*", r"\1***", authority)


def mask(value: str) -> str:
    """A secret for people: of a URL only the passwords are replaced."""
    return mask_url(value) if "://" in value else "***" if value else ""
