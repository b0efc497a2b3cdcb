-- New runs, from a JSON array. A run that is already there (same id, or same agent and key) is left alone. One that is
-- not delayed, nor due at once, is sent by its caller.
INSERT INTO pickaxe.run (
    id, agent, version, state, queue, priority, due, sent_at, deadline, input, root, idempotency_key, metadata)
SELECT n.id, n.agent, n.version, 'ready', n.queue, n.priority,
    clock_timestamp() + make_interval(secs => n.due_in),
    CASE WHEN n.delay = 0 AND n.due_in > 0 THEN clock_timestamp() END,
    clock_timestamp() + make_interval(secs => n.timeout), n.input, n.id, n.idempotency_key, n.metadata
FROM json_to_recordset(CAST(:runs AS json)) AS n(
    id uuid, agent text, version text, queue text, priority smallint, delay double precision, due_in double precision,
    timeout double precision, input text, idempotency_key text, metadata text)
ON CONFLICT DO NOTHING
RETURNING id
