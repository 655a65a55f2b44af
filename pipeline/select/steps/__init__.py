"""The steps of a select job, one file per kind. THE place to add a kind of step."""
