SELECT agent, state, output, error, reason FROM pickaxe.run WHERE id = :run
