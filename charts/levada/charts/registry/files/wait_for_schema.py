"""Wait until the database has the schema of this MLflow: its server refuses to start on any other."""

import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

package = find_spec("mlflow")
if package is None or package.origin is None:
    sys.exit("MLflow is not in this image")
head = ScriptDirectory(str(Path(package.origin).parent / "store" / "db_migrations")).get_current_head()
engine = create_engine(os.environ["MLFLOW_BACKEND_STORE_URI"])
deadline = time.monotonic() + 900
said = ""
while True:
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        state = f"the schema is {found or 'not there'}, waiting for {head}: the migrate Job brings it"
    except OperationalError as error:
        found, state = None, f"PostgreSQL: {str(error.orig).strip()}"
    if found == head:
        break
    if time.monotonic() > deadline:
        sys.exit(f"gave up: {state}")
    if state != said:
        print(state, flush=True)
        said = state
    time.sleep(2)
