variable "lanes" {
  description = "By model: each lane's queue name."
  type        = map(map(string))
}

variable "deliver" {
  description = "Name of the queue of deliveries."
  type        = string
}

variable "dead" {
  description = "Name of the queue of dead letters."
  type        = string
}

variable "lease_s" {
  description = "Seconds until a dead worker's batches go to another; the queues' visibility timeout."
  type        = number
}

variable "tags" {
  description = "Tags of every queue."
  type        = map(string)
}
