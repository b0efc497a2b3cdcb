-- Runs whose message was sent and not taken. :waiting are some messages in each queue, the oldest among them. What was
-- sent after those waits behind them, and is looked at again when they would have waited twice as long; the message of
-- anything else is lost, and sent again, later every time.
WITH oldest AS (
    SELECT m.queue, m.priority, min(coalesce(s.sent_at, r.sent_at)) AS sent_at
    FROM json_to_recordset(CAST(:waiting AS json)) AS m(queue text, priority smallint, run uuid, key text)
        LEFT JOIN pickaxe.step s ON s.run_id = m.run AND s.key = m.key
        LEFT JOIN pickaxe.run r ON r.id = m.run AND r.agent = m.key
    GROUP BY m.queue, m.priority
)
UPDATE pickaxe.run r SET
    due = clock_timestamp() + CASE WHEN d.waits
        THEN least(make_interval(secs => :cap), greatest(make_interval(secs => :base), d.since))
        ELSE make_interval(secs => least(:cap, :base * power(2, least(r.dispatches, 20)))) END,
    sent_at = CASE WHEN d.waits THEN r.sent_at ELSE clock_timestamp() END,
    dispatches = CASE WHEN d.waits THEN r.dispatches ELSE least(r.dispatches + 1, 1000) END
FROM (
    SELECT l.id, coalesce(l.sent_at >= o.sent_at, false) AS waits, clock_timestamp() - o.sent_at AS since
    FROM (
        SELECT id, queue, priority, sent_at FROM pickaxe.run
        WHERE due <= clock_timestamp() AND sent_at IS NOT NULL AND state = 'ready'
        ORDER BY due LIMIT :batch FOR UPDATE SKIP LOCKED
    ) l LEFT JOIN oldest o ON o.queue = l.queue AND o.priority = l.priority
) d
WHERE r.id = d.id AND r.state = 'ready'
RETURNING r.id, r.agent, r.queue, r.priority, r.root, r.wake, d.waits
