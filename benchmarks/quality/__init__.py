"""What tuning does to a real model, SmolLM2-135M: `make quality`. What is promised to be equal is, and what is to be
learned is learned; each figure beside what it was before.
"""
