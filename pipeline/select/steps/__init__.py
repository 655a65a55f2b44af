"""The steps of a select job, one file per kind. New kinds of steps go here."""
