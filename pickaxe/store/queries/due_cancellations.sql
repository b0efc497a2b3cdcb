-- Child runs that nobody wants any more and that have not been told yet. Told again later, if need be.
UPDATE pickaxe.step s SET due = clock_timestamp() + interval '30 seconds'
FROM (
    SELECT run_id, key FROM pickaxe.step
    WHERE due <= clock_timestamp() AND state = 'cancelling' LIMIT :batch FOR UPDATE SKIP LOCKED
) d JOIN pickaxe.run c ON c.parent_run = d.run_id AND c.parent_step = d.key
WHERE s.run_id = d.run_id AND s.key = d.key AND s.state = 'cancelling'
RETURNING c.id
