mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  lanes   = { b01c9bbb = { interactive = "fleet-minilm-b01c9bbb-interactive", bulk = "fleet-minilm-b01c9bbb-bulk" } }
  deliver = "fleet-deliver"
  dead    = "fleet-dead"
  lease_s = 45
  tags    = {}
}

run "queues" {
  command = plan

  module {
    source = "./modules/queues"
  }

  assert {
    condition     = keys(aws_sqs_queue.work) == ["fleet-deliver", "fleet-minilm-b01c9bbb-bulk", "fleet-minilm-b01c9bbb-interactive"]
    error_message = "two lanes per model and deliver"
  }

  assert {
    condition     = alltrue([for queue in concat(values(aws_sqs_queue.work), [aws_sqs_queue.dead]) : queue.message_retention_seconds == 1209600])
    error_message = "messages are kept for 14 days, dead letters too"
  }

  assert {
    condition     = alltrue([for queue in concat(values(aws_sqs_queue.work), [aws_sqs_queue.dead]) : queue.sqs_managed_sse_enabled])
    error_message = "messages are encrypted"
  }

  assert {
    condition     = alltrue([for queue in values(aws_sqs_queue.work) : queue.visibility_timeout_seconds == 45])
    error_message = "the visibility timeout is the lease"
  }

  assert {
    condition = alltrue([for queue in values(aws_sqs_queue.work) : jsondecode(queue.redrive_policy) == {
      deadLetterTargetArn = "arn:aws:sqs:eu-central-1:123456789012:fleet-dead"
      maxReceiveCount     = 1000
    }])
    error_message = "what nobody can read goes to the dead letters, as late as AWS allows"
  }

  assert {
    condition = alltrue([for queue in concat(values(aws_sqs_queue.work), [aws_sqs_queue.dead]) :
      jsondecode(queue.policy).Statement[0] == {
        Sid       = "OnlyTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:*"
        Resource  = "arn:aws:sqs:eu-central-1:123456789012:${queue.name}"
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      }
    ])
    error_message = "each queue refuses what does not come by TLS"
  }
}
