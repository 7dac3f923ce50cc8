"""The operator: watches FineTuneJobs and drives them to tuned weights in object storage."""
