"""What the chart renders, held against the Kubernetes schemas and the chart's own rules; no cluster is needed."""
