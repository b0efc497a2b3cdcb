-- Child runs that nobody wants any more and that may not have been told yet. Told again later, twice as late every
-- time: whoever tells them may die between this and that.
UPDATE pickaxe.step s SET
    due = clock_timestamp() + make_interval(secs => least(:cap, :base * power(2, least(s.dispatches, 20)))),
    dispatches = least(s.dispatches + 1, 1000)
FROM (
    SELECT run_id, key FROM pickaxe.step
    WHERE due <= clock_timestamp() AND sent_at IS NULL AND state = 'cancelling' LIMIT :batch FOR UPDATE SKIP LOCKED
) d LEFT JOIN pickaxe.run c ON c.parent_run = d.run_id AND c.parent_step = d.key
WHERE s.run_id = d.run_id AND s.key = d.key AND s.state = 'cancelling'
RETURNING c.id
