# A sweep of open jobs on a schedule: where workers reach zero, nobody else finishes what was left.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  name          = "${var.prefix}-reconcile"
  arn_suffix    = "${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}"
  log_group     = "/embedfleet/${local.name}"
  log_group_arn = "arn:${data.aws_partition.current.partition}:logs:${local.arn_suffix}:log-group:${local.log_group}"
}

resource "aws_cloudwatch_log_group" "this" {
  name              = local.log_group
  retention_in_days = var.log_retention_days
  tags              = var.tags
}

resource "aws_ecs_cluster" "this" {
  name = local.name
  tags = var.tags
}

resource "aws_ecs_task_definition" "this" {
  family                   = local.name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = 512
  memory                   = 1024
  task_role_arn            = aws_iam_role.task.arn
  execution_role_arn       = aws_iam_role.execution.arn
  tags                     = var.tags

  container_definitions = jsonencode([{
    name        = "reconcile"
    image       = var.image
    essential   = true
    entryPoint  = ["embedfleet"]
    command     = ["reconcile", "--all"]
    environment = [for name, value in merge(var.environment, { AWS_REGION = data.aws_region.current.name }) : { name = name, value = value }]
    secrets     = [for name, arn in var.secrets : { name = name, valueFrom = arn }]
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        "awslogs-group"         = local.log_group
        "awslogs-region"        = data.aws_region.current.name
        "awslogs-stream-prefix" = "reconcile"
      }
    }
  }])
}

resource "aws_scheduler_schedule" "this" {
  name                = local.name
  description         = "embedfleet reconcile --all"
  schedule_expression = var.schedule

  flexible_time_window {
    mode = "OFF"
  }

  target {
    arn      = aws_ecs_cluster.this.arn
    role_arn = aws_iam_role.schedule.arn

    ecs_parameters {
      task_definition_arn = aws_ecs_task_definition.this.arn
      launch_type         = "FARGATE"

      network_configuration {
        subnets          = var.subnet_ids
        security_groups  = [var.security_group_id]
        assign_public_ip = var.assign_public_ip
      }
    }

    # The next sweep does what this one could not.
    retry_policy {
      maximum_event_age_in_seconds = 300
      maximum_retry_attempts       = 2
    }
  }
}
