"""Levada: one Helm chart that turns a Kubernetes namespace into a working data-and-ML line."""

__version__ = "0.1.0"
