output "role_arn" {
  description = "ARN of the workers' role."
  value       = aws_iam_role.this.arn
}

output "group_name" {
  description = "Name of the autoscaling group."
  value       = aws_autoscaling_group.this.name
}

output "log_group_name" {
  description = "Name of the log group."
  value       = aws_cloudwatch_log_group.this.name
}
