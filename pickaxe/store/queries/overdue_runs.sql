-- Runs past their agent's timeout.
SELECT id FROM pickaxe.run WHERE deadline <= clock_timestamp() ORDER BY deadline LIMIT :batch
