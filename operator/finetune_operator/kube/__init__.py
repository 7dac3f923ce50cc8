"""The one place that talks to the Kubernetes API, behind the Protocol that `runtime` declares."""
