-- A step whose tool no worker on its queue knows: tried again later, with a growing delay.
UPDATE pickaxe.step SET
    due = clock_timestamp() + make_interval(secs => least(:cap, :base * power(2, least(dispatches, 20)))),
    sent_at = NULL, dispatches = least(dispatches + 1, 1000), reason = :reason
WHERE run_id = :run AND key = :key AND state = 'ready'
RETURNING key
