"""The commands of `leukoscope` that have commands of their own."""
