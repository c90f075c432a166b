"""What logging with mplog costs, side by side with what else there is: ``python -m benchmarks.compare``."""
