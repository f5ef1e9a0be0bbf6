variable "region" {
  description = "Region of the fleet."
  type        = string
  default     = "eu-central-1"
}

variable "prefix" {
  description = "First part of every name."
  type        = string
  default     = "embedfleet"
}

variable "models" {
  description = "Models to embed with; the first is the producers' default."
  type = list(object({
    name     = string
    revision = optional(string)
  }))
  default = [{ name = "Qwen/Qwen3-Embedding-0.6B" }]
}

variable "worker_image" {
  description = "Container image of the worker, built from worker/Dockerfile."
  type        = string
}

variable "reconcile_image" {
  description = "Container image of the sweep, the CPU one."
  type        = string
}

variable "max_instances" {
  description = "Most workers per model."
  type        = number
  default     = 2
}

variable "secrets" {
  description = "By setting: ARN of the SSM parameter or Secrets Manager secret that holds it."
  type        = map(string)
  default     = {}
}

variable "cache_enabled" {
  description = "Whether the fleet has a vector cache, which costs by the hour."
  type        = bool
  default     = false
}

variable "bucket_force_destroy" {
  description = "Whether `terraform destroy` deletes the results too."
  type        = bool
  default     = false
}
