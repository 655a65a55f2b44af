"""The built-in model `tiny`: the pictures it is trained on, its training script and its weights."""
