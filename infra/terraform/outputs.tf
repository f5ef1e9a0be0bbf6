output "producer_environment" {
  description = "The EMBEDFLEET_* environment of application code. Outside AWS, AWS_REGION has to be set beside it."
  value       = local.shared[local.first]
}

output "worker_environment" {
  description = "The EMBEDFLEET_* environment of the first model's workers, without secrets."
  value       = local.worker_environments[local.first]
}

output "worker_environments" {
  description = "The same for each model, by its queues' first part."
  value       = { for digest, model in module.names.models : model.base => local.worker_environments[digest] }
}

output "queue_urls" {
  description = "By name: URL of every queue."
  value       = module.queues.urls
}

output "queue_arns" {
  description = "By name: ARN of every queue."
  value       = module.queues.arns
}

output "bucket" {
  description = "Name of the results bucket."
  value       = module.store.bucket
}

output "producer_role_arn" {
  description = "ARN of the role that application code takes."
  value       = module.producer.role_arn
}

output "worker_role_arns" {
  description = "By the queues' first part: ARN of each model's worker role."
  value       = { for digest, model in module.names.models : model.base => module.fleet[digest].role_arn }
}

output "reconcile_role_arn" {
  description = "ARN of the sweep's role; null where it is off."
  value       = var.reconcile_enabled ? module.reconcile[0].role_arn : null
}

output "worker_groups" {
  description = "By the queues' first part: name of each model's autoscaling group."
  value       = { for digest, model in module.names.models : model.base => module.fleet[digest].group_name }
}

output "log_groups" {
  description = "By the queues' first part: name of each model's log group."
  value       = { for digest, model in module.names.models : model.base => module.fleet[digest].log_group_name }
}

output "worker_security_group_id" {
  description = "Security group of the workers, to let them into a database."
  value       = aws_security_group.worker.id
}
