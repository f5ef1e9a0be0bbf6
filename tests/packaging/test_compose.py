"""compose.yaml, as far as Docker is not needed: versions, settings, paths, and that the stand-in for AWS is set up."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedfleet.settings import load
from tests.aws import moto

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def test_images_are_pinned() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in SERVICES.items():
        assert re.search(r":\d+\.\d+\.\d+", service["image"]), name
        assert "build" not in service or service["image"] == f"embedfleet-worker-cpu:{version}"
    tested = re.search(r"^moto==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert tested
    assert SERVICES["aws"]["image"] == f"motoserver/moto:{tested[1]}"


@pytest.mark.parametrize("name", [name for name in SERVICES if "build" in SERVICES[name]])
def test_a_worker_is_locked_down_and_its_settings_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES[name]
    assert service["build"]["dockerfile"] == "worker/Dockerfile.cpu"
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["user"].endswith(":0")
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value.replace("${PWD}", "/here"))
    settings = load()  # which refuses a variable that it does not know
    assert settings.broker_url
    assert settings.store


def test_each_service_waits_for_what_it_needs_to_be_ready() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[needed]["healthcheck"], name
            else:
                assert (how["condition"], SERVICES[needed]["restart"]) == ("service_completed_successfully", "no")


def test_a_job_has_the_same_path_inside_and_outside() -> None:
    worker = SERVICES["worker"]
    [mount] = [volume for volume in worker["volumes"] if isinstance(volume, dict)]
    assert mount["source"] == mount["target"] == worker["environment"]["EMBEDFLEET_STORE"] == "${PWD}/vectors"


def test_the_stand_in_for_aws_answers_and_gets_its_bucket() -> None:
    _, _, *ask = SERVICES["aws"]["healthcheck"]["test"]
    _, *make = SERVICES["aws-bucket"]["entrypoint"]
    variables = {k: v for k, v in SERVICES["aws-bucket"]["environment"].items() if k.startswith("AWS_")}
    with moto() as endpoint:
        alive = [part.replace("http://127.0.0.1:5000", endpoint) for part in ask]
        assert subprocess.run([sys.executable, *alive]).returncode == 0
        for _ in range(2):  # after a restart of the stand-in it runs again, or finds it there
            made = subprocess.run([sys.executable, *make], env={**variables, "AWS_ENDPOINT_URL": endpoint})
            assert made.returncode == 0
        listed = subprocess.run(
            [sys.executable, "-c", "import boto3; print(boto3.client('s3').list_buckets()['Buckets'][0]['Name'])"],
            env={**variables, "AWS_ENDPOINT_URL": endpoint},
            capture_output=True,
            text=True,
        )
    assert f"s3://{listed.stdout.strip()}/" in SERVICES["worker-aws"]["environment"]["EMBEDFLEET_STORE"]
