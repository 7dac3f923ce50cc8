"""One training: its loop, and what happens between two steps."""
