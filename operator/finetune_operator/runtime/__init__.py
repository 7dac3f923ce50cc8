"""The loop: cache, queue, reconciler, resync. Async, without kopf and without HTTP."""
