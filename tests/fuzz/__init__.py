"""Inputs that nobody thought of."""
