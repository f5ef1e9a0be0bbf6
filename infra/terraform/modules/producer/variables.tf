variable "prefix" {
  description = "First part of the role's name."
  type        = string
}

variable "principal_arns" {
  description = "Roles or users that may take the role; none: whom this account's own policies allow to."
  type        = list(string)
}

variable "queue_arns" {
  description = "Queues to send to."
  type        = list(string)
}

variable "store_statements" {
  description = "Policy statements that allow the store."
  type        = any
}

variable "tags" {
  description = "Tags of the role."
  type        = map(string)
}
