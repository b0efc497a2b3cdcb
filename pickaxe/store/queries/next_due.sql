-- Seconds until something is due that nobody has been told of, at most :most.
SELECT least(:most, extract(epoch FROM least(
    (SELECT min(due) FROM pickaxe.step WHERE due IS NOT NULL AND sent_at IS NULL),
    (SELECT min(due) FROM pickaxe.run WHERE due IS NOT NULL AND sent_at IS NULL)
) - clock_timestamp())::float8) AS wait
