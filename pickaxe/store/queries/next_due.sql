-- Seconds until something is due, at most :most.
SELECT least(:most, extract(epoch FROM least(
    (SELECT min(due) FROM pickaxe.step WHERE due IS NOT NULL),
    (SELECT min(due) FROM pickaxe.run WHERE due IS NOT NULL)
) - clock_timestamp())::float8) AS wait
