"""Leukoscope's inference service: pictures of white blood cells in, ALL or HEM out."""
