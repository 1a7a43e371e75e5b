"""The benchmark behind `make bench`: this service and its peers, side by side, with the same weights and client."""
