"""What the operator and the trainer share, and the only place where they meet.

Types that cross the border (run configuration, progress, termination message, manifests), the table of exit
codes, the layout of an output, and the memory estimate. Nothing here is heavy: the operator and the command
line import it, and neither ever imports torch.
"""
