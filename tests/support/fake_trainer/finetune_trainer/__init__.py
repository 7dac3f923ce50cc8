"""A fake of the trainer: ends as its test tells it to, within milliseconds. Named so wherever it is used."""
