"""Recognizes rows that an earlier dataset or a list already has.

Input: datasets and lists of any size. Output: files of sorted 64-bit keys, which workers map into memory.
Imports `dataset` and the modules below it.
keys.py: turns values into keys. key_sorter.py, key_file.py: files of keys. text_list.py, table_list.py, datasets.py:
read values. filters.py: turns sources into key files. prepare.py: makes the filters of a build. open_filters.py: looks
rows up.
"""
