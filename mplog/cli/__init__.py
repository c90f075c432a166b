"""The command line: one file for each verb, and `main` that chooses."""
