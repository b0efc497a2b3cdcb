-- Timers whose time has come arrive at their runs, oldest first.
SELECT d.run_id, t.woken FROM (
    SELECT run_id, key FROM pickaxe.step
    WHERE due <= clock_timestamp() AND sent_at IS NULL AND state = 'waiting' AND kind = 'timer'
    ORDER BY due LIMIT :batch
) d, LATERAL pickaxe.settle(d.run_id, d.key, '{waiting}', NULL, NULL, 'succeeded', NULL, NULL, :redispatch) t
