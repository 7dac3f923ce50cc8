"""What `benchmarks.multi_gpu` measures, and how the processes of a case are started."""
