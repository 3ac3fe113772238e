"""The stores room: databases, roles, buckets and credentials, made once and kept."""
