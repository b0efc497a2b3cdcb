SELECT run_id, key, input FROM pickaxe.step WHERE kind = 'event' AND state = 'waiting' AND name = :key
