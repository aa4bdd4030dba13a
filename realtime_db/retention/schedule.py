"""How others run the maintenance: the texts for pg_cron, systemd and Kubernetes.

    pg_cron       a statement; runs `realtime.maintain()` within the database
    systemd       a service and a timer; run `realtime-db maintain`
    kubernetes    a CronJob; runs `realtime-db maintain`

Above: the command line, which prints them. Only `install_pg_cron` touches a database. Once an hour
is plenty, with seven days ahead: what a reader held up is done by the next run.
"""

from __future__ import annotations

import json
import re
from typing import Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from realtime_db.database import connect, conninfo
from realtime_db.errors import MaintenanceError, MissingRight
from realtime_db.retention.maintenance import check_owner

JOB_NAME: Final = "realtime-db maintain"
HOURLY: Final = "7 * * * *"  # not on the hour, when everybody's jobs run
_COMMAND: Final[LiteralString] = "select * from realtime.maintain()"
_CRON_FIELDS: Final = re.compile(r"[\d*/,\-A-Za-z]+( [\d*/,\-A-Za-z]+){4}")


def pg_cron(*, schedule: str = HOURLY, database: str | None = None) -> str:
    """The statement that schedules the maintenance with pg_cron; run again, it changes the job.

    Args:
        schedule: five fields; pg_cron reads them in GMT unless `cron.timezone` says otherwise.
        database: where realtime-db is, if pg_cron is in another one, which it then runs in.

    Raises:
        MaintenanceError: no schedule.
    """
    _check(schedule)
    name, when, command = (sql.Literal(text) for text in (JOB_NAME, schedule, _COMMAND))
    if database is None:
        statement = sql.SQL("select cron.schedule({}, {}, {});").format(name, when, command)
    else:
        statement = sql.SQL("select cron.schedule_in_database({}, {}, {}, {});").format(
            name, when, command, sql.Literal(database)
        )
    return statement.as_string() + "\n"


def pg_cron_elsewhere(database_url: str, cron_database: str) -> str:
    """The same for a pg_cron that may be in another database, with where to run it.

    Args:
        database_url: of the owner of `realtime.messages`; it is not connected to.
        cron_database: the database that pg_cron is in.

    Raises:
        ConnectionFailed: the URL cannot be read.
        MaintenanceError: the URL names no database.
    """
    database = conninfo_to_dict(conninfo(database_url)).get("dbname")
    if not database:
        raise MaintenanceError(
            "the database URL names no database",
            hint="It has to be that of realtime-db: postgresql://user@host/database",
        )
    here = str(database) == cron_database
    statement = pg_cron(database=None if here else str(database))
    return f"-- In database {cron_database}, as the owner of realtime.messages:\n{statement}"


def systemd(
    *,
    executable: str = "/usr/local/bin/realtime-db",
    environment_file: str = "/etc/realtime-db.env",
    user: str | None = None,
) -> str:
    """A service and a timer, each below a comment with the path it belongs to.

    Args:
        executable: absolute path of `realtime-db`.
        environment_file: holds `DATABASE_URL=…`, readable by root only.
        user: whom the service runs as; None is a user made for each run.
    """
    account = "DynamicUser=yes" if user is None else f"User={_unit(user)}"
    return f"""\
# /etc/systemd/system/realtime-db-maintain.service
[Unit]
Description=Partitions of realtime.messages: made ahead, dropped when old
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
EnvironmentFile={_unit(environment_file)}
ExecStart="{_unit(executable)}" maintain
TimeoutStartSec=15min
{account}
ProtectSystem=strict
ProtectHome=read-only
NoNewPrivileges=yes

# /etc/systemd/system/realtime-db-maintain.timer
[Unit]
Description=Partitions of realtime.messages, every hour

[Timer]
OnCalendar=hourly
RandomizedDelaySec=10min
Persistent=yes

[Install]
WantedBy=timers.target

# Then: systemctl daemon-reload && systemctl enable --now realtime-db-maintain.timer
"""


