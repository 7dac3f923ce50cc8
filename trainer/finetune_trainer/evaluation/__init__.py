"""What is made of the answers and losses of the base and the tuned model: scores, differences, gates."""
