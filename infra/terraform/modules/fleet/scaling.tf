# From zero by the backlog and back. Three policies: the first worker, as many as the backlog needs, none again.

locals {
  period_s = 60
  # From launch until it takes batches: boot, image, weights, engine.
  warmup_s = 600

  # Messages in flight count: a fleet must not be taken from under its last batches.
  backlog_metrics = ["ApproximateNumberOfMessagesVisible", "ApproximateNumberOfMessagesNotVisible"]
  queue_metrics = { for pair in setproduct(range(length(var.backlog_queues)), range(length(local.backlog_metrics))) :
    "m${pair[0]}${pair[1]}" => {
      namespace  = "AWS/SQS"
      metric     = local.backlog_metrics[pair[1]]
      dimensions = { QueueName = var.backlog_queues[pair[0]] }
    }
  }
  group_metrics = { for id, metric in { desired = "GroupDesiredCapacity", serving = "GroupInServiceInstances" } : id => {
    namespace  = "AWS/AutoScaling"
    metric     = metric
    dimensions = { AutoScalingGroupName = var.name }
  } }

  # A queue that nobody touched for six hours has no metrics at all; others must still count.
  backlog = "SUM([${join(", ", [for id in sort(keys(local.queue_metrics)) : "FILL(${id}, 0)"])}])"
}

resource "aws_autoscaling_policy" "wake" {
  name                      = "wake"
  autoscaling_group_name    = aws_autoscaling_group.this.name
  policy_type               = "StepScaling"
  adjustment_type           = "ChangeInCapacity"
  estimated_instance_warmup = local.warmup_s

  step_adjustment {
    scaling_adjustment          = 1
    metric_interval_lower_bound = 0
  }
}

resource "aws_cloudwatch_metric_alarm" "wake" {
  alarm_name          = "${var.name}-wake"
  alarm_description   = "There is work and no worker"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_autoscaling_policy.wake.arn]
  tags                = var.tags

  # Of desired instances, not of running ones: while spot capacity is short, one that is asked for is enough.
  metric_query {
    id          = "unserved"
    label       = "Backlog without a worker"
    expression  = "IF(FILL(desired, 0) < 1, ${local.backlog}, 0)"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = merge(local.queue_metrics, { desired = local.group_metrics["desired"] })

    content {
      id = metric_query.key

      metric {
        namespace   = metric_query.value.namespace
        metric_name = metric_query.value.metric
        dimensions  = metric_query.value.dimensions
        period      = local.period_s
        stat        = "Maximum"
      }
    }
  }
}

resource "aws_autoscaling_policy" "follow" {
  name                      = "follow"
  autoscaling_group_name    = aws_autoscaling_group.this.name
  policy_type               = "TargetTrackingScaling"
  estimated_instance_warmup = local.warmup_s

  target_tracking_configuration {
    target_value = var.backlog_per_instance

    customized_metric_specification {
      metrics {
        id          = "per_instance"
        label       = "Backlog per worker"
        expression  = "${local.backlog} / IF(FILL(serving, 0) < 1, 1, serving)"
        return_data = true
      }

      dynamic "metrics" {
        for_each = merge(local.queue_metrics, { serving = local.group_metrics["serving"] })

        content {
          id          = metrics.key
          return_data = false

          metric_stat {
            stat = "Maximum"

            metric {
              namespace   = metrics.value.namespace
              metric_name = metrics.value.metric

              dynamic "dimensions" {
                for_each = metrics.value.dimensions

                content {
                  name  = dimensions.key
                  value = dimensions.value
                }
              }
            }
          }
        }
      }
    }
  }
}

resource "aws_autoscaling_policy" "sleep" {
  name                   = "sleep"
  autoscaling_group_name = aws_autoscaling_group.this.name
  policy_type            = "StepScaling"
  adjustment_type        = "ExactCapacity"

  step_adjustment {
    scaling_adjustment          = var.min_instances
    metric_interval_upper_bound = 0
  }
}

resource "aws_cloudwatch_metric_alarm" "sleep" {
  alarm_name          = "${var.name}-sleep"
  alarm_description   = "There has been no work for ${var.idle_minutes} minutes"
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  evaluation_periods  = var.idle_minutes
  # Workers poll, so their queues have metrics; if there are none, CloudWatch is ill and nobody is stopped for that.
  treat_missing_data = "notBreaching"
  alarm_actions      = [aws_autoscaling_policy.sleep.arn]
  tags               = var.tags

  metric_query {
    id          = "backlog"
    label       = "Backlog"
    expression  = local.backlog
    return_data = true
  }

  dynamic "metric_query" {
    for_each = local.queue_metrics

    content {
      id = metric_query.key

      metric {
        namespace   = metric_query.value.namespace
        metric_name = metric_query.value.metric
        dimensions  = metric_query.value.dimensions
        period      = local.period_s
        stat        = "Maximum"
      }
    }
  }
}
