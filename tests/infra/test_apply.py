"""One apply to a stand-in for AWS: what its outputs name is there and works, and destroy leaves nothing.

It takes two minutes, most of them the provider waiting for attributes to settle, hence ``-m infra_apply``.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import boto3
import pytest

from embedfleet import Fleet
from embedfleet.broker import queue_name
from embedfleet.errors import StoreUnavailable
from embedfleet.store import open_store
from tests.aws import environment, moto
from tests.infra.terraform import COMPLETE, Terraform
from tests.integration.command import EMBEDFLEET

pytestmark = [pytest.mark.infra_apply, pytest.mark.timeout(900)]

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
VARIABLES = [
    "-var=region=us-east-1",
    f'-var=models=[{{name="{MODEL}"}}]',
    "-var=worker_image=registry.example.com/embedfleet-worker:0.1.0",
    "-var=reconcile_image=registry.example.com/embedfleet-cpu:0.1.0",
    "-var=bucket_force_destroy=true",
]


def test_one_apply_makes_a_fleet_and_destroy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto() as endpoint:
        aws = environment(endpoint)
        for name, value in aws.items():
            monkeypatch.setenv(name, value)
        terraform = Terraform(tmp_path, **aws)
        terraform.init(COMPLETE)
        terraform.run("apply", "-auto-approve", "-input=false", *VARIABLES, where=COMPLETE)
        outputs = terraform.outputs(COMPLETE)
        check_queues(outputs)
        check_group_and_roles(outputs)
        check_schedule()
        speak_in_clear(outputs)
        embed_through_a_worker(outputs)
        terraform.run("destroy", "-auto-approve", "-input=false", *VARIABLES, where=COMPLETE)
        check_nothing_is_left()


def check_queues(outputs: dict[str, Any]) -> None:
    """A producer that knows its environment only finds its queues, with what Terraform gave them."""
    sqs = _client("sqs")
    for name in _queues(outputs["producer_environment"]):
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
        assert url == outputs["queue_urls"][name]
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        assert attributes["QueueArn"] == outputs["queue_arns"][name]  # policies are built with it
        assert attributes["MessageRetentionPeriod"] == str(14 * 24 * 3600)
        if not name.endswith("-dead"):
            assert json.loads(attributes["RedrivePolicy"])["deadLetterTargetArn"].endswith("-dead")
            assert attributes["VisibilityTimeout"] == outputs["worker_environment"]["EMBEDFLEET_LEASE_S"]


def check_group_and_roles(outputs: dict[str, Any]) -> None:
    """The group is at zero with its three policies, and its instances would have the role of the outputs."""
    groups = _client("autoscaling")
    [name] = outputs["worker_groups"].values()
    [group] = groups.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    assert (group["MinSize"], group["DesiredCapacity"], group["Instances"]) == (0, 0, [])
    policies = groups.describe_policies(AutoScalingGroupName=name)["ScalingPolicies"]
    assert {policy["PolicyName"] for policy in policies} == {"wake", "follow", "sleep"}
    for arn in [outputs["producer_role_arn"], outputs["reconcile_role_arn"], *outputs["worker_role_arns"].values()]:
        assert _client("iam").list_role_policies(RoleName=arn.rsplit("/", 1)[-1])["PolicyNames"]


def check_schedule() -> None:
    """The sweep is on."""
    [schedule] = _client("scheduler").list_schedules()["Schedules"]
    assert (schedule["Name"], schedule["State"]) == ("embedfleet-reconcile", "ENABLED")


def speak_in_clear(outputs: dict[str, Any]) -> None:
    """Take the bucket's policy away: the stand-in speaks no TLS, so that it refuses whatever comes."""
    with pytest.raises(StoreUnavailable, match="403"):
        open_store(outputs["producer_environment"]["EMBEDFLEET_STORE"]).check_writable()
    _client("s3").delete_bucket_policy(Bucket=outputs["bucket"])


def embed_through_a_worker(outputs: dict[str, Any]) -> None:
    """A worker and a producer that know nothing but the outputs: real vectors end as a part in the bucket."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDFLEET_")}
    variables = {**inherited, **outputs["worker_environment"], "EMBEDFLEET_HEALTH_PORT": "0"}
    worker = subprocess.Popen([EMBEDFLEET, "worker"], env=variables)
    try:
        producer = {**inherited, **outputs["producer_environment"]}
        done = subprocess.run([EMBEDFLEET, "doctor"], env=producer, capture_output=True, text=True, timeout=120)
        assert "ok   queues: 4 are there, with dead letters" in done.stdout
        sent = [EMBEDFLEET, "submit", "-", "--json"]
        done = subprocess.run(
            sent, env=producer, input="what is a lease?\n", capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        job = json.loads(done.stdout)["job"]
        status = Fleet(**_arguments(outputs["producer_environment"])).job(job).wait(timeout_s=120)
        assert (status.state, status.totals.texts, status.totals.errors) == ("done", 1, 0)
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
    listed = _client("s3").list_objects_v2(Bucket=outputs["bucket"], Prefix=f"jobs/{job}/parts/")["Contents"]
    assert [entry["Key"] for entry in listed] == [f"jobs/{job}/parts/00000000.parquet"]


def _arguments(variables: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix("EMBEDFLEET_").lower(): value for name, value in variables.items()}


def check_nothing_is_left() -> None:
    """No queue, bucket, group, role, log or schedule costs anything any more."""
    assert "QueueUrls" not in _client("sqs").list_queues()
    assert _client("s3").list_buckets()["Buckets"] == []
    assert _client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert _client("iam").list_roles()["Roles"] == []
    assert _client("logs").describe_log_groups()["logGroups"] == []
    assert _client("scheduler").list_schedules()["Schedules"] == []


def _queues(variables: dict[str, str]) -> list[str]:
    prefix, model = variables["EMBEDFLEET_QUEUE_PREFIX"], variables["EMBEDFLEET_MODEL"]
    lanes = [queue_name(prefix, model, variables.get("EMBEDFLEET_REVISION"), lane) for lane in ("interactive", "bulk")]
    return [*lanes, f"{prefix}-deliver", f"{prefix}-dead"]


def _client(service: str) -> Any:
    return boto3.client(service, region_name="us-east-1")  # the endpoint and keys are AWS' own variables
