"""Adds columns to a finished dataset, in separate files: the embeddings of another model, or a score.

Input: committed pairs. Output: `columns/NAME/`, with the same rows as `pairs/`, in the same order.

    columns/clip_l14/000000000.parquet          row_id and the added columns
    columns/clip_l14/manifests/000000000.json   written last; says which pairs file the columns belong to
    columns/clip_l14/model.json                 the model; a score has score.json instead
"""
