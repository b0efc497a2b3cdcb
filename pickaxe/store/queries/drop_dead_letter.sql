DELETE FROM pickaxe.dead_letter WHERE id = :id RETURNING id
