"""Contains the built-in model `tiny`, and the code that draws its training pictures, trains it and evaluates it."""
