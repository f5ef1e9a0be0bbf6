"""The table of what producer, worker and sweep need, and what they don't. How it is checked is in test_policies.py."""

from typing import NamedTuple

ACCOUNT = "eu-central-1:123456789012"
SQS = f"arn:aws:sqs:{ACCOUNT}"
MINILM, QWEN = "fleet-sentence-transformers-all-minilm-l6-v2-b01c9bbb", "fleet-qwen-qwen3-embedding-0-6b-8a2575bd"
INTERACTIVE, BULK = f"{SQS}:{MINILM}-interactive", f"{SQS}:{MINILM}-bulk"
DELIVER, DEAD = f"{SQS}:fleet-deliver", f"{SQS}:fleet-dead"
BUCKET = "arn:aws:s3:::fleet-123456789012-eu-central-1"
PART = f"{BUCKET}/jobs/j-eee670a86fc3eb1ffcd2/parts/00000000.parquet"
OPEN = f"{BUCKET}/jobs/open/j-eee670a86fc3eb1ffcd2"
SLOT = f"{BUCKET}/jobs/janitor/00000000"
LOGS = f"arn:aws:logs:{ACCOUNT}:log-group"
REPOSITORY = f"arn:aws:ecr:{ACCOUNT}:repository"
SECRET = f"arn:aws:secretsmanager:{ACCOUNT}:secret"
PARAMETER = f"arn:aws:ssm:{ACCOUNT}:parameter"
KEY = f"arn:aws:kms:{ACCOUNT}:key"
WORKER_ROLE = "arn:aws:iam::123456789012:role/fleet-worker-b01c9bbb"
BELOW = {"s3:prefix": "jobs/j-eee670a86fc3eb1ffcd2/parts/"}


class Row(NamedTuple):
    """A request."""

    action: str
    resource: str
    context: dict[str, str] | None = None


# The objects that producer/embedfleet/s3.py gets, heads, puts and lists, and the answer 404 to one that is not there.
STORE = [
    Row("s3:GetObject", PART),
    Row("s3:PutObject", PART),
    Row("s3:PutObject", f"{BUCKET}/jobs/.embedfleet-probe"),
    Row("s3:ListBucket", BUCKET, BELOW),
    Row("s3:ListBucket", BUCKET),
]
PUBLISH = [
    Row(action, queue)
    for queue in (INTERACTIVE, BULK, DELIVER)
    for action in ("sqs:SendMessage", "sqs:GetQueueUrl", "sqs:GetQueueAttributes")
]
WORK_ACTIONS = ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "GetQueueUrl", "GetQueueAttributes")
# Workers sweep too: what was lost is published again, what SQS itself set aside is settled, what is finished is closed.
SWEEP = [
    *STORE,
    *PUBLISH,
    Row("sqs:SendMessage", f"{SQS}:{QWEN}-interactive"),
    Row("sqs:SendMessage", f"{SQS}:{QWEN}-bulk"),
    Row("sqs:GetQueueAttributes", f"{SQS}:{QWEN}-bulk"),
    Row("sqs:SendMessage", DEAD),
    *[Row(f"sqs:{action}", DEAD) for action in WORK_ACTIONS],
    Row("s3:DeleteObject", OPEN),
    Row("s3:DeleteObject", SLOT),
]

ALLOWED: dict[str, list[Row]] = {
    "producer": [*STORE, *PUBLISH, Row("sqs:SendMessage", f"{SQS}:{QWEN}-bulk")],
    "worker": [
        *SWEEP,
        *[Row(f"sqs:{action}", queue) for queue in (INTERACTIVE, BULK, DELIVER) for action in WORK_ACTIONS],
        Row("logs:CreateLogStream", f"{LOGS}:/embedfleet/{MINILM}:log-stream:ip-10-0-0-1"),
        Row("logs:PutLogEvents", f"{LOGS}:/embedfleet/{MINILM}:log-stream:ip-10-0-0-1"),
        Row("ecr:GetAuthorizationToken", "*"),
        Row("ecr:BatchGetImage", f"{REPOSITORY}/embedfleet-worker"),
        Row("ecr:GetDownloadUrlForLayer", f"{REPOSITORY}/embedfleet-worker"),
        Row("secretsmanager:GetSecretValue", f"{SECRET}:embedfleet/webhook-AbCdEf"),
        Row("secretsmanager:GetSecretValue", f"{SECRET}:embedfleet/signing-AbCdEf"),
        Row("ssm:GetParameter", f"{PARAMETER}/embedfleet/pgvector"),
        Row("kms:Decrypt", f"{KEY}/11111111-2222-3333-4444-555555555555"),
    ],
    "reconcile": SWEEP,
    "execution": [
        Row("logs:CreateLogStream", f"{LOGS}:/embedfleet/fleet-reconcile:log-stream:reconcile/reconcile/1"),
        Row("logs:PutLogEvents", f"{LOGS}:/embedfleet/fleet-reconcile:log-stream:reconcile/reconcile/1"),
        Row("ecr:GetAuthorizationToken", "*"),
        Row("ecr:BatchGetImage", f"{REPOSITORY}/embedfleet-cpu"),
        Row("ecr:GetDownloadUrlForLayer", f"{REPOSITORY}/embedfleet-cpu"),
        Row("secretsmanager:GetSecretValue", f"{SECRET}:embedfleet/webhook-AbCdEf"),
        Row("secretsmanager:GetSecretValue", f"{SECRET}:embedfleet/signing-AbCdEf"),
        Row("kms:Decrypt", f"{KEY}/11111111-2222-3333-4444-555555555555"),
    ],
}

