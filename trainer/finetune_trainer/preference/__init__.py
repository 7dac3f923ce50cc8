"""Training from preferences: DPO, ORPO and KTO (ADR 11)."""
