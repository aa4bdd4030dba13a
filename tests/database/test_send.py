import psycopg


def test_send_returns_the_id_of_the_row_that_it_stored(connection: psycopg.Connection) -> None:
    sent = connection.execute("select realtime.send('{\"a\": 1}', 'event', 'topic')").fetchone()

    stored = connection.execute("select id, payload from realtime.messages").fetchone()

    assert stored == (sent[0], {"a": 1, "id": str(sent[0])})
