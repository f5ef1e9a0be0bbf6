"""What a worker does beside its work: saying that it is there and well, looking after jobs, going down."""
