"""The product shown on real parts: `make demo`, `make cluster` and `make store`.

`seed` fills an object store and sets the cluster up as a platform team would, `background` keeps it running after the
command has ended, `follow` and `show` are what one sees.
"""