OTHER_STORES = [
    Row("s3:GetObject", "arn:aws:s3:::somebody-elses/jobs/j-1/job.json"),
    Row("s3:PutObject", "arn:aws:s3:::somebody-elses/jobs/j-1/job.json"),
    Row("s3:GetObject", f"{BUCKET}/other/secret.txt"),
    Row("s3:PutObject", f"{BUCKET}/jobs-of-others/x"),
    Row("s3:ListBucket", "arn:aws:s3:::somebody-elses", BELOW),
    Row("s3:ListBucket", BUCKET, {"s3:prefix": "other/"}),
]
NOBODY = [
    *OTHER_STORES,
    Row("s3:DeleteObject", PART),
    Row("s3:DeleteObject", f"{BUCKET}/jobs/j-eee670a86fc3eb1ffcd2/job.json"),
    Row("s3:DeleteObject", f"{BUCKET}/jobs/opened/x"),
    Row("s3:DeleteObject", f"{BUCKET}/open/x"),
    Row("s3:DeleteObjectVersion", OPEN),
    Row("s3:DeleteBucket", BUCKET),
    Row("s3:PutBucketPolicy", BUCKET),
    Row("s3:PutLifecycleConfiguration", BUCKET),
    Row("s3:PutEncryptionConfiguration", BUCKET),
    Row("s3:PutObjectAcl", PART),
    Row("s3:ListAllMyBuckets", "*"),
    Row("sqs:CreateQueue", f"{SQS}:fleet-new"),
    Row("sqs:DeleteQueue", BULK),
    Row("sqs:PurgeQueue", BULK),
    Row("sqs:SetQueueAttributes", BULK),
    Row("sqs:AddPermission", BULK),
    Row("sqs:SendMessage", f"{SQS}:somebody-elses"),
    Row("sqs:ReceiveMessage", f"{SQS}:somebody-elses"),
    Row("sqs:PurgeQueue", DEAD),
    Row("sqs:SetQueueAttributes", DEAD),
    Row("iam:PassRole", WORKER_ROLE),
    Row("iam:CreateUser", "arn:aws:iam::123456789012:user/me"),
    Row("iam:PutRolePolicy", WORKER_ROLE),
    Row("sts:AssumeRole", "arn:aws:iam::123456789012:role/admin"),
    Row("ec2:RunInstances", f"arn:aws:ec2:{ACCOUNT}:instance/*"),
    Row(
        "autoscaling:SetDesiredCapacity",
        f"arn:aws:autoscaling:{ACCOUNT}:autoScalingGroup:1:autoScalingGroupName/{MINILM}",
    ),
    Row(
        "autoscaling:CompleteLifecycleAction",
        f"arn:aws:autoscaling:{ACCOUNT}:autoScalingGroup:1:autoScalingGroupName/{MINILM}",
    ),
    Row("secretsmanager:GetSecretValue", f"{SECRET}:somebody-elses-AbCdEf"),
    Row("secretsmanager:PutSecretValue", f"{SECRET}:embedfleet/webhook-AbCdEf"),
    Row("ssm:GetParameter", f"{PARAMETER}/somebody-elses"),
    Row("ssm:PutParameter", f"{PARAMETER}/embedfleet/pgvector"),
    Row("kms:Decrypt", f"{KEY}/99999999-2222-3333-4444-555555555555"),
    Row("ecr:PutImage", f"{REPOSITORY}/embedfleet-worker"),
    Row("ecr:BatchGetImage", f"{REPOSITORY}/somebody-elses"),
    Row("logs:DeleteLogGroup", f"{LOGS}:/embedfleet/{MINILM}"),
    Row("logs:PutLogEvents", f"{LOGS}:/somebody-elses:log-stream:x"),
    Row("elasticache:DeleteReplicationGroup", f"arn:aws:elasticache:{ACCOUNT}:replicationgroup:fleet-cache"),
]
RECEIVING = [Row(f"sqs:{action}", queue) for queue in (BULK, DELIVER) for action in WORK_ACTIONS[:3]]
DEAD_LETTERS = [Row(f"sqs:{action}", DEAD) for action in ("SendMessage", *WORK_ACTIONS[:3])]
SWEEPING = [*DEAD_LETTERS, Row("s3:DeleteObject", OPEN), Row("s3:DeleteObject", SLOT)]
DENIED: dict[str, list[Row]] = {
    "producer": [
        *NOBODY,
        *RECEIVING,
        *SWEEPING,
        Row("secretsmanager:GetSecretValue", f"{SECRET}:embedfleet/webhook-AbCdEf"),
        Row("secretsmanager:GetSecretValue", f"{SECRET}:embedfleet/signing-AbCdEf"),
        Row("ssm:GetParameter", f"{PARAMETER}/embedfleet/pgvector"),
        Row("logs:PutLogEvents", f"{LOGS}:/embedfleet/{MINILM}:log-stream:x"),
        Row("ecr:BatchGetImage", f"{REPOSITORY}/embedfleet-worker"),
    ],
    "worker": [
        *NOBODY,
        # A worker never embeds for another model.
        Row("sqs:ReceiveMessage", f"{SQS}:{QWEN}-bulk"),
        Row("sqs:DeleteMessage", f"{SQS}:{QWEN}-interactive"),
        Row("logs:PutLogEvents", f"{LOGS}:/embedfleet/{QWEN}:log-stream:x"),
        Row("ecr:BatchGetImage", f"{REPOSITORY}/embedfleet-cpu"),
    ],
    "reconcile": [
        *NOBODY,
        *RECEIVING,
        Row("ssm:GetParameter", f"{PARAMETER}/embedfleet/pgvector"),
    ],
    "execution": [
        *NOBODY,
        *RECEIVING,
        *SWEEPING,
        *STORE,
        *PUBLISH,
        Row("ssm:GetParameter", f"{PARAMETER}/embedfleet/pgvector"),
    ],
}
