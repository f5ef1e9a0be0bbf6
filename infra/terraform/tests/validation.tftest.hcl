# What can't work is refused before anything is made, each for itself: a run expects every one of its values to fail.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  models          = [{ name = "sentence-transformers/all-MiniLM-L6-v2" }]
  vpc_id          = "vpc-0123456789abcdef0"
  subnet_ids      = ["subnet-0123456789abcdef0"]
  worker_image    = "registry.example.com/embedfleet-worker:0.1.0"
  reconcile_image = "registry.example.com/embedfleet-cpu:0.1.0"
}

run "shapes" {
  command = plan

  variables {
    prefix                   = "Fleet"
    models                   = []
    lease_s                  = 43201
    bucket_name              = "my.bucket"
    store_prefix             = "/jobs"
    results_expire_days      = 7 # a message may wait for its input for 14
    vpc_id                   = "default"
    subnet_ids               = []
    egress_ports             = [5432] # not 443
    worker_image             = "embedfleet"
    worker_repository_arn    = "arn:aws:ecr:eu-central-1:123456789012:repository/*"
    ami                      = "newest"
    instance_types           = []
    max_instances            = 1000
    backlog_per_instance     = 0
    idle_minutes             = 1
    root_volume_gib          = 8
    worker_settings          = { EMBEDFLEET_DTYP = "auto" }
    secrets                  = { EMBEDFLEET_WEBHOOK_SECRET = "whsec_hush" }
    secrets_kms_key_arns     = ["arn:aws:kms:eu-central-1:123456789012:key/*"]
    log_retention_days       = 29
    producer_principal_arns  = ["*"]
    cache_subnet_ids         = ["all"]
    cache_node_type          = "t4g"
    reconcile_image          = null
    reconcile_repository_arn = "embedfleet-cpu"
    reconcile_schedule       = "hourly"
  }

  expect_failures = [
    var.prefix,
    var.models,
    var.lease_s,
    var.bucket_name,
    var.store_prefix,
    var.results_expire_days,
    var.vpc_id,
    var.subnet_ids,
    var.egress_ports,
    var.worker_image,
    var.worker_repository_arn,
    var.ami,
    var.instance_types,
    var.max_instances,
    var.backlog_per_instance,
    var.idle_minutes,
    var.root_volume_gib,
    var.worker_settings,
    var.secrets,
    var.secrets_kms_key_arns,
    var.log_retention_days,
    var.producer_principal_arns,
    var.cache_subnet_ids,
    var.cache_node_type,
    var.reconcile_image,
    var.reconcile_repository_arn,
    var.reconcile_schedule,
  ]
}

run "bounds" {
  command = plan

  variables {
    prefix          = "a-prefix-of-19-chars"
    models          = [{ name = "my model" }]
    lease_s         = 1.5
    store_prefix    = "*"
    worker_image    = "--privileged x:1"
    instance_types  = ["g6"]
    min_instances   = 3
    max_instances   = 2
    worker_settings = { EMBEDFLEET_WEBHOOK_SECRET = "hush" }
    secrets         = { AWS_SECRET = "arn:aws:ssm:eu-central-1:123456789012:parameter/x" }
    reconcile_image = "embedfleet"
  }

  expect_failures = [
    var.prefix,
    var.models,
    var.lease_s,
    var.store_prefix,
    var.worker_image,
    var.instance_types,
    var.max_instances,
    var.worker_settings,
    var.secrets,
    var.reconcile_image,
  ]
}

run "oddities" {
  command = plan

  variables {
    prefix          = "fleet-"
    models          = [{ name = "m" }, { name = "m", revision = "" }]
    store_prefix    = "jobs/../other"
    instance_types  = ["g6.xlarge", "g6.xlarge"]
    max_instances   = 0
    worker_settings = { EMBEDFLEET_DTYPE = "auto\nAWS_REGION=nowhere" }
    secrets         = { EMBEDFLEET_PGVECTOR_URL = "arn:aws:ssm:eu-central-1:123456789012:parameter/*" }
  }

  expect_failures = [
    var.prefix,
    var.models,
    var.store_prefix,
    var.instance_types,
    var.max_instances,
    var.worker_settings,
    var.secrets,
  ]
}

run "more_oddities" {
  command = plan

  variables {
    prefix       = "a--b"
    models       = [{ name = "m", revision = "a b" }]
    egress_ports = [443, 70000]
    subnet_ids   = ["subnet-1", "*"]
  }

  expect_failures = [
    var.prefix,
    var.models,
    var.egress_ports,
    var.subnet_ids,
  ]
}

# A variable that is measured by another is looked at only where the other is right.
run "fewer_than_none" {
  command = plan

  variables {
    min_instances = -1
  }

  expect_failures = [var.min_instances]
}

run "more_on_demand_than_there_may_be" {
  command = plan

  variables {
    on_demand_base = 3
  }

  expect_failures = [var.on_demand_base]
}
