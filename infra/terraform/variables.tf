# ---- What the fleet embeds

variable "prefix" {
  description = "First part of every name: EMBEDFLEET_QUEUE_PREFIX. Two fleets in one account need two."
  type        = string
  default     = "embedfleet"

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,16}[a-z0-9])?$", var.prefix)) && !strcontains(var.prefix, "--")
    error_message = "prefix: 1 to 18 of a-z, 0-9 and single -, from a letter to a letter or number; it begins the names of queues, bucket and cache."
  }
}

variable "models" {
  description = "Models to embed with: hub id, and revision where one is pinned. Each gets two lanes and a group of workers; the first is the producers' default."
  type = list(object({
    name     = string
    revision = optional(string)
  }))

  validation {
    condition     = length(var.models) > 0
    error_message = "models: give at least one, as [{ name = \"Qwen/Qwen3-Embedding-0.6B\" }]."
  }

  validation {
    condition     = alltrue([for model in var.models : can(regex("^[A-Za-z0-9/][A-Za-z0-9._/-]*$", model.name))])
    error_message = "models: a name is a hub id, as Qwen/Qwen3-Embedding-0.6B, or a folder in the image."
  }

  validation {
    condition     = alltrue([for model in var.models : model.revision == null ? true : can(regex("^[A-Za-z0-9._/-]+$", model.revision))])
    error_message = "models: a revision is a branch, tag or commit of the model on its hub; leave it out for none."
  }

  validation {
    condition     = length(distinct([for model in var.models : "${model.name}@${model.revision == null ? "" : model.revision}"])) == length(var.models)
    error_message = "models: the same model and revision is there twice; its queues can exist once only."
  }
}

variable "lease_s" {
  description = "Seconds until a dead worker's batches go to another: EMBEDFLEET_LEASE_S and the queues' visibility timeout."
  type        = number
  default     = 30

  validation {
    condition     = var.lease_s >= 1 && var.lease_s <= 43200 && floor(var.lease_s) == var.lease_s
    error_message = "lease_s: a whole number of seconds from 1 to 43200, as SQS takes."
  }
}

# ---- Results

variable "bucket_name" {
  description = "Name of the results bucket; null: prefix, account and region."
  type        = string
  default     = null

  validation {
    condition     = var.bucket_name == null ? true : can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name: 3 to 63 of a-z, 0-9 and -, with no - at its ends; a dot would break TLS."
  }
}

variable "store_prefix" {
  description = "Prefix of the job folders in the bucket."
  type        = string
  default     = "jobs"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.store_prefix))
    error_message = "store_prefix: a plain path as jobs or team/jobs, without slashes at its ends."
  }
}

variable "results_expire_days" {
  description = "Days until job folders are deleted, inputs and vectors alike; null keeps them."
  type        = number
  default     = null

  validation {
    condition     = var.results_expire_days == null ? true : var.results_expire_days >= 15 && floor(var.results_expire_days) == var.results_expire_days
    error_message = "results_expire_days: a whole number from 15, since a message may wait 14 days for its input; or null."
  }
}

variable "bucket_force_destroy" {
  description = "Whether `terraform destroy` deletes the results too. Off: it stops at a bucket that is not empty."
  type        = bool
  default     = false
}

# ---- Network

variable "vpc_id" {
  description = "VPC of workers, cache and sweep."
  type        = string

  validation {
    condition     = can(regex("^vpc-[0-9a-f]+$", var.vpc_id))
    error_message = "vpc_id: it looks like vpc-0123456789abcdef0."
  }
}

variable "subnet_ids" {
  description = "Subnets of the workers, with a way to AWS' endpoints and the model's hub (NAT, or public addresses). More zones find more spot capacity."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0 && alltrue([for id in var.subnet_ids : can(regex("^subnet-[0-9a-f]+$", id))])
    error_message = "subnet_ids: at least one, each as subnet-0123456789abcdef0."
  }
}

variable "egress_ports" {
  description = "TCP ports that workers may reach anywhere: 443 for AWS, hub and webhooks; add 5432 for pgvector."
  type        = set(number)
  default     = [443]

  validation {
    condition     = contains(var.egress_ports, 443) && alltrue([for port in var.egress_ports : port >= 1 && port <= 65535])
    error_message = "egress_ports: ports from 1 to 65535, with 443 among them; without it a worker can't reach its queues."
  }
}

variable "assign_public_ip" {
  description = "Whether the sweep gets a public address; needed in subnets without NAT. Workers do as their subnet says."
  type        = bool
  default     = false
}

# ---- Workers

variable "worker_image" {
  description = "Container image of the worker with CUDA, with a tag or digest."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][A-Za-z0-9._:/-]*(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$", var.worker_image))
    error_message = "worker_image: an image with a tag or digest, as registry/embedfleet-worker:0.1.0."
  }
}

