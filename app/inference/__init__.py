"""From bytes to predictions: sessions, batching, the model folder and the engine around them."""
