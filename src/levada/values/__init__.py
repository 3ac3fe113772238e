"""The chart's values as typed models: what may be set, of which type, and what it means.

The models hold no defaults: those stand in the chart's `values.yaml` files alone, which a test keeps complete. From
both come `charts/levada/values.schema.json` and `docs/reference/values.md`, by `python -m levada.values write`.
"""
