"""Collect every docstring of this Python's standard library into a JSONL file. Parses the sources; imports none.

    python examples/stdlib_search/collect.py OUT.jsonl

Each line has ``id`` (``json.decoder.JSONDecoder.decode``), ``text``, ``kind`` and ``file``. Modules written in C
have no source and are left out. The same Python gives the same file, byte for byte.
"""

import ast
import json
import os
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict

SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test"})
"""Beside ``site-packages`` and the like, whose hyphen already says that they are no packages."""

Kind = Literal["module", "class", "function", "method"]
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstring(TypedDict):
    """One line of the JSONL file."""

    id: str
    text: str
    kind: Kind
    file: str


def collect(folder: Path) -> Iterator[Docstring]:
    """Docstrings of every module under ``folder``, a library's root, in a fixed order.

    Ids are dotted paths from ``folder``; a name defined again gets ``#2``, ``#3`` and so on behind it.
    """
    seen: Counter[str] = Counter()
    for path in sources(folder):
        file = path.relative_to(folder)
        for name, kind, node in definitions(parse(path), module_name(file), "module"):
            text = ast.get_docstring(node, clean=True)
            if text is None or not text.strip():
                continue
            seen[name] += 1
            unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
            yield {"id": unique, "text": text, "kind": kind, "file": file.as_posix()}


def sources(folder: Path) -> Iterator[Path]:
    """The importable ``.py`` files under ``folder``, without installed packages and tests, in a fixed order."""
    for parent, folders, files in os.walk(folder):
        # Pruned in place, which os.walk heeds: site-packages may hold more files than the library.
        folders[:] = sorted(name for name in folders if name.isidentifier() and name not in SKIPPED_FOLDERS)
        for file in sorted(map(Path, files)):
            if file.suffix == ".py" and file.stem.isidentifier():
                yield Path(parent) / file


def module_name(file: Path) -> str:
    """``email/__init__.py`` as ``email``, ``email/charset.py`` as ``email.charset``."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file in whatever encoding it declares."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources are not ours to mend
        return ast.parse(path.read_bytes(), filename=str(path))


def definitions(node: Documented, name: str, kind: Kind) -> Iterator[tuple[str, Kind, Documented]]:
    """``node`` and every class and function below it that a dotted name reaches, so not those local to a function."""
    yield name, kind, node
    if kind in ("module", "class"):
        for child in _members(node):
            yield from definitions(child, f"{name}.{child.name}", _kind_of(child, inside=kind))


def _members(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The definitions of one scope, those behind an ``if`` or ``try`` included, in the order of lines."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif not isinstance(child, ast.expr):
            yield from _members(child)


def _kind_of(node: ast.AST, inside: Kind) -> Kind:
    if isinstance(node, ast.ClassDef):
        return "class"
    return "method" if inside == "class" else "function"


def main(out: str) -> None:
    """Write the standard library's docstrings to the file ``out``."""
    count = 0
    with Path(out).open("w", encoding="utf-8") as lines:
        for docstring in collect(Path(sysconfig.get_path("stdlib"))):
            lines.write(json.dumps(docstring) + "\n")
            count += 1
    print(f"{count} docstrings in {out}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python collect.py OUT.jsonl")
    main(sys.argv[1])
