"""The status server that trainers post their progress to."""
