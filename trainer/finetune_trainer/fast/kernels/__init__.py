"""What a training pass computes other than transformers and PEFT do: attention, gated MLPs, NF4 and the loss.

Every operation is right on its own on a CPU, in plain torch, and is what the tests compare with; on a GPU the same
operation runs Triton kernels (`triton_*.py`, imported there alone) and torch's own attention kernels.
"""
