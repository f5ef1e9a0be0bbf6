# Three roles: what the sweep does, what starting its container takes, and who may start it.

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

  secret_actions = { ssm = "ssm:GetParameters", secretsmanager = "secretsmanager:GetSecretValue" }
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
    Resource = length(var.secrets) == 0 ? [] : var.secrets_kms_key_arns
  }]
}

resource "aws_iam_role" "task" {
  name               = "${local.name}-task"
  assume_role_policy = local.trust["ecs-tasks.amazonaws.com"]
  tags               = var.tags
}

resource "aws_iam_role_policy" "task" {
  name = "embedfleet-reconcile"
  role = aws_iam_role.task.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      {
        Sid      = "PublishAgain"
        Effect   = "Allow"
        Action   = ["sqs:SendMessage", "sqs:GetQueueUrl", "sqs:GetQueueAttributes"]
        Resource = var.queue_arns
      },
      {
        Sid      = "SettleDeadLetters"
        Effect   = "Allow"
        Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"]
        Resource = [var.dead_queue_arn]
      },
    ], var.store_statements)
  })
}

resource "aws_iam_role" "execution" {
  name = "${local.name}-execution"

  # Without a condition: AWS documents one for a task's own role only.
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })

  tags = var.tags
}

resource "aws_iam_role_policy" "execution" {
  name = "embedfleet-reconcile-execution"
  role = aws_iam_role.execution.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid      = "WriteLogs"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = ["${local.log_group_arn}:log-stream:*"]
      }],
      local.ecr_statements,
      [for statement in concat(local.secret_statements, local.key_statements) : statement if length(statement.Resource) > 0],
    )
  })
}

resource "aws_iam_role" "schedule" {
  name               = "${local.name}-schedule"
  assume_role_policy = local.trust["scheduler.amazonaws.com"]
  tags               = var.tags
}

resource "aws_iam_role_policy" "schedule" {
  name = "embedfleet-reconcile-schedule"
  role = aws_iam_role.schedule.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "StartTask"
        Effect    = "Allow"
        Action    = ["ecs:RunTask"]
        Resource  = [aws_ecs_task_definition.this.arn]
        Condition = { ArnEquals = { "ecs:cluster" = aws_ecs_cluster.this.arn } }
      },
      {
        Sid       = "PassRoles"
        Effect    = "Allow"
        Action    = ["iam:PassRole"]
        Resource  = [aws_iam_role.task.arn, aws_iam_role.execution.arn]
        Condition = { StringEquals = { "iam:PassedToService" = "ecs-tasks.amazonaws.com" } }
      },
    ]
  })
}

locals {
  # Only for this account's own doings, so that nobody else's schedule borrows a role.
  trust = { for service in ["ecs-tasks.amazonaws.com", "scheduler.amazonaws.com"] : service => jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = service }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id } }
    }]
  }) }
}
