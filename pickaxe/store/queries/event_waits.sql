-- Those with a due time have not looked back yet.
SELECT run_id, key, name, input, created_at, due IS NOT NULL AS looks_back FROM pickaxe.step WHERE kind = 'event' AND state = 'waiting' AND name = :key
