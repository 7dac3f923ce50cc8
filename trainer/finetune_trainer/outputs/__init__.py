"""What a run leaves behind: weights, reports, and the manifest that makes them valid."""
