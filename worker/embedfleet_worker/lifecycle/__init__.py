"""What a worker does beside its work: renewing leases, the order of lanes, going down."""
