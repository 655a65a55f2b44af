"""Withdraws rows from all files of a dataset, and proves that nothing is left.

Input: an output folder, and lists of uids, URLs, hosts or hashes. Output: new generations of the shards that contained
such rows; subsets, columns and all other files without them; and the ledger `withdrawn/`, which blocks them in every
later run. keys.py: canonical forms and their hashes. lists.py: files of values. ledger.py: the ledger. matching.py,
pdq.py: which rows are withdrawn. scan.py, next_generation.py, side_columns.py: shards. subsets.py, inputs.py,
exports.py, leftovers.py: everything else. search_folder.py, search_file.py, needles.py: the proof; notations.py:
escapes in text; windows.py, unpack.py, tensors.py: reading files of any size.
"""
