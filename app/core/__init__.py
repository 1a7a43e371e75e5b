"""Shared kernel of service and training: manifest, imaging, postprocessing, errors.

Needs numpy and Pillow only, and imports nothing else of this project.
"""
