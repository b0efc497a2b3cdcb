-- Runs that should be in the broker by now. Each is due again later, twice as late every time.
UPDATE pickaxe.run r SET
    due = clock_timestamp() + make_interval(secs => least(:cap, :base * power(2, least(r.dispatches, 20)))),
    dispatches = least(r.dispatches + 1, 1000)
FROM (
    SELECT id FROM pickaxe.run WHERE due <= clock_timestamp() AND state = 'ready'
    ORDER BY due LIMIT :batch FOR UPDATE SKIP LOCKED
) d
WHERE r.id = d.id AND r.state = 'ready'
RETURNING r.id, r.agent, r.queue, r.priority, r.root, r.wake
