# What can be turned on and off.

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

run "cache_on" {
  variables {
    cache_enabled = true
  }

  assert {
    condition     = output.worker_environment["EMBEDFLEET_CACHE_URL"] == "rediss://cache.example.com:6379/0"
    error_message = "workers reach the cache by TLS"
  }

  assert {
    condition     = !contains(keys(output.producer_environment), "EMBEDFLEET_CACHE_URL")
    error_message = "producers don't reach it"
  }
}

run "cache_url_is_a_secret" {
  variables {
    cache_enabled = true
    secrets       = { EMBEDFLEET_CACHE_URL = "arn:aws:ssm:eu-central-1:123456789012:parameter/embedfleet/cache" }
  }

  assert {
    condition     = !contains(keys(output.worker_environment), "EMBEDFLEET_CACHE_URL")
    error_message = "a URL with a token takes the other's place"
  }
}

run "reconcile_off" {
  variables {
    reconcile_enabled = false
    reconcile_image   = null
  }

  assert {
    condition     = length(module.reconcile) == 0 && output.reconcile_role_arn == null
    error_message = "the sweep can be turned off"
  }
}
