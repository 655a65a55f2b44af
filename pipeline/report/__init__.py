"""Pictures and plots of what a job made, for people who choose thresholds by looking."""
