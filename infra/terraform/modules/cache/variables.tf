variable "name" {
  description = "First part of the names."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the cache."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets of the cache."
  type        = list(string)
}

variable "worker_security_group_id" {
  description = "Security group of the workers, the only ones let in."
  type        = string
}

variable "node_type" {
  description = "ElastiCache node type."
  type        = string
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
}
