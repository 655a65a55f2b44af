"""Any input becomes planned rows.

Files, folders, tars and lists of URLs enter; the plan and each shard's rows leave.
"""
