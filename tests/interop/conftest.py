"""Servers that take long to get: only for ``make interop``."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless ``-m interop`` asks for it."""
    if "interop" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("interop")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
