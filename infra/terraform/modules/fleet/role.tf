# What a worker may do, to these queues and this store only.

locals {
  ecr_statements = var.repository_arn == null ? [] : [
    {
      Sid      = "PullImage"
      Effect   = "Allow"
      Action   = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
      Resource = [var.repository_arn]
    },
    {
      Sid      = "LogInToRegistry"
      Effect   = "Allow"
      Action   = ["ecr:GetAuthorizationToken"]
      Resource = ["*"] # it takes no other
    },
  ]

  secret_actions = { ssm = "ssm:GetParameter", secretsmanager = "secretsmanager:GetSecretValue" }
  secret_statements = [for service, action in local.secret_actions : {
    Sid      = service == "ssm" ? "ReadParameters" : "ReadSecrets"
    Effect   = "Allow"
    Action   = [action]
    Resource = [for arn in distinct(values(var.secrets)) : arn if split(":", arn)[2] == service]
  }]
  key_statements = [{
    Sid      = "DecryptSecrets"
    Effect   = "Allow"
    Action   = ["kms:Decrypt"]
    Resource = var.secrets_kms_key_arns
  }]

  statements = concat(
    [
      {
        Sid    = "Work"
        Effect = "Allow"
        Action = [
          "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueUrl", "sqs:GetQueueAttributes",
        ]
        Resource = var.work_queue_arns
      },
      {
        Sid      = "HandOver"
        Effect   = "Allow"
        Action   = ["sqs:SendMessage", "sqs:GetQueueUrl", "sqs:GetQueueAttributes"]
        Resource = var.send_queue_arns
      },
      {
        Sid      = "WriteLogs"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = ["${local.log_group_arn}:log-stream:*"]
      },
    ],
    var.store_statements,
    local.ecr_statements,
    [for statement in concat(local.secret_statements, local.key_statements) : statement if length(statement.Resource) > 0],
  )

  log_group_arn = "arn:${data.aws_partition.current.partition}:logs:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}:log-group:/embedfleet/${var.name}"
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

resource "aws_iam_role" "this" {
  name = var.role_name
  tags = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "this" {
  name   = "embedfleet-worker"
  role   = aws_iam_role.this.id
  policy = jsonencode({ Version = "2012-10-17", Statement = local.statements })
}

resource "aws_iam_instance_profile" "this" {
  name = var.role_name
  role = aws_iam_role.this.name
  tags = var.tags
}
