output "bucket" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.this.id
}

output "uri" {
  description = "URI of the store: EMBEDFLEET_STORE."
  value       = "s3://${var.bucket}/${var.prefix}"
}

output "read_write_statements" {
  description = "Policy statements for who reads and writes job folders: get, put, list; never delete."
  value = [
    {
      Sid      = "ReadAndWriteObjects"
      Effect   = "Allow"
      Action   = ["s3:GetObject", "s3:PutObject"]
      Resource = ["${local.arn}/${var.prefix}/*"]
    },
    {
      # Who may not list is told 403, not 404, of an object that is not there, and a get or head has no prefix to
      # compare: hence IfExists. All it gives away beyond the prefix is the names in this fleet's own bucket.
      Sid       = "ListObjects"
      Effect    = "Allow"
      Action    = ["s3:ListBucket"]
      Resource  = [local.arn]
      Condition = { StringLikeIfExists = { "s3:prefix" = ["${var.prefix}/*"] } }
    },
  ]
}

output "sweep_statements" {
  description = "Policy statement for who sweeps open jobs, beside the others: delete from their index and from the sweeps' slots."
  value = [{
    Sid      = "Sweep"
    Effect   = "Allow"
    Action   = ["s3:DeleteObject"]
    Resource = [for folder in ["open", "janitor"] : "${local.arn}/${var.prefix}/${folder}/*"]
  }]
}
