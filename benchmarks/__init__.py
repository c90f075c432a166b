"""What logging with mplog costs, side by side with other libraries: ``python -m benchmarks.compare``."""
