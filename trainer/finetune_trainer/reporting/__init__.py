"""What a run says while it trains: to the operator, Prometheus and trackers."""
