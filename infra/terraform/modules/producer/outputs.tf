output "role_arn" {
  description = "ARN of the producer's role."
  value       = aws_iam_role.this.arn
}
