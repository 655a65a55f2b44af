"""Contains the built-in model `tiny`: its weights, its training pictures, and its training."""