variable "worker_repository_arn" {
  description = "ECR repository of worker_image, which workers may then pull from; null for a public image."
  type        = string
  default     = null

  validation {
    condition     = var.worker_repository_arn == null ? true : can(regex("^arn:[a-z-]+:ecr:[a-z0-9-]+:[0-9]{12}:repository/[a-z0-9._/-]+$", var.worker_repository_arn))
    error_message = "worker_repository_arn: it looks like arn:aws:ecr:region:account:repository/name; no wildcards."
  }
}

variable "ami" {
  description = "Machine image with NVIDIA's driver, Docker, its NVIDIA runtime and the AWS CLI; the default is AWS' newest at each launch."
  type        = string
  default     = "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"

  validation {
    condition     = can(regex("^(ami-[0-9a-f]+|resolve:ssm:/?[A-Za-z0-9._/-]+)$", var.ami))
    error_message = "ami: ami-0123456789abcdef0, or resolve:ssm: and the name of a parameter."
  }
}

variable "instance_types" {
  description = "GPU instance types, the preferred first. More types find more spot capacity. Take cards with bfloat16 (not g4dn)."
  type        = list(string)
  default     = ["g6.xlarge", "g5.xlarge", "g6.2xlarge", "g5.2xlarge"]

  validation {
    condition     = length(var.instance_types) > 0 && length(distinct(var.instance_types)) == length(var.instance_types)
    error_message = "instance_types: at least one, none twice."
  }

  validation {
    condition     = alltrue([for type in var.instance_types : can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9]+$", type))])
    error_message = "instance_types: each looks like g6.xlarge."
  }
}

variable "min_instances" {
  description = "Workers per model when there is nothing to do. 0 costs nothing; the first batch then waits for a machine."
  type        = number
  default     = 0

  validation {
    condition     = var.min_instances >= 0 && floor(var.min_instances) == var.min_instances
    error_message = "min_instances: a whole number from 0."
  }
}

variable "max_instances" {
  description = "Most workers per model: the bound on what a backlog can cost."
  type        = number
  default     = 2

  validation {
    condition     = var.max_instances >= 1 && var.max_instances <= 100 && floor(var.max_instances) == var.max_instances
    error_message = "max_instances: a whole number from 1 to 100; it bounds the cost."
  }

  validation {
    condition     = var.max_instances >= var.min_instances
    error_message = "max_instances: it is below min_instances."
  }
}

variable "on_demand_base" {
  description = "How many of a model's workers are on demand, the first ones; the others are spot."
  type        = number
  default     = 0

  validation {
    condition     = var.on_demand_base >= 0 && var.on_demand_base <= var.max_instances && floor(var.on_demand_base) == var.on_demand_base
    error_message = "on_demand_base: a whole number from 0 to max_instances."
  }
}

variable "backlog_per_instance" {
  description = "Messages, waiting or in flight, that one worker is meant for; with more the group grows."
  type        = number
  default     = 200

  validation {
    condition     = var.backlog_per_instance >= 1
    error_message = "backlog_per_instance: at least 1."
  }
}

variable "idle_minutes" {
  description = "Minutes without any message until a group goes back to min_instances."
  type        = number
  default     = 15

  validation {
    condition     = var.idle_minutes >= 5 && var.idle_minutes <= 1440 && floor(var.idle_minutes) == var.idle_minutes
    error_message = "idle_minutes: a whole number from 5, as SQS' metrics come late, to 1440."
  }
}

variable "root_volume_gib" {
  description = "Size of a worker's encrypted root volume in GiB: machine image, container image, weights."
  type        = number
  default     = 150

  validation {
    condition     = var.root_volume_gib >= 100 && var.root_volume_gib <= 2000
    error_message = "root_volume_gib: from 100, which the default machine image needs, to 2000."
  }
}

variable "worker_settings" {
  description = "More EMBEDFLEET_* settings of the workers, as EMBEDFLEET_DTYPE. No secrets: those go into `secrets`."
  type        = map(string)
  default     = {}

  validation {
    condition = alltrue([for name in keys(var.worker_settings) : contains([
      "EMBEDFLEET_DTYPE", "EMBEDFLEET_MAX_TOKENS", "EMBEDFLEET_QUEUES",
      "EMBEDFLEET_WEBHOOK_ORIGINS", "EMBEDFLEET_WEBHOOK_NETWORKS",
    ], name)])
    error_message = "worker_settings: only EMBEDFLEET_DTYPE, _MAX_TOKENS, _QUEUES, _WEBHOOK_ORIGINS and _WEBHOOK_NETWORKS; the others follow from variables of their own, and secrets go into `secrets`."
  }

  validation {
    condition     = alltrue([for value in values(var.worker_settings) : !can(regex("[\\r\\n]", value))])
    error_message = "worker_settings: a value is one line."
  }
}

variable "secrets" {
  description = "Settings that are secrets, by name: the ARN of an SSM parameter or Secrets Manager secret, read when a worker starts. Never the value."
  type        = map(string)
  default     = {}

  validation {
    condition = alltrue([for name in keys(var.secrets) : contains([
      "EMBEDFLEET_WEBHOOK_SECRET", "EMBEDFLEET_PGVECTOR_URL", "EMBEDFLEET_CACHE_URL", "EMBEDFLEET_CACHE_SALT", "EMBEDFLEET_SIGNING_KEY",
    ], name)])
    error_message = "secrets: only EMBEDFLEET_WEBHOOK_SECRET, _PGVECTOR_URL, _CACHE_URL, _CACHE_SALT and _SIGNING_KEY."
  }

  validation {
    condition = alltrue([for arn in values(var.secrets) : can(regex(
      "^arn:[a-z-]+:(ssm:[a-z0-9-]+:[0-9]{12}:parameter/[A-Za-z0-9._/-]+|secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9_/+=.@-]+)$", arn
    ))])
    error_message = "secrets: each is the whole ARN of an SSM parameter or a Secrets Manager secret, without wildcards; never the secret itself."
  }
}

variable "secrets_kms_key_arns" {
  description = "KMS keys of your own that `secrets` are encrypted with; none for AWS' keys."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.secrets_kms_key_arns : can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$", arn))])
    error_message = "secrets_kms_key_arns: each looks like arn:aws:kms:region:account:key/id; no aliases, no wildcards."
  }
}

