output "url" {
  description = "URL of the cache: EMBEDFLEET_CACHE_URL."
  value       = "rediss://${aws_elasticache_replication_group.this.primary_endpoint_address}:6379/0"
}
