"""From files of examples to token ids with labels: read, check, split, render, tokenise, write shards.

Two passes over the files keep memory bounded: the first checks every line and remembers 16 bytes an example, the second
tokenises into a spool on disk. Only then are the lengths known that decide where examples are cut.
"""