variable "log_retention_days" {
  description = "Days that CloudWatch keeps the logs."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.log_retention_days)
    error_message = "log_retention_days: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545 or 731, as CloudWatch takes."
  }
}

# ---- Producers

variable "producer_principal_arns" {
  description = "Roles or users that may take the producer's role; none: those whom this account's own policies allow to."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.producer_principal_arns : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/[A-Za-z0-9+=,.@_/-]+$", arn))])
    error_message = "producer_principal_arns: each is the ARN of a role or user, without wildcards."
  }
}

# ---- Vector cache

variable "cache_enabled" {
  description = "Whether the fleet has a vector cache on ElastiCache. It costs by the hour, also at zero workers."
  type        = bool
  default     = false
}

variable "cache_subnet_ids" {
  description = "Subnets of the cache; none: the workers'."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for id in var.cache_subnet_ids : can(regex("^subnet-[0-9a-f]+$", id))])
    error_message = "cache_subnet_ids: each looks like subnet-0123456789abcdef0."
  }
}

variable "cache_node_type" {
  description = "ElastiCache node type. A vector of 1024 dimensions takes about 2 to 4 KB."
  type        = string
  default     = "cache.t4g.small"

  validation {
    condition     = can(regex("^cache\\.[a-z0-9]+\\.[a-z0-9]+$", var.cache_node_type))
    error_message = "cache_node_type: it looks like cache.t4g.small."
  }
}

# ---- Reconcile

variable "reconcile_enabled" {
  description = "Whether `embedfleet reconcile --all` runs on a schedule. Where workers reach zero, nothing else finishes what was left."
  type        = bool
  default     = true
}

variable "reconcile_image" {
  description = "Container image of the sweep, the CPU one, with a tag or digest."
  type        = string
  default     = null

  validation {
    condition     = !var.reconcile_enabled || var.reconcile_image != null
    error_message = "reconcile_image: give the CPU image, or turn the sweep off with reconcile_enabled = false."
  }

  validation {
    condition     = var.reconcile_image == null ? true : can(regex("^[a-z0-9][A-Za-z0-9._:/-]*(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$", var.reconcile_image))
    error_message = "reconcile_image: an image with a tag or digest, as registry/embedfleet-cpu:0.1.0."
  }
}

variable "reconcile_repository_arn" {
  description = "ECR repository of reconcile_image, which the sweep may then pull from; null for a public image."
  type        = string
  default     = null

  validation {
    condition     = var.reconcile_repository_arn == null ? true : can(regex("^arn:[a-z-]+:ecr:[a-z0-9-]+:[0-9]{12}:repository/[a-z0-9._/-]+$", var.reconcile_repository_arn))
    error_message = "reconcile_repository_arn: it looks like arn:aws:ecr:region:account:repository/name; no wildcards."
  }
}

variable "reconcile_schedule" {
  description = "How often the sweep runs, as EventBridge Scheduler writes it."
  type        = string
  default     = "rate(15 minutes)"

  validation {
    condition     = can(regex("^(rate|cron)\\(.+\\)$", var.reconcile_schedule))
    error_message = "reconcile_schedule: rate(15 minutes), or cron(…)."
  }
}

# ---- Everything

variable "tags" {
  description = "Tags of everything, beside the fleet's own."
  type        = map(string)
  default     = {}
}
