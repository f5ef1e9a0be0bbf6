variable "prefix" {
  description = "First part of the names."
  type        = string
}

variable "image" {
  description = "Container image with embedfleet; the CPU one will do."
  type        = string
}

variable "repository_arn" {
  description = "ECR repository of the image; null for a public one."
  type        = string
}

variable "schedule" {
  description = "How often, as EventBridge Scheduler writes it."
  type        = string
}

variable "environment" {
  description = "The task's environment, without secrets."
  type        = map(string)
}

variable "secrets" {
  description = "Variables that are secrets: ARNs of SSM parameters or Secrets Manager secrets."
  type        = map(string)
}

variable "secrets_kms_key_arns" {
  description = "Keys of one's own that the secrets are encrypted with."
  type        = list(string)
}

variable "queue_arns" {
  description = "Queues to look at and to send to: every model's lanes, deliver and dead."
  type        = list(string)
}

variable "store_statements" {
  description = "Policy statements that allow the store."
  type        = any
}

variable "dead_queue_arn" {
  description = "Queue of dead letters, to settle what SQS itself moved there."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets of the task."
  type        = list(string)
}

variable "security_group_id" {
  description = "Security group of the task."
  type        = string
}

variable "assign_public_ip" {
  description = "Whether the task gets a public address, which it needs in subnets without NAT."
  type        = bool
}

variable "log_retention_days" {
  description = "Days that logs are kept."
  type        = number
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
}
