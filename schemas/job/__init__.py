"""Defines the sections of a build job: source, fetch, images, models, rules and run."""
