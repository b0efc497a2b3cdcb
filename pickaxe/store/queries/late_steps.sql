-- Calls whose message was sent and not taken: see `late_runs`.
WITH oldest AS (
    SELECT m.queue, m.priority, min(coalesce(s.sent_at, r.sent_at)) AS sent_at
    FROM json_to_recordset(CAST(:waiting AS json)) AS m(queue text, priority smallint, run uuid, key text)
        LEFT JOIN pickaxe.step s ON s.run_id = m.run AND s.key = m.key
        LEFT JOIN pickaxe.run r ON r.id = m.run AND r.agent = m.key
    GROUP BY m.queue, m.priority
)
UPDATE pickaxe.step s SET
    due = clock_timestamp() + CASE WHEN d.waits
        THEN least(make_interval(secs => :cap), greatest(make_interval(secs => :base), d.since))
        ELSE make_interval(secs => least(:cap, :base * power(2, least(s.dispatches, 20)))) END,
    sent_at = CASE WHEN d.waits THEN s.sent_at ELSE clock_timestamp() END,
    dispatches = CASE WHEN d.waits THEN s.dispatches ELSE least(s.dispatches + 1, 1000) END, granted = false
FROM (
    SELECT l.run_id, l.key, coalesce(l.sent_at >= o.sent_at, false) AS waits, clock_timestamp() - o.sent_at AS since
    FROM (
        SELECT run_id, key, queue, priority, sent_at FROM pickaxe.step
        WHERE due <= clock_timestamp() AND sent_at IS NOT NULL AND state IN ('ready', 'unknown')
        ORDER BY due LIMIT :batch FOR UPDATE SKIP LOCKED
    ) l LEFT JOIN oldest o ON o.queue = l.queue AND o.priority = l.priority
) d JOIN pickaxe.run r ON r.id = d.run_id
WHERE s.run_id = d.run_id AND s.key = d.key AND s.state IN ('ready', 'unknown')
RETURNING s.run_id, s.key, s.name, s.queue, s.priority, s.attempt, s.options, s.input, s.strikes, r.root,
    false AS granted, d.waits
