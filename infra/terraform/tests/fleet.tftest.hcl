mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  name                 = "fleet-minilm-b01c9bbb"
  role_name            = "fleet-worker-b01c9bbb"
  image                = "registry.example.com/embedfleet-worker:0.1.0"
  repository_arn       = null
  ami                  = "resolve:ssm:/an/ami"
  environment          = { EMBEDFLEET_BROKER_URL = "sqs://eu-central-1", EMBEDFLEET_MODEL = "minilm" }
  secrets              = { EMBEDFLEET_PGVECTOR_URL = "arn:aws:ssm:eu-central-1:123456789012:parameter/pgvector" }
  secrets_kms_key_arns = []
  work_queue_arns      = ["arn:aws:sqs:eu-central-1:123456789012:bulk"]
  send_queue_arns      = ["arn:aws:sqs:eu-central-1:123456789012:dead"]
  backlog_queues       = ["fleet-interactive", "fleet-bulk", "fleet-deliver"]
  store_statements     = []
  subnet_ids           = ["subnet-1", "subnet-2"]
  security_group_id    = "sg-0123456789abcdef0"
  instance_types       = ["g6.xlarge", "g5.xlarge"]
  on_demand_base       = 1
  min_instances        = 0
  max_instances        = 3
  backlog_per_instance = 50
  idle_minutes         = 15
  root_volume_gib      = 150
  log_retention_days   = 30
  tags                 = { team = "search" }
}

run "launch_template" {
  module {
    source = "./modules/fleet"
  }

  assert {
    condition = (aws_launch_template.this.metadata_options[0].http_tokens == "required"
    && aws_launch_template.this.metadata_options[0].http_put_response_hop_limit == 1)
    error_message = "IMDSv2, one hop"
  }

  assert {
    condition     = aws_launch_template.this.block_device_mappings[0].ebs[0].encrypted == "true"
    error_message = "the root volume is encrypted"
  }

  assert {
    condition     = aws_launch_template.this.key_name == null || aws_launch_template.this.key_name == ""
    error_message = "nobody logs in by SSH"
  }

  assert {
    condition     = toset(aws_launch_template.this.vpc_security_group_ids) == toset(["sg-0123456789abcdef0"])
    error_message = "the workers' security group and no other"
  }

  assert {
    condition     = toset([for tags in aws_launch_template.this.tag_specifications : tags.resource_type if tags.tags["team"] == "search"]) == toset(["instance", "volume"])
    error_message = "instances and volumes are tagged"
  }

  assert {
    condition     = startswith(base64decode(aws_launch_template.this.user_data), "#cloud-config\n{")
    error_message = "user data starts the container"
  }
}

run "group" {
  module {
    source = "./modules/fleet"
  }

  assert {
    condition = (aws_autoscaling_group.this.min_size == 0 && aws_autoscaling_group.this.max_size == 3
    && aws_autoscaling_group.this.capacity_rebalance)
    error_message = "from zero to the bound, replaced before spot takes it"
  }

  assert {
    condition = [for how in aws_autoscaling_group.this.mixed_instances_policy[0].instances_distribution :
      [how.on_demand_base_capacity, how.on_demand_percentage_above_base_capacity, how.spot_allocation_strategy]
    ] == [[1, 0, "capacity-optimized-prioritized"]]
    error_message = "spot above the base"
  }

  assert {
    condition     = aws_autoscaling_group.this.mixed_instances_policy[0].launch_template[0].override[*].instance_type == tolist(["g6.xlarge", "g5.xlarge"])
    error_message = "several types, in the order of preference"
  }

  assert {
    condition     = contains(aws_autoscaling_group.this.enabled_metrics, "GroupDesiredCapacity") && contains(aws_autoscaling_group.this.enabled_metrics, "GroupInServiceInstances")
    error_message = "scaling reads the group's own metrics"
  }

  assert {
    condition     = aws_autoscaling_group.this.instance_refresh[0].strategy == "Rolling"
    error_message = "a new launch template reaches running instances"
  }
}

