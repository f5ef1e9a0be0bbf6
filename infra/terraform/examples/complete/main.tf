# A fleet in the account's default network, with everything turned on that costs nothing while idle.

provider "aws" {
  region = var.region

  default_tags {
    tags = local.tags
  }
}

locals {
  tags = { project = "embedfleet" }
}

data "aws_vpc" "default" {
  default = true
}

data "aws_subnets" "default" {
  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.default.id]
  }
}

module "embedfleet" {
  source = "../.."

  prefix = var.prefix
  models = var.models

  vpc_id           = data.aws_vpc.default.id
  subnet_ids       = data.aws_subnets.default.ids
  assign_public_ip = true # the default network has no NAT

  worker_image    = var.worker_image
  reconcile_image = var.reconcile_image
  secrets         = var.secrets
  egress_ports    = [443, 5432]

  max_instances       = var.max_instances
  results_expire_days = 90
  cache_enabled       = var.cache_enabled

  bucket_force_destroy = var.bucket_force_destroy

  # The provider's default tags do not reach what a launch template starts.
  tags = local.tags
}
