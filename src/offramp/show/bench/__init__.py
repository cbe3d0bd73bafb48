"""What `offramp bench` measured, as a table and as plots."""
