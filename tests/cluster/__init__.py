"""Tests on a real local Ray cluster of two nodes."""
