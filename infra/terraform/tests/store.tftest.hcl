mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  bucket        = "fleet-results"
  prefix        = "jobs"
  expire_days   = null
  force_destroy = false
  tags          = {}
}

run "bucket" {
  command = plan

  module {
    source = "./modules/store"
  }

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls,
      aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls,
      aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "nothing in the bucket can be public"
  }

  assert {
    condition = jsondecode(aws_s3_bucket_policy.this.policy).Statement == [{
      Sid       = "OnlyTls"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = ["arn:aws:s3:::fleet-results", "arn:aws:s3:::fleet-results/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
    error_message = "the bucket refuses what does not come by TLS, and its policy allows nobody anything"
  }

  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "objects are encrypted"
  }

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Disabled"
    error_message = "objects are written once: there are no versions to keep"
  }

  assert {
    condition     = aws_s3_bucket_ownership_controls.this.rule[0].object_ownership == "BucketOwnerEnforced"
    error_message = "no ACLs"
  }

  assert {
    condition     = length(aws_s3_bucket_lifecycle_configuration.this.rule) == 1 && aws_s3_bucket_lifecycle_configuration.this.rule[0].abort_incomplete_multipart_upload[0].days_after_initiation == 1
    error_message = "uploads that were left are aborted, and nothing else goes"
  }

  assert {
    condition     = !aws_s3_bucket.this.force_destroy
    error_message = "results are not deleted with the fleet unless asked for"
  }

  assert {
    condition     = output.uri == "s3://fleet-results/jobs"
    error_message = "the store's URI"
  }

  assert {
    condition = ([for statement in output.sweep_statements : [statement.Action, statement.Resource]] == [[["s3:DeleteObject"], [
      "arn:aws:s3:::fleet-results/jobs/open/*", "arn:aws:s3:::fleet-results/jobs/janitor/*",
    ]]])
    error_message = "a sweep deletes what is a sweep's, never a result"
  }
}

run "expiry" {
  command = plan

  module {
    source = "./modules/store"
  }

  variables {
    expire_days = 90
  }

  assert {
    condition     = one([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule if rule.id == "expire"]).expiration[0].days == 90
    error_message = "job folders expire"
  }

  assert {
    condition     = one([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule if rule.id == "expire"]).filter[0].prefix == "jobs/"
    error_message = "only job folders expire"
  }
}
