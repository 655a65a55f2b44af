"""Models that people hold: CLIP and SigLIP in the layout of Hugging Face's transformers, which is not needed to load
them. Their weights are mapped onto open_clip's and timm's modules (decision 019).

`config.py` reads config.json, `checkpoint.py` finds the files, `names.py` says which tensor goes where, and
`architecture.py`, `tokenizer.py` and `recipe.py` make the parts of a model.
"""
