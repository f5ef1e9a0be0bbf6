"""Names in the job folder. Readers outside embedfleet (DuckDB, polars, scripts) rely on them."""

from pathlib import Path

import pytest

from embedfleet.contract import Totals
from embedfleet.destinations import Pgvector
from embedfleet.folder import Folder
from embedfleet.jobfolder import JobFolder, job_id_of, waiting
from tests.contract.documents import DOCUMENTS, JOB


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(Folder(str(tmp_path), make=True), JOB)


def files(below: Path) -> list[str]:
    return sorted(str(path.relative_to(below)) for path in below.rglob("*") if path.is_file())


def test_the_names_of_everything_in_a_job_folder(tmp_path: Path, folder: JobFolder) -> None:
    folder.write_once("job.json", DOCUMENTS["job-v1.json"].dumps())
    folder.write_once("sealed.json", DOCUMENTS["sealed-v1.json"].dumps())
    folder.write_once("input/00000007.parquet", b"")
    folder.write_part(7, b"")
    folder.write_part(99_999_999, b"")
    folder.cancel()
    folder.add_destination(Pgvector(table="docs"))
    folder.write_receipt(waiting(JOB, 7, "pgvector-a8ab8934", "it answered 500", 1.0))
    folder.write_receipt(waiting(JOB, 0, "callback", "it answered 500", 1.0))
    folder.write_manifest(1, Totals(), [])
    assert files(tmp_path)[0] == ".embedfleet-store"
    assert files(tmp_path)[1:] == [
        f"{JOB}/{name}"
        for name in (
            "cancelled.json",
            "deliveries/callback/00000000.json",
            "deliveries/pgvector-a8ab8934/00000007.json",
            "destinations/pgvector-a8ab8934.json",
            "input/00000007.parquet",
            "job.json",
            "manifest.json",
            "parts/00000007.parquet",
            "parts/99999999.parquet",
            "sealed.json",
        )
    ]
    assert folder.uri == f"file://{tmp_path}/{JOB}"
    assert folder.input_path(7) == f"{JOB}/input/00000007.parquet"
    assert folder.part_path(7) == f"{JOB}/parts/00000007.parquet"


def test_the_id_of_a_job_comes_from_its_key() -> None:
    assert job_id_of("docs-2026-11") == "j-eee670a86fc3eb1ffcd2"
    assert job_id_of("") == "j-76487c081e5d8ab1cfae"
    assert job_id_of("docs-2026-11\n") == "j-49e931ef82f370a76c08"
