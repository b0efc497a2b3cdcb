-- Calls whose message has to be sent: retries, throttled ones, and those whose outcome is to be asked for.
-- A slot is good for two seconds; after that the limit is asked again.
UPDATE pickaxe.step s SET
    due = clock_timestamp() + make_interval(secs => least(:cap, :base * power(2, least(s.dispatches, 20)))),
    sent_at = clock_timestamp(), dispatches = least(s.dispatches + 1, 1000), granted = false
FROM (
    SELECT run_id, key, granted AND due > clock_timestamp() - interval '2 seconds' AS granted
    FROM pickaxe.step WHERE due <= clock_timestamp() AND sent_at IS NULL AND state IN ('ready', 'unknown')
    ORDER BY due LIMIT :batch FOR UPDATE SKIP LOCKED
) d
JOIN pickaxe.run r ON r.id = d.run_id
WHERE s.run_id = d.run_id AND s.key = d.key AND s.state IN ('ready', 'unknown')
RETURNING s.run_id, s.key, s.name, s.queue, s.priority, s.attempt, s.options, s.input, s.strikes, r.root, d.granted
