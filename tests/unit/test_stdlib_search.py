"""The example examples/stdlib_search: what it collects, and that its search finds the nearest."""

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "stdlib_search"


def load(name: str) -> ModuleType:
    """A script of the example as a module; its folder is no package."""
    spec = importlib.util.spec_from_file_location(f"stdlib_search_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


collect = load("collect")
search = load("search")

MODULE = '''"""A module."""

class Reader:
    """A reader."""

    @property
    def name(self):
        """The name."""

    @name.setter
    def name(self, value):
        """Set the name."""

    class Error(Exception):
        """A reader's error."""

def read():
    """
    Read.

        Indented.
    """
    def local():
        """No dotted name reaches this."""

if True:
    async def fetch():
        """Fetch."""
else:
    def fetch():
        """Fetch, the other way."""

def blank():
    """   """

def bare(): ...
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    files: dict[str, str | bytes] = {
        "things/__init__.py": MODULE,
        "things/more.py": '"""More."""',
        "old.py": b'# -*- coding: latin-1 -*-\n"""Caf\xe9."""\nx = "\\d"',
        "site-packages/numpy.py": '"""Installed."""',
        "things/test/test_things.py": '"""A test."""',
        "config-3.11/python-config.py": '"""A build script."""',
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def test_every_docstring_is_collected_with_its_dotted_name_and_kind(library: Path) -> None:
    found = [(row["id"], row["text"], row["kind"], row["file"]) for row in collect.collect(library)]
    things = "things/__init__.py"
    assert found == [
        ("old", "Café.", "module", "old.py"),
        ("things", "A module.", "module", things),
        ("things.Reader", "A reader.", "class", things),
        ("things.Reader.name", "The name.", "method", things),
        ("things.Reader.name#2", "Set the name.", "method", things),
        ("things.Reader.Error", "A reader's error.", "class", things),
        ("things.read", "Read.\n\n    Indented.", "function", things),
        ("things.fetch", "Fetch.", "function", things),
        ("things.fetch#2", "Fetch, the other way.", "function", things),
        ("things.more", "More.", "module", "things/more.py"),
    ]


def test_the_standard_library_has_enough_docstrings_with_ids_of_their_own() -> None:
    rows = list(collect.collect(Path(sysconfig.get_path("stdlib"))))
    assert 7_000 <= len(rows) <= 10_000
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["kind"] for row in rows} == {"module", "class", "function", "method"}
    assert all(row["text"].strip() for row in rows)


def write_part(folder: Path, name: str, rows: list[tuple[str, int, list[float] | None]], number: pa.DataType) -> None:
    (folder / "parts").mkdir(exist_ok=True)
    ids, chunks, vectors = zip(*rows, strict=True)
    columns = {
        "id": pa.array(ids, pa.string()),
        "chunk": pa.array(chunks, pa.int32()),
        "embedding": pa.array(
            [None if vector is None else np.array(vector, number.to_pandas_dtype()) for vector in vectors],
            pa.list_(number, 2),
        ),
        "error": pa.array([None if vector is not None else "too_long" for vector in vectors], pa.string()),
    }
    pq.write_table(pa.table(columns), folder / "parts" / name)


@pytest.mark.parametrize("number", [pa.float32(), pa.float16()])
def test_nearest_ranks_by_cosine_over_all_parts_and_passes_failed_texts_over(
    tmp_path: Path, number: pa.DataType
) -> None:
    write_part(tmp_path, "00000001.parquet", [("north", 0, [0.0, 1.0]), ("failed", 0, None)], number)
    write_part(tmp_path, "00000000.parquet", [("failed too", 0, None), ("east", 0, [1.0, 0.0])], number)
    write_part(tmp_path, "00000002.parquet", [("both", 0, [0.0, -1.0]), ("both", 1, [0.6, 0.8])], number)

    found = search.nearest(str(tmp_path), np.array([[1, 0], [0, 1]], np.float32), k=2)

    assert [[id_ for id_, _ in answers] for answers in found] == [["east", "both"], ["north", "both"]]
    assert [score for answers in found for _, score in answers] == pytest.approx([1, 0.6, 1, 0.8], abs=1e-3)


def test_nearest_counts_a_text_once_and_returns_fewer_than_k_if_there_are_no_more(tmp_path: Path) -> None:
    write_part(tmp_path, "00000000.parquet", [("a", 0, [0.6, 0.8]), ("a", 1, [1.0, 0.0])], pa.float32())
    assert search.nearest(str(tmp_path), np.array([[1, 0]], np.float32)) == [[("a", 1.0)]]


def test_a_job_without_vectors_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no Parquet file under parts/"):
        search.nearest(str(tmp_path), np.zeros((1, 2), np.float32))
    write_part(tmp_path, "00000000.parquet", [("a", 0, None)], pa.float32())
    with pytest.raises(ValueError, match="not one of the texts has a vector"):
        search.nearest(str(tmp_path), np.zeros((1, 2), np.float32))
