"""A long run of mixed good and bad traffic against a real server, reconciled with its metrics: `make soak`."""
