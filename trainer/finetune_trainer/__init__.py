"""The trainer: prepare, fetch, train and collect, as containers of the operator's Jobs or on a laptop."""
