-- What an operator wants to know at a glance. Late: due for half a minute and still not taken.
SELECT current_setting('server_version') AS version,
    extract(epoch FROM clock_timestamp())::float8 AS now,
    (SELECT count(*) FROM pickaxe.run WHERE state = 'ready'
        AND due < clock_timestamp() - interval '30 seconds') AS late_runs,
    (SELECT count(*) FROM pickaxe.step WHERE state = 'ready'
        AND due < clock_timestamp() - interval '30 seconds') AS late_steps,
    (SELECT count(*) FROM pickaxe.run WHERE state IN ('ready', 'waiting')
        AND deadline < clock_timestamp() - interval '30 seconds') AS overdue_runs,
    (SELECT count(*) FROM pickaxe.run WHERE state = 'paused') AS paused,
    (SELECT count(*) FROM pickaxe.step WHERE state IN ('unknown', 'quarantined')) AS aside,
    (SELECT count(*) FROM pickaxe.dead_letter) AS dead_letters
