# The whole, as `terraform apply` in this folder makes it. tests/infra reads this run's policies and user data.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  prefix                   = "fleet"
  models                   = [{ name = "sentence-transformers/all-MiniLM-L6-v2" }, { name = "Qwen/Qwen3-Embedding-0.6B", revision = "main" }]
  vpc_id                   = "vpc-0123456789abcdef0"
  subnet_ids               = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
  worker_image             = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/embedfleet-worker:0.1.0"
  worker_repository_arn    = "arn:aws:ecr:eu-central-1:123456789012:repository/embedfleet-worker"
  reconcile_image          = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/embedfleet-cpu:0.1.0"
  reconcile_repository_arn = "arn:aws:ecr:eu-central-1:123456789012:repository/embedfleet-cpu"
  producer_principal_arns  = ["arn:aws:iam::123456789012:role/shop"]
  secrets = {
    EMBEDFLEET_WEBHOOK_SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:embedfleet/webhook-AbCdEf"
    EMBEDFLEET_PGVECTOR_URL   = "arn:aws:ssm:eu-central-1:123456789012:parameter/embedfleet/pgvector"
    EMBEDFLEET_SIGNING_KEY    = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:embedfleet/signing-AbCdEf"
  }
  secrets_kms_key_arns = ["arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555"]
  worker_settings      = { EMBEDFLEET_WEBHOOK_ORIGINS = "https://shop.example.com" }
}

run "complete" {
  assert {
    condition = output.producer_environment == tomap({
      EMBEDFLEET_BROKER_URL   = "sqs://eu-central-1"
      EMBEDFLEET_STORE        = "s3://fleet-123456789012-eu-central-1/jobs"
      EMBEDFLEET_MODEL        = "sentence-transformers/all-MiniLM-L6-v2"
      EMBEDFLEET_QUEUE_PREFIX = "fleet"
    })
    error_message = "what a producer needs, and no more"
  }

  assert {
    condition = output.worker_environments["fleet-qwen-qwen3-embedding-0-6b-8a2575bd"] == tomap({
      EMBEDFLEET_BROKER_URL      = "sqs://eu-central-1"
      EMBEDFLEET_STORE           = "s3://fleet-123456789012-eu-central-1/jobs"
      EMBEDFLEET_ALLOWED_STORES  = "s3://fleet-123456789012-eu-central-1/jobs"
      EMBEDFLEET_MODEL           = "Qwen/Qwen3-Embedding-0.6B"
      EMBEDFLEET_REVISION        = "main"
      EMBEDFLEET_QUEUE_PREFIX    = "fleet"
      EMBEDFLEET_LEASE_S         = "30"
      EMBEDFLEET_HEALTH_PORT     = "9464"
      EMBEDFLEET_WEBHOOK_ORIGINS = "https://shop.example.com"
    })
    error_message = "each model's workers have their own"
  }

  assert {
    condition = keys(output.queue_urls) == [
      "fleet-dead", "fleet-deliver",
      "fleet-qwen-qwen3-embedding-0-6b-8a2575bd-bulk", "fleet-qwen-qwen3-embedding-0-6b-8a2575bd-interactive",
      "fleet-sentence-transformers-all-minilm-l6-v2-b01c9bbb-bulk", "fleet-sentence-transformers-all-minilm-l6-v2-b01c9bbb-interactive",
    ]
    error_message = "two lanes per model, deliver, dead"
  }

  assert {
    condition     = length(aws_security_group.worker.ingress) == 0
    error_message = "nothing comes in"
  }

  assert {
    condition     = keys(aws_vpc_security_group_egress_rule.worker) == ["443"]
    error_message = "only 443 goes out"
  }

  assert {
    condition     = length(module.cache) == 0 && length(module.reconcile) == 1
    error_message = "no cache unless asked for, a sweep unless turned off"
  }
}
