"""Adds columns beside a finished dataset: one more model's embeddings, or a score.

Input: committed pairs. Output: `columns/NAME/`, with the same rows as `pairs/`, in the same order.

    columns/clip_l14/000000000.parquet          row_id, and the added columns
    columns/clip_l14/manifests/000000000.json   written last; says which pairs file the columns belong to
    columns/clip_l14/model.json                 the model; for a score, it is score.json
"""
