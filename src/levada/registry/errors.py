"""Why a training or a gate stops."""

from __future__ import annotations

from levada.errors import UserError


class TrainingError(UserError):
    """Training or the gate cannot go on; the message says why and what to do."""


class Unreadable(TrainingError):
    """A file of the champion is lost, or MLflow does not give it."""


class NotEnoughData(TrainingError):
    """There is not yet enough in the lake to train on: nothing is wrong, a later run may do."""
