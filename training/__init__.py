"""Training of the classifiers that the service runs; of `app` it uses `app.core` alone."""
