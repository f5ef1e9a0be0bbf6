# The workers of one model: their role, launch template and group. Scaling is in scaling.tf, the role in role.tf.

data "aws_region" "current" {}

locals {
  stop_s = 90 # more than the worker's grace time; a spot notice comes two minutes ahead

  files = {
    "/etc/embedfleet/environment" = join("", [for name, value in var.environment : "${name}=${value}\n"])
    "/etc/embedfleet/secrets"     = join("", [for name, arn in var.secrets : "${name} ${arn}\n"])
    "/etc/embedfleet/registry"    = var.repository_arn == null ? "\n" : "${split("/", var.image)[0]}\n"
    "/etc/systemd/system/embedfleet-worker.service" = templatefile("${path.module}/files/worker.service.tftpl", {
      region    = data.aws_region.current.name
      log_group = aws_cloudwatch_log_group.this.name
      image     = var.image
      stop_s    = local.stop_s
    })
  }

  cloud_config = {
    write_files = concat(
      [for path, content in local.files : { path = path, content = content, permissions = "0600" }],
      [for name in ["prepare", "leave"] : {
        path = "/usr/local/libexec/embedfleet/${name}", content = file("${path.module}/files/${name}"), permissions = "0755"
      }],
    )
    runcmd = [
      ["install", "-d", "-m", "1777", "/var/cache/embedfleet"], # the container's user is not root
      ["systemctl", "daemon-reload"],
      ["systemctl", "enable", "--now", "--no-block", "embedfleet-worker.service"],
    ]
  }
}

resource "aws_cloudwatch_log_group" "this" {
  name              = "/embedfleet/${var.name}"
  retention_in_days = var.log_retention_days
  tags              = var.tags
}

resource "aws_launch_template" "this" {
  name                   = var.name
  description            = "A GPU worker of ${var.name}"
  image_id               = var.ami
  vpc_security_group_ids = [var.security_group_id]
  user_data              = base64encode("#cloud-config\n${jsonencode(local.cloud_config)}\n")
  update_default_version = true
  ebs_optimized          = true

  instance_initiated_shutdown_behavior = "terminate" # files/leave turns the machine off

  iam_instance_profile {
    arn = aws_iam_instance_profile.this.arn
  }

  # The worker shares the host's network: it asks for the role's credentials and for notices, and no other container can.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = var.root_volume_gib
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])

    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = var.name })
    }
  }

  tags = var.tags
}

resource "aws_autoscaling_group" "this" {
  name                = var.name
  min_size            = var.min_instances
  max_size            = var.max_instances
  vpc_zone_identifier = var.subnet_ids
  health_check_type   = "EC2"
  capacity_rebalance  = true
  enabled_metrics     = ["GroupDesiredCapacity", "GroupInServiceInstances"]

  default_instance_warmup = local.warmup_s

  mixed_instances_policy {
    instances_distribution {
      on_demand_base_capacity                  = var.on_demand_base
      on_demand_percentage_above_base_capacity = 0
      spot_allocation_strategy                 = "capacity-optimized-prioritized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.this.id
        version            = aws_launch_template.this.latest_version
      }

      dynamic "override" {
        for_each = var.instance_types

        content {
          instance_type = override.value
        }
      }
    }
  }

  # A new image or setting reaches running workers one after the other; leases make that safe, and a fleet at zero free.
  instance_refresh {
    strategy = "Rolling"

    preferences {
      min_healthy_percentage = 50
    }
  }

  dynamic "tag" {
    for_each = merge(var.tags, { Name = var.name })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = false # the launch template tags instances and their volumes
    }
  }

  lifecycle {
    ignore_changes = [desired_capacity]
  }

  # Instances that start before their role may do anything would fail and start again.
  depends_on = [aws_iam_role_policy.this]
}

# Whoever is scaled in reads of it in its metadata, gives back what it holds, and turns itself off long before this ends.
# Nobody completes the action: that would need a permission, and all it saves is a line in the group's list.
resource "aws_autoscaling_lifecycle_hook" "leave" {
  name                   = "leave"
  autoscaling_group_name = aws_autoscaling_group.this.name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  heartbeat_timeout      = local.stop_s + 30
  default_result         = "CONTINUE"
}
