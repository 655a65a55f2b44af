"""Loads CLIP and SigLIP models in the layout of Hugging Face's transformers, without that library. Their weights are
mapped onto open_clip's and timm's modules (decision 019).

`config.py` reads config.json, `checkpoint.py` finds the files, `names.py` maps the names of tensors, and
`architecture.py`, `tokenizer.py` and `recipe.py` make the parts of a model.
"""
