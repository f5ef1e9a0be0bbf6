# A model's lanes, deliveries and dead letters. ARNs are built from names, so that a queue can carry its own policy and
# a role's policy is known before anything exists.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  arn_prefix = "arn:${data.aws_partition.current.partition}:sqs:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}"
  lanes      = toset(flatten([for lanes in var.lanes : values(lanes)]))
  arns       = { for name in setunion(local.lanes, [var.deliver, var.dead]) : name => "${local.arn_prefix}:${name}" }

  retention_s = 14 * 24 * 3600 # AWS' longest
  poll_s      = 20             # AWS' longest: an empty queue costs three requests a minute

  policies = { for name, arn in local.arns : name => jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "OnlyTls"
      Effect    = "Deny"
      Principal = "*"
      Action    = "sqs:*"
      Resource  = arn
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  }) }
}

resource "aws_sqs_queue" "work" {
  for_each = setunion(local.lanes, [var.deliver])

  name                       = each.key
  message_retention_seconds  = local.retention_s
  visibility_timeout_seconds = var.lease_s
  receive_wait_time_seconds  = local.poll_s
  sqs_managed_sse_enabled    = true
  policy                     = local.policies[each.key]

  # AWS counts every receive, also that of a batch which a worker only gave back. embedfleet counts starts itself and
  # sets poison aside with its reason; this is AWS' highest number, for messages that no worker can even read.
  redrive_policy = jsonencode({ deadLetterTargetArn = local.arns[var.dead], maxReceiveCount = 1000 })

  tags = var.tags

  depends_on = [aws_sqs_queue.dead]
}

resource "aws_sqs_queue" "dead" {
  name                       = var.dead
  message_retention_seconds  = local.retention_s
  visibility_timeout_seconds = var.lease_s
  receive_wait_time_seconds  = local.poll_s
  sqs_managed_sse_enabled    = true
  policy                     = local.policies[var.dead]

  tags = var.tags
}
