mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  name                     = "fleet"
  vpc_id                   = "vpc-0123456789abcdef0"
  subnet_ids               = ["subnet-0123456789abcdef0"]
  worker_security_group_id = "sg-00000000000000001"
  node_type                = "cache.t4g.small"
  tags                     = {}
}

run "cache" {
  module {
    source = "./modules/cache"
  }

  assert {
    condition     = one(aws_elasticache_parameter_group.this.parameter) == { name = "maxmemory-policy", value = "volatile-lru" }
    error_message = "entries that expire are what goes when memory is short"
  }

  assert {
    condition     = aws_elasticache_replication_group.this.transit_encryption_enabled && aws_elasticache_replication_group.this.at_rest_encryption_enabled == "true"
    error_message = "encrypted on the way and at rest"
  }

  assert {
    condition     = aws_elasticache_replication_group.this.auth_token == null
    error_message = "no token in the state"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.workers.referenced_security_group_id == "sg-00000000000000001" && aws_vpc_security_group_ingress_rule.workers.cidr_ipv4 == null
    error_message = "only workers come in"
  }
}
