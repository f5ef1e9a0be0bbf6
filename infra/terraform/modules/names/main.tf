# The names that producers and workers compute too (queue_name in producer/embedfleet/broker.py). No resource lives here,
# so that tests compare the names with Python's in a second.

locals {
  # HCL knows no escape for NUL in a string; JSON does.
  nul = jsondecode("\"\\u0000\"")

  models = [for model in var.models : {
    name     = model.name
    revision = model.revision == null ? "" : model.revision
    digest   = substr(sha256("${model.name}${local.nul}${model.revision == null ? "" : model.revision}"), 0, 8)
    slug     = trim(substr(trim(replace(lower(model.name), "/[^a-z0-9]+/", "-"), "-"), 0, 40), "-")
  }]

  bases = { for model in local.models : model.digest => "${var.prefix}-${model.slug}-${model.digest}" }
}
