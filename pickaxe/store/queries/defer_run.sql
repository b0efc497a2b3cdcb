-- A run whose agent no worker on its queue knows: tried again later, with a growing delay.
UPDATE pickaxe.run SET
    due = clock_timestamp() + make_interval(secs => least(:cap, :base * power(2, least(dispatches, 20)))),
    sent_at = NULL, dispatches = least(dispatches + 1, 1000), reason = :reason
WHERE id = :run AND state = 'ready'
RETURNING id
