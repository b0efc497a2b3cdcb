-- What reductions under suspicion have left behind; only those of the last minutes are ever looked at.
DELETE FROM pickaxe.suspect n USING (
    SELECT o.run_id, o.owner FROM pickaxe.suspect o JOIN pickaxe.run r ON r.id = o.run_id AND r.epoch <> o.epoch
    WHERE o.noted_at < clock_timestamp() - make_interval(secs => :keep) LIMIT :batch
) d WHERE n.run_id = d.run_id AND n.owner = d.owner
RETURNING n.run_id
