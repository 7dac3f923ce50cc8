"""Training passes as a GPU computes them fastest (ADR 18)."""
