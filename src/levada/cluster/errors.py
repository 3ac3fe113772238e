"""The one error of this room that a user is meant to read."""

from levada.errors import UserError


class ClusterError(UserError):
    """A cluster cannot do what was asked; the message says what to do about it."""
