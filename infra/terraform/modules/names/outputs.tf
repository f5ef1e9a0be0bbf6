output "models" {
  description = "By digest: each model's name, revision (empty for none) and the first part of its queues' names."
  value = { for model in local.models : model.digest => {
    name     = model.name
    revision = model.revision
    base     = local.bases[model.digest]
  } }
}

output "digests" {
  description = "The models' digests, in the order of the models."
  value       = local.models[*].digest
}

output "lanes" {
  description = "By digest: each lane's queue name."
  value       = { for digest, base in local.bases : digest => { for lane in ["interactive", "bulk"] : lane => "${base}-${lane}" } }
}

output "deliver" {
  description = "Name of the queue of deliveries."
  value       = "${var.prefix}-deliver"
}

output "dead" {
  description = "Name of the queue of dead letters."
  value       = "${var.prefix}-dead"
}
