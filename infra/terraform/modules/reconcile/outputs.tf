output "role_arn" {
  description = "ARN of the sweep's role."
  value       = aws_iam_role.task.arn
}
