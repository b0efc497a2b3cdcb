SELECT name, input, created_at FROM pickaxe.step
WHERE run_id = :run AND key = :key AND kind = 'event' AND state = 'waiting'
