SELECT * FROM pickaxe.resolve(
    :run, :key, :origin, :attempt, :state, :output, :error, CAST(:entry AS json), :redispatch)
