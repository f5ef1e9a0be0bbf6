# The role of application code: it sends to the lanes and to deliver, and reads and writes its job folders.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  account    = "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root"
  principals = length(var.principal_arns) == 0 ? [local.account] : var.principal_arns
}

resource "aws_iam_role" "this" {
  name = "${var.prefix}-producer"
  tags = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { AWS = local.principals }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "this" {
  name = "embedfleet-producer"
  role = aws_iam_role.this.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([{
      Sid      = "Publish"
      Effect   = "Allow"
      Action   = ["sqs:SendMessage", "sqs:GetQueueUrl", "sqs:GetQueueAttributes"]
      Resource = var.queue_arns
    }], var.store_statements)
  })
}
