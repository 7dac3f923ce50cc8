"""`finetune`: run, validate and estimate jobs from a terminal. Never imports torch."""