run "leaving" {
  module {
    source = "./modules/fleet"
  }

  assert {
    condition = (aws_autoscaling_lifecycle_hook.leave.autoscaling_group_name == "fleet-minilm-b01c9bbb"
      && aws_autoscaling_lifecycle_hook.leave.lifecycle_transition == "autoscaling:EC2_INSTANCE_TERMINATING"
    && aws_autoscaling_lifecycle_hook.leave.default_result == "CONTINUE")
    error_message = "who is scaled in is told, and goes in the end whatever it does"
  }

  assert {
    # The time that systemd waits for a worker that hangs, which is more than a worker's grace time.
    condition     = aws_autoscaling_lifecycle_hook.leave.heartbeat_timeout == 120 && strcontains(base64decode(aws_launch_template.this.user_data), "TimeoutStopSec=120")
    error_message = "there is time to end"
  }

  assert {
    condition     = aws_launch_template.this.instance_initiated_shutdown_behavior == "terminate"
    error_message = "an instance that turns itself off is gone, not kept"
  }
}

run "scaling" {
  module {
    source = "./modules/fleet"
  }

  assert {
    condition = toset([for query in aws_cloudwatch_metric_alarm.wake.metric_query : "${query.metric[0].dimensions["QueueName"]} ${query.metric[0].metric_name}" if length(query.metric) > 0 && query.id != "desired"]) == toset(flatten([
      for queue in ["fleet-interactive", "fleet-bulk", "fleet-deliver"] : ["${queue} ApproximateNumberOfMessagesVisible", "${queue} ApproximateNumberOfMessagesNotVisible"]
    ]))
    error_message = "the backlog is what waits and what is in flight, in every lane"
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.wake.metric_query) - 1 <= 10 && length(aws_cloudwatch_metric_alarm.sleep.metric_query) - 1 <= 10
    error_message = "AWS takes ten metrics in an alarm"
  }

  assert {
    condition     = one([for query in aws_cloudwatch_metric_alarm.wake.metric_query : query.expression if query.expression != null]) == "IF(FILL(desired, 0) < 1, SUM([FILL(m00, 0), FILL(m01, 0), FILL(m10, 0), FILL(m11, 0), FILL(m20, 0), FILL(m21, 0)]), 0)"
    error_message = "any backlog wakes a group at zero, and only that"
  }

  assert {
    condition = (aws_cloudwatch_metric_alarm.wake.comparison_operator == "GreaterThanThreshold" && aws_cloudwatch_metric_alarm.wake.threshold == 0
      && aws_autoscaling_policy.wake.adjustment_type == "ChangeInCapacity"
    && one(aws_autoscaling_policy.wake.step_adjustment).scaling_adjustment == 1)
    error_message = "the first worker comes by a step"
  }

  assert {
    condition = (aws_autoscaling_policy.follow.policy_type == "TargetTrackingScaling"
    && aws_autoscaling_policy.follow.target_tracking_configuration[0].target_value == 50)
    error_message = "more come by the backlog per worker"
  }

  assert {
    condition = (aws_cloudwatch_metric_alarm.sleep.comparison_operator == "LessThanThreshold" && aws_cloudwatch_metric_alarm.sleep.threshold == 1
      && aws_cloudwatch_metric_alarm.sleep.evaluation_periods == 15
      && aws_autoscaling_policy.sleep.adjustment_type == "ExactCapacity"
    && one(aws_autoscaling_policy.sleep.step_adjustment).scaling_adjustment == 0)
    error_message = "all go when there has been no message for a while"
  }

  assert {
    condition     = alltrue([for alarm in [aws_cloudwatch_metric_alarm.wake, aws_cloudwatch_metric_alarm.sleep] : alarm.treat_missing_data == "notBreaching"])
    error_message = "missing metrics neither start nor stop anybody"
  }
}
