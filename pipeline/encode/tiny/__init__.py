"""The built-in model `tiny`: its weights, the pictures it is trained on, and its training."""
