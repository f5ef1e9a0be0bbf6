mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  prefix               = "fleet"
  image                = "registry.example.com/embedfleet-cpu:0.1.0"
  repository_arn       = null
  schedule             = "rate(15 minutes)"
  environment          = { EMBEDFLEET_BROKER_URL = "sqs://eu-central-1" }
  secrets              = { EMBEDFLEET_WEBHOOK_SECRET = "arn:aws:ssm:eu-central-1:123456789012:parameter/webhook" }
  secrets_kms_key_arns = []
  queue_arns           = ["arn:aws:sqs:eu-central-1:123456789012:fleet-deliver"]
  dead_queue_arn       = "arn:aws:sqs:eu-central-1:123456789012:fleet-dead"
  store_statements     = []
  subnet_ids           = ["subnet-0123456789abcdef0"]
  security_group_id    = "sg-00000000000000001"
  assign_public_ip     = false
  log_retention_days   = 30
  tags                 = {}
}

run "reconcile" {
  module {
    source = "./modules/reconcile"
  }

  assert {
    condition     = aws_scheduler_schedule.this.schedule_expression == "rate(15 minutes)" && aws_scheduler_schedule.this.target[0].ecs_parameters[0].launch_type == "FARGATE"
    error_message = "a Fargate task on a schedule"
  }

  assert {
    condition     = concat(jsondecode(aws_ecs_task_definition.this.container_definitions)[0].entryPoint, jsondecode(aws_ecs_task_definition.this.container_definitions)[0].command) == ["embedfleet", "reconcile", "--all"]
    error_message = "embedfleet reconcile --all"
  }

  assert {
    condition     = [for secret in jsondecode(aws_ecs_task_definition.this.container_definitions)[0].secrets : secret.valueFrom] == ["arn:aws:ssm:eu-central-1:123456789012:parameter/webhook"]
    error_message = "secrets are resolved when the task starts"
  }
}
