"""Sending a file to a pipeline: every row once, in bounded memory, and on from where it stopped.

A row's event id follows from the file's content, the pipeline and the row's number, and from nothing else. Whatever is
sent again (after a crash, from a copy of the file, in requests of another size) has the ids it had, and the lake takes
an id once.
"""

from levada.ingest.send.client import SendError
from levada.ingest.send.run import KINDS, Options, Progress, Summary, send

__all__ = ["KINDS", "Options", "Progress", "SendError", "Summary", "send"]
