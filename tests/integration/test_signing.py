"""A fleet with a signing key: its own messages are done, those of others touch no folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embedfleet import Fleet
from embedfleet.local import LocalFleet
from tests.integration.command import start
from tests.waiting import wait_until

KEY = "a key of more than sixteen characters"


def test_only_what_is_signed_with_its_key_is_done(redis_url: str, tmp_path: Path) -> None:
    settings = {"broker_url": redis_url, "store": str(tmp_path / "store")}
    worker = start("worker", cwd=tmp_path, **settings, signing_key=KEY)
    try:
        with (
            Fleet(engine="synthetic", **settings) as unsigned,
            Fleet(engine="synthetic", **settings, signing_key=KEY[::-1]) as wrong,
            Fleet(engine="synthetic", **settings, signing_key=KEY) as fleet,
        ):
            refused = [unsigned.enqueue(["a text"]), wrong.enqueue(["a text"])]
            assert fleet.enqueue(["a text"]).wait(timeout_s=60).totals.errors == 0
            assert fleet.embed(["a text"], timeout_s=60).shape == (1, 384)
            wait_until(lambda: fleet.broker.look(fleet.broker.lane("bulk")).empty, "the others to be set aside")
            assert [job.status().state for job in refused] == ["running", "running"]
            for job in refused:  # as reconcile does
                fleet.republish(fleet.job(job.id))
                assert job.wait(timeout_s=60).state == "done"
    finally:
        worker.terminate()
        _, said = worker.communicate(timeout=30)
    assert worker.returncode == 0
    assert b"it is not signed" in said
    assert b"another EMBEDFLEET_SIGNING_KEY?" in said
    assert KEY.encode() not in said


@pytest.mark.parametrize("key", [KEY, f"  {KEY}\n"])
def test_a_local_fleet_hands_its_key_on(start_fleet: Callable[..., LocalFleet], tmp_path: Path, key: str) -> None:
    local = start_fleet(tmp_path / "store", engine="synthetic", signing_key=key)
    with Fleet(**{**dict(local.settings), "signing_key": KEY}) as fleet:
        assert fleet.embed(["a text"], timeout_s=60).shape == (1, 384)
