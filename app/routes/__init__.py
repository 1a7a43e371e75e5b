"""The HTTP routes. They translate; the work is done in `app.inference`."""
