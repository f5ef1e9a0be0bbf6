output "producer_environment" {
  description = "The EMBEDFLEET_* environment of application code. Outside AWS, AWS_REGION has to be set beside it."
  value       = module.embedfleet.producer_environment
}

output "worker_environment" {
  description = "The EMBEDFLEET_* environment of the first model's workers, without secrets."
  value       = module.embedfleet.worker_environment
}

output "worker_environments" {
  description = "The same for each model, by its queues' first part."
  value       = module.embedfleet.worker_environments
}

output "queue_urls" {
  description = "By name: URL of every queue."
  value       = module.embedfleet.queue_urls
}

output "queue_arns" {
  description = "By name: ARN of every queue."
  value       = module.embedfleet.queue_arns
}

output "bucket" {
  description = "Name of the results bucket."
  value       = module.embedfleet.bucket
}

output "producer_role_arn" {
  description = "ARN of the role that application code takes."
  value       = module.embedfleet.producer_role_arn
}

output "worker_role_arns" {
  description = "By the queues' first part: ARN of each model's worker role."
  value       = module.embedfleet.worker_role_arns
}

output "reconcile_role_arn" {
  description = "ARN of the sweep's role; null where it is off."
  value       = module.embedfleet.reconcile_role_arn
}

output "worker_groups" {
  description = "By the queues' first part: name of each model's autoscaling group."
  value       = module.embedfleet.worker_groups
}

output "log_groups" {
  description = "By the queues' first part: name of each model's log group."
  value       = module.embedfleet.log_groups
}

output "worker_security_group_id" {
  description = "Security group of the workers, to let them into a database."
  value       = module.embedfleet.worker_security_group_id
}
