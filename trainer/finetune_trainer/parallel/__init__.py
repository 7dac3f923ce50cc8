"""Several processes that train one model: ranks, and what ZeRO shares out between them."""
