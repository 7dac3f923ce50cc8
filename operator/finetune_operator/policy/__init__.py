"""Decisions: pure functions over frozen values, with the clock passed in. No client, no framework, no event loop."""
