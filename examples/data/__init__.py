"""The data that the examples train on, made from fixed seeds: `python -m examples.data FOLDER` writes all files."""
