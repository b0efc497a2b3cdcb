-- What the message of a run that was woken says.
SELECT id, agent, queue, priority, root, wake FROM pickaxe.run WHERE id = :run
