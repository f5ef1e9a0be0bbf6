output "arns" {
  description = "By name: ARN of every queue."
  value       = local.arns
}

output "urls" {
  description = "By name: URL of every queue."
  value       = merge({ for name, queue in aws_sqs_queue.work : name => queue.url }, { (var.dead) = aws_sqs_queue.dead.url })
}
