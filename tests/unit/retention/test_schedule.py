import configparser
import re

import pytest
import yaml

from realtime_db.errors import MaintenanceError
from realtime_db.retention import schedule


def units(text: str) -> dict[str, configparser.ConfigParser]:
    """Path -> unit, as the comments above them say."""
    found = {}
    for path, body in re.findall(r"^# (/\S+)\n(.*?)(?=^# |\Z)", text, re.MULTILINE | re.DOTALL):
        found[path] = configparser.ConfigParser(interpolation=None)
        found[path].read_string(body)
    return found


def test_the_statement_for_pg_cron_quotes_what_it_is_given() -> None:
    assert schedule.pg_cron(database="it's") == (
        "select cron.schedule_in_database('realtime-db maintain', '7 * * * *', "
        "'select * from realtime.maintain()', 'it''s');\n"
    )


def test_the_statement_for_pg_cron_in_the_same_database_names_none() -> None:
    assert schedule.pg_cron(schedule="0 3 * * 1-5") == (
        "select cron.schedule('realtime-db maintain', '0 3 * * 1-5', "
        "'select * from realtime.maintain()');\n"
    )


@pytest.mark.parametrize(
    "bad", ["", "hourly", "* * * *", "* * * * * *", "7 * * * *\n", "a' b c d e"]
)
@pytest.mark.parametrize("render", [schedule.pg_cron, schedule.kubernetes])
def test_what_is_no_schedule_is_refused(bad: str, render: object) -> None:
    options = {"image": "i"} if render is schedule.kubernetes else {}

    with pytest.raises(MaintenanceError, match="is no schedule"):
        render(schedule=bad, **options)


def test_the_systemd_units_run_the_program_every_hour_and_hold_no_secret() -> None:
    both = units(
        schedule.systemd(executable="/opt/100%/realtime-db", environment_file="/etc/r.env")
    )

    service = both["/etc/systemd/system/realtime-db-maintain.service"]["Service"]
    timer = both["/etc/systemd/system/realtime-db-maintain.timer"]["Timer"]
    assert service["ExecStart"] == '"/opt/100%%/realtime-db" maintain'
    assert service["EnvironmentFile"] == "/etc/r.env"
    assert service["DynamicUser"] == "yes"
    assert timer["OnCalendar"] == "hourly"
    assert timer["Persistent"] == "yes"


def test_the_systemd_service_runs_as_the_user_that_is_asked_for() -> None:
    text = schedule.systemd(user="postgres")

    assert "User=postgres\n" in text
    assert "DynamicUser" not in text


def test_the_cronjob_takes_the_url_from_a_secret_and_never_runs_twice_at_once() -> None:
    job = yaml.safe_load(
        schedule.kubernetes(image="registry/realtime-db:1", secret="db", namespace="live")
    )

    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert job["metadata"] == {"name": "realtime-db-maintain", "namespace": "live"}
    assert job["spec"]["schedule"] == schedule.HOURLY
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert pod["restartPolicy"] == "Never"
    assert container["image"] == "registry/realtime-db:1"
    assert container["env"] == [
        {
            "name": "DATABASE_URL",
            "valueFrom": {"secretKeyRef": {"name": "db", "key": "DATABASE_URL"}},
        }
    ]


def test_a_name_cannot_break_out_of_its_place_in_the_yaml() -> None:
    image = 'a: "b"\n#c'

    job = yaml.safe_load(schedule.kubernetes(image=image))

    container = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == image
