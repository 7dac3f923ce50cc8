"""Manifests: pure functions from a typed job to the objects that run it."""
