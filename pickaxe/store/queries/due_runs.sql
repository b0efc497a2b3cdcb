-- Runs whose message has to be sent. If it is lost, that is due after :base seconds.
UPDATE pickaxe.run r SET
    due = clock_timestamp() + make_interval(secs => least(:cap, :base * power(2, least(r.dispatches, 20)))),
    sent_at = clock_timestamp(), dispatches = least(r.dispatches + 1, 1000)
FROM (
    SELECT id FROM pickaxe.run WHERE due <= clock_timestamp() AND sent_at IS NULL AND state = 'ready'
    ORDER BY due LIMIT :batch FOR UPDATE SKIP LOCKED
) d
WHERE r.id = d.id AND r.state = 'ready'
RETURNING r.id, r.agent, r.queue, r.priority, r.root, r.wake
