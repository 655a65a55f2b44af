"""Computes scores of a finished dataset's pairs from their embeddings, captions or pictures.

Input: columns of committed pairs and, for some kinds, their pictures. Output: columns with the same rows.

Each kind of score is one file with one class (see `kind.py`); `kinds.py` lists them. A kind prepares a state once, such
as the weights of a head or the embeddings of class names. Given this state, the score depends on the row alone.
"""
