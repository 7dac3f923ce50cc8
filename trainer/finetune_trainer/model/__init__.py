"""The base model and what is trained of it."""
