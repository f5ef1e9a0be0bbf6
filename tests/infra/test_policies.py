"""What producer, worker and sweep may do: the policies as Terraform renders them, evaluated request by request.

The evaluation is iam-simulate's, which also knows AWS' actions, resource types and condition keys: what AWS does not
know fails here.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.infra.permissions import ALLOWED, BELOW, BUCKET, DEAD, DELIVER, DENIED, PART, WORKER_ROLE, Row
from tests.infra.terraform import PATH, need

pytestmark = pytest.mark.terraform

ROLES = {
    "producer": "module.producer.aws_iam_role_policy.this",
    "worker": 'module.fleet["b01c9bbb"].aws_iam_role_policy.this',
    "reconcile": "module.reconcile[0].aws_iam_role_policy.task",
    "execution": "module.reconcile[0].aws_iam_role_policy.execution",
}
Decide = Callable[..., list[str]]


@pytest.fixture(scope="session")
def decide(tmp_path_factory: pytest.TempPathFactory) -> Decide:
    """Evaluate requests; what is returned says Allowed, ImplicitlyDenied or ExplicitlyDenied for each."""
    need("npm")
    folder = shutil.copytree(Path(__file__).parent / "iam", tmp_path_factory.mktemp("iam") / "iam")
    npm = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", str(folder.parent / "cache")]
    environment = {**os.environ, "PATH": PATH}
    subprocess.run(npm, cwd=folder, env=environment, check=True, capture_output=True)

    def decisions(rows: list[Row], **policies: Any) -> list[str]:
        requests = [_request(row) | policies for row in rows]
        command = ["node", str(folder / "simulate.mjs")]
        done = subprocess.run(
            command, env=environment, input=json.dumps(requests), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout)
        return found

    return decisions


def _request(row: Row) -> dict[str, Any]:
    """A key, other than all else, also has to leave the decision to the account, as AWS' own key policy does."""
    delegates = {"Effect": "Allow", "Principal": {"AWS": "123456789012"}, "Action": "kms:*", "Resource": "*"}
    key_policy = {"Version": "2012-10-17", "Statement": [delegates]}
    return {**row._asdict(), "principal": WORKER_ROLE} | (
        {"resourcePolicy": key_policy} if "kms:" in row.action else {}
    )


def _policy(complete: dict[str, Any], role: str) -> dict[str, Any]:
    policy: dict[str, Any] = json.loads(complete["resources"][ROLES[role]]["policy"])
    return policy


@pytest.mark.parametrize("role", ROLES)
def test_what_is_needed_is_allowed(decide: Decide, complete: dict[str, Any], role: str) -> None:
    decisions = decide(ALLOWED[role], policy=_policy(complete, role))
    assert [row for row, decision in zip(ALLOWED[role], decisions, strict=True) if decision != "Allowed"] == []


@pytest.mark.parametrize("role", ROLES)
def test_what_is_not_needed_is_denied(decide: Decide, complete: dict[str, Any], role: str) -> None:
    assert len(DENIED[role]) >= 20
    decisions = decide(DENIED[role], policy=_policy(complete, role))
    assert [row for row, decision in zip(DENIED[role], decisions, strict=True) if decision == "Allowed"] == []


@pytest.mark.parametrize("role", ROLES)
def test_nothing_is_allowed_that_the_table_does_not_name(complete: dict[str, Any], role: str) -> None:
    given = {action for statement in _policy(complete, role)["Statement"] for action in statement["Action"]}
    assert given == {row.action for row in ALLOWED[role]}


# Names that nobody knows beforehand: objects, log streams, tasks of the registry's login.
WILDCARDS = (r"arn:aws:s3:::[a-z0-9-]+/jobs/((open|janitor)/)?\*", r"arn:aws:logs:[^*]+:log-stream:\*", r"\*")


def test_resources_are_named_whole(complete: dict[str, Any]) -> None:
    for address, values in complete["resources"].items():
        if "aws_iam_role_policy" not in address:
            continue
        for statement in json.loads(values["policy"])["Statement"]:
            for resource in statement["Resource"]:
                assert "*" not in resource or any(re.fullmatch(known, resource) for known in WILDCARDS), address
                assert resource != "*" or statement["Action"] == ["ecr:GetAuthorizationToken"], address


@pytest.mark.parametrize(
    ("resource", "row"),
    [
        ("module.store.aws_s3_bucket_policy.this", Row("s3:GetObject", PART)),
        ("module.store.aws_s3_bucket_policy.this", Row("s3:ListBucket", BUCKET, BELOW)),
        ('module.queues.aws_sqs_queue.work["fleet-deliver"]', Row("sqs:SendMessage", DELIVER)),
        ("module.queues.aws_sqs_queue.dead", Row("sqs:SendMessage", DEAD)),
    ],
)
def test_only_tls_comes_in(decide: Decide, complete: dict[str, Any], resource: str, row: Row) -> None:
    policies = {
        "policy": _policy(complete, "worker"),
        "resourcePolicy": json.loads(complete["resources"][resource]["policy"]),
    }
    in_clear = row._replace(context={**(row.context or {}), "aws:SecureTransport": "false"})
    assert decide([row, in_clear], **policies) == ["Allowed", "ExplicitlyDenied"]


@pytest.mark.parametrize(
    ("role", "principal"),
    [
        ("module.producer.aws_iam_role.this", {"AWS": ["arn:aws:iam::123456789012:role/shop"]}),
        ('module.fleet["b01c9bbb"].aws_iam_role.this', {"Service": "ec2.amazonaws.com"}),
        ("module.reconcile[0].aws_iam_role.task", {"Service": "ecs-tasks.amazonaws.com"}),
        ("module.reconcile[0].aws_iam_role.schedule", {"Service": "scheduler.amazonaws.com"}),
    ],
)
def test_roles_are_taken_by_whom_they_are_for(complete: dict[str, Any], role: str, principal: dict[str, Any]) -> None:
    trust = json.loads(complete["resources"][role]["assume_role_policy"])["Statement"]
    assert [(statement["Effect"], statement["Principal"]) for statement in trust] == [("Allow", principal)]
