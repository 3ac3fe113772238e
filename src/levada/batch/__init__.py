"""Airflow DAGs made from the declarations: a training schedule, and what people decide about its models."""

from __future__ import annotations

from typing import Final

SKIP_EXIT_CODE: Final = 75
"""A pod that exits so found nothing to do yet: its task is skipped, neither failed nor tried again."""
