SELECT * FROM pickaxe.reissue(:run, :key, :attempt, :owner, :wait, :reason, :history, :limit)
