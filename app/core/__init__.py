"""Shared kernel of service and training: manifest, imaging, postprocessing, errors.

Needs numpy, Pillow and kornia-rs only, and imports nothing else of this project.
"""
