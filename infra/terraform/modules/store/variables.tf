variable "bucket" {
  description = "Name of the bucket."
  type        = string
}

variable "prefix" {
  description = "Prefix of the job folders, without slashes at its ends."
  type        = string
}

variable "expire_days" {
  description = "Days until job folders are deleted; null keeps them."
  type        = number
}

variable "force_destroy" {
  description = "Whether destroying the bucket deletes what is in it."
  type        = bool
}

variable "tags" {
  description = "Tags of the bucket."
  type        = map(string)
}
