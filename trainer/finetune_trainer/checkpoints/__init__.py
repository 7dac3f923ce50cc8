"""Where a run can go on from."""
