# A fleet on AWS: queues, bucket, roles, GPU workers that come from zero and go back, a sweep on a schedule.

data "aws_caller_identity" "current" {}
data "aws_region" "current" {}

locals {
  region = data.aws_region.current.name
  bucket = var.bucket_name != null ? var.bucket_name : "${var.prefix}-${data.aws_caller_identity.current.account_id}-${local.region}"
  tags   = merge({ "embedfleet:prefix" = var.prefix, "embedfleet:managed-by" = "terraform" }, var.tags)

  # What producers and workers have to agree on, by model; the first is the producer's default.
  shared = { for digest, model in module.names.models : digest => tomap(merge(
    {
      EMBEDFLEET_BROKER_URL   = "sqs://${local.region}"
      EMBEDFLEET_STORE        = module.store.uri
      EMBEDFLEET_MODEL        = model.name
      EMBEDFLEET_QUEUE_PREFIX = var.prefix
    },
    model.revision == "" ? {} : { EMBEDFLEET_REVISION = model.revision },
  )) }
  first = module.names.digests[0]

  worker_environments = { for digest, shared in local.shared : digest => tomap(merge(
    shared,
    {
      EMBEDFLEET_ALLOWED_STORES = module.store.uri
      EMBEDFLEET_LEASE_S        = tostring(var.lease_s)
      EMBEDFLEET_HEALTH_PORT    = "9464"
    },
    var.cache_enabled && !contains(keys(var.secrets), "EMBEDFLEET_CACHE_URL") ? { EMBEDFLEET_CACHE_URL = module.cache[0].url } : {},
    var.worker_settings,
  )) }

  lanes      = { for digest, lanes in module.names.lanes : digest => values(lanes) }
  publish_to = concat(flatten(values(local.lanes)), [module.names.deliver])

  # Every worker sweeps open jobs, as the scheduled one does where there is no worker.
  sweep_to         = [for name in concat(local.publish_to, [module.names.dead]) : module.queues.arns[name]]
  sweep_statements = concat(module.store.read_write_statements, module.store.sweep_statements)
}

module "names" {
  source = "./modules/names"

  prefix = var.prefix
  models = var.models
}

module "queues" {
  source = "./modules/queues"

  lanes   = module.names.lanes
  deliver = module.names.deliver
  dead    = module.names.dead
  lease_s = var.lease_s
  tags    = local.tags
}

module "store" {
  source = "./modules/store"

  bucket        = local.bucket
  prefix        = var.store_prefix
  expire_days   = var.results_expire_days
  force_destroy = var.bucket_force_destroy
  tags          = local.tags
}

module "cache" {
  source = "./modules/cache"
  count  = var.cache_enabled ? 1 : 0

  name                     = var.prefix
  vpc_id                   = var.vpc_id
  subnet_ids               = length(var.cache_subnet_ids) > 0 ? var.cache_subnet_ids : var.subnet_ids
  worker_security_group_id = aws_security_group.worker.id
  node_type                = var.cache_node_type
  tags                     = local.tags
}

# Workers pull; nobody has to reach them. So there is no ingress, no SSH key, and no rule that could grow one.
resource "aws_security_group" "worker" {
  name        = "${var.prefix}-worker"
  description = "Workers of ${var.prefix}: nothing comes in"
  vpc_id      = var.vpc_id
  tags        = local.tags
}

resource "aws_vpc_security_group_egress_rule" "worker" {
  for_each = toset([for port in var.egress_ports : tostring(port)])

  security_group_id = aws_security_group.worker.id
  description       = "To AWS, the model's hub and destinations"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = tonumber(each.key)
  to_port           = tonumber(each.key)
  tags              = local.tags
}

module "producer" {
  source = "./modules/producer"

  prefix           = var.prefix
  principal_arns   = var.producer_principal_arns
  queue_arns       = [for name in local.publish_to : module.queues.arns[name]]
  store_statements = module.store.read_write_statements
  tags             = local.tags
}

module "fleet" {
  source   = "./modules/fleet"
  for_each = module.names.models

  name                 = each.value.base
  role_name            = "${var.prefix}-worker-${each.key}"
  image                = var.worker_image
  repository_arn       = var.worker_repository_arn
  ami                  = var.ami
  environment          = local.worker_environments[each.key]
  secrets              = var.secrets
  secrets_kms_key_arns = var.secrets_kms_key_arns

  work_queue_arns = [for name in concat(local.lanes[each.key], [module.names.deliver, module.names.dead]) : module.queues.arns[name]]
  send_queue_arns = local.sweep_to
  # Every worker delivers; one group that wakes for it is enough.
  backlog_queues   = concat(local.lanes[each.key], each.key == local.first ? [module.names.deliver] : [])
  store_statements = local.sweep_statements

  subnet_ids           = var.subnet_ids
  security_group_id    = aws_security_group.worker.id
  instance_types       = var.instance_types
  on_demand_base       = var.on_demand_base
  min_instances        = var.min_instances
  max_instances        = var.max_instances
  backlog_per_instance = var.backlog_per_instance
  idle_minutes         = var.idle_minutes
  root_volume_gib      = var.root_volume_gib
  log_retention_days   = var.log_retention_days
  tags                 = local.tags
}

module "reconcile" {
  source = "./modules/reconcile"
  count  = var.reconcile_enabled ? 1 : 0

  prefix         = var.prefix
  image          = var.reconcile_image
  repository_arn = var.reconcile_repository_arn
  schedule       = var.reconcile_schedule
  environment = merge(local.shared[local.first], {
    for name, value in var.worker_settings : name => value if startswith(name, "EMBEDFLEET_WEBHOOK_")
  })
  # What it publishes again is signed as what producers publish.
  secrets              = { for name, arn in var.secrets : name => arn if startswith(name, "EMBEDFLEET_WEBHOOK_") || name == "EMBEDFLEET_SIGNING_KEY" }
  secrets_kms_key_arns = var.secrets_kms_key_arns
  queue_arns           = local.sweep_to
  dead_queue_arn       = module.queues.arns[module.names.dead]
  store_statements     = local.sweep_statements
  subnet_ids           = var.subnet_ids
  security_group_id    = aws_security_group.worker.id
  assign_public_ip     = var.assign_public_ip
  log_retention_days   = var.log_retention_days
  tags                 = local.tags
}
