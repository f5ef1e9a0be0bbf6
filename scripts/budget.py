"""Fails when a source file is larger than one room should be. Usage: budget.py MAX_LINES FOLDER..."""

import sys
from pathlib import Path


def main(limit: int, folders: list[str]) -> int:
    """The exit code: 1 when a file is over the limit."""
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.py"))
    sizes = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    over = {file: size for file, size in sizes.items() if size > limit}
    for file, size in over.items():
        print(f"{file}: {size} lines, the budget is {limit}. What in it wants to be its own thing?")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