def kubernetes(
    *,
    image: str,
    secret: str = "realtime-db",  # noqa: S107  (a name)
    secret_key: str = "DATABASE_URL",  # noqa: S107
    schedule: str = HOURLY,
    namespace: str | None = None,
) -> str:
    """A CronJob.

    Args:
        image: has `realtime-db` on its PATH.
        secret: name of the Secret with the database URL.
        secret_key: the URL's key in it.
        schedule: five fields.
        namespace: None leaves it to `kubectl`.

    Raises:
        MaintenanceError: no schedule.
    """
    _check(schedule)
    placed = "" if namespace is None else f"\n  namespace: {_yaml(namespace)}"
    return f"""\
apiVersion: batch/v1
kind: CronJob
metadata:
  name: realtime-db-maintain{placed}
spec:
  schedule: {_yaml(schedule)}
  # A second one beside it would do no harm, and nothing: it finds the lock taken.
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 600
  successfulJobsHistoryLimit: 1
  failedJobsHistoryLimit: 3
  jobTemplate:
    spec:
      backoffLimit: 2
      activeDeadlineSeconds: 900
      template:
        spec:
          restartPolicy: Never
          automountServiceAccountToken: false
          securityContext:
            runAsNonRoot: true
            runAsUser: 65532
            seccompProfile:
              type: RuntimeDefault
          containers:
            - name: maintain
              image: {_yaml(image)}
              command: ["realtime-db", "maintain", "--json"]
              env:
                - name: DATABASE_URL
                  valueFrom:
                    secretKeyRef:
                      name: {_yaml(secret)}
                      key: {_yaml(secret_key)}
              securityContext:
                allowPrivilegeEscalation: false
                readOnlyRootFilesystem: true
                capabilities:
                  drop: ["ALL"]
              resources:
                requests:
                  cpu: 50m
                  memory: 64Mi
                limits:
                  memory: 256Mi
"""


async def install_pg_cron(
    database_url: str, *, schedule: str = HOURLY, cron_database: str | None = None
) -> int:
    """Schedules the maintenance with pg_cron; run again, it changes the job.

    Args:
        database_url: of the owner of `realtime.messages`, whom the job will run as.
        schedule: five fields.
        cron_database: the database that pg_cron is in, if it is not the URL's own.

    Returns:
        The number of the job in `cron.job`.

    Raises:
        ConnectionFailed: not reachable, or login refused.
        MaintenanceError: no pg_cron in that database, or no schedule.
        MissingRight: the role may not use pg_cron, or does not own `realtime.messages`.
        NotInstalled: no realtime-db in the URL's database.
    """
    async with connect(database_url) as connection:
        await check_owner(connection)
        database, role = connection.info.dbname, connection.info.user
    elsewhere = cron_database is not None and cron_database != database
    statement = pg_cron(schedule=schedule, database=database if elsewhere else None)
    url = conninfo(database_url, dbname=cron_database) if cron_database else database_url
    async with connect(url) as connection:
        await _check_pg_cron(connection, cron_database or database, role)
        try:
            cursor = await connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege as error:
            function = "schedule_in_database" if elsewhere else "schedule"
            raise MissingRight(
                f"role {role} may not call cron.{function}()",
                hint=f"As an administrator, in database {cron_database or database}: "
                f"grant execute on all functions in schema cron to {_quoted(role)};",
            ) from error
        except psycopg.Error as error:
            raise MaintenanceError(
                f"pg_cron did not take the job: {error.diag.message_primary or error}",
                hint="pg_cron 1.4 or newer is needed.",
            ) from error
        row = await cursor.fetchone()
        assert row
        return int(row[0])


async def _check_pg_cron(
    connection: psycopg.AsyncConnection[tuple[object, ...]], database: str, role: str
) -> None:
    cursor = await connection.execute(
        """
        select
            exists (select from pg_extension where extname = 'pg_cron'),
            exists (select from pg_available_extensions where name = 'pg_cron'),
            exists (
                select from pg_namespace
                where nspname = 'cron' and has_schema_privilege(oid, 'usage')
            )
        """
    )
    row = await cursor.fetchone()
    assert row
    installed, available, usable = row
    if not installed:
        raise MaintenanceError(
            f"database {database} has no extension pg_cron",
            hint=(
                "As an administrator: create extension pg_cron; It can only be in the database "
                "that cron.database_name names; if it is there already, give --cron-database."
                if available
                else "This server does not offer it. Use `realtime-db schedule --systemd` or "
                "`--kubernetes`, or `realtime-db maintain --every 1h`."
            ),
        )
    if not usable:
        raise MissingRight(
            f"role {role} may not use the schema cron of database {database}",
            hint=f"As an administrator: grant usage on schema cron to {_quoted(role)};",
        )


def _check(schedule: str) -> None:
    if not _CRON_FIELDS.fullmatch(schedule):
        raise MaintenanceError(
            f"{schedule!r} is no schedule",
            hint=f"Five fields: minute, hour, day, month, day of the week. Every hour: {HOURLY}",
        )


def _unit(text: str) -> str:
    """Text in a unit file, where % begins a specifier."""
    return text.replace("%", "%%")


def _yaml(text: str) -> str:
    """Text as a YAML scalar: a JSON string is one."""
    return json.dumps(text, ensure_ascii=False)


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string()
