variable "prefix" {
  description = "First part of every queue's name: EMBEDFLEET_QUEUE_PREFIX."
  type        = string
}

variable "models" {
  description = "Models that have queues: hub id, and revision where one is pinned."
  type = list(object({
    name     = string
    revision = optional(string)
  }))
}
