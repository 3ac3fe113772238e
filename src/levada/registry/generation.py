"""Which version is champion: one row a pipeline in PostgreSQL, which two gates cannot both change.

MLflow's alias is set by whoever comes last. Here a decision names the generation it was made in, and is taken only if
that is still the present one. The row carries the signed record, so that a gate which dies after it is finished by the
next; every record is kept in the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Engine,
    MetaData,
    Table,
    Text,
    create_engine,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.schema import CreateSchema

from levada.config import required
from levada.registry.errors import TrainingError

if TYPE_CHECKING:
    from levada.config import Settings
    from levada.evidence import Record

SCHEMA: Final = "registry"
_LOCK: Final = 0x6C657661  # one number for all who make the tables; with a run's digest, for the gates of that run
_WAIT: Final = "5min"  # a gate takes a minute, and Airflow gives it fifteen
# PostgreSQL asks after two hours whether a machine is still there; a gate on a dead one would keep its lock as long.
_ALIVE: Final = {"tcp_keepalives_idle": "20", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
_METADATA: Final = MetaData(schema=SCHEMA)
_GENERATION: Final = Table(
    "generation",
    _METADATA,
    Column("pipeline", Text, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("champion", Text),
    Column("decided_at", DateTime(timezone=True), nullable=False),
    Column("record", Text),
    Column("signature", Text),
)
_HISTORY: Final = Table(
    "history",
    _METADATA,
    Column("pipeline", Text, primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    Column("champion", Text),
    Column("decided_at", DateTime(timezone=True), nullable=False),
    Column("record", Text, nullable=False),
    Column("signature", Text, nullable=False),
)


@dataclass(frozen=True)
class State:
    """The present champion of a pipeline."""

    generation: int
    champion: str | None
    record: str | None
    """JSON of the record that made it champion; None where it was before there was this table."""
    signature: str | None


class Generations:
    """The rows of all pipelines."""

    def __init__(self, engine: Engine) -> None:
        """Use a database, making schema and tables where they are missing.

        Raises:
            TrainingError: PostgreSQL cannot be reached.
        """
        self._engine = engine
        try:
            with engine.begin() as connection:
                # CREATE … IF NOT EXISTS of two sessions at once can fail in one of them.
                connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
                connection.execute(CreateSchema(SCHEMA, if_not_exists=True))
                _METADATA.create_all(connection)
        except OperationalError as error:
            raise TrainingError(
                f"PostgreSQL cannot be reached, nothing was decided and the champion stays: {error.orig}"
            ) from error

    @classmethod
    def connect(cls, settings: Settings) -> Generations:
        """The rows in the database that holds the lake's catalogue."""
        url = required(settings.postgres, "LEVADA_POSTGRES__HOST").url()
        return cls(create_engine(f"{url}&connect_timeout=5", pool_pre_ping=True))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def alone(self, pipeline: str, run: str) -> Iterator[Callable[[], None]]:
        """Keep other gates of the same run away, or wait until they are done; the lock goes with its connection.

        Yields:
            What raises TrainingError if the lock was lost since.

        Raises:
            TrainingError: another gate of this run goes on for long.
        """
        with self._engine.connect() as connection:
            for name, value in {**_ALIVE, "lock_timeout": _WAIT}.items():
                connection.execute(select(func.set_config(name, value, True)))
            try:
                connection.execute(select(func.pg_advisory_xact_lock(_LOCK, func.hashtext(f"{pipeline} {run}"))))
            except OperationalError as error:
                raise TrainingError(
                    f"another gate of {pipeline} has been at run {run} for {_WAIT} or longer; nothing was decided: "
                    f"end it, or run this again when it is done: {error.orig}"
                ) from error

            def still() -> None:
                try:
                    connection.execute(select(1))
                except OperationalError as error:
                    raise TrainingError(
                        f"the connection to PostgreSQL was lost, and another gate may judge run {run} of {pipeline} "
                        "now: nothing was decided here, run it again"
                    ) from error

            yield still

    def state(self, pipeline: str, latest: Record | None) -> State:
        """The present state.

        Args:
            pipeline: its name.
            latest: the newest signed record in the registry. A row that is missing or behind it begins there: the
                table was lost, or restored from an older backup. It begins above the history all the same, whose
                generations are taken.
        """
        signed = latest.generation if latest is not None else 0
        taken = select(func.coalesce(func.max(_HISTORY.c.generation), 0)).where(_HISTORY.c.pipeline == pipeline)
        first = {
            "pipeline": pipeline,
            "generation": func.greatest(signed, taken.scalar_subquery()),
            "champion": latest.champion if latest is not None else None,
            "decided_at": latest.decided_at if latest is not None else text("now()"),
        }
        columns = [_GENERATION.c[name] for name in ("generation", "champion", "record", "signature")]
        with self._engine.begin() as connection:
            begin = insert(_GENERATION).values(first)
            connection.execute(
                begin.on_conflict_do_update(
                    index_elements=["pipeline"],
                    set_={**{name: begin.excluded[name] for name in first}, "record": None, "signature": None},
                    # Nobody signs a row of the history that is too much: it cannot end a decision that is in force.
                    where=(_GENERATION.c.generation < signed)
                    | (_GENERATION.c.record.is_(None) & (_GENERATION.c.generation < begin.excluded.generation)),
                )
            )
            row = connection.execute(select(*columns).where(_GENERATION.c.pipeline == pipeline)).one()
        return State(*row)

    def move(self, pipeline: str, record: Record, signature: str) -> bool:
        """Take a decision, if the generation before the record's is still the present one; whether it was taken.

        Raises:
            TrainingError: the history has that generation already, written by another hand.
        """
        values = {
            "generation": record.generation,
            "champion": record.champion,
            "decided_at": record.decided_at,
            "record": record.to_json(),
            "signature": signature,
        }
        still = (_GENERATION.c.pipeline == pipeline) & (_GENERATION.c.generation == record.generation - 1)
        try:
            with self._engine.begin() as connection:
                if connection.execute(update(_GENERATION).where(still).values(values)).rowcount != 1:
                    return False
                connection.execute(_HISTORY.insert().values(pipeline=pipeline, **values))
        except IntegrityError as error:
            raise TrainingError(
                f"registry.history has a row of {pipeline}, generation {record.generation}, though the decision in "
                "force is an earlier one: another hand wrote it, delete it; nothing was decided and what serves stays"
            ) from error
        return True

    def history(self, pipeline: str) -> list[State]:
        """Every state a decision brought about, oldest first."""
        columns = [_HISTORY.c[name] for name in ("generation", "champion", "record", "signature")]
        query = select(*columns).where(_HISTORY.c.pipeline == pipeline).order_by(_HISTORY.c.generation)
        with self._engine.connect() as connection:
            return [State(*row) for row in connection.execute(query)]
