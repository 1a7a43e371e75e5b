"""Telling pictures that are no segmented cell from cells: pictures to try it on, the score, its figures."""
