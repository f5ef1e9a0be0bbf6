variable "name" {
  description = "Name of the group, launch template and log group."
  type        = string
}

variable "role_name" {
  description = "Name of the workers' role."
  type        = string
}

variable "image" {
  description = "Container image of the worker."
  type        = string
}

variable "repository_arn" {
  description = "ECR repository of the image; null for a public one."
  type        = string
}

variable "ami" {
  description = "Machine image, or resolve:ssm: and a parameter that names it."
  type        = string
}

variable "environment" {
  description = "The workers' environment, without secrets."
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

variable "work_queue_arns" {
  description = "Queues to receive from: the model's lanes, deliver and dead."
  type        = list(string)
}

variable "send_queue_arns" {
  description = "Queues to send to: every model's lanes, as a sweep publishes again what was lost, deliver and dead."
  type        = list(string)
}

variable "backlog_queues" {
  description = "Names of the queues whose messages call for workers; four at most, AWS allows ten metrics."
  type        = list(string)
}

variable "store_statements" {
  description = "Policy statements that allow the store."
  type        = any
}

variable "subnet_ids" {
  description = "Subnets of the workers."
  type        = list(string)
}

variable "security_group_id" {
  description = "Security group of the workers."
  type        = string
}

variable "instance_types" {
  description = "Instance types, the preferred first."
  type        = list(string)
}

variable "on_demand_base" {
  description = "How many of the instances are on demand; the others are spot."
  type        = number
}

variable "min_instances" {
  description = "Instances when there is nothing to do."
  type        = number
}

variable "max_instances" {
  description = "Most instances."
  type        = number
}

variable "backlog_per_instance" {
  description = "Messages, waiting or in flight, that one instance is meant for."
  type        = number
}

variable "idle_minutes" {
  description = "Minutes without any message until the group goes back to its minimum."
  type        = number
}

variable "root_volume_gib" {
  description = "Size of the root volume in GiB."
  type        = number
}

variable "log_retention_days" {
  description = "Days that logs are kept."
  type        = number
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
}
