from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime_db.retention.plan import (
    Action,
    Kind,
    Partition,
    Policy,
    State,
    days_left,
    make_plan,
    partition_name,
)

DAY = timedelta(days=1)
TODAY = date(2026, 3, 10)

todays = st.dates(date(1900, 1, 1), date(2400, 12, 31))
policies = st.builds(Policy, st.integers(1, 40), st.integers(1, 40))


@st.composite
def situations(draw: st.DrawFn) -> tuple[date, list[Partition], Policy]:
    """Any partitions around a day; at most one is being detached, which is what Postgres allows."""
    today, policy = draw(todays), draw(policies)
    offsets = draw(st.sets(st.integers(-60, 60), max_size=40))
    pending = draw(st.sampled_from([None, *sorted(offsets)]))
    existing = []
    for offset in draw(st.permutations(sorted(offsets))):
        settled = st.sampled_from([State.ATTACHED, State.DETACHED])
        state = State.DETACHING if offset == pending else draw(settled)
        day = today + offset * DAY
        existing.append(Partition(partition_name(day), day, state, draw(st.booleans())))
    return today, existing, policy


def carried_out(existing: list[Partition], actions: tuple[Action, ...]) -> list[Partition]:
    """What is there after the actions; fails where Postgres would."""
    there = {partition.day: partition for partition in existing}
    for action in actions:
        found = there.get(action.day)
        match action.kind:
            case Kind.CREATE:
                assert found is None or found.state is State.DETACHED
                there[action.day] = Partition(action.name, action.day)
            case Kind.FINALIZE:
                assert found is not None
                assert found.state is State.DETACHING
                there[action.day] = Partition(
                    found.name, found.day, State.DETACHED, leaving=found.leaving
                )
            case Kind.DROP:
                assert found is not None
                if found.state is State.ATTACHED:
                    assert all(one.state is not State.DETACHING for one in there.values())
                assert found.state is not State.DETACHING
                del there[action.day]
    return list(there.values())


def kinds(actions: tuple[Action, ...]) -> list[tuple[str, str]]:
    return [(action.kind.value, action.name) for action in actions]


@given(situations())
def test_no_day_within_retention_is_dropped(
    situation: tuple[date, list[Partition], Policy],
) -> None:
    today, existing, policy = situation

    for action in make_plan(today, existing, policy):
        if action.kind is Kind.DROP:
            assert (today - action.day).days > policy.retention_days


@given(situations())
def test_what_was_detached_by_hand_is_not_dropped(
    situation: tuple[date, list[Partition], Policy],
) -> None:
    today, existing, policy = situation
    archives = {one.day for one in existing if one.state is State.DETACHED and not one.leaving}

    dropped = {one.day for one in make_plan(today, existing, policy) if one.kind is Kind.DROP}

    assert not dropped & archives


@given(situations())
def test_after_the_plan_today_and_all_days_ahead_are_covered(
    situation: tuple[date, list[Partition], Policy],
) -> None:
    today, existing, policy = situation

    after = carried_out(existing, make_plan(today, existing, policy))

    assert days_left(today, after) >= policy.days_ahead


@given(situations())
def test_after_the_plan_nothing_that_is_ours_is_past_retention(
    situation: tuple[date, list[Partition], Policy],
) -> None:
    today, existing, policy = situation

    after = carried_out(existing, make_plan(today, existing, policy))

    assert not [one for one in after if one.day < policy.keep_from(today) and not one.kept_by_hand]


@given(situations())
def test_a_plan_carried_out_leaves_nothing_to_plan(
    situation: tuple[date, list[Partition], Policy],
) -> None:
    today, existing, policy = situation

    after = carried_out(existing, make_plan(today, existing, policy))

    assert make_plan(today, after, policy) == ()


@given(situations())
def test_the_nearest_missing_day_is_made_before_anything_is_dropped(
    situation: tuple[date, list[Partition], Policy],
) -> None:
    today, existing, policy = situation

    actions = make_plan(today, existing, policy)

    order = [Kind.CREATE, Kind.FINALIZE, Kind.CREATE, Kind.DROP]
    for action in actions:
        while order[0] is not action.kind:
            order.pop(0)  # IndexError: an action out of order
    ahead = [one.day for one in actions if one.kind is Kind.CREATE and one.day >= today]
    pending = {one.day for one in existing if one.state is State.DETACHING}
    assert [day for day in ahead if day not in pending] == sorted(set(ahead) - pending)


@given(situations())
def test_days_left_counts_up_to_the_first_gap(
    situation: tuple[date, list[Partition], Policy],
) -> None:
    today, existing, _policy = situation
    attached = {one.day for one in existing if one.state is State.ATTACHED}

    left = days_left(today, existing)

    assert all(today + n * DAY in attached for n in range(left + 1))
    assert today + (left + 1) * DAY not in attached


@pytest.mark.parametrize(
    ("today", "first_dropped", "last_ahead"),
    [
        (date(2026, 3, 2), date(2026, 2, 26), date(2026, 3, 9)),
        (date(2024, 3, 2), date(2024, 2, 27), date(2024, 3, 9)),  # a leap year
        (date(2026, 12, 31), date(2026, 12, 27), date(2027, 1, 7)),
        (date(2027, 1, 1), date(2026, 12, 28), date(2027, 1, 8)),
    ],
)
def test_a_plan_at_the_end_of_a_month_or_year_knows_the_calendar(
    today: date, first_dropped: date, last_ahead: date
) -> None:
    existing = [Partition(partition_name(today - n * DAY), today - n * DAY) for n in range(5)]

    actions = make_plan(today, existing, Policy())

    assert [one.day for one in actions if one.kind is Kind.DROP] == [first_dropped]
    assert [one.day for one in actions if one.kind is Kind.CREATE][-1] == last_ahead


def test_a_database_that_slept_gets_today_first_and_loses_the_oldest_first() -> None:
    existing = [Partition(partition_name(day), day) for day in (TODAY - 20 * DAY, TODAY - 19 * DAY)]

    actions = make_plan(TODAY, existing, Policy(retention_days=3, days_ahead=1))

    assert kinds(actions) == [
        ("create", "messages_2026_03_10"),
        ("create", "messages_2026_03_11"),
        ("drop", "messages_2026_02_18"),
        ("drop", "messages_2026_02_19"),
    ]


def test_a_detach_of_a_day_ahead_is_finished_and_the_day_attached_again() -> None:
    existing = [Partition(partition_name(TODAY), TODAY, State.DETACHING)]

    actions = make_plan(TODAY, existing, Policy(retention_days=3, days_ahead=1))

    assert kinds(actions) == [
        ("create", "messages_2026_03_11"),
        ("finalize", "messages_2026_03_10"),
        ("create", "messages_2026_03_10"),
    ]


def test_a_day_that_retention_was_raised_for_is_attached_again() -> None:
    day = TODAY - 5 * DAY
    existing = [Partition(partition_name(day), day, State.DETACHED, leaving=True)]

    actions = make_plan(TODAY, existing, Policy(retention_days=7, days_ahead=1))

    assert ("create", "messages_2026_03_05") in kinds(actions)
