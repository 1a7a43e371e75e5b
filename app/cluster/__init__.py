"""The service on a Ray cluster: the same application, with its models in other processes."""
