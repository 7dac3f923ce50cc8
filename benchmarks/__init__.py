"""What is measured, and how: each module is one command. Results stand in benchmarks/results/ with their commands."""
