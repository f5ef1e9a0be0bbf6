"""What an instance does at boot: its user data, and the script that fetches secrets, run against stand-ins."""

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.infra.terraform import SOURCE

pytestmark = pytest.mark.terraform

PREPARE = SOURCE / "modules" / "fleet" / "files" / "prepare"
LEAVE = PREPARE.with_name("leave")
WEBHOOK = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:embedfleet/webhook-AbCdEf"
PGVECTOR = "arn:aws:ssm:eu-central-1:123456789012:parameter/embedfleet/pgvector"
SIGNING = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:embedfleet/signing-AbCdEf"


@pytest.fixture
def files(complete: dict[str, Any]) -> dict[str, str]:
    """By path: what user data writes on an instance of the second model."""
    templates = [values for address, values in complete["resources"].items() if "aws_launch_template.this" in address]
    template = next(values for values in templates if "qwen" in values["name"])
    header, _, config = base64.b64decode(template["user_data"]).decode().partition("\n")
    assert header == "#cloud-config"
    return {file["path"]: file["content"] for file in json.loads(config)["write_files"]}


def test_environment_is_the_workers(files: dict[str, str], complete: dict[str, Any]) -> None:
    environment = dict(line.split("=", 1) for line in files["/etc/embedfleet/environment"].splitlines())
    assert environment in complete["outputs"]["worker_environments"].values()
    assert environment["EMBEDFLEET_MODEL"] == "Qwen/Qwen3-Embedding-0.6B"


def test_secrets_are_named_not_told(files: dict[str, str]) -> None:
    assert files["/etc/embedfleet/secrets"].splitlines() == [
        f"EMBEDFLEET_PGVECTOR_URL {PGVECTOR}",
        f"EMBEDFLEET_SIGNING_KEY {SIGNING}",
        f"EMBEDFLEET_WEBHOOK_SECRET {WEBHOOK}",
    ]


def test_systemd_starts_the_container_again(files: dict[str, str]) -> None:
    unit = files["/etc/systemd/system/embedfleet-worker.service"]
    run = unit.replace("\\\n", "").split("ExecStart=")[1].splitlines()[0].split()
    assert run[:2] == ["/usr/bin/docker", "run"]
    assert run[-1] == "123456789012.dkr.ecr.eu-central-1.amazonaws.com/embedfleet-worker:0.1.0"
    assert {"--gpus", "--env-file", "--log-driver", "awslogs", "no-new-privileges"} <= set(run)
    assert "--privileged" not in run
    assert " ".join(run).count("--network host") == 1  # the metadata lets nobody ask from further away
    leave = "ExecStopPost=/usr/local/libexec/embedfleet/leave"
    assert {"Restart=on-failure", "RestartPreventExitStatus=2", leave} <= set(unit.splitlines())
    assert "$" not in unit  # nothing that Terraform should have filled in


def test_what_systemd_calls_is_there(files: dict[str, str]) -> None:
    unit = files["/etc/systemd/system/embedfleet-worker.service"]
    called = {word.partition("=")[2] for word in unit.split() if "=/usr/local/libexec/" in word}
    assert called == {path for path in files if path.startswith("/usr/local/libexec/")}
    assert files["/usr/local/libexec/embedfleet/leave"] == LEAVE.read_text("utf-8")


@pytest.mark.parametrize(
    ("result", "status", "asked"),
    [
        ("success", "0", "systemctl --no-block poweroff\n"),  # told to go, and done
        ("success", "TERM", ""),
        ("exit-code", "70", ""),  # systemd starts it again
        ("exit-code", "75", ""),
        ("exit-code", "2", ""),  # somebody has to look into its log
        ("exit-code", "0", ""),  # it was the stopping that failed
        ("signal", "KILL", ""),
        ("exit-code", None, ""),  # it was never started: no secret
    ],
)
def test_only_an_instance_whose_worker_is_done_goes(
    tmp_path: Path, result: str, status: str | None, asked: str
) -> None:
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "systemctl $*" >>{tmp_path}/asked\n', "utf-8")
    (tmp_path / "systemctl").chmod(0o755)
    (tmp_path / "asked").touch()
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SERVICE_RESULT": result}
    if status is not None:
        environment["EXIT_STATUS"] = status
    subprocess.run(["bash", str(LEAVE)], env=environment, check=True)
    assert (tmp_path / "asked").read_text("utf-8") == asked


def _prepare(tmp_path: Path, aws: str, registry: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script with stand-ins for the AWS CLI and Docker, which write down what they were asked."""
    tools, settings = tmp_path / "bin", tmp_path / "etc"
    tools.mkdir()
    settings.mkdir()
    for name, body in {"aws": aws, "docker": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/asked\ncat >/dev/null\n{body}\n', "utf-8")
        (tools / name).chmod(0o755)
    (settings / "secrets").write_text(f"EMBEDFLEET_PGVECTOR_URL {PGVECTOR}\nEMBEDFLEET_WEBHOOK_SECRET {WEBHOOK}\n")
    (settings / "registry").write_text(f"{registry}\n")
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(PREPARE), str(settings), str(tmp_path / "run")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_fetches_secrets_into_memory(tmp_path: Path) -> None:
    done = _prepare(tmp_path, aws='case $1 in ssm) echo "postgresql://u:p=1@db/x";; *) echo "whsec_hush";; esac')
    assert done.returncode == 0, done.stderr
    secrets = tmp_path / "run" / "secrets"
    lines = ["EMBEDFLEET_PGVECTOR_URL=postgresql://u:p=1@db/x", "EMBEDFLEET_WEBHOOK_SECRET=whsec_hush"]
    assert secrets.read_text("utf-8").splitlines() == lines
    assert secrets.stat().st_mode & 0o077 == 0
    assert "hush" not in done.stdout + done.stderr
    asked = (tmp_path / "asked").read_text("utf-8")
    assert f"ssm get-parameter --with-decryption --name {PGVECTOR}" in asked
    assert f"secretsmanager get-secret-value --secret-id {WEBHOOK}" in asked
    assert "docker" not in asked  # a public image needs no login


@pytest.mark.parametrize("aws", ["exit 254", "echo", "printf 'two\\nlines\\n'"], ids=["refused", "empty", "two lines"])
def test_no_start_without_a_secret(tmp_path: Path, aws: str) -> None:
    assert _prepare(tmp_path, aws).returncode != 0
    assert not (tmp_path / "run" / "secrets").exists()


def test_logs_in_to_a_private_registry(tmp_path: Path) -> None:
    assert _prepare(tmp_path, aws="echo a-password", registry="registry.example.com").returncode == 0
    asked = (tmp_path / "asked").read_text("utf-8").splitlines()
    assert "aws ecr get-login-password" in asked
    assert "docker login --username AWS --password-stdin registry.example.com" in asked
